/*
 * http.h: the HTTP/1.1 server: connections, requests, responses.
 *
 * One connection serves one exchange (request and response) after the other. When the headers of a request are
 * complete the server calls `begin`, which either answers at once or names a handler for the body:
 *
 *     static void complete(struct http_connection *c) { http_respond_json(c, 200, …http_body(c)…); }
 *     static const struct http_handler handler = {.body_limit = 4096, .complete = complete};
 *     void begin(struct http_connection *c, void *context) { http_handle(c, &handler, state); }
 *
 * An answer may come later, from any callback of the loop, and may be a stream. Until then input is not read, and
 * a client that leaves is noticed. Whatever happens, `gone` is called exactly once for each http_handle, after
 * which the connection must not be used by its owner any more. A request that is answered before its body has
 * arrived is read to its end (bounded) or the connection is closed.
 *
 * An owner may hand the exchange on by another http_handle if its own handler has no `gone`.
 *
 * The functions that answer never free the connection and never call back; the loop does that later. An
 * allocation that fails closes the connection.
 *
 * Bounds: HTTP_CONNECTIONS_MAX connections, HTTP_HEAD_MAX bytes of request line and headers, `body_limit` bytes of
 * a collected body and HTTP_COLLECTED_MAX of all of them together, and a time limit on each silence of a client.
 * One thread.
 */
#ifndef DORMOUSE_AGENT_HTTP_H
#define DORMOUSE_AGENT_HTTP_H

#include <http_parser.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/loop.h"
#include "base/strbuf.h"

#define HTTP_CONNECTIONS_MAX 256
#define HTTP_HEAD_MAX        (64 * 1024)
#define HTTP_COLLECTED_MAX   (64u * 1024 * 1024)

struct http_connection;

struct http_handler {
    size_t body_limit; /* of a collected body, bytes; more is answered with 413 */

    /* Takes the body piece by piece instead of collecting it. */
    void (*body)(struct http_connection *connection, const char *bytes, size_t length);

    /* The request has arrived completely; not called if it has been answered before that. */
    void (*complete)(struct http_connection *connection);

    /* The backlog of a streamed response has been sent; NULL: nobody needs to know. */
    void (*drained)(struct http_connection *connection);

    /* The exchange is over: free the owner. NULL: nothing to free. */
    void (*gone)(struct http_connection *connection);
};

struct http_server {
    struct loop *loop;
    void (*begin)(struct http_connection *connection, void *context);
    void *context;

    struct loop_source listener;
    struct http_connection *connections;
    unsigned count;
    size_t collected; /* bytes of all collected bodies */
};

/* Listens on `port`, on all addresses or on 127.0.0.1 only; `begin` and `context` are set by the caller. */
int http_server_open(struct http_server *server, struct loop *loop, uint16_t port, bool loopback_only,
                     struct error *err);

/* Drops every connection that does not come from the guest itself, without a word to the other side. */
void http_drop_outside(struct http_server *server);

/* ---- the request ---- */

enum http_method http_method(const struct http_connection *connection);

/* Decoded, without the query. */
const char *http_path(const struct http_connection *connection);

/* The first header of that name, or NULL. */
const char *http_header(const struct http_connection *connection, const char *name);

/* Calls `visit` for each header whose name begins with `prefix`, whatever the case. */
void http_each_header(const struct http_connection *connection, const char *prefix,
                      void (*visit)(void *context, const char *rest_of_name, const char *value), void *context);

/*
 * The decoded value of a query parameter: 1 and a text that the caller frees, 0 if absent, -EINVAL if it is not
 * validly encoded or holds a NUL, -ENOMEM.
 */
int http_query(const struct http_connection *connection, const char *name, char **ret_value);

/* The collected body. */
const struct strbuf *http_body(const struct http_connection *connection);

void http_handle(struct http_connection *connection, const struct http_handler *handler, void *owner);
void *http_owner(const struct http_connection *connection);

/* `context` of the server. */
void *http_context(const struct http_connection *connection);

/* ---- the response ---- */

/* A whole response. `headers`: more header lines, each with CRLF, or "". `type`: NULL for none. */
void http_respond(struct http_connection *connection, unsigned status, const char *type, const char *headers,
                  const void *body, size_t length);

/* The bytes of an open file from its present offset; takes the descriptor. */
void http_respond_file(struct http_connection *connection, const char *headers, int fd, uint64_t length);

/* A response in pieces. */
void http_stream_begin(struct http_connection *connection, const char *type);
void http_stream_append(struct http_connection *connection, const void *bytes, size_t length);
void http_stream_end(struct http_connection *connection);

/* Bytes of the response that the client has not taken yet. */
size_t http_backlog(const struct http_connection *connection);

#endif
