/*
 * map.h: which layer holds a page of an image: sorted extents, flat whatever the depth (docs/snapshot-format.md).
 *
 * Order of calls: image_map_decode or image_map_apply; image_map_find; image_map_done. Pure: no I/O; a map that is
 * not being changed may be read by any number of threads. Errors: -EBADMSG for a damaged map, -ENOMEM, -E2BIG.
 */
#ifndef DORMOUSE_STORE_MAP_H
#define DORMOUSE_STORE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define IMAGE_PAGE_BYTES      4096u
#define IMAGE_MAP_EXTENTS_MAX (1u << 24)

/* As `layer` of a change: the page is zero now. Never in a map. */
#define MAP_LAYER_ZERO UINT32_MAX

/* As on disk. */
struct map_extent {
    uint32_t page;
    uint32_t count;
    uint32_t layer; /* index into the snapshot's layers */
    uint32_t slot;
};

struct image_map {
    struct map_extent *extents; /* ascending, not overlapping, neighbours joined where they continue each other */
    size_t count;
    uint64_t pages; /* in the image */
};
void image_map_done(struct image_map *map);

/* Checks every extent. `bytes` is the section of a manifest. */
int image_map_decode(const void *bytes, size_t length, uint64_t pages, uint32_t layer_count, struct image_map *ret,
                     struct error *err);

/* The extent that holds `page`, or NULL: zero. *ret_next (may be NULL) is the first page after `page` for which the
 * answer is another one. */
const struct map_extent *image_map_find(const struct image_map *map, uint64_t page, uint64_t *ret_next);

/*
 * What `parent` (NULL: all zero) becomes with `changes` on top, which are ascending and don't overlap. Linear in
 * both.
 */
int image_map_apply(const struct image_map *parent, uint64_t pages, const struct map_extent *changes, size_t count,
                    struct image_map *ret, struct error *err);

/* Sorts changes by page, for image_map_apply, and joins neighbours; returns how many are left. */
size_t map_changes_sort(struct map_extent *changes, size_t count);

#endif
