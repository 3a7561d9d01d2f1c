/*
 * upgrade.h: requests that turn their connection into another protocol's, WebSocket for one.
 *
 * After the handshake both connections are joined byte for byte and end together. libmicrohttpd's own upgrade
 * cannot be stopped in order in thread-per-connection mode (0.9.75), so the client's socket is used from within
 * the request's handler, and the server closes it afterwards. That is sound because a client has to wait for the
 * answer before it speaks the other protocol: libmicrohttpd has read nothing beyond the request.
 */
#ifndef DORMOUSE_API_UPGRADE_H
#define DORMOUSE_API_UPGRADE_H

#include <stdbool.h>

#include "api/guest.h"
#include "api/http.h"

struct upgrade {
    struct http_request *request;
    struct guest_endpoint *endpoint;
    int hangup_fd;                /* http_request_hangup_fd */
    bool (*alive)(void *context); /* whether the sandbox still is what it was; asked now and then */
    void *alive_context;
};

/* Whether the client asks for it. */
bool upgrade_wanted(struct http_request *request);

enum upgrade_result {
    UPGRADE_DONE,      /* the client got its answer; its connection is to be closed */
    UPGRADE_NO_SOCKET, /* endpoint->socket_error says why */
    UPGRADE_REFUSED,   /* nobody listens on the port */
    UPGRADE_MALFORMED, /* no proper answer came */
    UPGRADE_ABORTED,   /* the client hung up, the daemon stops, or the sandbox went */
};

/* Returns when both sides are through. Without UPGRADE_DONE the client has been sent nothing. */
enum upgrade_result upgrade_run(struct upgrade *upgrade);

#endif
