/*
 * capture.h: from what a guest changed, in memory or on disk, to frames of a layer.
 *
 * A guest's RAM is a private mapping of its parent image, so what it changed is among its private (anonymous)
 * pages, and the kernel's page tables know those: PAGEMAP_SCAN (Linux 6.7,
 * Documentation/admin-guide/mm/pagemap.rst) finds present or swapped pages that are not the file's; on older
 * kernels bits 61–63 of /proc/PID/pagemap say the same. Pages are read by process_vm_readv in runs, and those that
 * are zero or equal to the parent's are dropped; the others are compressed and written, on all cores. Cost follows
 * what is private, not how large the guest is.
 *
 * The parent's pages are read through its file in the image server's mount, where those that the guest wrote to are
 * in the page cache already: copying them on write has put them there. Pages that the parent's map has as zero
 * aren't read at all.
 *
 * A capture never changes the guest, whose capture may fail and which then goes on: it gets a pid and const ranges,
 * enough to read memory and nothing more. There is no capture that consumes a guest, for it to be confused with: a
 * VMM that isn't wanted any more is killed after the commit, which gives back its memory all at once.
 *
 * A guest that is to run on stands still only while its pages are copied: capture_memory_copy puts them aside, into
 * room made before, and capture_memory_store compares, compresses and writes them when it runs again. A guest that
 * is captured again and again is spared of what the capture before has stored: see `last`.
 *
 * Memory used: at most CAPTURE_MEMORY_MAX whatever the guest's size, CAPTURE_ASIDE_MAX for what is put aside by all
 * captures (what finds no room is stored while the guest waits), the list of changes, 16 bytes for each run, and
 * the digests. The guest must be stopped, but for capture_memory_store; the overlay's generations frozen. Any
 * thread; it starts and ends threads of its own.
 */
#ifndef DORMOUSE_IMAGE_CAPTURE_H
#define DORMOUSE_IMAGE_CAPTURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "image/overlay.h"
#include "image/page_digests.h"
#include "store/layer.h"
#include "store/map.h"
#include "vmm/vmm.h"

#define CAPTURE_MEMORY_MAX (64u << 20)  /* bytes */
#define CAPTURE_ASIDE_MAX  (256u << 20) /* bytes, of all captures under way together */

/* What the changes are against. */
struct capture_parent {
    const struct image_map *map; /* NULL: all zero */
    int fd;                      /* the parent image as a file */
};

/* What the last snapshot of the same VM, which ran on, has of its private pages. */
struct capture_last {
    const struct page_digests *digests; /* as recorded by its capture */
    const struct image_map *map;        /* with the new snapshot's numbers for layers */
};

struct capture_memory {
    pid_t pid;
    const struct vmm_ram_range *ranges; /* ascending offsets */
    size_t range_count;
    struct capture_parent parent;
    const atomic_bool *cancelled;    /* looked at all the time: -ECANCELED when it becomes true; may be NULL */
    const struct capture_last *last; /* NULL: none */
    struct page_digests *record;     /* of all private pages, for the next capture; NULL: there won't be one */
    bool without_scan;               /* read /proc/PID/pagemap even where PAGEMAP_SCAN is there (tests) */
};

struct capture_disk {
    struct overlay_view *view; /* NULL: nothing was written */
    struct capture_parent parent;
    const atomic_bool *cancelled; /* as for memory */
};

/* A capture's outcome: for image_map_apply, `layer` being `layer_index` or MAP_LAYER_ZERO. */
struct capture_result {
    struct map_extent *changes; /* ascending */
    size_t change_count;
    uint64_t private_bytes; /* looked at */
    uint64_t changed_bytes; /* of them, different from the parent and from what the last snapshot has */
    uint64_t stored_bytes;  /* in the layer, compressed */
};
void capture_result_done(struct capture_result *result);

/*
 * -ENOSPC when the disk is full, -ESRCH when the VMM ends meanwhile, -ERANGE for pages beyond the end of the
 * parent's image. What was added to the layer by a capture that failed is useless; the caller aborts the layer.
 */
int capture_memory(const struct capture_memory *source, struct layer_writer *layer, uint32_t layer_index,
                   struct capture_result *ret, struct error *err);

/*
 * The same in three steps, of which the guest must be stopped for the second only: making room, copying, storing.
 * What `source` refers to must be there until the end.
 */
struct capture_copy;
int capture_copy_new(const struct capture_memory *source, struct capture_copy **ret, struct error *err);
int capture_memory_copy(struct capture_copy *copy, struct layer_writer *layer, uint32_t layer_index,
                        struct error *err);
int capture_memory_store(struct capture_copy *copy, struct capture_result *ret, struct error *err);
void capture_copy_free(struct capture_copy *copy);

int capture_disk(const struct capture_disk *source, struct layer_writer *layer, uint32_t layer_index,
                 struct capture_result *ret, struct error *err);

/* A raw disk image (sparse) as a whole, for a template. */
int capture_file(int fd, uint64_t bytes, struct layer_writer *layer, uint32_t layer_index,
                 struct capture_result *ret, struct error *err);

/* Counts only: private pages and resident ones, bytes. The guest may run. */
int capture_count(const struct capture_memory *source, uint64_t *ret_private, uint64_t *ret_resident,
                  struct error *err);

#endif
