/*
 * path.h: paths as clients give them.
 */
#ifndef DORMOUSE_AGENT_PATH_H
#define DORMOUSE_AGENT_PATH_H

#include <sys/types.h>

#include "base/error.h"

/*
 * Makes an absolute path without ".", ".." and double slashes: "~" and "~/…" are in `home`, and so is what does
 * not begin with a slash; "" is `absent`, itself resolved so. ".." is taken literally, not through symbolic links.
 * -EINVAL for another user's "~name", -ENAMETOOLONG. The caller frees it.
 */
int path_resolve(const char *path, const char *home, const char *absent, char **ret, struct error *err);

/* Creates the missing directories of `path`, each owned by uid and gid. -EEXIST when `path` was there before,
 * -ENOTDIR when a part of it is no directory. */
int path_make_directories(const char *path, uid_t uid, gid_t gid, struct error *err);

/* The same for the directory that `path` is in, which may exist. */
int path_make_parents(const char *path, uid_t uid, gid_t gid, struct error *err);

/* What follows the last slash; "/" for the root. Points into `path`. */
const char *path_name(const char *path);

#endif
