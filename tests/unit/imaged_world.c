#include "imaged_world.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "unit.h"

static void expect_ok(int r, const struct error *err)
{
    if (r < 0)
        fail_msg("%s (%d)", error_message(err), r);
}

uint32_t world_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

size_t world_pages(enum image_kind kind)
{
    return kind == IMAGE_MEMORY ? WORLD_MEMORY_PAGES : WORLD_DISK_PAGES;
}

/* Half of it can be compressed. */
void world_fill_page(uint8_t page[static IMAGE_PAGE_BYTES], uint32_t number)
{
    memset(page, 0, IMAGE_PAGE_BYTES);
    if (number == 0)
        return;
    for (size_t i = 0; i < IMAGE_PAGE_BYTES / 2; i++)
        page[i] = (uint8_t)world_random(&number);
}

bool world_is_page(const uint8_t *bytes, uint32_t number)
{
    uint8_t page[IMAGE_PAGE_BYTES];
    world_fill_page(page, number);
    return memcmp(bytes, page, sizeof(page)) == 0;
}

char *world_path(const struct world *world, const char *format, ...)
{
    CLEANUP_FREE char *name = NULL;
    va_list arguments;
    va_start(arguments, format);
    int n = vasprintf(&name, format, arguments);
    va_end(arguments);
    char *path = NULL;
    assert_true(n >= 0 && asprintf(&path, "%s/%s", world->directory, name) >= 0);
    return path;
}

void world_start(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool restarted;
    expect_ok(imaged_start(world->directory, getenv("IMAGED"), &world->imaged, &restarted, &err), &err);
}

