/*
 * json.h: typed, checked reading of JSON objects that come from a disk or a peer.
 *
 * Each function reads one member; -EINVAL with the member's name when it has the wrong type or range. Absent
 * members read as the default. Strings are copied and owned by the caller.
 */
#ifndef DORMOUSE_BASE_JSON_H
#define DORMOUSE_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Absent: "". */
int json_read_text(const json_t *object, const char *key, char **ret, struct error *err);
/* Absent: `absent`. Otherwise within [minimum, maximum]. */
int json_read_integer(const json_t *object, const char *key, int64_t minimum, int64_t maximum, int64_t absent,
                      int64_t *ret, struct error *err);
int json_read_bool(const json_t *object, const char *key, bool absent, bool *ret, struct error *err);

/* Parses a file of at most `limit` bytes that holds one object; json_decref'd by the caller. -EBADMSG if it
 * doesn't. */
int json_read_file(const char *path, size_t limit, json_t **ret, struct error *err);

#endif
