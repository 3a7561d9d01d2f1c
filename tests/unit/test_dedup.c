/* dedup_examine on stores made for it: every number is known. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "cli/dedup.h"
#include "random.h"
#include "store/manifest.h"

#define PAGE        4096u
#define IMAGE_PAGES 1024u /* two of the largest blocks */
#define LIMIT       ((uint64_t)64 << 20)

static int layers_fd;

static int make_store(void **state)
{
    if (unit_make_directory(state) < 0)
        return -1;
    CLEANUP_FREE char *layers = unit_path(*state, "layers");
    CLEANUP_FREE char *snapshots = unit_path(*state, "snapshots");
    assert_int_equal(io_make_directories(layers, 0700), 0);
    assert_int_equal(io_make_directories(snapshots, 0700), 0);
    layers_fd = open(layers, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return layers_fd < 0 ? -1 : 0;
}

static int remove_store(void **state)
{
    close(layers_fd);
    return unit_remove_directory(state);
}

/* A page that nothing compresses and that differs for each seed. */
static void fill_page(uint8_t page[PAGE], uint64_t seed)
{
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < PAGE; i++)
        page[i] = (uint8_t)(random_next(&x) >> 32);
}

/* Pages seed, seed + 1, … at `page`, in a layer of their own. */
struct content {
    uint32_t page;
    uint32_t count;
    uint64_t seed;
};

static void write_layer(struct snapshot *snapshot, enum image_kind kind, const struct content *content)
{
    struct layer_writer *writer;
    struct frame_encoder *encoder;
    assert_int_equal(layer_writer_open(layers_fd, LAYER_CODEC_ZSTD, 1, &writer, NULL), 0);
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    uint32_t index;
    uint64_t bytes;
    assert_int_equal(snapshot_add_layer(snapshot, layer_writer_id(writer), 0, &index, NULL), 0);
    struct map_extent change = {content->page, content->count, index, 0};
    for (uint32_t i = 0; i < content->count; i++) {
        uint8_t page[PAGE];
        uint32_t slot;
        fill_page(page, content->seed + i);
        assert_int_equal(layer_writer_add(writer, encoder, page, 1, &slot, NULL), 0);
        assert_int_equal(slot, i);
    }
    frame_encoder_free(encoder);
    assert_int_equal(layer_writer_finish(writer, &bytes, NULL), 0);
    snapshot->layers[index].bytes = bytes;
    struct image_map map;
    assert_int_equal(image_map_apply(&snapshot->maps[kind], IMAGE_PAGES, &change, 1, &map, NULL), 0);
    image_map_done(&snapshot->maps[kind]);
    snapshot->maps[kind] = map;
}

static char *copy(const char *text)
{
    char *result = strdup(text);
    assert_non_null(result);
    return result;
}

static void describe(struct snapshot *snapshot, const char *id, const char *parent)
{
    snapshot->manifest = (struct snapshot_manifest){
        .id = copy(id),
        .parent_id = copy(parent),
        .sandbox_id = copy(""),
        .template_id = copy("t"),
        .vmm = copy("qemu 7.2"),
        .accelerator = copy("tcg"),
        .kernel = copy("6.1"),
        .machine_revision = 1,
        .cpus = 1,
        .memory_bytes = (uint64_t)IMAGE_PAGES * PAGE,
        .disk_bytes = (uint64_t)IMAGE_PAGES * PAGE,
        .created_ns = 1,
    };
}

static void commit(const char *directory, const struct snapshot *snapshot)
{
    void *bytes;
    size_t length;
    assert_int_equal(manifest_encode(snapshot, &bytes, &length, NULL), 0);
    char path[512];
    snprintf(path, sizeof(path), "%s/snapshots/%s", directory, snapshot->manifest.id);
    assert_int_equal(io_make_directories(path, 0700), 0);
    strncat(path, "/manifest", sizeof(path) - strlen(path) - 1);
    assert_int_equal(io_write_file_atomic(path, bytes, length, 0600), 0);
    free(bytes);
}

