#include "cli/copy_path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *text, size_t length, const char *suffix)
{
    size_t n = strlen(suffix);
    return length >= n && memcmp(text + length - n, suffix, n) == 0;
}

int copy_path_parse(const char *text, struct copy_path *ret, struct error *err)
{
    struct copy_path path = {NULL, false, false};
    size_t length = strlen(text);
    if (length == 0)
        return error_set(err, EINVAL, "a path is empty");
    for (;;) {
        if (length > 1 && text[length - 1] == '/') {
            length--;
        } else if (length > 1 && ends_with(text, length, "/.")) {
            path.contents = true;
            length--;
        } else {
            break;
        }
        path.must_be_dir = true;
    }
    if (ends_with(text, length, "..") && (length == 2 || text[length - 3] == '/'))
        return error_set(err, EINVAL, "'%s' ends in '..': name the directory itself", text);
    path.path = strndup(text, length);
    if (path.path == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (strcmp(path.path, "/") == 0 || strcmp(path.path, ".") == 0)
        path.must_be_dir = path.contents = true;
    *ret = path;
    return 0;
}

void copy_path_done(struct copy_path *path)
{
    free(path->path);
    path->path = NULL;
}

const char *copy_path_name(const struct copy_path *path)
{
    const char *slash = strrchr(path->path, '/');
    const char *name = slash != NULL ? slash + 1 : path->path;
    return strcmp(name, ".") == 0 ? "" : name;
}

char *copy_path_join(const char *directory, const char *name)
{
    char *joined;
    bool ends_in_slash = ends_with(directory, strlen(directory), "/");
    if (asprintf(&joined, "%s%s%s", directory, *name == '\0' || ends_in_slash ? "" : "/", name) < 0)
        return NULL;
    return joined;
}

char *copy_path_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return strdup(".");
    return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}
