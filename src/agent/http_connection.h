/*
 * http_connection.h: what the files of the HTTP server share; for nobody else.
 */
#ifndef DORMOUSE_AGENT_HTTP_CONNECTION_H
#define DORMOUSE_AGENT_HTTP_CONNECTION_H

#include "agent/http.h"

enum http_stage {
    STAGE_IDLE,      /* between exchanges: no byte of the next request has come */
    STAGE_HEAD,      /* inside request line and headers */
    STAGE_BODY,      /* headers are complete, the body is not */
    STAGE_REQUESTED, /* the request is complete, or nothing more of it is wanted; input is not read */
    STAGE_LINGER,    /* the last response is sent; input is dropped until the client closes */
};

enum http_answer {
    ANSWER_NONE,
    ANSWER_STREAMING, /* begun by http_stream_begin, more will come */
    ANSWER_COMPLETE,  /* all of it is queued */
};

struct http_connection {
    struct http_server *server;
    struct http_connection *previous, *next;
    struct loop_source source;
    struct loop_timer silence; /* the client has to do something before it expires */
    bool outside;              /* not over the loopback interface */

    http_parser parser;
    enum http_stage stage;
    struct strbuf input; /* received behind the request that is being served */

    /* The request. */
    struct strbuf url;
    struct strbuf headers; /* "name\0value\0…" */
    bool in_value;         /* the last piece of a header was of its value */
    char *path;            /* decoded */
    const char *query;     /* inside url, "" if none */
    const struct http_handler *handler;
    void *owner;
    struct strbuf body;
    uint64_t dropped; /* bytes of body that nobody wanted */

    /* The response. */
    enum http_answer answer;
    bool chunked;  /* the stream is sent in chunks, else until close */
    bool close;    /* the connection ends with this response */
    bool linger;   /* and the client may still be sending */
    bool broken;   /* out of memory or the client is gone: ends without one */
    bool settling; /* inside the connection's own event, which will flush and update */
    struct strbuf output;
    size_t output_sent;
    int file;           /* -1: none */
    uint64_t file_left; /* bytes */
};

/* ---- http_request.c ---- */

/* Splits the url into path and query; -EINVAL when it is not a valid one. */
int http_request_parse_url(struct http_connection *connection);
void http_request_reset(struct http_connection *connection);

/* ---- http_response.c ---- */

/* Sends what the socket takes: 0, or -errno when the connection is lost. */
int http_response_flush(struct http_connection *connection);
void http_response_reset(struct http_connection *connection);
bool http_response_pending(const struct http_connection *connection);
void http_response_continue(struct http_connection *connection);

/* ---- http.c ---- */

/* Registers for the events that the connection's present stage needs. */
void http_connection_update(struct http_connection *connection);

#endif