/* A snapshot of a memory that is its parent's (NULL: zero) with `content` over it, and a disk of zeros. */
static void add_snapshot(const char *directory, const char *id, const char *parent, const struct content *content)
{
    struct snapshot snapshot = {0};
    if (parent != NULL) {
        char path[512];
        snprintf(path, sizeof(path), "%s/snapshots/%s/manifest", directory, parent);
        assert_int_equal(manifest_read(path, MANIFEST_ALL, &snapshot, NULL), 0);
        snapshot_manifest_done(&snapshot.manifest);
    } else {
        for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
            assert_int_equal(image_map_apply(NULL, IMAGE_PAGES, NULL, 0, &snapshot.maps[kind], NULL), 0);
        snapshot.device_state = copy("state");
        snapshot.device_state_bytes = 5;
    }
    describe(&snapshot, id, parent != NULL ? parent : "");
    if (content != NULL)
        write_layer(&snapshot, IMAGE_MEMORY, content);
    commit(directory, &snapshot);
    snapshot_done(&snapshot);
}

#define ROOT  "root0000000000000000"
#define LEFT  "left0000000000000000"
#define RIGHT "right000000000000000"
#define GRAND "grand000000000000000"

/*
 * ROOT has pages 1 … 512 at 0. LEFT adds 64 new pages; RIGHT the same 64 elsewhere; GRAND, below LEFT, has them
 * once more, and 16 of ROOT's, at places where the parent has others or none.
 */
static void make_family(const char *directory)
{
    add_snapshot(directory, ROOT, NULL, &(struct content){0, 512, 1});
    add_snapshot(directory, LEFT, ROOT, &(struct content){512, 64, 1001});
    add_snapshot(directory, RIGHT, ROOT, &(struct content){768, 64, 1001});
    add_snapshot(directory, GRAND, LEFT, &(struct content){640, 64, 1001});
    add_snapshot(directory, "grand100000000000000", GRAND, &(struct content){0, 16, 17});
}

