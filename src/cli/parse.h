/*
 * parse.h: the values people type, besides numbers and sizes (base/number.h): durations, ids, KEY=VALUE pairs,
 * ID:PATH.
 *
 * Each parser takes the whole text or fails with -EINVAL and a message that quotes it; outputs are touched only on
 * success. Pure; any thread.
 */
#ifndef DORMOUSE_CLI_PARSE_H
#define DORMOUSE_CLI_PARSE_H

#include <stdint.h>

#include "base/error.h"

/* "90", "90s", "5m", "1h30m", "2d"; "0" is allowed and means what the option says. At most 31 days. */
int parse_duration(const char *text, int64_t *ret_seconds, struct error *err);

/* An id, a prefix of one, or a name: 1 … 128 characters of [A-Za-z0-9._:-], so that it can stand in a URL path. */
int parse_id(const char *text, struct error *err);

/*
 * Splits at the first "=" of KEY=VALUE; the key is not empty and has no control characters. The caller frees
 * *ret_key; *ret_value points into `text`.
 */
int parse_pair(const char *text, char **ret_key, const char **ret_value, struct error *err);

/* One side of cp. `id` is NULL for a path of this host. */
struct copy_place {
    char *id;
    char *path;
};
void copy_place_done(struct copy_place *place);

/*
 * ID:PATH is in a sandbox. As with docker cp, what starts with "/" or "." is of this host, and so is what has no
 * colon or has before it what can't be an id ("notes 10:30.txt").
 */
int parse_copy_place(const char *text, struct copy_place *ret, struct error *err);

#endif
