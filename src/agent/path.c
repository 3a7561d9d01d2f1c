#include "agent/path.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"

/* Appends the parts of `path` to the clean absolute path in `out` ("" stands for the root). */
static void append_parts(struct strbuf *out, const char *path)
{
    while (*path != '\0') {
        path += strspn(path, "/");
        size_t length = strcspn(path, "/");
        if (length == 2 && memcmp(path, "..", 2) == 0) {
            const char *slash = memrchr(strbuf_text(out), '/', out->length);
            if (slash != NULL) {
                out->length = (size_t)(slash - out->data);
                out->data[out->length] = '\0';
            }
        } else if (length > 0 && !(length == 1 && *path == '.')) {
            strbuf_puts(out, "/");
            strbuf_append(out, path, length);
        }
        path += length;
    }
}

int path_resolve(const char *path, const char *home, const char *absent, char **ret, struct error *err)
{
    if (*path == '\0')
        path = *absent != '\0' ? absent : "~";
    if (*path == '~' && path[1] != '\0' && path[1] != '/')
        return error_set(err, EINVAL, "'%.64s' names another user's home, which is not supported", path);
    CLEANUP_STRBUF struct strbuf out = STRBUF_INIT;
    if (*path != '/')
        append_parts(&out, home);
    append_parts(&out, *path == '~' ? path + 1 : path);
    if (out.length == 0)
        strbuf_puts(&out, "/");
    if (out.length >= PATH_MAX)
        return error_set(err, ENAMETOOLONG, "the path is longer than %d bytes", PATH_MAX - 1);
    char *resolved = strbuf_take(&out);
    if (resolved == NULL)
        return error_set(err, ENOMEM, "no memory for a path");
    *ret = resolved;
    return 0;
}

/* 0: made, 1: was there. */
static int make_directory(const char *path, uid_t uid, gid_t gid, struct error *err)
{
    struct stat status;
    if (mkdir(path, 0755) == 0) {
        if (lchown(path, uid, gid) < 0)
            return error_errno(err, "cannot give '%s' to its user", path);
        return 0;
    }
    if (errno != EEXIST)
        return error_errno(err, "cannot make the directory '%s'", path);
    if (stat(path, &status) < 0 || !S_ISDIR(status.st_mode))
        return error_set(err, ENOTDIR, "'%s' is not a directory", path);
    return 1;
}

int path_make_directories(const char *path, uid_t uid, gid_t gid, struct error *err)
{
    CLEANUP_FREE char *partial = strdup(path);
    if (partial == NULL)
        return error_set(err, ENOMEM, "no memory for a path");
    for (char *slash = strchr(partial + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        int r = make_directory(partial, uid, gid, err);
        if (r < 0)
            return r;
        *slash = '/';
    }
    int r = make_directory(partial, uid, gid, err);
    return r == 1 ? error_set(err, EEXIST, "the directory '%s' exists already", path) : r;
}

int path_make_parents(const char *path, uid_t uid, gid_t gid, struct error *err)
{
    CLEANUP_FREE char *parent = strndup(path, (size_t)(path_name(path) - path));
    if (parent == NULL)
        return error_set(err, ENOMEM, "no memory for a path");
    size_t length = strlen(parent);
    if (length <= 1)
        return 0;
    parent[length - 1] = '\0';
    int r = path_make_directories(parent, uid, gid, err);
    return r == -EEXIST ? 0 : r;
}

const char *path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL || slash[1] == '\0' ? path : slash + 1;
}
