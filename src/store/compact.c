/*
 * compact.c: bounds the layers and extents that a snapshot's images are spread over.
 *
 * Too many layers: those with the fewest pages in use are merged, one new layer for each image, until half of the
 * bound are left. So a page is rewritten when its layer has become one of the small ones, a number of times that
 * grows with the logarithm of what was written since, not with the number of snapshots. Too many extents: that
 * image is rewritten as a whole, in the order of its pages.
 *
 * VM directories have links to the old manifest, whose layers gc leaves as long as they have them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/store_internal.h"

#define BATCH_PAGES LAYER_FRAME_PAGES_MAX

static const struct compact_bounds wanted = {STORE_LAYERS_WANTED, STORE_EXTENTS_WANTED};

/* What one layer of the snapshot is to its images. */
struct layer_plan {
    uint64_t pages[IMAGE_KINDS]; /* in use */
    bool move[IMAGE_KINDS];
};

/*
 * One layer with all pages has an extent for each run of pages. Half as many on top are allowed when that is many,
 * or a few changed pages would have everything rewritten.
 */
static bool has_too_many_extents(const struct image_map *map, const struct compact_bounds *bounds)
{
    if (map->count <= bounds->extents)
        return false;
    size_t runs = 1;
    for (size_t i = 1; i < map->count; i++)
        if (map->extents[i].page != (uint64_t)map->extents[i - 1].page + map->extents[i - 1].count)
            runs++;
    return map->count > runs + runs / 2;
}

bool store_exceeds(const struct snapshot *snapshot, const struct compact_bounds *bounds)
{
    bool exceeds = snapshot->layer_count > bounds->layers;
    for (enum image_kind kind = 0; !exceeds && kind < IMAGE_KINDS; kind++)
        exceeds = has_too_many_extents(&snapshot->maps[kind], bounds);
    return exceeds;
}

bool store_wants_compaction(const struct snapshot *snapshot)
{
    return store_exceeds(snapshot, &wanted);
}

static uint32_t count_layers_after(const struct layer_plan *plan, uint32_t count)
{
    uint32_t left = 0;
    bool new_layer[IMAGE_KINDS] = {false};
    for (uint32_t i = 0; i < count; i++) {
        bool stays = false;
        for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
            stays |= plan[i].pages[kind] > 0 && !plan[i].move[kind];
            new_layer[kind] |= plan[i].move[kind];
        }
        left += stays;
    }
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        left += new_layer[kind];
    return left;
}

/* The layer with the fewest pages of those that stay; NULL: none does. */
static struct layer_plan *find_smallest(struct layer_plan *plan, uint32_t count)
{
    struct layer_plan *smallest = NULL;
    uint64_t fewest = UINT64_MAX;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t pages = 0;
        for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
            pages += plan[i].move[kind] ? 0 : plan[i].pages[kind];
        if (pages > 0 && pages < fewest) {
            fewest = pages;
            smallest = &plan[i];
        }
    }
    return smallest;
}

static void move_layer(struct layer_plan *layer)
{
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        layer->move[kind] = layer->pages[kind] > 0;
}

static void choose(const struct snapshot *snapshot, const struct compact_bounds *bounds, struct layer_plan *plan)
{
    bool whole[IMAGE_KINDS] = {false};
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        const struct image_map *map = &snapshot->maps[kind];
        whole[kind] = has_too_many_extents(map, bounds);
        for (size_t i = 0; i < map->count; i++) {
            struct layer_plan *layer = &plan[map->extents[i].layer];
            layer->pages[kind] += map->extents[i].count;
            layer->move[kind] = whole[kind];
        }
    }
    uint32_t count = snapshot->layer_count;
    struct layer_plan *smallest;
    if (count_layers_after(plan, count) > bounds->layers)
        while (count_layers_after(plan, count) > bounds->layers / 2 &&
               (smallest = find_smallest(plan, count)) != NULL)
            move_layer(smallest);
    /* A single layer would be copied for nothing. */
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        struct layer_plan *only = NULL;
        uint32_t moved = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (plan[i].move[kind]) {
                moved++;
                only = &plan[i];
            }
        }
        if (moved == 1 && !whole[kind])
            only->move[kind] = false;
    }
}

