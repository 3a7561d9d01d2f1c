/* An overlay's files: whose they are, which there are when, and what is done about those that are wrong. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "overlay_world.h"

static void keeps_its_files_to_itself(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    mode_t mask = umask(0);
    uint8_t byte = 1;
    assert_int_equal(overlay_write(overlay, 0, 1, &byte), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    umask(mask);
    static const char *const names[] = {"overlay.1.data", "overlay.1.map"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = unit_path(*state, names[i]);
        struct stat status;
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_mode & 07777, 0600);
    }
    /* A file that somebody put in the next generation's place is left alone. */
    assert_int_equal(freeze(overlay), 1);
    CLEANUP_FREE char *victim = unit_path(*state, "victim");
    CLEANUP_FREE char *link = unit_path(*state, "overlay.2.data");
    assert_int_equal(symlink(victim, link), 0);
    assert_int_equal(overlay_write(overlay, 0, 1, &byte), -EEXIST);
    assert_int_equal(access(victim, F_OK), -1);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(overlay_write(overlay, 0, 1, &byte), 0);
    overlay_close(overlay);
}

static void forgets_what_was_never_flushed(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    uint64_t value = 77;
    assert_int_equal(overlay_write(overlay, BLOCK, sizeof(value), &value), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    assert_int_equal(freeze(overlay), 1);
    value = 78;
    assert_int_equal(overlay_write(overlay, BLOCK, sizeof(value), &value), 0);
    overlay_close(overlay);
    CLEANUP_FREE char *data = unit_path(*state, "overlay.2.data");
    CLEANUP_FREE char *map = unit_path(*state, "overlay.2.map");
    CLEANUP_FREE char *unnamed = unit_path(*state, "overlay.2.map.tmp");
    assert_int_equal(access(data, F_OK), 0);
    assert_int_equal(access(map, F_OK), -1);
    assert_int_equal(access(unnamed, F_OK), 0);
    overlay = open_with(*state, DISK, read_numbers, NULL);
    assert_int_equal(access(data, F_OK), -1);
    assert_int_equal(access(unnamed, F_OK), -1);
    assert_int_equal(overlay_read(overlay, BLOCK, sizeof(value), &value), 0);
    assert_int_equal(value, 77);
    overlay_close(overlay);
}

static void expect_refusal(const char *directory, int code, const char *name)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay *overlay = NULL;
    assert_int_equal(overlay_open(directory, DISK, read_numbers, NULL, &overlay, &err), code);
    assert_non_null(strstr(error_message(&err), name));
    CLEANUP_ERROR struct error view_err = ERROR_INIT;
    struct overlay_view *view = NULL;
    assert_int_equal(overlay_view_open(directory, DISK, 2, &view, &view_err), code);
    assert_non_null(strstr(error_message(&view_err), name));
}

/* Generations 1 and 2, synced. */
static void two_generations(const char *directory)
{
    struct overlay *overlay = open_with(directory, DISK, read_numbers, NULL);
    for (uint64_t i = 0; i < 2; i++) {
        uint8_t block[BLOCK];
        memset(block, (int)(50 + i), BLOCK);
        assert_int_equal(overlay_write(overlay, (10 + i) * BLOCK, BLOCK, block), 0);
        assert_int_equal(overlay_zero(overlay, 600 * BLOCK, BLOCK), 0);
        assert_int_equal(freeze(overlay), i + 1);
    }
    overlay_close(overlay);
}

static void refuses_damaged_maps(void **state)
{
    two_generations(*state);
    CLEANUP_FREE char *map = unit_path(*state, "overlay.2.map");
    CLEANUP_CLOSE int fd = open(map, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t was;
        uint8_t damaged = (uint8_t)(3 + i % 253);
        assert_int_equal(pread(fd, &was, 1, i), 1);
        assert_int_equal(pwrite(fd, &damaged, 1, i), 1);
        expect_refusal(*state, -EBADMSG, "overlay.2.map");
        assert_int_equal(pwrite(fd, &was, 1, i), 1);
    }
    overlay_close(open_with(*state, DISK, read_numbers, NULL));
    static const off_t lengths[] = {0, 1, BLOCKS - 1, BLOCKS + 1, 1 << 20};
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        assert_int_equal(ftruncate(fd, lengths[i]), 0);
        expect_refusal(*state, -EBADMSG, "overlay.2.map");
    }
}

