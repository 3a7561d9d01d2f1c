/*
 * export-snapshot: writes a snapshot's images into a directory as what a bare QEMU takes: `memory` and `rootfs`,
 * plain sparse files that are then in the page cache, and `state`. Prints as JSON what the images consist of:
 *
 *     {"memory": {"bytes": …, "mapped_bytes": … (pages that aren't zero), "layers": [{"id": …, "bytes": …}, …]},
 *      "disk": …}
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "store/image.h"
#include "store/store.h"

#define BLOCK_PAGES 256u

static const char *const file_names[IMAGE_KINDS] = {[IMAGE_MEMORY] = "memory", [IMAGE_DISK] = "rootfs"};
static const char *const kind_names[IMAGE_KINDS] = {[IMAGE_MEMORY] = "memory", [IMAGE_DISK] = "disk"};

static char *join(const char *directory, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static int create(const char *directory, const char *name, struct error *err)
{
    CLEANUP_FREE char *path = join(directory, name);
    if (path == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? error_errno(err, "cannot make %s", path) : fd;
}

static int copy_extent(struct image *image, const struct map_extent *extent, struct frame_buffer *buffer,
                       void *block, int to, struct error *err)
{
    for (uint32_t done = 0; done < extent->count;) {
        uint32_t count = MIN(extent->count - done, BLOCK_PAGES);
        uint64_t page = extent->page + (uint64_t)done;
        int r = image_read(image, page, count, buffer, block, err);
        if (r < 0)
            return r;
        r = io_pwrite_full(to, block, (size_t)count * IMAGE_PAGE_BYTES, (off_t)(page * IMAGE_PAGE_BYTES));
        if (r < 0)
            return error_code(err, r, "cannot write the image");
        done += count;
    }
    return 0;
}

static int copy_image(struct image *image, int to, struct error *err)
{
    const struct image_map *map = image_map(image);
    CLEANUP_FREE void *block = malloc((size_t)BLOCK_PAGES * IMAGE_PAGE_BYTES);
    struct frame_buffer *buffer = NULL;
    if (block == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = frame_buffer_new(&buffer, err);
    if (r == 0 && ftruncate(to, (off_t)(map->pages * IMAGE_PAGE_BYTES)) < 0)
        r = error_errno(err, "cannot set the image's size");
    for (size_t i = 0; r == 0 && i < map->count; i++)
        r = copy_extent(image, &map->extents[i], buffer, block, to, err);
    frame_buffer_free(buffer);
    /* So that writing it back disturbs nothing that is measured. */
    if (r == 0 && fsync(to) < 0)
        r = error_errno(err, "cannot write the image");
    return r;
}

static void print_image(const struct snapshot *snapshot, enum image_kind kind)
{
    const struct image_map *map = &snapshot->maps[kind];
    uint64_t pages = 0;
    for (size_t i = 0; i < map->count; i++)
        pages += map->extents[i].count;
    printf("%s\"%s\": {\"bytes\": %" PRIu64 ", \"mapped_bytes\": %" PRIu64 ", \"extents\": %zu, \"layers\": [",
           kind == IMAGE_MEMORY ? "{" : ", ", kind_names[kind], map->pages * IMAGE_PAGE_BYTES,
           pages * IMAGE_PAGE_BYTES, map->count);
    const char *separator = "";
    for (uint32_t layer = 0; layer < snapshot->layer_count; layer++)
        for (size_t i = 0; i < map->count; i++)
            if (map->extents[i].layer == layer) {
                printf("%s{\"id\": \"%s\", \"bytes\": %" PRIu64 "}", separator, snapshot->layers[layer].id,
                       snapshot->layers[layer].bytes);
                separator = ", ";
                break;
            }
    fputs(kind == IMAGE_MEMORY ? "]}" : "]}}\n", stdout);
}

static int export_image(int layers_fd, struct snapshot *snapshot, enum image_kind kind, const char *directory,
                        struct error *err)
{
    struct image *image = NULL;
    CLEANUP_CLOSE int to = create(directory, file_names[kind], err);
    int r = to < 0 ? to : image_open(layers_fd, snapshot, kind, &image, err);
    if (r < 0)
        return r;
    r = copy_image(image, to, err);
    image_close(image);
    return r;
}

static int export_state(const struct snapshot *snapshot, const char *directory, struct error *err)
{
    CLEANUP_CLOSE int to = create(directory, "state", err);
    if (to < 0)
        return to;
    int r = io_write_full(to, snapshot->device_state, snapshot->device_state_bytes);
    return r < 0 ? error_code(err, r, "cannot write the device state") : 0;
}

static int export_snapshot(const char *data, const char *id, const char *directory, struct error *err)
{
    CLEANUP_FREE char *layers = join(data, "layers");
    CLEANUP_FREE char *manifest = NULL;
    if (layers == NULL || asprintf(&manifest, "%s/snapshots/%s/" STORE_FILE_MANIFEST, data, id) < 0) {
        manifest = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    CLEANUP_CLOSE int layers_fd = open(layers, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (layers_fd < 0)
        return error_errno(err, "cannot open %s", layers);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = manifest_read(manifest, MANIFEST_ALL, &snapshot, err);
    if (r == 0) {
        print_image(&snapshot, IMAGE_MEMORY);
        print_image(&snapshot, IMAGE_DISK);
        r = export_state(&snapshot, directory, err);
    }
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++)
        r = export_image(layers_fd, &snapshot, kind, directory, err);
    return r;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fputs("Usage: export-snapshot DATA SNAPSHOT DIRECTORY\n", stderr);
        return 2;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (export_snapshot(argv[1], argv[2], argv[3], &err) == 0)
        return 0;
    fprintf(stderr, "export-snapshot: %s\n", error_message(&err));
    return 1;
}