/* Pages of one image on their way into its new layer. */
struct mover {
    struct layer_writer *writer;
    struct frame_encoder *encoder;
    struct frame_buffer *buffer;
    unsigned frame_pages;
    uint32_t layer; /* index in the snapshot's table */
    uint8_t *pages;
    size_t filled;             /* pages */
    struct map_extent *places; /* where pages have gone; the slots of those in `pages` are counted from its start */
    size_t place_count;
    size_t place_capacity;
    size_t settled; /* places whose slots are known */
};

static void mover_done(struct mover *mover)
{
    frame_encoder_free(mover->encoder);
    frame_buffer_free(mover->buffer);
    free(mover->pages);
    free(mover->places);
}

static int add_place(struct mover *mover, uint32_t page, uint32_t count, struct error *err)
{
    if (mover->place_count == mover->place_capacity) {
        size_t capacity = 2 * mover->place_capacity + 64;
        struct map_extent *larger = realloc(mover->places, capacity * sizeof(*larger));
        if (larger == NULL)
            return error_set(err, ENOMEM, "out of memory");
        mover->places = larger;
        mover->place_capacity = capacity;
    }
    mover->places[mover->place_count++] =
        (struct map_extent){.page = page, .count = count, .layer = mover->layer, .slot = (uint32_t)mover->filled};
    mover->filled += count;
    return 0;
}

static int flush(struct mover *mover, struct error *err)
{
    uint32_t slots[BATCH_PAGES];
    for (size_t done = 0; done < mover->filled; done += mover->frame_pages) {
        unsigned count = (unsigned)MIN(mover->filled - done, mover->frame_pages);
        int r = layer_writer_add(mover->writer, mover->encoder, mover->pages + done * IMAGE_PAGE_BYTES, count,
                                 &slots[done / mover->frame_pages], err);
        if (r < 0)
            return r;
    }
    for (; mover->settled < mover->place_count; mover->settled++) {
        uint32_t *slot = &mover->places[mover->settled].slot;
        *slot = slots[*slot / mover->frame_pages] + *slot % mover->frame_pages;
    }
    mover->filled = 0;
    return 0;
}

static int move_extent(struct mover *mover, struct image *image, const struct map_extent *extent, struct error *err)
{
    int r = 0;
    for (uint32_t done = 0; r == 0 && done < extent->count;) {
        size_t count = MIN(extent->count - done, BATCH_PAGES - mover->filled);
        r = image_read(image, extent->page + done, count, mover->buffer,
                       mover->pages + mover->filled * IMAGE_PAGE_BYTES, err);
        /* A place lies in one frame. */
        for (size_t end = mover->filled + count; r == 0 && mover->filled < end;) {
            size_t room = mover->frame_pages - mover->filled % mover->frame_pages;
            uint32_t part = (uint32_t)MIN(end - mover->filled, room);
            r = add_place(mover, extent->page + done, part, err);
            done += part;
        }
        if (r == 0 && mover->filled == BATCH_PAGES)
            r = flush(mover, err);
    }
    return r;
}

