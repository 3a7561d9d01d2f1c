/*
 * api.h: from an HTTP request to the function that answers it.
 *
 * One server carries three things: Dormouse's own API (/dormouse/v1), the part of E2B's API that is built
 * (the other paths), and the data proxy to guests (requests that name a sandbox, see proxy.h). On TCP the
 * first two demand the API key; on the unix socket, which only root can open, nothing.
 *
 * A route is called when its request is complete. It fills call->reply, or returns a negative errno and the
 * error, from which the reply is made. Any thread, several at a time.
 */
#ifndef DORMOUSE_API_API_H
#define DORMOUSE_API_API_H

#include <jansson.h>

#include "api/http.h"
#include "api/uri.h"
#include "base/error.h"
#include "sandbox/manager.h"

#define API_PARAMETERS_MAX 2

struct api {
    struct manager *manager;
    char *url;    /* "http://127.0.0.1:7878" */
    char *domain; /* "localhost:7878" */
};

/* One request on its way through a route. */
struct api_call {
    struct api *api;
    struct http_request *request;
    struct http_reply *reply;
    char *parameters[API_PARAMETERS_MAX]; /* what stood for the "{}" in the route's pattern, decoded */
    struct uri_query query;
    json_t *body; /* an object; NULL for methods without a body */
};

struct api_route {
    const char *method;
    const char *pattern; /* uri_match */
    int (*handle)(struct api_call *call, struct error *err);
};

/* Tables end with an empty entry. */
extern const struct api_route native_sandbox_routes[];
extern const struct api_route native_template_routes[];
extern const struct api_route native_store_routes[];
extern const struct api_route e2b_sandbox_routes[];
extern const struct api_route e2b_template_routes[];

/* The handlers for http_server_start; `api` must outlive the server. */
struct http_handlers api_handlers(struct api *api);

/* An integer from the query; *ret is left alone when it is absent. -EINVAL. */
int api_query_integer(struct api_call *call, const char *name, int64_t minimum, int64_t maximum, int64_t *ret,
                      struct error *err);

#endif
