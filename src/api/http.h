/*
 * http.h: the HTTP server: libmicrohttpd with bounds around it.
 *
 * One thread per connection, so a handler may block; the price is bounded by HTTP_CONNECTIONS_MAX. Everything a
 * client sends is bounded: the head by HTTP_HEAD_MAX, a collected body by HTTP_BODY_MAX, and the time until a
 * request has been read by HTTP_REQUEST_SECONDS, however slowly it trickles. Requests that the handlers stream
 * have no such bounds beyond the head: they end when either side ends.
 *
 * Order of calls: http_server_start once the sockets listen; http_server_stop ends every connection, waits for
 * the handlers in progress, and frees the server. Handlers run on any thread, several at a time; a request
 * belongs to the thread that its handlers are called in.
 */
#ifndef DORMOUSE_API_HTTP_H
#define DORMOUSE_API_HTTP_H

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/strbuf.h"

#define HTTP_HEAD_MAX        (128 * 1024UL)
#define HTTP_BODY_MAX        (1024 * 1024UL)
#define HTTP_REQUEST_SECONDS 60
#define HTTP_CONNECTIONS_MAX 1024 /* on each socket */

struct http_server;

struct http_request {
    const char *method;
    const char *path;     /* raw: escapes untouched, without the query */
    const char *query;    /* raw; "" when there is none */
    bool trusted;         /* came by the unix socket: root on this host */
    struct strbuf body;   /* unless it is streamed */
    bool unbounded_reply; /* set by `respond`: the reply may take as long as the client listens */
    void *stream;         /* the handlers' own */
    struct MHD_Connection *connection;
};

struct http_reply {
    unsigned status;               /* 0: not filled */
    struct MHD_Response *response; /* taken over by the server; NULL: the connection is closed without an answer */
};

struct http_handlers {
    void *context;
    unsigned request_seconds; /* instead of HTTP_REQUEST_SECONDS; 0: that */
    /*
     * The head has been read. True: the body goes to `upload` piece by piece; false: it is collected. If *refusal
     * gets filled, the body is dropped instead, and the refusal sent when the client has sent it.
     */
    bool (*open)(void *context, struct http_request *request, struct http_reply *refusal);
    void (*upload)(void *context, struct http_request *request, const char *data, size_t length);
    /* The request is complete. */
    void (*respond)(void *context, struct http_request *request, struct http_reply *reply);
    /* The exchange is over, answered or not; called once for each request that was opened. */
    void (*close)(void *context, struct http_request *request);
};

/* `sockets` listen already and are taken over, also on failure; those at index ≥ `first_trusted` are trusted. */
int http_server_start(const int *sockets, size_t count, size_t first_trusted, const struct http_handlers *handlers,
                      struct http_server **ret, struct error *err);
/* NULL is allowed. */
void http_server_stop(struct http_server *server);

/* The first header of that name, or NULL. */
const char *http_request_header(struct http_request *request, const char *name);

/* The client's socket. */
int http_request_socket(struct http_request *request);

/*
 * A descriptor that becomes readable when the client has hung up or the server stops: for whoever blocks in a
 * handler. It belongs to the connection. Negative errno when there is none to be had.
 */
int http_request_hangup_fd(struct http_request *request);

#endif
