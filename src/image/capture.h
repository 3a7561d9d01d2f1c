/*
 * capture.h: copies what a stopped guest changed in memory into an image.
 *
 * A guest's RAM is a private mapping of its parent image, so what it changed is among its private (anonymous)
 * pages, and the kernel's page tables know those: PAGEMAP_SCAN (Linux 6.7,
 * Documentation/admin-guide/mm/pagemap.rst) finds present or swapped pages that are not the file's; on older
 * kernels bits 61–63 of /proc/PID/pagemap say the same. Pages are read by process_vm_readv in runs, compared with
 * the parent image, and only those that differ are written. Cost follows what is private, not how large the guest
 * is. Memory used: two
 * buffers of CAPTURE_BUFFER.
 *
 * The guest must be stopped. Any thread.
 */
#ifndef DORMOUSE_IMAGE_CAPTURE_H
#define DORMOUSE_IMAGE_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "vmm/vmm.h"

#define CAPTURE_BUFFER (4u << 20) /* bytes */

struct capture_source {
    pid_t pid;
    const struct vmm_ram_range *ranges; /* ascending offsets */
    size_t range_count;
    int parent_fd;     /* the image that the guest maps */
    bool without_scan; /* read /proc/PID/pagemap even where PAGEMAP_SCAN is there (tests) */
};

struct capture_result {
    uint64_t private_bytes; /* found */
    uint64_t written_bytes; /* of them, different from the parent and written */
};

/*
 * Writes the changed pages at their offsets into `image_fd`, a clone of the parent image. -ENOSPC when the disk is
 * full, -ESRCH when the VMM ends meanwhile.
 */
int capture_memory(const struct capture_source *source, int image_fd, struct capture_result *ret,
                   struct error *err);

/* Counts only: private pages and resident ones, bytes. The guest may run. */
int capture_count(const struct capture_source *source, uint64_t *ret_private, uint64_t *ret_resident,
                  struct error *err);

#endif
