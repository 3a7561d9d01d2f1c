/*
 * manifest.h: what a snapshot consists of, in memory and as a file (docs/snapshot-format.md).
 *
 * Order of calls: manifest_read or manifest_decode, which check everything; or filling a struct snapshot and
 * manifest_encode; snapshot_done. Pure but for the file named; -EBADMSG: damaged; -EPROTONOSUPPORT: written by a
 * later version. Memory is bounded by the size of the file, which is.
 */
#ifndef DORMOUSE_STORE_MANIFEST_H
#define DORMOUSE_STORE_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "store/layer.h"
#include "store/map.h"

#define MANIFEST_LAYERS_MAX 4096u
#define MANIFEST_BYTES_MAX  (UINT64_C(1) << 30)
#define DEVICE_STATE_MAX    (16u << 20)

/* What a snapshot is, apart from its bytes. Strings are owned, "" where there is none. */
struct snapshot_manifest {
    char *id;
    char *parent_id;
    char *sandbox_id;
    char *template_id;
    char *vmm;              /* name and version, e.g. "qemu 7.2.22" */
    char *accelerator;      /* vmm_accelerator_name */
    char *cpu_model;        /* as the VMM takes it */
    char *kernel;           /* version */
    char *disk_consistency; /* of a disk-only snapshot: "frozen", "synced"; else "" */
    unsigned machine_revision;
    unsigned cpus;
    uint64_t memory_bytes; /* of the memory image */
    uint64_t disk_bytes;   /* of the disk image */
    int64_t created_ns;    /* CLOCK_REALTIME */
};
void snapshot_manifest_done(struct snapshot_manifest *manifest);

struct snapshot_layer {
    char id[LAYER_ID_LENGTH + 1];
    uint64_t bytes; /* of its file */
};

enum image_kind { IMAGE_MEMORY, IMAGE_DISK, IMAGE_KINDS };

struct snapshot {
    struct snapshot_manifest manifest;
    struct snapshot_layer *layers;
    uint32_t layer_count;
    struct image_map maps[IMAGE_KINDS];
    void *device_state;        /* NULL: disk only; then there is no memory map either */
    size_t device_state_bytes; /* known from the head, too */
};
void snapshot_done(struct snapshot *snapshot);

/* It can only be booted from. */
bool snapshot_is_disk_only(const struct snapshot *snapshot);

/* Index of a layer in the table, which is added if it isn't there yet. */
int snapshot_add_layer(struct snapshot *snapshot, const char *id, uint64_t bytes, uint32_t *ret_index,
                       struct error *err);

/* Drops layers that no extent uses and renumbers the others. */
void snapshot_drop_unused_layers(struct snapshot *snapshot);

/* *ret is the file's content, freed by the caller. */
int manifest_encode(const struct snapshot *snapshot, void **ret, size_t *ret_length, struct error *err);

/* Description and layers are always read, and checked, and so is what is asked for here; the rest stays empty. */
enum manifest_parts {
    MANIFEST_HEAD = 0,
    MANIFEST_MEMORY = 1 << IMAGE_MEMORY, /* the map of an image: 1 << its kind */
    MANIFEST_DISK = 1 << IMAGE_DISK,
    MANIFEST_DEVICE_STATE = 1 << IMAGE_KINDS,
    MANIFEST_ALL = MANIFEST_MEMORY | MANIFEST_DISK | MANIFEST_DEVICE_STATE,
};
int manifest_decode(const void *bytes, size_t length, enum manifest_parts parts, struct snapshot *ret,
                    struct error *err);
/* Reads little more of the file than it needs. */
int manifest_read(const char *path, enum manifest_parts parts, struct snapshot *ret, struct error *err);

#endif