static void examine(const char *directory, char *const *ids, size_t count, uint64_t limit,
                    struct dedup_report *report)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (dedup_examine(directory, ids, count, limit, report, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void counts_a_family(void **state)
{
    make_family(*state);
    struct dedup_report report;
    examine(*state, NULL, 0, LIMIT, &report);
    assert_int_equal(report.count, 5);
    assert_int_equal(report.passes, 1);
    assert_string_equal(report.ids[0], ROOT);
    const struct dedup_image *memory = &report.images[IMAGE_MEMORY];
    assert_int_equal(memory->bytes, 5 * IMAGE_PAGES * PAGE);
    assert_int_equal(memory->stored_pages, 512 + 3 * 64 + 16);

    const struct dedup_row *pages = &memory->rows[0];
    assert_int_equal(pages->fresh.count, 512 + 3 * 64 + 16);
    assert_int_equal(pages->fresh.bytes, pages->fresh.count * PAGE);
    /* ROOT's, LEFT's and RIGHT's: GRAND has nothing that its chain doesn't know. */
    assert_int_equal(pages->chain.count, 512 + 2 * 64);
    assert_int_equal(pages->all.count, 512 + 64);
    assert_int_equal(pages->all.compressed_bytes, pages->all.bytes); /* they don't compress */
    assert_int_equal(pages->zero_blocks, 5 * IMAGE_PAGES - 512 - 576 - 576 - 640 - 640);
    assert_int_equal(pages->inherited_blocks, 512 + 512 + 576 + 640 - 16);

    const struct dedup_row *large =
        &memory->rows[3]; /* 64 pages: all of the above is aligned to them but 16 pages */
    assert_int_equal(large->fresh.count, 8 + 3 + 1);
    assert_int_equal(large->chain.count, 8 + 2 + 1);
    assert_int_equal(large->all.count, 8 + 1 + 1);
    const struct dedup_row *largest = &memory->rows[4];
    assert_int_equal(largest->fresh.count, 1 + 3 + 1);
    assert_int_equal(largest->all.count, 1 + 3 + 1);

    const struct dedup_image *disk = &report.images[IMAGE_DISK];
    assert_int_equal(disk->rows[0].zero_blocks, 5 * IMAGE_PAGES);
    assert_int_equal(disk->rows[0].fresh.count, 0);
    assert_int_equal(disk->stored_bytes, 0);
    dedup_report_done(&report);
}

static void chooses_by_prefix(void **state)
{
    make_family(*state);
    struct dedup_report report;
    char *some[] = {(char *)"ri", (char *)"left", (char *)"left0"};
    examine(*state, some, 3, LIMIT, &report);
    assert_int_equal(report.count, 2);
    /* Their parent isn't looked at, so both chains have it. */
    const struct dedup_row *pages = &report.images[IMAGE_MEMORY].rows[0];
    assert_int_equal(pages->fresh.count, 2 * 576);
    assert_int_equal(pages->chain.count, 2 * 576);
    assert_int_equal(pages->all.count, 576);
    dedup_report_done(&report);

    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *ambiguous[] = {(char *)"grand"};
    assert_int_equal(dedup_examine(*state, ambiguous, 1, LIMIT, &report, &err), -EINVAL);
    char *absent[] = {(char *)"absent"};
    assert_int_equal(dedup_examine(*state, absent, 1, LIMIT, &report, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "absent"));
}

static void several_passes_find_the_same(void **state)
{
    make_family(*state);
    struct dedup_report whole;
    struct dedup_report parts;
    examine(*state, NULL, 0, LIMIT, &whole);
    examine(*state, NULL, 0, 1024 * 24, &parts);
    assert_int_equal(whole.passes, 1);
    assert_true(parts.passes > 1);
    assert_memory_equal(whole.images, parts.images, sizeof(whole.images));
    dedup_report_done(&whole);
    dedup_report_done(&parts);
}

/* Parents that name each other, as only damage can make them. */
static void circles_end(void **state)
{
    struct snapshot snapshot = {0};
    const char *const ids[] = {LEFT, RIGHT, GRAND};
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
            assert_int_equal(image_map_apply(NULL, IMAGE_PAGES, NULL, 0, &snapshot.maps[kind], NULL), 0);
        snapshot.device_state = copy("state");
        snapshot.device_state_bytes = 5;
        describe(&snapshot, ids[i], ids[(i + 1) % ARRAY_SIZE(ids)]);
        write_layer(&snapshot, IMAGE_MEMORY, &(struct content){0, 4, 1});
        commit(*state, &snapshot);
        snapshot_done(&snapshot);
    }
    struct dedup_report report;
    examine(*state, NULL, 0, LIMIT, &report);
    assert_int_equal(report.count, 3);
    assert_int_equal(report.images[IMAGE_MEMORY].rows[0].fresh.count, 12);
    assert_int_equal(report.images[IMAGE_MEMORY].rows[0].chain.count, 4);
    dedup_report_done(&report);
}

/* A layer that isn't there, though its snapshot is: not an endless search for a store that stays. */
static void missing_layer_ends(void **state)
{
    make_family(*state);
    char path[512];
    struct snapshot head = {0};
    snprintf(path, sizeof(path), "%s/snapshots/" ROOT "/manifest", (char *)*state);
    assert_int_equal(manifest_read(path, MANIFEST_HEAD, &head, NULL), 0);
    assert_int_equal(unlinkat(layers_fd, head.layers[0].id, 0), 0);
    struct dedup_report report;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(dedup_examine(*state, NULL, 0, LIMIT, &report, &err), -EAGAIN);
    assert_non_null(strstr(error_message(&err), head.layers[0].id));
    snapshot_done(&head);
}

static void says_what_is_wrong(void **state)
{
    make_family(*state);
    struct dedup_report report;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *nowhere = unit_path(*state, "nowhere");
    assert_int_equal(dedup_examine(nowhere, NULL, 0, LIMIT, &report, &err), -ENOENT);
    assert_non_null(err.hint);
    char path[512];
    snprintf(path, sizeof(path), "%s/snapshots/" LEFT "/manifest", (char *)*state);
    assert_int_equal(io_write_file_atomic(path, "no manifest", 11, 0600), 0);
    assert_int_equal(dedup_examine(*state, NULL, 0, LIMIT, &report, &err), -EBADMSG);
    assert_non_null(strstr(error_message(&err), LEFT));
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, make_store, remove_store)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(counts_a_family), TEST(chooses_by_prefix),  TEST(several_passes_find_the_same),
        TEST(circles_end),     TEST(missing_layer_ends), TEST(says_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
