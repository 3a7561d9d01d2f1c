/* Capture of disks: of an overlay's generations, and of files. What was captured, laid over the parent, is what was
 * written. */
#include <errno.h>

#include "capture_world.h"
#include "random.h"
#include "unit.h"

static int read_base(void *context, uint64_t offset, size_t length, void *to)
{
    const struct parent *parent = context;
    memcpy(to, parent->content + offset, length);
    return 0;
}

/* Writes in all ways, some of them without effect, and says what the disk holds then. */
static void write_disk(struct overlay *overlay, uint8_t *content, uint64_t *random)
{
    CLEANUP_FREE uint8_t *data = malloc(64 * PAGE);
    for (int i = 0; i < 60; i++) {
        size_t first = random_next(random) % PAGES;
        size_t length = MIN(1 + random_next(random) % 64, PAGES - first) * PAGE;
        size_t offset = first * PAGE;
        uint64_t how = random_next(random) % 5;
        if (how == 0)
            offset += random_next(random) % length;
        length = MIN(length, PAGES * PAGE - offset);
        if (how == 1) {
            assert_int_equal(overlay_zero(overlay, offset, length), 0);
            memset(content + offset, 0, length);
            continue;
        }
        if (how == 2)
            memset(data, 0, length);
        else if (how == 3)
            memcpy(data, content + offset, length);
        else
            random_fill(data, ROUND_UP(length, sizeof(uint64_t)), random);
        assert_int_equal(overlay_write(overlay, offset, length, data), 0);
        memcpy(content + offset, data, length);
    }
}

/* What was written up to one generation, while the sandbox goes on writing to the next. */
static void disks_are_captured_at_each_generation(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    uint64_t random = 5;
    struct parent parent;
    capture_make_parent(*state, &random, &parent);
    CLEANUP_FREE uint8_t *content = malloc(PAGES * PAGE);
    memcpy(content, parent.content, PAGES * PAGE);
    struct overlay *overlay;
    assert_int_equal(overlay_open(*state, PAGES * PAGE, read_base, &parent, &overlay, &err), 0);
    for (int i = 0; i < 5; i++) {
        write_disk(overlay, content, &random);
        CLEANUP_FREE uint8_t *expected = malloc(PAGES * PAGE);
        memcpy(expected, content, PAGES * PAGE);
        uint64_t generation;
        assert_int_equal(overlay_freeze(overlay, &generation, &err), 0);
        write_disk(overlay, content, &random);
        struct capture_disk source = {.parent = {&parent.map, parent.fd}};
        assert_int_equal(overlay_view_open(*state, PAGES * PAGE, generation, &source.view, &err), 0);
        struct captured captured;
        capture(layers, &(struct subject){.disk = &source}, LAYER_FRAME_PAGES_DISK, &captured);
        overlay_view_close(source.view);
        CLEANUP_FREE uint8_t *image = capture_read_image(layers, &parent, PAGES, &captured);
        assert_memory_equal(image, expected, PAGES * PAGE);
        capture_check_thrift(layers, &captured, parent.content, expected);
        capture_result_done(&captured.result);
    }
    overlay_close(overlay);
    capture_drop_parent(&parent);
}

static void an_unwritten_disk_has_no_changes(void **state)
{
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    struct capture_disk source = {.view = NULL};
    struct captured captured;
    capture(layers, &(struct subject){.disk = &source}, LAYER_FRAME_PAGES_DISK, &captured);
    assert_int_equal(captured.result.change_count, 0);
    capture_result_done(&captured.result);
}

static void a_sparse_file_is_captured_as_a_whole(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    uint64_t random = 11;
    struct parent parent;
    capture_make_parent(*state, &random, &parent);
    /* Zeros that are data to the file system. */
    memset(parent.content + 50 * PAGE, 0, 40 * PAGE);
    assert_int_equal(io_pwrite_full(parent.fd, parent.content + 50 * PAGE, 40 * PAGE, (off_t)(50 * PAGE)), 0);
    struct subject subject = {.file = parent.fd, .file_bytes = PAGES * PAGE};
    struct captured captured;
    capture(layers, &subject, LAYER_FRAME_PAGES_DISK, &captured);
    CLEANUP_FREE uint8_t *image = capture_read_image(layers, NULL, PAGES, &captured);
    assert_memory_equal(image, parent.content, PAGES * PAGE);
    CLEANUP_FREE uint8_t *nothing = calloc(PAGES, PAGE);
    capture_check_thrift(layers, &captured, nothing, image);
    capture_result_done(&captured.result);
    subject.file_bytes += PAGE;
    assert_int_equal(try_capture(layers, &subject, 4, &captured, &err), -EINVAL);
    subject.file_bytes = PAGE + 1;
    assert_int_equal(try_capture(layers, &subject, 4, &captured, &err), -EINVAL);
    capture_drop_parent(&parent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(disks_are_captured_at_each_generation),
        UNIT_TEST(an_unwritten_disk_has_no_changes),
        UNIT_TEST(a_sparse_file_is_captured_as_a_whole),
    };
    return cmocka_run_group_tests_name("image-capture-disk", tests, NULL, NULL);
}
