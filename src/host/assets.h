/*
 * assets.h: where the files that come with the program are.
 *
 * In a build tree the executables stand in build/ and recipes/ beside it; installed, they are under
 * PREFIX/lib/dormouse and PREFIX/share/dormouse. Found relative to the running executable.
 */
#ifndef DORMOUSE_HOST_ASSETS_H
#define DORMOUSE_HOST_ASSETS_H

#include "base/error.h"

/* `name`: "dormouse-agent", "recipes/base" … The caller frees the absolute path; NULL (and err set) if absent. */
char *asset_find(const char *name, struct error *err);

#endif
