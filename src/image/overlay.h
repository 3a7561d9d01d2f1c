/*
 * overlay.h: what a running sandbox has written to its disk, over an immutable base.
 *
 * An overlay is a stack of generations in the VM directory; only the newest is written. Generation G is two files:
 *
 *     overlay.G.data  sparse, as large as the disk; holds the blocks written in this generation at their offsets
 *     overlay.G.map   one byte for each block: 0 not here, 1 in the data file, 2 zero
 *
 * A block (4 KiB) is looked for from the newest generation downwards, then in the base. Freezing closes a
 * generation for ever and begins another: it costs the same whatever was written since the last flush. A new
 * generation's files are made when something is first written, so a resume writes nothing.
 *
 * What is durable: overlay_flush syncs the data file before the map names what is in it, so that after a crash of
 * this process or of the host the files say what they did at the last flush, or hold single blocks that were
 * written later, as any disk may. The map gets its name at the first flush. overlay_open reads what is there; all
 * of it is frozen then.
 *
 * Threads: overlay_read, _write, _zero, _flush from any number of threads at once; a freeze waits for what is under
 * way. Concurrent writes to parts of one block both last. Errors: -ENOSPC and -EIO concern this overlay only;
 * -ERANGE beyond the end of the disk. Once a sync has failed, nobody knows what is on the disk: every later flush
 * and freeze fails.
 *
 * Fastest are whole blocks in buffers aligned to 4 KiB: they go to the disk as they are (O_DIRECT).
 */
#ifndef DORMOUSE_IMAGE_OVERLAY_H
#define DORMOUSE_IMAGE_OVERLAY_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define OVERLAY_BLOCK_BYTES 4096u

/* Generations at once. Those that a capture has put into a snapshot go with overlay_rebase, so few are usual. */
#define OVERLAY_GENERATIONS_MAX 127u
#define OVERLAY_DISK_MAX        (UINT64_C(1) << 44) /* bytes */

enum overlay_block { OVERLAY_ABSENT = 0, OVERLAY_DATA = 1, OVERLAY_ZERO = 2 };

/* Reads `length` bytes at `offset` of the base into `to`; whole blocks. 0 or negative errno. From any thread. */
typedef int (*overlay_base_read)(void *context, uint64_t offset, size_t length, void *to);

struct overlay;

/*
 * Opens the generations that are in `directory` (none: an unwritten overlay) and removes what was never flushed.
 * Whole blocks of disk, at most OVERLAY_DISK_MAX. -EBADMSG: a damaged file, by name. -E2BIG: too many generations.
 */
int overlay_open(const char *directory, uint64_t disk_bytes, overlay_base_read base, void *context,
                 struct overlay **ret, struct error *err);
/* Doesn't flush. */
void overlay_close(struct overlay *overlay);

/*
 * From now on writes that would make all generations together occupy more than so many bytes of disk fail with
 * -ENOSPC; of writes at the same time some may go a little beyond. Blocks that the newest generation holds can
 * always be written again, and any block zeroed. 0: no limit.
 */
void overlay_set_limit(struct overlay *overlay, uint64_t bytes);

int overlay_read(struct overlay *overlay, uint64_t offset, size_t length, void *to);
/* Any offset and length; part of a block is completed from below. */
int overlay_write(struct overlay *overlay, uint64_t offset, size_t length, const void *from);
/* Reads as zeros afterwards; gives the space back. Parts of blocks are written as zeros. */
int overlay_zero(struct overlay *overlay, uint64_t offset, uint64_t length);
int overlay_flush(struct overlay *overlay);

/*
 * Flushes and freezes; *ret is the number of the newest frozen generation, 0 when there is none. -E2BIG, and
 * nothing is frozen, when there would be more than OVERLAY_GENERATIONS_MAX.
 */
int overlay_freeze(struct overlay *overlay, uint64_t *ret, struct error *err);

/*
 * From now on the base holds what generations up to `generation`, all frozen (-EINVAL), hold: they are dropped and
 * removed. `base` and `context` replace those given to overlay_open; when it returns 0, the former base isn't used
 * any more, and when it fails, it still is.
 */
int overlay_rebase(struct overlay *overlay, uint64_t generation, overlay_base_read base, void *context,
                   struct error *err);

/* Bytes of disk blocks in all generations. */
uint64_t overlay_used_bytes(struct overlay *overlay);

/*
 * Frozen generations as one, read by capture in another process: which blocks are there, and their bytes.
 * Generations above `generation` are not looked at; -ENOENT when that one itself isn't there. 0: an empty view.
 *
 * Threads: overlay_view_next and _read from any number at once. -EBADMSG: a damaged file, by name.
 */
struct overlay_view;
int overlay_view_open(const char *directory, uint64_t disk_bytes, uint64_t generation, struct overlay_view **ret,
                      struct error *err);
void overlay_view_close(struct overlay_view *view);
/*
 * The next run of blocks of one kind (DATA or ZERO) at or after *block, those of DATA in one generation; 1 and
 * *block, *ret_count and *ret_kind, or 0 at the end.
 */
int overlay_view_next(struct overlay_view *view, uint64_t *block, uint64_t *ret_count,
                      enum overlay_block *ret_kind);
/* Reads blocks of a DATA run (-EINVAL: they aren't one). Fastest into a buffer aligned to 4 KiB. */
int overlay_view_read(struct overlay_view *view, uint64_t block, size_t count, void *to, struct error *err);

#endif