void world_open(struct world *world)
{
    strcpy(world->directory, "/var/tmp/test-imaged-XXXXXX");
    assert_non_null(mkdtemp(world->directory));
    assert_int_equal(chmod(world->directory, 0711), 0); /* those who play VMMs open files by their paths */
    static const char *const directories[] = {"layers", "snapshots", "vms"};
    for (size_t i = 0; i < ARRAY_SIZE(directories); i++) {
        CLEANUP_FREE char *path = world_path(world, "%s", directories[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    world_start(world);
}

void world_close(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    expect_ok(imaged_stop(world->imaged, &err), &err);
    imaged_close(world->imaged);
    expect_ok(io_remove_tree(world->directory), &err);
}

int world_setup(void **state)
{
    struct world *world = calloc(1, sizeof(*world));
    assert_non_null(world);
    world_open(world);
    *state = world;
    return 0;
}

int world_teardown(void **state)
{
    world_close(*state);
    free(*state);
    return 0;
}

/* Frames of pages whose extents are added to a list. */
struct packer {
    struct layer_writer *writer;
    struct frame_encoder *encoder;
    uint32_t layer;
    uint8_t *bytes;
    uint32_t numbers[LAYER_FRAME_PAGES_MAX];
    unsigned filled;
    struct map_extent *extents;
    size_t count;
};

static void pack(struct packer *packer, struct error *err)
{
    uint32_t slot;
    if (packer->filled == 0)
        return;
    expect_ok(layer_writer_add(packer->writer, packer->encoder, packer->bytes, packer->filled, &slot, err), err);
    for (unsigned i = 0; i < packer->filled; i++)
        packer->extents[packer->count++] = (struct map_extent){packer->numbers[i], 1, packer->layer, slot + i};
    packer->filled = 0;
}

/* Every 16th page goes to the second layer, so that frames have holes and neighbours elsewhere. */
static bool in_layer(uint32_t page, uint32_t layer)
{
    return (page % 16 == 5) == (layer == 1);
}

static void write_image(struct world_snapshot *model, struct snapshot *snapshot, enum image_kind kind,
                        struct layer_writer *const writers[2], struct error *err)
{
    struct packer packer = {.bytes = malloc((size_t)LAYER_FRAME_PAGES_MAX * IMAGE_PAGE_BYTES),
                            .extents = calloc(WORLD_PAGES_MAX, sizeof(*packer.extents))};
    assert_true(packer.bytes != NULL && packer.extents != NULL);
    for (uint32_t layer = 0; layer < 2; layer++) {
        packer.writer = writers[layer];
        packer.layer = layer;
        expect_ok(frame_encoder_new(packer.writer, &packer.encoder, err), err);
        for (uint32_t page = 0; page < world_pages(kind); page++) {
            if (model->pages[kind][page] == 0 || !in_layer(page, layer))
                continue;
            world_fill_page(packer.bytes + (size_t)packer.filled * IMAGE_PAGE_BYTES, model->pages[kind][page]);
            packer.numbers[packer.filled++] = page;
            if (packer.filled == layer_writer_frame_pages(packer.writer))
                pack(&packer, err);
        }
        pack(&packer, err);
        frame_encoder_free(packer.encoder);
    }
    size_t count = map_changes_sort(packer.extents, packer.count);
    expect_ok(image_map_apply(NULL, world_pages(kind), packer.extents, count, &snapshot->maps[kind], err), err);
    free(packer.bytes);
    free(packer.extents);
}

static void describe(struct snapshot_manifest *manifest, const char *id)
{
    *manifest = (struct snapshot_manifest){
        .id = strdup(id),
        .parent_id = strdup(""),
        .sandbox_id = strdup(""),
        .template_id = strdup("aaaaaaaaaaaaaaaaaaaa"),
        .vmm = strdup("none 1"),
        .accelerator = strdup("tcg"),
        .kernel = strdup("6.1"),
        .machine_revision = 1,
        .cpus = 1,
        .memory_bytes = (uint64_t)WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES,
        .disk_bytes = (uint64_t)WORLD_DISK_PAGES * IMAGE_PAGE_BYTES,
        .created_ns = 1,
    };
}

void world_write_snapshot(struct world *world, struct world_snapshot *model)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *layers = world_path(world, "layers");
    CLEANUP_CLOSE int layers_fd = open(layers, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct layer_writer *writers[2];
    CLEANUP(snapshot_done) struct snapshot snapshot = {.device_state = strdup("state"), .device_state_bytes = 5};
    describe(&snapshot.manifest, model->id);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t index;
        expect_ok(layer_writer_open(layers_fd, LAYER_CODEC_ZSTD, i == 0 ? 4 : 16, &writers[i], &err), &err);
        strcpy(model->layers[i], layer_writer_id(writers[i]));
        expect_ok(snapshot_add_layer(&snapshot, model->layers[i], 0, &index, &err), &err);
    }
    write_image(model, &snapshot, IMAGE_MEMORY, writers, &err);
    write_image(model, &snapshot, IMAGE_DISK, writers, &err);
    for (unsigned i = 0; i < 2; i++)
        expect_ok(layer_writer_finish(writers[i], &snapshot.layers[i].bytes, &err), &err);
    void *bytes;
    size_t length;
    expect_ok(manifest_encode(&snapshot, &bytes, &length, &err), &err);
    CLEANUP_FREE char *directory = world_path(world, "snapshots/%s", model->id);
    CLEANUP_FREE char *manifest = world_path(world, "snapshots/%s/manifest", model->id);
    assert_int_equal(mkdir(directory, 0700), 0);
    expect_ok(io_write_file_atomic(manifest, bytes, length, 0600), &err);
    free(bytes);
}

void world_snapshot(struct world *world, uint32_t seed, struct world_snapshot *ret)
{
    *ret = (struct world_snapshot){0};
    assert_int_equal(random_name(ret->id, LAYER_ID_LENGTH), 0);
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        for (size_t page = 0; page < world_pages(kind);) {
            bool zero = world_random(&seed) % 4 == 0;
            for (uint32_t run = world_random(&seed) % 40 + 1; run > 0 && page < world_pages(kind); run--)
                ret->pages[kind][page++] = zero ? 0 : world_random(&seed) | 1;
        }
    world_write_snapshot(world, ret);
}

void world_make_vm(struct world *world, const char *vm, const struct world_snapshot *snapshot, char **ret_directory)
{
    CLEANUP_FREE char *directory = world_path(world, "vms/%s", vm);
    CLEANUP_FREE char *from = world_path(world, "snapshots/%s/manifest", snapshot->id);
    CLEANUP_FREE char *to = world_path(world, "vms/%s/manifest", vm);
    assert_int_equal(mkdir(directory, 0700), 0);
    assert_int_equal(link(from, to), 0);
    *ret_directory = TAKE_PTR(directory);
}

void world_attach_again(struct world *world, const char *vm, struct imaged_files *ret)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *directory = world_path(world, "vms/%s", vm);
    struct imaged_attach attach = {.vm = vm, .vm_directory = directory, .uid = WORLD_UID, .gid = WORLD_GID};
    expect_ok(imaged_attach(world->imaged, &attach, ret, &err), &err);
}

void world_attach(struct world *world, const char *vm, const struct world_snapshot *snapshot,
                  struct imaged_files *ret)
{
    CLEANUP_FREE char *directory = NULL;
    world_make_vm(world, vm, snapshot, &directory);
    world_attach_again(world, vm, ret);
}

void world_attach_new(struct world *world, const char *vm, uint32_t seed, struct world_snapshot *ret_snapshot,
                      struct imaged_files *ret)
{
    world_snapshot(world, seed, ret_snapshot);
    world_attach(world, vm, ret_snapshot, ret);
}

void world_detach(struct world *world, const char *vm, struct imaged_files *files)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    imaged_files_done(files);
    expect_ok(imaged_detach(world->imaged, vm, &err), &err);
}

int64_t world_statistic(struct world *world, const char *name)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *statistics;
    expect_ok(imaged_statistics(world->imaged, &statistics, &err), &err);
    const json_t *value = json_object_get(statistics, name);
    assert_true(json_is_integer(value));
    int64_t number = json_integer_value(value);
    json_decref(statistics);
    return number;
}
