#include "store/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Extents on either side that are looked at for pages of the same frame. */
#define MATES_EXTENTS 64u

struct image {
    struct image_map map;
    struct layer **layers; /* by the index in the map's extents; NULL: the map doesn't use it */
    uint32_t layer_count;
};

static int open_layers(struct image *image, int layers_fd, const struct snapshot *snapshot,
                       const struct image_map *map, struct error *err)
{
    image->layer_count = snapshot->layer_count;
    image->layers = calloc(image->layer_count + (size_t)1, sizeof(struct layer *));
    if (image->layers == NULL)
        return error_set(err, ENOMEM, "no memory for an image");
    for (size_t i = 0; i < map->count; i++) {
        const struct map_extent *extent = &map->extents[i];
        const struct snapshot_layer *named = &snapshot->layers[extent->layer];
        struct layer **layer = &image->layers[extent->layer];
        int r = *layer == NULL ? layer_open(layers_fd, named->id, named->bytes, layer, err) : 0;
        if (r < 0)
            return r;
        if ((extent->slot + (uint64_t)extent->count - 1) / layer_frame_pages(*layer) >= layer_frame_count(*layer))
            return error_set(err, EBADMSG, "extent %zu of the map reaches beyond the frames of layer %s", i,
                             named->id);
    }
    return 0;
}

int image_open(int layers_fd, struct snapshot *snapshot, enum image_kind kind, struct image **ret,
               struct error *err)
{
    if (snapshot->maps[kind].pages == 0)
        return error_set(err, ENODATA, "the snapshot has no %s image", kind == IMAGE_MEMORY ? "memory" : "disk");
    struct image *image = calloc(1, sizeof(*image));
    if (image == NULL)
        return error_set(err, ENOMEM, "no memory for an image");
    int r = open_layers(image, layers_fd, snapshot, &snapshot->maps[kind], err);
    if (r < 0) {
        image_close(image);
        return r;
    }
    image->map = snapshot->maps[kind];
    snapshot->maps[kind] = (struct image_map){0};
    *ret = image;
    return 0;
}

void image_close(struct image *image)
{
    if (image == NULL)
        return;
    image_map_done(&image->map);
    if (image->layers != NULL)
        for (uint32_t i = 0; i < image->layer_count; i++)
            layer_close(image->layers[i]);
    free(image->layers);
    free(image);
}

uint64_t image_pages(const struct image *image)
{
    return image->map.pages;
}

const struct image_map *image_map(const struct image *image)
{
    return &image->map;
}

void image_locate(const struct image *image, uint64_t page, struct image_place *ret)
{
    uint64_t next;
    const struct map_extent *extent = image_map_find(&image->map, page, &next);
    if (extent == NULL) {
        *ret = (struct image_place){.zero = true, .count = next - page};
        return;
    }
    struct layer *layer = image->layers[extent->layer];
    unsigned frame_pages = layer_frame_pages(layer);
    uint32_t slot = extent->slot + (uint32_t)(page - extent->page);
    *ret = (struct image_place){
        .layer = layer,
        .frame = slot / frame_pages,
        .index = slot % frame_pages,
        .count = MIN(next - page, (uint64_t)(frame_pages - slot % frame_pages)),
    };
}

/* Slots of one frame. */
struct slots {
    uint32_t layer;
    uint64_t begin;
    uint64_t end;
};

/* Adds the extent's pages that lie in the frame, if they fit into what is left of `room`. */
static size_t add_mates(const struct map_extent *extent, const struct slots *frame, struct image_mate *mates,
                        size_t room)
{
    uint64_t begin = MAX((uint64_t)extent->slot, frame->begin);
    uint64_t end = MIN(extent->slot + (uint64_t)extent->count, frame->end);
    if (extent->layer != frame->layer || begin >= end || end - begin > room)
        return 0;
    for (uint64_t slot = begin; slot < end; slot++)
        mates[slot - begin] = (struct image_mate){.page = extent->page + (slot - extent->slot),
                                                  .index = (uint32_t)(slot - frame->begin)};
    return end - begin;
}

size_t image_frame_mates(const struct image *image, uint64_t page,
                         struct image_mate mates[static LAYER_FRAME_PAGES_MAX])
{
    const struct map_extent *own = image_map_find(&image->map, page, NULL);
    if (own == NULL)
        return 0;
    unsigned frame_pages = layer_frame_pages(image->layers[own->layer]);
    uint64_t slot = own->slot + (page - own->page);
    struct slots frame = {own->layer, slot - slot % frame_pages, slot - slot % frame_pages + frame_pages};
    size_t at = (size_t)(own - image->map.extents);
    size_t last = MIN(at + MATES_EXTENTS, image->map.count - 1);
    size_t count = 0;
    for (size_t i = at - MIN(at, MATES_EXTENTS); i <= last; i++) {
        /* A slot may be used by several pages, so there may be more than fit; the page's own extent always does. */
        size_t kept_free = i < at ? frame_pages : 0;
        size_t room = LAYER_FRAME_PAGES_MAX - count;
        count += add_mates(&image->map.extents[i], &frame, mates + count, room - MIN(room, kept_free));
    }
    return count;
}

int image_read(struct image *image, uint64_t page, size_t count, struct frame_buffer *buffer, void *to,
               struct error *err)
{
    if (page > image->map.pages || count > image->map.pages - page)
        return error_set(err, EINVAL, "pages %" PRIu64 " to %" PRIu64 " of an image of %" PRIu64, page,
                         page + count, image->map.pages);
    uint8_t *out = to;
    struct image_place held = {.zero = true};
    const uint8_t *pages = NULL;
    int held_pages = 0;
    for (uint64_t end = page + count; page < end;) {
        struct image_place place;
        image_locate(image, page, &place);
        size_t run = MIN(place.count, end - page);
        if (place.zero) {
            memset(out, 0, run * IMAGE_PAGE_BYTES);
        } else {
            if (place.layer != held.layer || place.frame != held.frame) {
                held_pages = layer_read_frame(place.layer, place.frame, buffer, &pages, err);
                layer_have_read(place.layer, place.frame, 1);
                if (held_pages < 0)
                    return held_pages;
                held = place;
            }
            if (place.index + run > (size_t)held_pages)
                return error_set(err, EBADMSG,
                                 "page %" PRIu64 " is not in frame %" PRIu32 " of layer %s, as the map says", page,
                                 place.frame, layer_id(place.layer));
            memcpy(out, pages + (size_t)place.index * IMAGE_PAGE_BYTES, run * IMAGE_PAGE_BYTES);
        }
        out += run * IMAGE_PAGE_BYTES;
        page += run;
    }
    return 0;
}