static void refuses_wrong_files(void **state)
{
    two_generations(*state);
    CLEANUP_FREE char *data = unit_path(*state, "overlay.1.data");
    CLEANUP_FREE char *aside = unit_path(*state, "aside");
    assert_int_equal(truncate(data, DISK - 1), 0);
    expect_refusal(*state, -EBADMSG, "overlay.1.data");
    assert_int_equal(truncate(data, DISK), 0);
    overlay_close(open_with(*state, DISK, read_numbers, NULL));
    assert_int_equal(rename(data, aside), 0);
    expect_refusal(*state, -EBADMSG, "overlay.1.data");
    assert_int_equal(symlink(aside, data), 0);
    expect_refusal(*state, -EBADMSG, "overlay.1.data");
    assert_int_equal(unlink(data), 0);
    assert_int_equal(mkfifo(data, 0600), 0);
    expect_refusal(*state, -EBADMSG, "overlay.1.data");
    assert_int_equal(unlink(data), 0);
    assert_int_equal(rename(aside, data), 0);
    CLEANUP_FREE char *map = unit_path(*state, "overlay.2.map");
    assert_int_equal(unlink(map), 0);
    assert_int_equal(mkdir(map, 0700), 0);
    expect_refusal(*state, -EBADMSG, "overlay.2.map");
}

static void allows_gaps_and_other_names(void **state)
{
    two_generations(*state);
    static const char *const moves[][2] = {{"overlay.2.data", "overlay.18446744073709551613.data"},
                                           {"overlay.2.map", "overlay.18446744073709551613.map"}};
    for (size_t i = 0; i < ARRAY_SIZE(moves); i++) {
        CLEANUP_FREE char *from = unit_path(*state, moves[i][0]);
        CLEANUP_FREE char *to = unit_path(*state, moves[i][1]);
        assert_int_equal(rename(from, to), 0);
    }
    static const char *const others[] = {
        "overlay.01.map", "overlay.0.data",    "overlay.-1.data",
        "overlay.x.map",  "overlay.1.map.bak", "overlay. 1.map",
        "manifest",       "overlay.",          "overlay.99999999999999999999999.map"};
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        CLEANUP_FREE char *path = unit_path(*state, others[i]);
        assert_int_equal(io_write_file_atomic(path, "x", 1, 0600), 0);
    }
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    uint8_t byte;
    assert_int_equal(overlay_read(overlay, 11 * BLOCK, 1, &byte), 0);
    assert_int_equal(byte, 51);
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        CLEANUP_FREE char *path = unit_path(*state, others[i]);
        assert_int_equal(access(path, F_OK), 0);
    }
    assert_int_equal(overlay_write(overlay, 0, 1, &byte), 0);
    assert_int_equal(freeze(overlay), UINT64_MAX - 1);
    overlay_close(overlay);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay_view *view;
    assert_int_equal(overlay_view_open(*state, DISK, 7, &view, &err), -ENOENT);
    assert_int_equal(overlay_view_open(*state, DISK, 1, &view, &err), 0);
    uint64_t block = 0;
    uint64_t count;
    enum overlay_block kind;
    assert_int_equal(overlay_view_next(view, &block, &count, &kind), 1);
    assert_true(block == 10 && count == 1 && kind == OVERLAY_DATA);
    uint8_t bytes[2 * BLOCK];
    assert_int_equal(overlay_view_read(view, 10, 2, bytes, &err), -EINVAL);
    assert_int_equal(overlay_view_read(view, 600, 1, bytes, &err), -EINVAL);
    assert_int_equal(overlay_view_read(view, BLOCKS, 1, bytes, &err), -EINVAL);
    overlay_view_close(view);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(keeps_its_files_to_itself),   UNIT_TEST(forgets_what_was_never_flushed),
        UNIT_TEST(refuses_damaged_maps),        UNIT_TEST(refuses_wrong_files),
        UNIT_TEST(allows_gaps_and_other_names),
    };
    return cmocka_run_group_tests_name("overlay-files", tests, NULL, NULL);
}
