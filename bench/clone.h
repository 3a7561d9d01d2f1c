/*
 * clone.h: a copy of an image file that costs as little as the file system allows.
 *
 * Where the file system can share blocks (XFS, btrfs: FICLONE, ioctl_ficlonerange(2)) it takes milliseconds and no
 * space. Elsewhere data is copied within the kernel and holes stay holes, so the cost is what the image holds, not
 * its size. Any thread.
 */
#ifndef DORMOUSE_BENCH_CLONE_H
#define DORMOUSE_BENCH_CLONE_H

#include "base/error.h"

/* Makes the empty file `to` a copy of `from`. -ENOSPC when it doesn't fit; `to` is then useless. */
int image_clone(int from, int to, struct error *err);

/* As image_clone, into a new file at `path`. Returns its descriptor (O_RDWR | O_CLOEXEC). On failure no file is
 * left. */
int image_clone_to(int from, const char *path, struct error *err);

#endif
