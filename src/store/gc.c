/*
 * gc.c: which layers are needed, and removal of the others.
 *
 * Marking and sweeping, with marking beside everything else: a layer is needed if a manifest names it, or if it is
 * held. Manifests are read without the lock, first those in `snapshots`, then those in `vms`. That misses none:
 *
 *   - What is committed or compacted meanwhile holds its layers before its manifest has its name, and as long as a
 * gc is under way, also beyond that.
 *   - What is linked into a VM directory meanwhile comes from `snapshots`. If it was removed there before it was
 * read, the link was there before `vms` is read.
 *   - Compaction leaves in a manifest only layers that the one before it named, and such that it holds.
 *
 * VM directories must therefore not be renamed while they hold a manifest, and manifests not be linked from one to
 * another. What to remove is decided and renamed under the lock, and removed from the disk without it. A commit
 * that names an older layer takes hold of it under the lock and looks whether it is still there.
 *
 * After a crash nobody holds anything: layers of a commit that didn't happen are like any others.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store_internal.h"

struct held_layer {
    struct held_layer *next;
    const void *owner; /* NULL: released, but a gc has begun before that */
    char id[LAYER_ID_LENGTH + 1];
};

static int hold(struct store *store, const void *owner, const char *id, struct error *err)
{
    struct held_layer *held = calloc(1, sizeof(*held));
    if (held == NULL)
        return error_set(err, ENOMEM, "out of memory");
    held->owner = owner;
    memcpy(held->id, id, sizeof(held->id));
    held->next = store->held;
    store->held = held;
    return 0;
}

int store_hold_layer(struct store *store, const void *owner, const char *id, struct error *err)
{
    pthread_mutex_lock(&store->lock);
    int r = hold(store, owner, id, err);
    pthread_mutex_unlock(&store->lock);
    return r;
}

