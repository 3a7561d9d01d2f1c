/*
 * uri.h: paths and query strings as clients send them.
 *
 * The server keeps request targets raw and this module takes them apart, so that "%2F" inside a segment is not a
 * separator and what is proxied stays byte for byte what the client sent. Sizes are bounded by the server's limit
 * on the request head. Pure; any thread; all input is untrusted.
 */
#ifndef DORMOUSE_API_URI_H
#define DORMOUSE_API_URI_H

#include <stdbool.h>
#include <stddef.h>

#define URI_PARAMETERS_MAX 64

/*
 * Replaces %XX by its byte, and "+" by a space if `form`, in a copy the caller frees. -EINVAL on a "%" without two
 * hex digits and on %00, -ENOMEM.
 */
int uri_decode(const char *text, size_t length, bool form, char **ret);

struct uri_parameter {
    char *name;
    char *value;
};

struct uri_query {
    struct uri_parameter parameters[URI_PARAMETERS_MAX];
    size_t count;
};

/*
 * "a=b&c" as decoded pairs in their order, duplicates kept, empty parts skipped. -EINVAL, -E2BIG above
 * URI_PARAMETERS_MAX, -ENOMEM; then *ret is empty. Otherwise the caller calls uri_query_done.
 */
int uri_query_parse(const char *text, struct uri_query *ret);
void uri_query_done(struct uri_query *query);

/* The first of that name, or NULL. */
const char *uri_query_get(const struct uri_query *query, const char *name);

/*
 * Compares a raw path with a pattern such as "/sandboxes/{}/pause" segment by segment. Where the pattern has "{}"
 * any non-empty segment fits, and its decoded text is appended to `captures` (at most `captures_max`; the caller
 * frees them). Returns 1 for a match, 0 for none (nothing captured), -EINVAL on a wrong escape, -ENOMEM.
 */
int uri_match(const char *pattern, const char *path, char **captures, size_t captures_max);

/*
 * As a server in the guest may read it: decoded, empty and "." segments dropped, ".." applied. The caller frees it.
 * -EINVAL on a wrong escape or when it does not begin with "/", -ENOMEM.
 */
int uri_normalize_path(const char *path, char **ret);

#endif
