/*
 * overlays.h: the mount of the VMs' writable disks, one file each over image/overlay.h.
 *
 * Order of calls: overlays_start; disk_add when a VM starts, disk_remove when it has ended; overlays_stop.
 *
 * Files are opened for direct I/O: what a guest reads and writes is cached once, in the page cache of the overlay's
 * own files, and of the image below it. A full disk is answered to the guest; what else goes wrong is also a
 * failure of its VM. Threads: any.
 */
#ifndef DORMOUSE_IMAGED_OVERLAYS_H
#define DORMOUSE_IMAGED_OVERLAYS_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "image/overlay.h"
#include "imaged/metrics.h"

struct overlays;
struct disk;

struct overlays_options {
    const char *data_directory;
    unsigned threads;
    struct metrics *metrics;
    /* A disk can't be served. Called by the threads that answer: must not wait for anything. */
    void (*failed)(void *context, const char *name, const char *reason);
    void *context;
};

int overlays_start(const struct overlays_options *options, struct overlays **ret, struct error *err);
/* Takes the mount away. The disks are still there, for disk_remove. */
void overlays_unmount(struct overlays *overlays);
void overlays_stop(struct overlays *overlays);
const char *overlays_path(const struct overlays *overlays);

/* Takes `overlay` over, also on failure. -EEXIST: there is one of this name. */
int disk_add(struct overlays *overlays, const char *name, uint64_t bytes, uid_t uid, struct overlay *overlay,
             struct disk **ret, struct error *err);
struct overlay *disk_overlay(struct disk *disk);

/* Waits for requests under way and closes the overlay; later requests get an error. NULL is allowed. */
void disk_remove(struct disk *disk);

#endif
