/*
 * copy_path.h: what docker cp reads out of the spelling of a path.
 *
 * Pure; any thread.
 */
#ifndef DORMOUSE_CLI_COPY_PATH_H
#define DORMOUSE_CLI_COPY_PATH_H

#include <stdbool.h>

#include "base/error.h"

struct copy_path {
    char *path;       /* without trailing "/" and "/."; "/" and "." stay */
    bool must_be_dir; /* it ended in "/" or "/." */
    bool contents;    /* it ended in "/." or is "/": what is in the directory is meant, not the directory */
};

/* -EINVAL for an empty path and for one that ends in "..", which has no name to copy to. */
int copy_path_parse(const char *text, struct copy_path *ret, struct error *err);
void copy_path_done(struct copy_path *path);
#define CLEANUP_COPY_PATH CLEANUP(copy_path_done)

/* The last component; "" for "/" and ".". Within path->path. */
const char *copy_path_name(const struct copy_path *path);

/* directory + "/" + name, "/" not doubled, an empty name left out; the caller frees it, NULL when out of memory. */
char *copy_path_join(const char *directory, const char *name);

/* The directory that holds it: "/" for "/x", "." for "x"; the caller frees it, NULL when out of memory. */
char *copy_path_parent(const char *path);

#endif
