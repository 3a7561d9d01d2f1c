/*
 * multipart.h: an incremental parser of multipart/form-data (RFC 7578).
 *
 *     struct multipart *parser;
 *     multipart_new(content_type, &callbacks, owner, &parser, err);
 *     multipart_feed(parser, bytes, length, err);      // any number of times, in pieces of any size
 *     multipart_finish(parser, err);                   // -EINVAL if the closing boundary has not come
 *
 * Content is handed on as it comes and never kept; the headers of a part are bounded by MULTIPART_HEADERS_MAX.
 * A callback that returns a negative errno stops the parser, which returns it. One thread.
 */
#ifndef DORMOUSE_AGENT_MULTIPART_H
#define DORMOUSE_AGENT_MULTIPART_H

#include <stddef.h>

#include "base/error.h"

#define MULTIPART_HEADERS_MAX (16 * 1024)

struct multipart;

struct multipart_callbacks {
    /* `name` and `filename` as in the part's Content-Disposition, NULL where it has none. */
    int (*begin)(void *owner, const char *name, const char *filename, struct error *err);
    int (*content)(void *owner, const char *bytes, size_t length, struct error *err);
    int (*end)(void *owner, struct error *err);
};

/* -EINVAL if it is not a multipart/form-data type with a valid boundary. */
int multipart_new(const char *content_type, const struct multipart_callbacks *callbacks, void *owner,
                  struct multipart **ret, struct error *err);
int multipart_feed(struct multipart *parser, const char *bytes, size_t length, struct error *err);
int multipart_finish(const struct multipart *parser, struct error *err);
void multipart_free(struct multipart *parser);

#endif
