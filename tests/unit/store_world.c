#include "store_world.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "vmm/vmm.h"

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

void model_change(struct model *model, unsigned count, uint32_t *seed)
{
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        for (unsigned i = 0; i < count; i++) {
            uint32_t page = next_random(seed) % MODEL_PAGES;
            model->pages[kind][page] = next_random(seed) % 8 == 0 ? 0 : next_random(seed) | 1;
        }
    }
}

/* Half of it can be compressed. */
static void fill_page(uint8_t page[static IMAGE_PAGE_BYTES], uint32_t number)
{
    memset(page, 0, IMAGE_PAGE_BYTES);
    if (number == 0)
        return;
    for (size_t i = 0; i < IMAGE_PAGE_BYTES / 2; i++)
        page[i] = (uint8_t)next_random(&number);
}

void model_make_vm(const char *vm_directory)
{
    static const char *const names[] = {VMM_FILE_KERNEL, VMM_FILE_INITRD};
    if (mkdir(vm_directory, 0700) < 0)
        abort();
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = NULL;
        if (asprintf(&path, "%s/%s", vm_directory, names[i]) < 0)
            abort();
        CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0440);
        if (fd < 0 || io_write_full(fd, names[i], strlen(names[i])) < 0)
            abort();
    }
}

struct frame {
    struct layer_writer *writer;
    struct frame_encoder *encoder;
    uint8_t *pages;
    unsigned filled;
    struct map_extent changes[MODEL_PAGES];
    size_t change_count;
};

static int end_frame(struct frame *frame, struct error *err)
{
    uint32_t slot = 0;
    if (frame->filled == 0)
        return 0;
    int r = layer_writer_add(frame->writer, frame->encoder, frame->pages, frame->filled, &slot, err);
    for (size_t i = 0, left = frame->filled; left > 0; i++) {
        struct map_extent *change = &frame->changes[frame->change_count - 1 - i];
        if (change->layer != MAP_LAYER_ZERO)
            change->slot = slot + (uint32_t)--left;
    }
    frame->filled = 0;
    return r;
}

static int add_changes(struct frame *frame, const uint32_t *parent, const uint32_t *pages, uint32_t index,
                       struct error *err)
{
    int r = 0;
    for (uint32_t page = 0; r == 0 && page < MODEL_PAGES; page++) {
        if (pages[page] == parent[page])
            continue;
        uint32_t layer = pages[page] == 0 ? MAP_LAYER_ZERO : index;
        frame->changes[frame->change_count++] = (struct map_extent){.page = page, .count = 1, .layer = layer};
        if (layer == MAP_LAYER_ZERO)
            continue;
        fill_page(frame->pages + frame->filled * IMAGE_PAGE_BYTES, pages[page]);
        if (++frame->filled == layer_writer_frame_pages(frame->writer))
            r = end_frame(frame, err);
    }
    return r == 0 ? end_frame(frame, err) : r;
}

static int write_image(struct snapshot_writer *writer, enum image_kind kind, const uint32_t *parent,
                       const uint32_t *pages, struct snapshot *snapshot, struct error *err)
{
    CLEANUP(image_map_done) struct image_map map = snapshot->maps[kind];
    snapshot->maps[kind] = (struct image_map){0};
    struct frame frame = {0};
    uint32_t index = 0;
    int r = snapshot_writer_layer(writer, kind, &frame.writer, err);
    if (r == 0)
        r = snapshot_add_layer(snapshot, layer_writer_id(frame.writer), 0, &index, err);
    if (r == 0)
        r = frame_encoder_new(frame.writer, &frame.encoder, err);
    if (r < 0)
        return r;
    frame.pages = malloc((size_t)layer_writer_frame_pages(frame.writer) * IMAGE_PAGE_BYTES);
    r = add_changes(&frame, parent, pages, index, err);
    if (r == 0)
        r = image_map_apply(map.pages > 0 ? &map : NULL, MODEL_PAGES, frame.changes, frame.change_count,
                            &snapshot->maps[kind], err);
    frame_encoder_free(frame.encoder);
    free(frame.pages);
    return r;
}

static void describe(struct snapshot *snapshot, const char *parent_id)
{
    snapshot_manifest_done(&snapshot->manifest);
    snapshot->manifest = (struct snapshot_manifest){
        .id = strdup(""),
        .parent_id = strdup(parent_id != NULL ? parent_id : ""),
        .sandbox_id = strdup("s"),
        .template_id = strdup("t"),
        .vmm = strdup("qemu 7.2"),
        .accelerator = strdup("tcg"),
        .kernel = strdup("6.1"),
        .disk_consistency = strdup(""),
        .machine_revision = 1,
        .cpus = 2,
        .memory_bytes = MODEL_PAGES * IMAGE_PAGE_BYTES,
        .disk_bytes = MODEL_PAGES * IMAGE_PAGE_BYTES,
        .created_ns = 99,
    };
    free(snapshot->device_state);
    snapshot->device_state = strdup("device state");
    snapshot->device_state_bytes = strlen("device state");
}

int model_write(struct store *store, struct snapshot_writer *writer, const char *vm_directory,
                const char *parent_id, const struct model *parent, const struct model *model,
                struct snapshot *snapshot, struct error *err)
{
    int r = parent_id != NULL ? store_load(store, parent_id, snapshot, err) : 0;
    if (r < 0)
        return r;
    describe(snapshot, parent_id);
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++)
        r = write_image(writer, kind, parent->pages[kind], model->pages[kind], snapshot, err);
    if (r == 0)
        r = snapshot_writer_link(writer, vm_directory, VMM_FILE_KERNEL, err);
    return r == 0 ? snapshot_writer_link(writer, vm_directory, VMM_FILE_INITRD, err) : r;
}

int model_commit(struct store *store, const char *vm_directory, const char *parent_id, const struct model *parent,
                 const struct model *model, char **ret_id, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = NULL;
    int r = store_begin(store, &writer, err);
    if (r < 0)
        return r;
    r = model_write(store, writer, vm_directory, parent_id, parent, model, &snapshot, err);
    if (r < 0) {
        store_abort(writer);
        return r;
    }
    r = store_commit(writer, &snapshot, err);
    if (r == 0)
        *ret_id = strdup(snapshot.manifest.id);
    return r;
}

static int check_image(struct store *store, struct snapshot *snapshot, enum image_kind kind, const uint32_t *pages,
                       struct error *err)
{
    struct frame_buffer *buffer = NULL;
    CLEANUP_FREE uint8_t *bytes = malloc(MODEL_PAGES * IMAGE_PAGE_BYTES);
    uint8_t expected[IMAGE_PAGE_BYTES];
    struct image *image = NULL;
    int r = image_open(store_layers_fd(store), snapshot, kind, &image, err);
    if (r < 0)
        return r;
    r = frame_buffer_new(&buffer, err);
    if (r == 0)
        r = image_read(image, 0, MODEL_PAGES, buffer, bytes, err);
    for (size_t page = 0; r == 0 && page < MODEL_PAGES; page++) {
        fill_page(expected, pages[page]);
        if (memcmp(bytes + page * IMAGE_PAGE_BYTES, expected, IMAGE_PAGE_BYTES) != 0)
            r = error_set(err, EILSEQ, "page %zu of image %d is not what was written", page, (int)kind);
    }
    frame_buffer_free(buffer);
    image_close(image);
    return r;
}

int model_check(struct store *store, const char *id, const struct model *model, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = store_verify(store, id, err);
    if (r == 0)
        r = store_load(store, id, &snapshot, err);
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++)
        r = check_image(store, &snapshot, kind, model->pages[kind], err);
    return r;
}
