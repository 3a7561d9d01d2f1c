/*
 * store.h: snapshots on the local disk.
 *
 * A snapshot is a directory, snapshots/ID, that came into being by one rename and is never changed afterwards:
 *
 *     memory          the guest's RAM, a sparse file       rootfs.base     the immutable rootfs image
 *     state           device state                         rootfs.overlay  qcow2 over rootfs.base
 *     kernel, initrd  what was booted                      manifest.json   what all this is
 *
 * What several snapshots and VM directories have in common are hard links to one file. So a snapshot can be removed
 * while forks of it run: the file system keeps what they still map, for as long as they do.
 *
 * Order of calls: store_open; then store_begin, filling the writer's directory, and store_commit or store_abort; or
 * store_materialize, which makes a VM directory out of a snapshot.
 *
 * Threads: all functions may be called from any thread; the caller sees to it that a snapshot is not removed while
 * it is being materialized. Errors: negative errno; -ENOENT no such snapshot, -EBADMSG one that is damaged (with
 * what).
 */
#ifndef DORMOUSE_STORE_STORE_H
#define DORMOUSE_STORE_STORE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define SNAPSHOT_FORMAT_VERSION 1

struct store;

/* What a snapshot is, apart from its bytes. Strings are owned, "" where there is none. */
struct snapshot_manifest {
    char *id;
    char *parent_id;
    char *sandbox_id;
    char *template_id;
    char *vmm;         /* name and version, e.g. "qemu 7.2.22" */
    char *accelerator; /* vmm_accelerator_name */
    char *kernel;      /* version */
    unsigned machine_revision;
    unsigned cpus;
    uint64_t memory_bytes;
    uint64_t disk_bytes;  /* virtual size of the rootfs */
    uint64_t state_bytes; /* size of the device state */
    int64_t created_ns;   /* CLOCK_REALTIME */
};
void snapshot_manifest_done(struct snapshot_manifest *manifest);

/* What it occupies, bytes of disk blocks. */
struct snapshot_usage {
    uint64_t memory_bytes;
    uint64_t overlay_bytes;
};

/* Opens (and makes) the store in `directory` and removes what was half made when a daemon died. */
int store_open(const char *directory, struct store **ret, struct error *err);
void store_close(struct store *store);

/* Ids of all committed snapshots, NULL-terminated; freed by store_list_done. */
int store_list(struct store *store, char ***ret_ids, struct error *err);
void store_list_done(char **ids);

int store_read(struct store *store, const char *id, struct snapshot_manifest *ret, struct error *err);
int store_usage(struct store *store, const char *id, struct snapshot_usage *ret, struct error *err);
int store_remove(struct store *store, const char *id, struct error *err);

struct snapshot_writer;

/* Begins a snapshot with a new random id. */
int store_begin(struct store *store, struct snapshot_writer **ret, struct error *err);
const char *snapshot_writer_id(const struct snapshot_writer *writer);

/* Links VM_DIRECTORY/name into the snapshot, sharing the file: it must never be written again. */
int snapshot_writer_link(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                         struct error *err);
/* Copies it (image/clone.h): the original may change afterwards. */
int snapshot_writer_clone(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                          struct error *err);
/* A writable file `name` of the snapshot; O_RDWR, closed by the caller. */
int snapshot_writer_open(struct snapshot_writer *writer, const char *name, struct error *err);

/*
 * Makes everything durable, then the snapshot visible. `manifest->id` is set by the store. Frees the writer, also
 * on failure, where nothing is left of the snapshot.
 */
int store_commit(struct snapshot_writer *writer, struct snapshot_manifest *manifest, struct error *err);
void store_abort(struct snapshot_writer *writer);

/*
 * Fills an empty VM directory (vmm/vmm.h) from a snapshot: images, kernel and state linked, the overlay cloned and
 * owned by `uid`. With `memory_bytes` other than 0 for booting instead of restoring: an empty memory image of that
 * size, and no state. The manifest goes along as the VM directory's origin.
 */
int store_materialize(struct store *store, const char *id, const char *vm_directory, uid_t uid,
                      uint64_t memory_bytes, struct error *err);

/* What the VM in `vm_directory` was made from: the snapshot itself may be gone. */
int store_read_origin(const char *vm_directory, struct snapshot_manifest *ret, struct error *err);
/* For a VM directory that was not made from a snapshot. */
int store_write_origin(const char *vm_directory, const struct snapshot_manifest *manifest, struct error *err);

#endif
