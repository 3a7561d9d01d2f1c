/*
 * fuse_mount.h: a FUSE mount answered by threads of its own.
 *
 * Order of calls: fuse_mount_start, after which files can be opened; fuse_mount_stop; fuse_mount_free. The threads
 * are made ahead and never grow in number. `enter` is called once in each before it answers anything.
 *
 * A session's threads may wait for the disk and for sessions that were started before theirs, never for their own
 * or a later one: so no two can wait for each other.
 */
#ifndef DORMOUSE_IMAGED_FUSE_MOUNT_H
#define DORMOUSE_IMAGED_FUSE_MOUNT_H

#define FUSE_USE_VERSION 312
#include <fuse3/fuse_lowlevel.h>

#include "base/error.h"

#define FUSE_MOUNT_MAX_BYTES (1u << 20) /* in one request */

/* Answers with attributes that never change are valid for ever. */
#define FUSE_MOUNT_FOREVER 1e9

struct fuse_mount_options {
    const char *path; /* a directory; it is made, and what a dead server has mounted there is taken away */
    const char *name; /* shown in /proc/mounts */
    const struct fuse_lowlevel_ops *operations;
    void *context; /* fuse_req_userdata */
    unsigned threads;
    void (*enter)(void *context, unsigned thread);
};

struct fuse_mount;

int fuse_mount_start(const struct fuse_mount_options *options, struct fuse_mount **ret, struct error *err);
struct fuse_session *fuse_mount_session(struct fuse_mount *mount);
const char *fuse_mount_path(const struct fuse_mount *mount);

/*
 * Takes the mount away; whoever still uses files in it gets errors. Returns when its threads have ended. The
 * session stays, so that notifications fail instead of crashing.
 */
void fuse_mount_stop(struct fuse_mount *mount);
void fuse_mount_free(struct fuse_mount *mount);

/* The attributes of the root directory of all our mounts. */
void fuse_mount_root_attributes(struct stat *ret);

#endif
