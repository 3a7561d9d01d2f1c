#include "api/reply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define JSON_TYPE "application/json"

static void reply_buffer(struct http_reply *reply, unsigned status, const char *type, char *data, size_t length)
{
    reply->status = status;
    struct MHD_Response *response = MHD_create_response_from_buffer(length, data, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(data);
        return;
    }
    reply->response = response;
    if (type != NULL)
        reply_header(reply, MHD_HTTP_HEADER_CONTENT_TYPE, type);
}

void reply_json(struct http_reply *reply, unsigned status, json_t *json)
{
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (text != NULL)
        reply_buffer(reply, status, JSON_TYPE, text, strlen(text));
    else
        reply_error(reply, 500, "cannot build the reply: out of memory", NULL);
}

void reply_empty(struct http_reply *reply, unsigned status)
{
    reply_buffer(reply, status, NULL, NULL, 0);
}

void reply_text(struct http_reply *reply, unsigned status, char *text, size_t length)
{
    reply_buffer(reply, status, "text/plain; charset=utf-8", text, length);
}

static json_t *error_json(unsigned status, const char *message, const char *hint)
{
    /* Both may quote bytes that came from outside. */
    json_t *hint_text = hint != NULL ? utf8_json(hint, strlen(hint)) : NULL;
    return json_pack("{s:i, s:o, s:o*}", "code", (int)status, "message", utf8_json(message, strlen(message)),
                     "hint", hint_text);
}

/* Takes `json` over. */
static void reply_problem(struct http_reply *reply, unsigned status, json_t *json)
{
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    reply->status = status;
    if (text != NULL)
        reply_buffer(reply, status, JSON_TYPE, text, strlen(text));
}

void reply_error(struct http_reply *reply, unsigned status, const char *message, const char *hint)
{
    reply_problem(reply, status, error_json(status, message, hint));
}

unsigned reply_status(int code)
{
    switch (code) {
    case EINVAL:
        return 400;
    case ENOENT:
        return 404;
    case EBUSY:
    case ECANCELED:
        return 409;
    case EOPNOTSUPP:
        return 501;
    case EAGAIN:
        return 503;
    case ETIMEDOUT:
        return 504;
    case ENOSPC:
        return 507;
    default:
        return 500;
    }
}

/* As the Connect protocol calls it, for clients that don't go by HTTP's status. */
static const char *status_name(int code)
{
    switch (code) {
    case ECANCELED:
        return "canceled";
    case EAGAIN:
    case ENOSPC:
        return "resource_exhausted";
    case ETIMEDOUT:
        return "deadline_exceeded";
    default:
        return "failed_precondition";
    }
}

json_t *reply_failure_json(const struct error *err)
{
    json_t *json = error_json(reply_status(err->code), error_message(err), err->hint);
    if (json == NULL || err->reason == NULL)
        return json;
    json_object_set_new(json, "status", json_string(status_name(err->code)));
    json_object_set_new(json, "reason", json_string(err->reason));
    return json;
}

void reply_failure(struct http_reply *reply, const struct error *err)
{
    reply_problem(reply, reply_status(err->code), reply_failure_json(err));
}

void reply_header(struct http_reply *reply, const char *name, const char *value)
{
    if (reply->response != NULL)
        (void)MHD_add_response_header(reply->response, name, value);
}
