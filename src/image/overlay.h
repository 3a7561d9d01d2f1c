/*
 * overlay.h: what a running sandbox has written to its disk, over an immutable base.
 *
 * An overlay is a stack of generations in the VM directory; only the newest is written. Generation G is two files:
 *
 *     overlay.G.data  sparse, as large as the disk; holds the blocks written in this generation at their offsets
 *     overlay.G.map   one byte for each block: 0 not here, 1 in the data file, 2 zero
 *
 * A block (4 KiB) is looked for from the newest generation downwards, then in the base. Freezing closes a generation
 * for ever and begins another: it costs the same whatever was written. A new generation's files are made when something
 * is first written, so a resume writes nothing.
 *
 * What is durable: overlay_flush syncs the data file before the map names what is in it, so that after a crash of this
 * process or of the host the files say what they did at the last flush, never more. overlay_open reads them back.
 *
 * Threads: overlay_read, _write, _trim, _zero, _flush from any number of threads at once; a freeze waits for what is
 * under way. Errors: -ENOSPC and -EIO concern this overlay only; -ERANGE beyond the end of the disk.
 */
#ifndef DORMOUSE_IMAGE_OVERLAY_H
#define DORMOUSE_IMAGE_OVERLAY_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define OVERLAY_BLOCK_BYTES 4096u

enum overlay_block { OVERLAY_ABSENT = 0, OVERLAY_DATA = 1, OVERLAY_ZERO = 2 };

/* Reads `length` bytes at `offset` of the base into `to`; whole blocks. 0 or negative errno. */
typedef int (*overlay_base_read)(void *context, uint64_t offset, size_t length, void *to);

struct overlay;

/* Opens the generations that are in `directory` (none: an unwritten overlay). */
int overlay_open(const char *directory, uint64_t disk_bytes, overlay_base_read base, void *context,
                 struct overlay **ret, struct error *err);
void overlay_close(struct overlay *overlay);

int overlay_read(struct overlay *overlay, uint64_t offset, size_t length, void *to);
/* Any offset and length; part of a block is completed from below. */
int overlay_write(struct overlay *overlay, uint64_t offset, size_t length, const void *from);
/* Reads as zeros afterwards; gives the space back. Parts of blocks are written as zeros. */
int overlay_zero(struct overlay *overlay, uint64_t offset, uint64_t length);
int overlay_flush(struct overlay *overlay);

/* Flushes and freezes; *ret is the number of the newest frozen generation, 0 when nothing was ever written. */
int overlay_freeze(struct overlay *overlay, uint64_t *ret, struct error *err);

/*
 * From now on the base holds what generations up to `generation` hold: they are dropped and removed. `base` and
 * `context` replace those given to overlay_open.
 */
int overlay_rebase(struct overlay *overlay, uint64_t generation, overlay_base_read base, void *context,
                   struct error *err);

/* Bytes of disk blocks in all generations. */
uint64_t overlay_used_bytes(struct overlay *overlay);

/*
 * Frozen generations as one, read by capture in another process: which blocks are there, and their bytes.
 * Generations above `generation` are not looked at.
 */
struct overlay_view;
int overlay_view_open(const char *directory, uint64_t disk_bytes, uint64_t generation, struct overlay_view **ret,
                      struct error *err);
void overlay_view_close(struct overlay_view *view);
/*
 * The next run of blocks of one kind (DATA or ZERO) in one generation at or after *block; 1 and *block, *ret_count and
 * *ret_kind, or 0 at the end.
 */
int overlay_view_next(struct overlay_view *view, uint64_t *block, uint64_t *ret_count, enum overlay_block *ret_kind);
/* Reads blocks of a DATA run. */
int overlay_view_read(struct overlay_view *view, uint64_t block, size_t count, void *to, struct error *err);

#endif
