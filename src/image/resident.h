/*
 * resident.h: which pages of its memory image a VMM has mapped, that is, its guest has touched.
 *
 * The kernel maps neighbours that are in the page cache along with a page that is touched (up to 64 KiB), so this
 * is a little more than the guest saw. The guest may run. Any thread.
 */
#ifndef DORMOUSE_IMAGE_RESIDENT_H
#define DORMOUSE_IMAGE_RESIDENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "vmm/vmm.h"

/* Sets the bits of these pages in `bitmap`, which has one for each of the image's pages. -ESRCH when it has ended.
 */
int resident_pages(pid_t pid, const struct vmm_ram_range *ranges, size_t range_count, uint64_t pages,
                   uint8_t *bitmap, struct error *err);

#endif
