/*
 * guest.h: HTTP to a server inside a sandbox, by libcurl over sockets from manager_socket().
 *
 * The guest is hostile: no redirects are followed, no proxy is used, nothing but HTTP spoken, connecting takes at
 * most GUEST_CONNECT_MS. Each request has its own connection: one that was kept over a pause would be dead.
 * An endpoint is used by one thread at a time.
 */
#ifndef DORMOUSE_API_GUEST_H
#define DORMOUSE_API_GUEST_H

#include <curl/curl.h>
#include <jansson.h>

#include "base/error.h"
#include "sandbox/manager.h"

#define GUEST_AGENT_PORT 49983
#define GUEST_CONNECT_MS 5000

struct guest_endpoint {
    struct manager *manager;
    char *sandbox_id;
    unsigned port;
    struct error socket_error; /* why there was no socket, if so */
};

/* Once, before any thread. */
int guest_global_init(struct error *err);

/*
 * A handle set up for `target` (path and query, sent as it is) at the endpoint, which must outlive it. NULL when
 * memory runs out; otherwise the caller calls curl_easy_cleanup.
 */
CURL *guest_curl(struct guest_endpoint *endpoint, const char *target);

/*
 * GET of a small JSON object from the sandbox's agent. -EBUSY when it doesn't run, -ETIMEDOUT when it doesn't
 * answer within seconds, -EBADMSG when the answer is not what was asked for. The caller calls json_decref.
 */
int guest_agent_json(struct manager *manager, const struct sandbox_info *info, const char *target, json_t **ret,
                     struct error *err);

#endif
