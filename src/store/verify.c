#include <errno.h>
#include <unistd.h>

#include "store/store_internal.h"
#include "vmm/vmm.h"

static int verify_extent(struct layer *layer, const struct map_extent *extent, struct error *err)
{
    unsigned frame_pages = layer_frame_pages(layer);
    uint64_t end = (uint64_t)extent->slot + extent->count;
    for (uint64_t slot = extent->slot; slot < end;) {
        uint64_t frame = slot / frame_pages;
        unsigned pages = 0;
        uint32_t stored = 0;
        if (frame < layer_frame_count(layer)) {
            int r = layer_frame_info(layer, (uint32_t)frame, &pages, &stored, err);
            if (r < 0)
                return r;
        }
        uint64_t next = MIN(end, (frame + 1) * frame_pages);
        if (next > frame * frame_pages + pages)
            return error_set(
                err, EBADMSG, "page %u of an image is said to be in slot %llu of layer %s, which has none",
                (unsigned)(extent->page + (slot - extent->slot)), (unsigned long long)slot, layer_id(layer));
        slot = next;
    }
    return 0;
}

static int verify_layer(struct store *store, const struct snapshot *snapshot, uint32_t index, struct error *err)
{
    struct layer *layer = NULL;
    int r = layer_open(store->layers_fd, snapshot->layers[index].id, snapshot->layers[index].bytes, &layer, err);
    if (r < 0)
        return r;
    r = layer_verify(layer, err);
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        const struct image_map *map = &snapshot->maps[kind];
        for (size_t i = 0; r == 0 && i < map->count; i++)
            if (map->extents[i].layer == index)
                r = verify_extent(layer, &map->extents[i], err);
    }
    layer_close(layer);
    return r;
}

static int verify_files(struct store *store, const char *id, struct error *err)
{
    static const char *const names[] = {VMM_FILE_KERNEL, VMM_FILE_INITRD};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = store_path(err, "%s/%s/%s", store->snapshots, id, names[i]);
        if (path == NULL)
            return -ENOMEM;
        if (access(path, R_OK) < 0)
            return error_errno(err, "cannot read %s", path);
    }
    return 0;
}

int store_verify(struct store *store, const char *id, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = store_load(store, id, &snapshot, err);
    if (r == 0)
        r = verify_files(store, id, err);
    for (uint32_t i = 0; r == 0 && i < snapshot.layer_count; i++)
        r = verify_layer(store, &snapshot, i, err);
    return r < 0 ? error_wrap(err, r, "verifying snapshot %s", id) : 0;
}
