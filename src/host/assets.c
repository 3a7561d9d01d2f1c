#include "host/assets.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Relative to the directory of the executable, in this order. */
static const char *const places[] = {"", "../", "../../", "../../../", "../lib/dormouse/", "../share/dormouse/"};

char *asset_find(const char *name, struct error *err)
{
    char executable[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", executable, sizeof(executable) - 1);
    if (length < 0) {
        error_errno(err, "cannot find the running executable");
        return NULL;
    }
    executable[length] = '\0';
    *strrchr(executable, '/') = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        CLEANUP_FREE char *path = NULL;
        if (asprintf(&path, "%s/%s%s", executable, places[i], name) < 0) {
            path = NULL;
            error_set(err, ENOMEM, "out of memory");
            return NULL;
        }
        char *absolute = realpath(path, NULL);
        if (absolute != NULL)
            return absolute;
    }
    error_set(err, ENOENT, "%s, which comes with dormouse, is not near %s", name, executable);
    error_hint(err, "build or install dormouse again");
    return NULL;
}
