/*
 * store_internal.h: what the files of the store share; nobody else includes it but the store's tests.
 *
 * store.c open, list, read, materialize, remove; commit.c new snapshots; gc.c which layers are needed; compact.c;
 * verify.c; usage.c figures.
 */
#ifndef DORMOUSE_STORE_INTERNAL_H
#define DORMOUSE_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "store/store.h"

/* A name with this prefix is not (yet, or any more) anything. */
#define STORE_TEMPORARY "tmp."

#define STORE_DIRECTORY_LAYERS    "layers"
#define STORE_DIRECTORY_SNAPSHOTS "snapshots"
#define STORE_DIRECTORY_VMS       "vms"

struct held_layer;
struct id_set;

struct store {
    char *data;      /* path of the data directory */
    char *snapshots; /* paths of what is in it */
    char *vms;
    char *layers;
    int layers_fd; /* has the lock that keeps other processes out */
    /* Held for moments only, never while pages are read or compressed. Guards the two fields below it, and whoever
     * gives a name to, or takes one from, a layer or a snapshot whose layers may be collected. */
    pthread_mutex_t lock;
    bool collecting;
    struct held_layer *held;
    atomic_ulong changes;         /* counts snapshots committed, removed and compacted */
    pthread_mutex_t gc_lock;      /* one gc at a time */
    pthread_mutex_t compact_lock; /* one compaction at a time */
    pthread_mutex_t usage_lock;   /* guards what follows */
    struct id_set *named;         /* layers of all snapshots, an id for each that names it; NULL: not known */
    unsigned long named_changes;  /* as of then */
};

/* NULL when memory runs out. */
char *store_path(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* Calls `visit` for every name in the directory but "." and ".." until one call fails. */
typedef int (*store_visit)(void *context, const char *name, struct error *err);
int store_each_name(const char *directory, store_visit visit, void *context, struct error *err);

/* The path of an existing snapshot's directory; -ENOENT. */
int store_find(struct store *store, const char *id, char **ret, struct error *err);

int store_sync(const char *path, struct error *err);
/* Writes a new file and makes its content durable, not yet its name. */
int store_write_durable(const char *path, const void *bytes, size_t length, struct error *err);

/* Layers that gc leaves alone though no manifest names them yet. `owner` is any address of the caller's own. */
int store_hold_layer(struct store *store, const void *owner, const char *id, struct error *err);
/* As above, for a layer that must be there with this size. */
int store_hold_existing_layer(struct store *store, const void *owner, const struct snapshot_layer *layer,
                              struct error *err);
void store_release_layers(struct store *store, const void *owner);
/* Whether a layer is held; the lock is the caller's. */
bool store_layer_is_held(const struct store *store, const char *id);

/* Layers under way, of a commit or a compaction. Its address must not change. */
struct new_layer;
struct new_layers {
    struct store *store;
    struct new_layer *layers;
    size_t count;
};
int new_layers_add(struct new_layers *set, enum image_kind kind, struct layer_writer **ret, struct error *err);
/* Makes those that the snapshot's table names durable and fills in their sizes; the others are dropped. */
int new_layers_finish(struct new_layers *set, struct snapshot *snapshot, struct error *err);
/* Unless they are kept, nothing is left of them. */
void new_layers_done(struct new_layers *set, bool keep);

/* Ids, sorted by id_set_sort before id_set_has is asked. */
struct id_set {
    char (*ids)[LAYER_ID_LENGTH + 1];
    size_t count;
    size_t capacity;
};
void id_set_done(struct id_set *set);
int id_set_add_layers(struct id_set *set, const struct snapshot *snapshot, struct error *err);
void id_set_sort(struct id_set *set);
bool id_set_has(const struct id_set *set, const char *id);
bool id_set_has_twice(const struct id_set *set, const char *id);

/* Forgets who names which layer. */
void store_forget_usage(struct store *store);

/* Every layer that a manifest in `snapshots` or `vms` names, sorted; fails if one of them can't be read. */
int store_needed_layers(struct store *store, struct id_set *ret, struct error *err);

struct compact_bounds {
    uint32_t layers;  /* of a snapshot */
    uint32_t extents; /* of an image */
};
bool store_exceeds(const struct snapshot *snapshot, const struct compact_bounds *bounds);
int store_compact_to(struct store *store, const char *id, const struct compact_bounds *bounds, struct error *err);

#endif
