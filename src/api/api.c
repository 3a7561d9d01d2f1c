#include "api/api.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "api/body.h"
#include "api/log.h"
#include "api/proxy.h"
#include "api/reply.h"
#include "base/io.h"

static const struct api_route *const tables[] = {native_sandbox_routes, native_template_routes, native_store_routes,
                                                 e2b_sandbox_routes, e2b_template_routes};

static bool authorised(struct api *api, struct http_request *request)
{
    if (request->trusted)
        return true;
    const char *key = http_request_header(request, "X-API-KEY");
    const char *expected = manager_api_key(api->manager);
    return key != NULL && strlen(key) == strlen(expected) && CRYPTO_memcmp(key, expected, strlen(key)) == 0;
}

/*
 * Finds the route. If the path exists but not with this method, *ret_allowed names one it has. Returns 1 when
 * found, 0 when not, or a negative errno.
 */
static int find_route(struct api_call *call, const struct api_route **ret, const char **ret_allowed)
{
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        for (const struct api_route *route = tables[i]; route->method != NULL; route++) {
            bool same_method = strcmp(route->method, call->request->method) == 0;
            if (!same_method && *ret_allowed != NULL)
                continue;
            int r = uri_match(route->pattern, call->request->path, call->parameters, API_PARAMETERS_MAX);
            if (r < 0)
                return r;
            if (r > 0 && same_method) {
                *ret = route;
                return 1;
            }
            if (r > 0)
                *ret_allowed = route->method;
            for (size_t j = 0; j < API_PARAMETERS_MAX; j++) {
                free(call->parameters[j]);
                call->parameters[j] = NULL;
            }
        }
    }
    return 0;
}

static int parse_request(struct api_call *call, struct error *err)
{
    int r = uri_query_parse(call->request->query, &call->query);
    if (r == -E2BIG)
        return error_set(err, EINVAL, "more than %d query parameters", URI_PARAMETERS_MAX);
    if (r < 0)
        return error_set(err, -r, "the query string is malformed");
    if (strcmp(call->request->method, MHD_HTTP_METHOD_GET) == 0)
        return 0;
    return body_parse(strbuf_text(&call->request->body), call->request->body.length, &call->body, err);
}

static int run_route(struct api_call *call, struct error *err)
{
    const struct api_route *route = NULL;
    const char *allowed = NULL;
    int r = find_route(call, &route, &allowed);
    if (r < 0)
        return error_set(err, -r, "the path is malformed");
    if (r == 0 && allowed != NULL) {
        reply_error(call->reply, 405, "this path does not have that method", NULL);
        reply_header(call->reply, MHD_HTTP_HEADER_ALLOW, allowed);
        return 0;
    }
    if (r == 0) {
        reply_error(call->reply, 404, "no such path", "docs/api.yaml lists what is served");
        return 0;
    }
    r = parse_request(call, err);
    return r < 0 ? r : route->handle(call, err);
}

static void finish_call(struct api_call *call)
{
    for (size_t i = 0; i < API_PARAMETERS_MAX; i++)
        free(call->parameters[i]);
    uri_query_done(&call->query);
    json_decref(call->body);
}

/* What changes something, and what fails on our side, is logged; reading is not. */
static void log_call(const struct http_request *request, unsigned status, int64_t started_ns,
                     const struct error *err)
{
    if (strcmp(request->method, MHD_HTTP_METHOD_GET) == 0 && status < 500)
        return;
    log_event("%s %s %u %" PRId64 " ms%s%s", request->method, request->path, status,
              (clock_monotonic_ns() - started_ns) / 1000000, err->code != 0 ? ": " : "",
              err->code != 0 ? error_message(err) : "");
}

static bool open_request(void *context, struct http_request *request, struct http_reply *refusal)
{
    struct api *api = context;
    if (proxy_wants(request)) {
        request->stream = proxy_open(api, request, refusal);
        return true;
    }
    /* E2B's health check carries no key. */
    if (!authorised(api, request) && strcmp(request->path, "/health") != 0)
        reply_error(refusal, 401, "the X-API-KEY header is missing or wrong",
                    "eval \"$(dormouse env)\" sets E2B_API_KEY");
    return false;
}

static void take_upload(void *context, struct http_request *request, const char *data, size_t length)
{
    (void)context;
    proxy_upload(request->stream, data, length);
}

static void respond(void *context, struct http_request *request, struct http_reply *reply)
{
    struct api *api = context;
    if (request->stream != NULL) {
        proxy_respond(request->stream, reply);
        return;
    }
    int64_t started_ns = clock_monotonic_ns();
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct api_call call = {.api = api, .request = request, .reply = reply};
    if (run_route(&call, &err) < 0)
        reply_failure(reply, &err);
    log_call(request, reply->status, started_ns, &err);
    finish_call(&call);
}

static void close_request(void *context, struct http_request *request)
{
    (void)context;
    proxy_close(request->stream);
}

struct http_handlers api_handlers(struct api *api)
{
    return (struct http_handlers){
        .context = api,
        .open = open_request,
        .upload = take_upload,
        .respond = respond,
        .close = close_request,
    };
}

int api_query_integer(struct api_call *call, const char *name, int64_t minimum, int64_t maximum, int64_t *ret,
                      struct error *err)
{
    const char *text = uri_query_get(&call->query, name);
    if (text == NULL)
        return 0;
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || number < minimum || number > maximum)
        return error_set(err, EINVAL, "the query parameter \"%s\" must be an integer from %" PRId64 " to %" PRId64,
                         name, minimum, maximum);
    *ret = number;
    return 0;
}
