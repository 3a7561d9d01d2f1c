/* usage.c: what snapshots and layers occupy. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/store_internal.h"

static uint64_t count_image_bytes(const struct image_map *map)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < map->count; i++)
        pages += map->extents[i].count;
    return pages * IMAGE_PAGE_BYTES;
}

void store_forget_usage(struct store *store)
{
    if (store->named != NULL)
        id_set_done(store->named);
    free(store->named);
    store->named = NULL;
}

/* A damaged snapshot stands in nobody's way here. */
static int collect_named(struct store *store, struct id_set *set, struct error *err)
{
    char **ids = NULL;
    int r = store_list(store, &ids, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && ids[i] != NULL; i++) {
        CLEANUP(snapshot_done) struct snapshot head = {0};
        if (store_read(store, ids[i], &head, NULL) == 0)
            r = id_set_add_layers(set, &head, err);
    }
    store_list_done(ids);
    id_set_sort(set);
    return r;
}

/* Reads all snapshots once for any number of questions; under usage_lock. */
static int know_named(struct store *store, struct error *err)
{
    unsigned long changes = atomic_load(&store->changes);
    if (store->named != NULL && store->named_changes == changes)
        return 0;
    store_forget_usage(store);
    store->named = calloc(1, sizeof(*store->named));
    if (store->named == NULL)
        return error_set(err, ENOMEM, "out of memory");
    store->named_changes = changes;
    int r = collect_named(store, store->named, err);
    if (r < 0)
        store_forget_usage(store);
    return r;
}

static int count_layers(struct store *store, const struct snapshot *snapshot, struct snapshot_usage *usage,
                        struct error *err)
{
    pthread_mutex_lock(&store->usage_lock);
    int r = know_named(store, err);
    for (uint32_t i = 0; r == 0 && i < snapshot->layer_count; i++) {
        usage->stored_bytes += snapshot->layers[i].bytes;
        if (!id_set_has_twice(store->named, snapshot->layers[i].id))
            usage->own_bytes += snapshot->layers[i].bytes;
    }
    pthread_mutex_unlock(&store->usage_lock);
    return r;
}

int store_usage(struct store *store, const char *id, struct snapshot_usage *ret, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_usage usage = {0};
    int r = store_load(store, id, &snapshot, err);
    if (r == 0)
        r = count_layers(store, &snapshot, &usage, err);
    if (r < 0)
        return r;
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        usage.image_bytes[kind] = count_image_bytes(&snapshot.maps[kind]);
    *ret = usage;
    return 0;
}

struct count {
    struct store *store;
    const struct id_set *needed; /* NULL: unknown, so gc would remove nothing */
    struct store_statistics statistics;
};

/* The lock is the caller's. */
static int count_layer(void *context, const char *name, struct error *err)
{
    struct count *count = context;
    struct stat status;
    if (!layer_id_valid(name))
        return 0;
    if (fstatat(count->store->layers_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : error_errno(err, "cannot read layer %s", name);
    count->statistics.layers++;
    count->statistics.layer_bytes += (uint64_t)status.st_size;
    if (count->needed != NULL && !id_set_has(count->needed, name) && !store_layer_is_held(count->store, name))
        count->statistics.unreachable_bytes += (uint64_t)status.st_size;
    return 0;
}

static int count_snapshots(struct count *count, struct error *err)
{
    char **ids = NULL;
    int r = store_list(count->store, &ids, err);
    if (r < 0)
        return r;
    for (size_t i = 0; ids[i] != NULL; i++) {
        CLEANUP(snapshot_done) struct snapshot snapshot = {0};
        count->statistics.snapshots++;
        if (store_load(count->store, ids[i], &snapshot, NULL) < 0)
            continue;
        for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
            count->statistics.image_bytes += count_image_bytes(&snapshot.maps[kind]);
    }
    store_list_done(ids);
    return 0;
}

int store_statistics(struct store *store, struct store_statistics *ret, struct error *err)
{
    CLEANUP(id_set_done) struct id_set needed = {0};
    struct count count = {.store = store};
    int r = count_snapshots(&count, err);
    if (r < 0)
        return r;
    if (store_needed_layers(store, &needed, NULL) == 0)
        count.needed = &needed;
    pthread_mutex_lock(&store->lock);
    r = store_each_name(store->layers, count_layer, &count, err);
    pthread_mutex_unlock(&store->lock);
    if (r < 0)
        return r;
    *ret = count.statistics;
    return 0;
}
