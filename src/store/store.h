/*
 * store.h: snapshots on the local disk (docs/snapshot-format.md): committing, finding, removing, keeping them in
 * order.
 *
 * Order of calls: store_open; then store_begin, layers and links, store_commit or store_abort; or
 * store_materialize, which makes a VM directory out of a snapshot. store_gc removes layers that no manifest in
 * `snapshots` or `vms` names; store_compact bounds what reading an image costs.
 *
 * A snapshot is complete or absent, whenever the process or the host dies. Snapshots can be removed while VMs made
 * from them run: a VM directory holds links to the manifest and the kernel, so gc leaves its layers. VM directories
 * are those in DATA/vms; they must not be renamed while they hold a manifest.
 *
 * Threads: all functions may be called from any thread. gc waits for commits under way and the other way round only
 * for the moments in which names change. One process at a time: the directory is locked. Errors: negative errno;
 * -EBUSY another process has the store; -ENOENT no such snapshot; -EBADMSG one that is damaged (with what).
 */
#ifndef DORMOUSE_STORE_STORE_H
#define DORMOUSE_STORE_STORE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "store/image.h"
#include "store/layer.h"
#include "store/manifest.h"

#define STORE_FILE_MANIFEST      "manifest"
#define STORE_FILE_DISK_MANIFEST "disk-manifest"
#define STORE_FILE_WORKING_SET   "working-set"
#define STORE_FILE_INHERITED_SET "working-set.inherited" /* its parent's, until it has its own */

/* Beyond these an image is worth compacting. */
#define STORE_LAYERS_WANTED  16u
#define STORE_EXTENTS_WANTED 65536u

struct store;

/* Opens (and makes) the store in `data_directory` and removes what was half made when a daemon died. */
int store_open(const char *data_directory, struct store **ret, struct error *err);
void store_close(struct store *store);
/* The directory of layers, for layer_open and image_open. */
int store_layers_fd(const struct store *store);

/* Ids of all committed snapshots, NULL-terminated; freed by store_list_done. */
int store_list(struct store *store, char ***ret_ids, struct error *err);
void store_list_done(char **ids);

/* Description and layers; maps are read by store_load. */
int store_read(struct store *store, const char *id, struct snapshot *ret, struct error *err);
int store_load(struct store *store, const char *id, struct snapshot *ret, struct error *err);

/* What it occupies. */
struct snapshot_usage {
    uint64_t image_bytes[IMAGE_KINDS]; /* pages in its maps, bytes before compression */
    uint64_t stored_bytes;             /* of its layers, as files: shared ones included */
    uint64_t own_bytes;                /* of layers that no other snapshot names, as far as they can be read */
};
int store_usage(struct store *store, const char *id, struct snapshot_usage *ret, struct error *err);
int store_remove(struct store *store, const char *id, struct error *err);

struct snapshot_writer;

/* Begins a snapshot with a new random id. */
int store_begin(struct store *store, struct snapshot_writer **ret, struct error *err);
const char *snapshot_writer_id(const struct snapshot_writer *writer);

/* Links VM_DIRECTORY/name into the snapshot, sharing the file: it must never be written again. */
int snapshot_writer_link(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                         struct error *err);

/* A new layer of this snapshot. The writer keeps it: it is finished by store_commit and aborted by store_abort. */
int snapshot_writer_layer(struct snapshot_writer *writer, enum image_kind kind, struct layer_writer **ret,
                          struct error *err);

/*
 * Makes everything durable, then the snapshot visible. `snapshot` holds description, maps and device state; its
 * table of layers already names the new ones (snapshot_add_layer with layer_writer_id and 0 bytes; the sizes are
 * filled in here), its id is set here. Layers that no extent uses are left out. Frees the writer, also on failure,
 * where nothing is left of the snapshot.
 */
int store_commit(struct snapshot_writer *writer, struct snapshot *snapshot, struct error *err);
void store_abort(struct snapshot_writer *writer);

/*
 * Fills an empty VM directory: manifest, kernel, initrd and working set are linked; the working set twice, as
 * STORE_FILE_INHERITED_SET, too, for a snapshot that is made of this VM.
 */
int store_materialize(struct store *store, const char *id, const char *vm_directory, struct error *err);

bool store_has_working_set(struct store *store, const char *id);
/* VM_DIRECTORY's working set becomes the snapshot's own, unless it has one. */
int store_keep_working_set(struct store *store, const char *id, const char *vm_directory, struct error *err);

/* The snapshot's manifest takes the place of the VM directory's disk-manifest: its overlay will lie over that disk.
 */
int store_link_disk_manifest(struct store *store, const char *id, const char *vm_directory, struct error *err);

/* Whether one of the bounds above is passed. */
bool store_wants_compaction(const struct snapshot *snapshot);
/* Rewrites layers so that the bounds hold, and replaces the manifest. What is read stays the same. */
int store_compact(struct store *store, const char *id, struct error *err);

struct store_gc_result {
    uint64_t layers_removed;
    uint64_t bytes_removed;
};
/* Damaged manifests stop it before anything is removed: what they need can't be known. */
int store_gc(struct store *store, struct store_gc_result *ret, struct error *err);

struct store_statistics {
    uint64_t snapshots;
    uint64_t layers;
    uint64_t layer_bytes;       /* as files */
    uint64_t unreachable_bytes; /* what gc would remove */
    uint64_t image_bytes;       /* of all maps, before compression: what the layers stand for */
};
int store_statistics(struct store *store, struct store_statistics *ret, struct error *err);

/* Checks manifest, every frame of every layer it names, and that each extent's slots exist. */
int store_verify(struct store *store, const char *id, struct error *err);

/*
 * What a verification of several snapshots has found of their layers, so that each is read once. One thread; freed
 * by layer_findings_free.
 */
struct layer_findings;
int layer_findings_new(struct layer_findings **ret, struct error *err);
void layer_findings_free(struct layer_findings *findings);
uint64_t layer_findings_count(const struct layer_findings *findings);
uint64_t layer_findings_bytes(const struct layer_findings *findings); /* of the files */
int store_verify_with(struct store *store, const char *id, struct layer_findings *findings, struct error *err);

#endif
