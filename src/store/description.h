/*
 * description.h: the JSON object of a manifest that describes the snapshot (docs/snapshot-format.md). Pure.
 * -EBADMSG: not such an object.
 */
#ifndef DORMOUSE_STORE_DESCRIPTION_H
#define DORMOUSE_STORE_DESCRIPTION_H

#include "store/manifest.h"

#define DESCRIPTION_BYTES_MAX (64u << 10)

/* *ret is the text, freed by the caller. */
int description_encode(const struct snapshot_manifest *manifest, char **ret, size_t *ret_length, struct error *err);
int description_decode(const void *text, size_t length, struct snapshot_manifest *ret, struct error *err);

#endif
