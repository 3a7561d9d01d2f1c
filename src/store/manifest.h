/*
 * manifest.h: manifest.json of a snapshot, written last and read with every field checked.
 *
 * Pure but for the file named. -EBADMSG: damaged; -EPROTONOSUPPORT: written by a later version.
 */
#ifndef DORMOUSE_STORE_MANIFEST_H
#define DORMOUSE_STORE_MANIFEST_H

#include "store/store.h"

int manifest_write(const char *path, const struct snapshot_manifest *manifest, struct error *err);
int manifest_read(const char *path, struct snapshot_manifest *ret, struct error *err);

#endif
