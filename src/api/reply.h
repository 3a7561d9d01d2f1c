/*
 * reply.h: the replies of the control plane: JSON, text, nothing, errors.
 *
 * Each fills *reply (http.h). If memory runs out, only the status is set, and the connection is closed unanswered.
 */
#ifndef DORMOUSE_API_REPLY_H
#define DORMOUSE_API_REPLY_H

#include <jansson.h>
#include <stddef.h>

#include "api/http.h"
#include "base/error.h"

/* Takes `json` over; NULL (a failed construction) gives an error reply. */
void reply_json(struct http_reply *reply, unsigned status, json_t *json);

/* "Content-Length: 0", or no length with 204. */
void reply_empty(struct http_reply *reply, unsigned status);

/* Takes `text` over. */
void reply_text(struct http_reply *reply, unsigned status, char *text, size_t length);

/* {"code":status,"message":…} and "hint" unless it is NULL. */
void reply_error(struct http_reply *reply, unsigned status, const char *message, const char *hint);

/* The same from an error object, the status by its errno: see reply_status. */
void reply_failure(struct http_reply *reply, const struct error *err);

/* The HTTP status that stands for an errno: manager.h has the table. */
unsigned reply_status(int code);

/* {"code","message","hint"?,"status"?,"reason"?}, the body of reply_failure. */
json_t *reply_failure_json(const struct error *err);

/* Adds a header to a reply that has been filled. */
void reply_header(struct http_reply *reply, const char *name, const char *value);

#endif
