#include "store/map.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "store/map_check.h"

/* The file's integers are little-endian, and extents are used as they lie in it. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "extents need converting on this machine");
_Static_assert(sizeof(struct map_extent) == 16, "an extent is 16 bytes on disk");

static uint64_t extent_end(const struct map_extent *extent)
{
    return (uint64_t)extent->page + extent->count;
}

void image_map_done(struct image_map *map)
{
    free(map->extents);
    *map = (struct image_map){0};
}

/* Lengthens `last` by `next` if it continues it. */
static bool join(struct map_extent *last, const struct map_extent *next)
{
    if (next->layer != last->layer || next->page != extent_end(last) ||
        (uint64_t)last->count + next->count > UINT32_MAX ||
        (next->layer != MAP_LAYER_ZERO && next->slot != (uint64_t)last->slot + last->count))
        return false;
    last->count += next->count;
    return true;
}

static size_t join_neighbours(struct map_extent *extents, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || !join(&extents[kept - 1], &extents[i]))
            extents[kept++] = extents[i];
    return kept;
}

int map_extents_check(const struct map_extent *extents, size_t count, uint64_t pages, uint32_t layer_count,
                      struct error *err)
{
    if (count > IMAGE_MAP_EXTENTS_MAX)
        return error_set(err, EBADMSG, "the map has more than %u extents", IMAGE_MAP_EXTENTS_MAX);
    uint64_t end = 0;
    for (size_t i = 0; i < count; i++) {
        const struct map_extent *extent = &extents[i];
        const char *wrong = NULL;
        if (extent->count == 0)
            wrong = "has no pages";
        else if (extent->page < end)
            wrong = "overlaps or precedes the one before";
        else if (extent_end(extent) > pages)
            wrong = "lies beyond the end of the image";
        else if (extent->layer >= layer_count)
            wrong = "names a layer that is not in the table";
        else if ((uint64_t)extent->slot + extent->count - 1 > UINT32_MAX)
            wrong = "has slots beyond the last";
        if (wrong != NULL)
            return error_set(err, EBADMSG, "extent %zu of the map %s", i, wrong);
        end = extent_end(extent);
    }
    return 0;
}

int image_map_decode(const void *bytes, size_t length, uint64_t pages, uint32_t layer_count, struct image_map *ret,
                     struct error *err)
{
    if (length % sizeof(struct map_extent) != 0)
        return error_set(err, EBADMSG, "the map ends within an extent");
    size_t count = length / sizeof(struct map_extent);
    if (count > IMAGE_MAP_EXTENTS_MAX)
        return error_set(err, EBADMSG, "the map has more than %u extents", IMAGE_MAP_EXTENTS_MAX);
    CLEANUP_FREE struct map_extent *extents = NULL;
    if (count > 0) {
        extents = malloc(length);
        if (extents == NULL)
            return error_set(err, ENOMEM, "no memory for a map of %zu extents", count);
        memcpy(extents, bytes, length);
    }
    int r = map_extents_check(extents, count, pages, layer_count, err);
    if (r < 0)
        return r;
    count = join_neighbours(extents, count);
    *ret = (struct image_map){.extents = TAKE_PTR(extents), .count = count, .pages = pages};
    return 0;
}

const struct map_extent *image_map_find(const struct image_map *map, uint64_t page, uint64_t *ret_next)
{
    size_t low = 0;
    size_t high = map->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (extent_end(&map->extents[middle]) <= page)
            low = middle + 1;
        else
            high = middle;
    }
    const struct map_extent *extent = low < map->count ? &map->extents[low] : NULL;
    bool found = extent != NULL && extent->page <= page;
    if (ret_next != NULL) {
        if (found)
            *ret_next = extent_end(extent);
        else if (extent != NULL)
            *ret_next = extent->page;
        else
            *ret_next = page < map->pages ? map->pages : UINT64_MAX;
    }
    return found ? extent : NULL;
}

/* A map in the making. */
struct builder {
    struct map_extent *extents;
    size_t count;
    size_t capacity;
};

static void builder_done(struct builder *builder)
{
    free(builder->extents);
}

static int builder_add(struct builder *builder, const struct map_extent *extent, struct error *err)
{
    if (builder->count > 0 && join(&builder->extents[builder->count - 1], extent))
        return 0;
    if (builder->count == IMAGE_MAP_EXTENTS_MAX)
        return error_set(err, E2BIG, "the map would have more than %u extents", IMAGE_MAP_EXTENTS_MAX);
    if (builder->count == builder->capacity) {
        size_t capacity = MAX(builder->capacity * 2, (size_t)64);
        struct map_extent *larger = realloc(builder->extents, capacity * sizeof(*larger));
        if (larger == NULL)
            return error_set(err, ENOMEM, "no memory for a map of %zu extents", capacity);
        builder->extents = larger;
        builder->capacity = capacity;
    }
    builder->extents[builder->count++] = *extent;
    return 0;
}

/* Adds what `parent` has in [from, to); *cursor is the first of its extents that may reach there. */
static int add_from_parent(struct builder *builder, const struct image_map *parent, size_t *cursor, uint64_t from,
                           uint64_t to, struct error *err)
{
    for (; *cursor < parent->count; (*cursor)++) {
        const struct map_extent *extent = &parent->extents[*cursor];
        uint64_t first = MAX(from, (uint64_t)extent->page);
        uint64_t end = MIN(to, extent_end(extent));
        if (first < end) {
            struct map_extent piece = {
                .page = (uint32_t)first,
                .count = (uint32_t)(end - first),
                .layer = extent->layer,
                .slot = extent->slot + (uint32_t)(first - extent->page),
            };
            int r = builder_add(builder, &piece, err);
            if (r < 0)
                return r;
        }
        if (extent_end(extent) > to)
            break;
    }
    return 0;
}

int image_map_apply(const struct image_map *parent, uint64_t pages, const struct map_extent *changes, size_t count,
                    struct image_map *ret, struct error *err)
{
    static const struct image_map nothing = {0};
    if (parent == NULL)
        parent = &nothing;
    CLEANUP(builder_done) struct builder builder = {0};
    size_t cursor = 0;
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].count == 0 || changes[i].page < at || extent_end(&changes[i]) > pages)
            return error_set(err, EINVAL, "change %zu of the map is out of order or beyond its end", i);
        int r = add_from_parent(&builder, parent, &cursor, at, changes[i].page, err);
        if (r == 0 && changes[i].layer != MAP_LAYER_ZERO)
            r = builder_add(&builder, &changes[i], err);
        if (r < 0)
            return r;
        at = extent_end(&changes[i]);
    }
    int r = add_from_parent(&builder, parent, &cursor, at, pages, err);
    if (r < 0)
        return r;
    *ret = (struct image_map){.extents = TAKE_PTR(builder.extents), .count = builder.count, .pages = pages};
    return 0;
}

static int compare_pages(const void *a, const void *b)
{
    uint32_t first = ((const struct map_extent *)a)->page;
    uint32_t second = ((const struct map_extent *)b)->page;
    return first < second ? -1 : first > second;
}

size_t map_changes_sort(struct map_extent *changes, size_t count)
{
    /* One thread's changes are in order already. */
    size_t i = 1;
    while (i < count && changes[i - 1].page <= changes[i].page)
        i++;
    if (i < count)
        qsort(changes, count, sizeof(*changes), compare_pages);
    return join_neighbours(changes, count);
}