static int check_layer(const struct store *store, const struct snapshot_layer *layer, struct error *err)
{
    struct stat status;
    if (fstatat(store->layers_fd, layer->id, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return error_errno(err, "layer %s, on which the snapshot builds", layer->id);
    if ((uint64_t)status.st_size == layer->bytes)
        return 0;
    return error_set(err, EBADMSG, "layer %s, on which the snapshot builds, has %lld bytes instead of %llu",
                     layer->id, (long long)status.st_size, (unsigned long long)layer->bytes);
}

int store_hold_existing_layer(struct store *store, const void *owner, const struct snapshot_layer *layer,
                              struct error *err)
{
    pthread_mutex_lock(&store->lock);
    int r = check_layer(store, layer, err);
    if (r == 0)
        r = hold(store, owner, layer->id, err);
    pthread_mutex_unlock(&store->lock);
    return r;
}

static void drop_released(struct store *store)
{
    struct held_layer **next = &store->held;
    while (*next != NULL) {
        struct held_layer *held = *next;
        if (held->owner != NULL) {
            next = &held->next;
            continue;
        }
        *next = held->next;
        free(held);
    }
}

void store_release_layers(struct store *store, const void *owner)
{
    pthread_mutex_lock(&store->lock);
    for (struct held_layer *held = store->held; held != NULL; held = held->next)
        if (held->owner == owner)
            held->owner = NULL;
    if (!store->collecting)
        drop_released(store);
    pthread_mutex_unlock(&store->lock);
}

bool store_layer_is_held(const struct store *store, const char *id)
{
    for (const struct held_layer *held = store->held; held != NULL; held = held->next)
        if (strcmp(held->id, id) == 0)
            return true;
    return false;
}

void id_set_done(struct id_set *set)
{
    free(set->ids);
    *set = (struct id_set){0};
}

int id_set_add_layers(struct id_set *set, const struct snapshot *snapshot, struct error *err)
{
    if (set->capacity - set->count < snapshot->layer_count) {
        size_t capacity = 2 * set->capacity + snapshot->layer_count;
        void *larger = realloc(set->ids, capacity * sizeof(*set->ids));
        if (larger == NULL)
            return error_set(err, ENOMEM, "out of memory");
        set->ids = larger;
        set->capacity = capacity;
    }
    for (uint32_t i = 0; i < snapshot->layer_count; i++)
        memcpy(set->ids[set->count++], snapshot->layers[i].id, sizeof(*set->ids));
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

void id_set_sort(struct id_set *set)
{
    if (set->count > 0)
        qsort(set->ids, set->count, sizeof(*set->ids), compare_ids);
}

static char (*find_id(const struct id_set *set, const char *id))[LAYER_ID_LENGTH + 1]
{
    return set->count > 0 ? bsearch(id, set->ids, set->count, sizeof(*set->ids), compare_ids) : NULL;
}

bool id_set_has(const struct id_set *set, const char *id)
{
    return find_id(set, id) != NULL;
}

bool id_set_has_twice(const struct id_set *set, const char *id)
{
    char(*found)[LAYER_ID_LENGTH + 1] = find_id(set, id);
    if (found == NULL)
        return false;
    return (found > set->ids && strcmp(found[-1], id) == 0) ||
           (found + 1 < set->ids + set->count && strcmp(found[1], id) == 0);
}

struct marking {
    const struct store *store;
    struct id_set *set;
};

/* A file that isn't there (any more) names nothing. */
static int mark(struct id_set *set, const char *path, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot head = {0};
    CLEANUP_ERROR struct error failure = ERROR_INIT;
    int r = manifest_read(path, MANIFEST_HEAD, &head, &failure);
    if (r == -ENOENT || r == -ENOTDIR)
        return 0;
    if (r == 0)
        return id_set_add_layers(set, &head, err);
    if (err != NULL)
        error_move(err, &failure);
    error_wrap(err, r, "which layers %s needs is unknown, so none was removed", path);
    error_hint(err, "remove what it belongs to, or put the file back from a copy");
    return r;
}

static int mark_snapshot(void *context, const char *name, struct error *err)
{
    struct marking *marking = context;
    if (!layer_id_valid(name))
        return 0;
    CLEANUP_FREE char *path = store_path(err, "%s/%s/" STORE_FILE_MANIFEST, marking->store->snapshots, name);
    return path != NULL ? mark(marking->set, path, err) : -ENOMEM;
}

static int mark_vm(void *context, const char *name, struct error *err)
{
    struct marking *marking = context;
    CLEANUP_FREE char *memory = store_path(err, "%s/%s/" STORE_FILE_MANIFEST, marking->store->vms, name);
    CLEANUP_FREE char *disk = store_path(err, "%s/%s/" STORE_FILE_DISK_MANIFEST, marking->store->vms, name);
    if (memory == NULL || disk == NULL)
        return -ENOMEM;
    int r = mark(marking->set, memory, err);
    return r == 0 ? mark(marking->set, disk, err) : r;
}

int store_needed_layers(struct store *store, struct id_set *ret, struct error *err)
{
    CLEANUP(id_set_done) struct id_set set = {0};
    struct marking marking = {store, &set};
    int r = store_each_name(store->snapshots, mark_snapshot, &marking, err);
    if (r == 0)
        r = store_each_name(store->vms, mark_vm, &marking, err);
    if (r < 0)
        return r;
    id_set_sort(&set);
    *ret = set;
    set = (struct id_set){0};
    return 0;
}

struct sweep {
    struct store *store;
    const struct id_set *needed;
    struct doomed *doomed;
    struct store_gc_result result;
};

struct doomed {
    struct doomed *next;
    uint64_t bytes;
    char name[sizeof(STORE_TEMPORARY) + LAYER_ID_LENGTH];
};

static int doom(void *context, const char *name, struct error *err)
{
    struct sweep *sweep = context;
    int fd = sweep->store->layers_fd;
    struct stat status;
    if (!layer_id_valid(name) || id_set_has(sweep->needed, name) || store_layer_is_held(sweep->store, name))
        return 0;
    if (fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return error_errno(err, "cannot read layer %s", name);
    struct doomed *doomed = calloc(1, sizeof(*doomed));
    if (doomed == NULL)
        return error_set(err, ENOMEM, "out of memory");
    doomed->bytes = (uint64_t)status.st_size;
    memcpy(doomed->name, STORE_TEMPORARY, strlen(STORE_TEMPORARY));
    memcpy(doomed->name + strlen(STORE_TEMPORARY), name, LAYER_ID_LENGTH);
    if (renameat(fd, name, fd, doomed->name) < 0) {
        free(doomed);
        return error_errno(err, "cannot remove layer %s", name);
    }
    doomed->next = sweep->doomed;
    sweep->doomed = doomed;
    return 0;
}

static int remove_doomed(struct sweep *sweep, struct error *err)
{
    int r = 0;
    while (sweep->doomed != NULL) {
        struct doomed *doomed = sweep->doomed;
        sweep->doomed = doomed->next;
        if (unlinkat(sweep->store->layers_fd, doomed->name, 0) < 0) {
            r = error_errno(err, "cannot remove layer %s", doomed->name);
        } else {
            sweep->result.layers_removed++;
            sweep->result.bytes_removed += doomed->bytes;
        }
        free(doomed);
    }
    return r;
}

static int collect(struct store *store, struct store_gc_result *ret, struct error *err)
{
    CLEANUP(id_set_done) struct id_set needed = {0};
    int r = store_needed_layers(store, &needed, err);
    /* A snapshot that was seen to be gone must not come back with the host. */
    if (r == 0)
        r = store_sync(store->snapshots, err);
    if (r < 0)
        return r;
    struct sweep sweep = {.store = store, .needed = &needed};
    pthread_mutex_lock(&store->lock);
    r = store_each_name(store->layers, doom, &sweep, err);
    pthread_mutex_unlock(&store->lock);
    int removed = remove_doomed(&sweep, r == 0 ? err : NULL);
    if (r == 0)
        r = removed;
    if (r == 0)
        *ret = sweep.result;
    return r;
}

static void set_collecting(struct store *store, bool collecting)
{
    pthread_mutex_lock(&store->lock);
    store->collecting = collecting;
    if (!collecting)
        drop_released(store);
    pthread_mutex_unlock(&store->lock);
}

int store_gc(struct store *store, struct store_gc_result *ret, struct error *err)
{
    pthread_mutex_lock(&store->gc_lock);
    set_collecting(store, true);
    int r = collect(store, ret, err);
    set_collecting(store, false);
    pthread_mutex_unlock(&store->gc_lock);
    return r < 0 ? error_wrap(err, r, "removing layers that nothing needs") : 0;
}