static int move_pages(struct mover *mover, struct image *image, enum image_kind kind, const struct layer_plan *plan,
                      struct image_map *ret, struct error *err)
{
    const struct image_map *map = image_map(image);
    mover->frame_pages = layer_writer_frame_pages(mover->writer);
    mover->pages = malloc(BATCH_PAGES * IMAGE_PAGE_BYTES);
    if (mover->pages == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = frame_encoder_new(mover->writer, &mover->encoder, err);
    if (r == 0)
        r = frame_buffer_new(&mover->buffer, err);
    for (size_t i = 0; r == 0 && i < map->count; i++)
        if (plan[map->extents[i].layer].move[kind])
            r = move_extent(mover, image, &map->extents[i], err);
    if (r == 0)
        r = flush(mover, err);
    if (r < 0)
        return r;
    mover->place_count = map_changes_sort(mover->places, mover->place_count);
    return image_map_apply(map, image_pages(image), mover->places, mover->place_count, ret, err);
}

static int compact_image(struct new_layers *layers, struct snapshot *snapshot, enum image_kind kind,
                         const struct layer_plan *plan, struct error *err)
{
    CLEANUP(mover_done) struct mover mover = {0};
    struct image *image = NULL;
    int r = image_open(layers->store->layers_fd, snapshot, kind, &image, err);
    if (r < 0)
        return r;
    r = new_layers_add(layers, kind, &mover.writer, err);
    if (r == 0)
        r = snapshot_add_layer(snapshot, layer_writer_id(mover.writer), 0, &mover.layer, err);
    if (r == 0)
        r = move_pages(&mover, image, kind, plan, &snapshot->maps[kind], err);
    image_close(image);
    return r;
}

/*
 * Under the lock, so that the snapshot isn't removed, and gc doesn't act on a manifest that isn't durable yet.
 * *ret_replaced, also on failure: the manifest names the new layers, perhaps not durably.
 */
static int replace_manifest(struct store *store, const char *id, const void *bytes, size_t length,
                            bool *ret_replaced, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = store_find(store, id, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *from = store_path(err, "%s/" STORE_TEMPORARY STORE_FILE_MANIFEST, directory);
    CLEANUP_FREE char *to = store_path(err, "%s/" STORE_FILE_MANIFEST, directory);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    r = store_write_durable(from, bytes, length, err);
    if (r == 0 && rename(from, to) < 0)
        r = error_errno(err, "cannot rename %s", from);
    if (r < 0) {
        unlink(from);
        return r;
    }
    *ret_replaced = true;
    atomic_fetch_add(&store->changes, 1);
    return store_sync(directory, err);
}

static int compact_loaded(struct new_layers *layers, struct snapshot *snapshot, const struct compact_bounds *bounds,
                          bool *ret_replaced, struct error *err)
{
    struct store *store = layers->store;
    uint32_t count = snapshot->layer_count;
    CLEANUP_FREE struct layer_plan *plan = calloc(count, sizeof(*plan));
    if (plan == NULL)
        return error_set(err, ENOMEM, "out of memory");
    choose(snapshot, bounds, plan);
    int r = 0;
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++) {
        bool move = false;
        for (uint32_t i = 0; i < count; i++)
            move |= plan[i].move[kind];
        if (move)
            r = compact_image(layers, snapshot, kind, plan, err);
    }
    CLEANUP_FREE void *bytes = NULL;
    size_t length = 0;
    if (r < 0)
        return r;
    snapshot_drop_unused_layers(snapshot);
    r = new_layers_finish(layers, snapshot, err);
    if (r == 0)
        r = manifest_encode(snapshot, &bytes, &length, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&store->lock);
    r = replace_manifest(store, snapshot->manifest.id, bytes, length, ret_replaced, err);
    pthread_mutex_unlock(&store->lock);
    return r;
}

int store_compact_to(struct store *store, const char *id, const struct compact_bounds *bounds, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct new_layers layers = {.store = store};
    pthread_mutex_lock(&store->compact_lock);
    int r = store_load(store, id, &snapshot, err);
    if (r == 0 && store_exceeds(&snapshot, bounds)) {
        bool replaced = false;
        r = compact_loaded(&layers, &snapshot, bounds, &replaced, err);
        new_layers_done(&layers, replaced);
    }
    pthread_mutex_unlock(&store->compact_lock);
    return r < 0 ? error_wrap(err, r, "compacting snapshot %s", id) : 0;
}

int store_compact(struct store *store, const char *id, struct error *err)
{
    return store_compact_to(store, id, &wanted, err);
}
