/*
 * A connection goes through enum http_stage with its request and through enum http_answer with its response; the
 * two are independent, since an answer may come before the request is complete or long after. All input is parsed
 * and all connections end in connection_ready and connection_silent, so nothing is freed under a caller's feet:
 * callbacks and responses only change state, and settle() draws the consequences.
 *
 * Invariants: input is read only in the stages before STAGE_REQUESTED and in STAGE_LINGER; the parser is paused
 * exactly while the stage is STAGE_REQUESTED; `handler` is set from http_handle until `gone` was called.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/http_connection.h"

#define SECOND_NS         INT64_C(1000000000)
#define IDLE_LIMIT_NS     (600 * SECOND_NS)
#define HEAD_LIMIT_NS     (30 * SECOND_NS)
#define STALL_LIMIT_NS    (300 * SECOND_NS)
#define LINGER_LIMIT_NS   (2 * SECOND_NS)
#define READ_SIZE         (64 * 1024)
#define UNWANTED_BODY_MAX (64u * 1024 * 1024) /* read for the sake of a client that sends before it listens */
#define LISTEN_BACKLOG    128

/* ---- life of a connection ---- */

static void set_silence_limit(struct http_connection *connection)
{
    int64_t limit_ns = 0;
    switch (connection->stage) {
    case STAGE_IDLE:
        limit_ns = IDLE_LIMIT_NS;
        break;
    case STAGE_HEAD:
        limit_ns = HEAD_LIMIT_NS;
        break;
    case STAGE_BODY:
        limit_ns = STALL_LIMIT_NS;
        break;
    case STAGE_REQUESTED: /* the server's turn, unless the client does not take a finished response */
        limit_ns = connection->answer == ANSWER_COMPLETE ? STALL_LIMIT_NS : 0;
        break;
    case STAGE_LINGER:
        limit_ns = LINGER_LIMIT_NS;
        break;
    }
    if (limit_ns > 0)
        loop_timer_set(connection->server->loop, &connection->silence, limit_ns);
    else
        loop_timer_cancel(connection->server->loop, &connection->silence);
}

static void set_stage(struct http_connection *connection, enum http_stage stage)
{
    connection->stage = stage;
    set_silence_limit(connection);
}

void http_connection_update(struct http_connection *connection)
{
    uint32_t events = 0;
    bool answered = connection->answer == ANSWER_COMPLETE;
    if (connection->stage != STAGE_REQUESTED)
        events |= EPOLLIN;
    else if (!answered)
        events |= EPOLLRDHUP;
    if (connection->broken || http_response_pending(connection) ||
        (connection->stage == STAGE_REQUESTED && answered))
        events |= EPOLLOUT;
    loop_change(connection->server->loop, &connection->source, events);
}

static void end_exchange(struct http_connection *connection)
{
    const struct http_handler *handler = TAKE_PTR(connection->handler);
    if (handler != NULL && handler->gone != NULL)
        handler->gone(connection);
    http_request_reset(connection);
    http_response_reset(connection);
}

static void destroy(struct http_connection *connection)
{
    struct http_server *server = connection->server;
    end_exchange(connection);
    loop_timer_cancel(server->loop, &connection->silence);
    loop_close(server->loop, &connection->source);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        server->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    strbuf_done(&connection->input);
    strbuf_done(&connection->output);
    free(connection);
    server->count--;
    loop_change(server->loop, &server->listener, EPOLLIN);
}

static void respond_error(struct http_connection *connection, unsigned status, const char *message)
{
    char body[160];
    int length = snprintf(body, sizeof(body), "{\"code\":%u,\"message\":\"%s\"}", status, message);
    http_respond(connection, status, "application/json", "", body, (size_t)length);
}

/* The request cannot be understood any further: says so and ends the connection. */
static void refuse(struct http_connection *connection, unsigned status, const char *message)
{
    if (connection->answer == ANSWER_NONE) {
        connection->close = true;
        connection->linger = true;
        respond_error(connection, status, message);
    } else if (connection->answer == ANSWER_STREAMING) {
        connection->broken = true;
    }
    connection->close = true;
    set_stage(connection, STAGE_REQUESTED);
}

/* ---- the parser's callbacks ---- */

static struct http_connection *of_parser(http_parser *parser)
{
    return parser->data;
}

static int on_url(http_parser *parser, const char *text, size_t length)
{
    struct http_connection *connection = of_parser(parser);
    strbuf_append(&connection->url, text, length);
    return connection->url.failed;
}

static int on_header_field(http_parser *parser, const char *text, size_t length)
{
    struct http_connection *connection = of_parser(parser);
    if (connection->stage != STAGE_HEAD) /* trailers are not used */
        return 0;
    if (connection->in_value)
        strbuf_append(&connection->headers, "", 1);
    connection->in_value = false;
    strbuf_append(&connection->headers, text, length);
    return connection->headers.failed;
}

static int on_header_value(http_parser *parser, const char *text, size_t length)
{
    struct http_connection *connection = of_parser(parser);
    if (connection->stage != STAGE_HEAD)
        return 0;
    if (!connection->in_value)
        strbuf_append(&connection->headers, "", 1);
    connection->in_value = true;
    strbuf_append(&connection->headers, text, length);
    return connection->headers.failed;
}

/* Refuses what can be seen from the headers, or lets the server begin. */
static void route(struct http_connection *connection)
{
    uint64_t announced = connection->parser.content_length;
    if (connection->parser.http_major != 1) {
        connection->close = true;
        respond_error(connection, 505, "only HTTP/1.1 and 1.0 are spoken here");
        return;
    }
    if (http_request_parse_url(connection) < 0) {
        respond_error(connection, 400, "the request's target is not a valid path");
        return;
    }
    connection->server->begin(connection, connection->server->context);
    if (connection->answer != ANSWER_NONE)
        return;
    const struct http_handler *handler = connection->handler;
    if (handler == NULL)
        respond_error(connection, 404, "there is nothing at this path");
    else if (handler->body == NULL && announced != UINT64_MAX && announced > handler->body_limit)
        respond_error(connection, 413, "the request's body is too large");
}

static void begin_request(struct http_connection *connection)
{
    const char *expect = http_header(connection, "Expect");
    uint64_t announced = connection->parser.content_length;
    bool waits = expect != NULL && strcasecmp(expect, "100-continue") == 0;
    route(connection);
    if (connection->answer == ANSWER_NONE && waits) {
        http_response_continue(connection);
    } else if (connection->answer != ANSWER_NONE &&
               (waits || (announced != UINT64_MAX && announced > UNWANTED_BODY_MAX))) {
        /* The body may never come, or be too much to read for nothing. */
        connection->close = true;
        connection->linger = true;
    }
}

static int on_headers_complete(http_parser *parser)
{
    struct http_connection *connection = of_parser(parser);
    if (connection->in_value)
        strbuf_append(&connection->headers, "", 1);
    if (connection->headers.failed)
        return -1;
    parser->upgrade = 0; /* no other protocol is offered, so the request is an ordinary one */
    connection->close = http_should_keep_alive(parser) == 0;
    set_stage(connection, STAGE_BODY);
    begin_request(connection);
    return 0;
}

static void collect(struct http_connection *connection, const char *bytes, size_t length)
{
    struct http_server *server = connection->server;
    if (length > connection->handler->body_limit - connection->body.length) {
        respond_error(connection, 413, "the request's body is too large");
    } else if (length > HTTP_COLLECTED_MAX - server->collected) {
        respond_error(connection, 503, "too much is being received at the moment");
    } else {
        strbuf_append(&connection->body, bytes, length);
        server->collected += connection->body.failed ? 0 : length;
    }
}

static int on_body(http_parser *parser, const char *bytes, size_t length)
{
    struct http_connection *connection = of_parser(parser);
    if (connection->answer != ANSWER_NONE) {
        connection->dropped += length;
        return connection->dropped > UNWANTED_BODY_MAX;
    }
    if (connection->handler->body != NULL)
        connection->handler->body(connection, bytes, length);
    else
        collect(connection, bytes, length);
    return connection->body.failed;
}

static int on_message_complete(http_parser *parser)
{
    struct http_connection *connection = of_parser(parser);
    set_stage(connection, STAGE_REQUESTED);
    http_parser_pause(parser, 1);
    if (connection->answer == ANSWER_NONE)
        connection->handler->complete(connection);
    return 0;
}

static const http_parser_settings parser_settings = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

/* ---- events ---- */

static void parse(struct http_connection *connection, const char *bytes, size_t length)
{
    if (connection->stage == STAGE_IDLE)
        set_stage(connection, STAGE_HEAD);
    size_t parsed = http_parser_execute(&connection->parser, &parser_settings, bytes, length);
    switch (HTTP_PARSER_ERRNO(&connection->parser)) {
    case HPE_OK:
        break;
    case HPE_PAUSED:
        strbuf_append(&connection->input, bytes + parsed, length - parsed);
        connection->broken |= connection->input.failed;
        break;
    case HPE_HEADER_OVERFLOW:
        refuse(connection, 431, "the request's headers are too large");
        break;
    case HPE_CB_url:
    case HPE_CB_header_field:
    case HPE_CB_header_value:
    case HPE_CB_headers_complete:
    case HPE_CB_body:
        connection->broken = true; /* no memory, or a flood behind an answered request */
        break;
    default:
        refuse(connection, 400, "this is not a valid HTTP request");
    }
}

static void next_request(struct http_connection *connection)
{
    end_exchange(connection);
    set_stage(connection, STAGE_IDLE);
    http_parser_pause(&connection->parser, 0);
    CLEANUP_STRBUF struct strbuf input = connection->input;
    connection->input = (struct strbuf)STRBUF_INIT;
    if (input.length > 0)
        parse(connection, input.data, input.length);
}

/* Lets the client read the last response before the close would discard it with a reset. */
static bool linger(struct http_connection *connection)
{
    if (!connection->linger || shutdown(connection->source.fd, SHUT_WR) < 0)
        return false;
    end_exchange(connection);
    set_stage(connection, STAGE_LINGER);
    return true;
}

/* After anything has happened: sends, goes on to the next request, ends the connection. */
static void settle(struct http_connection *connection)
{
    for (;;) {
        if (connection->broken || http_response_flush(connection) < 0) {
            destroy(connection);
            return;
        }
        bool answered = connection->answer == ANSWER_COMPLETE && !http_response_pending(connection);
        if (!answered || (connection->stage != STAGE_REQUESTED && !connection->close))
            break;
        connection->linger |= connection->stage != STAGE_REQUESTED;
        if (!connection->close)
            next_request(connection);
        else if (linger(connection))
            break;
        else {
            destroy(connection);
            return;
        }
    }
    if (connection->answer == ANSWER_STREAMING && !http_response_pending(connection) &&
        connection->handler->drained != NULL)
        connection->handler->drained(connection);
    connection->settling = false;
    http_connection_update(connection);
}

static void receive(struct http_connection *connection)
{
    static char buffer[READ_SIZE];
    ssize_t n = recv(connection->source.fd, buffer, sizeof(buffer), 0);
    if (n < 0) {
        connection->broken |= errno != EAGAIN && errno != EINTR;
        return;
    }
    switch (connection->stage) {
    case STAGE_IDLE:
        if (n == 0)
            connection->broken = true;
        else
            parse(connection, buffer, (size_t)n);
        break;
    case STAGE_HEAD:
    case STAGE_BODY:
        if (n == 0) {
            refuse(connection, 400, "the request ends too early");
            connection->linger = false;
            break;
        }
        if (connection->stage == STAGE_BODY)
            set_silence_limit(connection);
        parse(connection, buffer, (size_t)n);
        break;
    case STAGE_LINGER:
        connection->dropped += (uint64_t)n;
        connection->broken = n == 0 || connection->dropped > UNWANTED_BODY_MAX;
        break;
    case STAGE_REQUESTED:
        break;
    }
}

static void connection_ready(struct loop_source *source, uint32_t events)
{
    struct http_connection *connection = source->owner;
    connection->settling = true;
    bool left = (events & EPOLLRDHUP) != 0 && connection->stage == STAGE_REQUESTED;
    if ((events & (EPOLLHUP | EPOLLERR)) != 0 || left)
        connection->broken = true;
    else if ((events & EPOLLIN) != 0)
        receive(connection);
    else if ((events & EPOLLOUT) != 0)
        set_silence_limit(connection);
    settle(connection);
}

static void connection_silent(struct loop_timer *timer)
{
    struct http_connection *connection = timer->owner;
    connection->settling = true;
    if ((connection->stage == STAGE_HEAD || connection->stage == STAGE_BODY) && connection->answer == ANSWER_NONE)
        refuse(connection, 408, "the request did not arrive in time");
    else
        connection->broken = true;
    settle(connection);
}

/* ---- the server ---- */

static bool is_loopback(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
    return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
}

static void add_connection(struct http_server *server, int fd, bool outside)
{
    struct http_connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return;
    }
    connection->server = server;
    connection->source = (struct loop_source){.fd = fd, .ready = connection_ready, .owner = connection};
    connection->silence = (struct loop_timer){.expired = connection_silent, .owner = connection};
    connection->outside = outside;
    connection->query = "";
    connection->file = -1;
    http_parser_init(&connection->parser, HTTP_REQUEST);
    connection->parser.data = connection;
    if (loop_add(server->loop, &connection->source, EPOLLIN, NULL) < 0) {
        close(fd);
        free(connection);
        return;
    }
    connection->next = server->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    server->connections = connection;
    server->count++;
    set_stage(connection, STAGE_IDLE);
}

static void listener_ready(struct loop_source *source, uint32_t events)
{
    (void)events;
    struct http_server *server = source->owner;
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    int fd = accept4(source->fd, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    add_connection(server, fd, !is_loopback(&peer));
    if (server->count >= HTTP_CONNECTIONS_MAX)
        loop_change(server->loop, source, 0); /* until one ends */
}

static int bind_listener(int fd, uint16_t port, bool loopback_only)
{
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    int family;
    socklen_t length = sizeof(family);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    in.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
    int r;
    if (family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int));
        r = bind(fd, (struct sockaddr *)&any6, sizeof(any6));
    } else {
        r = bind(fd, (struct sockaddr *)&in, sizeof(in));
    }
    return r < 0 || listen(fd, LISTEN_BACKLOG) < 0 ? -errno : 0;
}

int http_server_open(struct http_server *server, struct loop *loop, uint16_t port, bool loopback_only,
                     struct error *err)
{
    int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    CLEANUP_CLOSE int fd = loopback_only ? -1 : socket(AF_INET6, type, 0);
    if (fd < 0) /* also where the kernel has no IPv6 */
        fd = socket(AF_INET, type, 0);
    if (fd < 0)
        return error_errno(err, "cannot open a socket");
    int r = bind_listener(fd, port, loopback_only);
    if (r < 0)
        return error_code(err, r, "cannot listen on port %u", port);
    http_parser_set_max_header_size(HTTP_HEAD_MAX);
    server->loop = loop;
    server->listener = (struct loop_source){.fd = fd, .ready = listener_ready, .owner = server};
    r = loop_add(loop, &server->listener, EPOLLIN, err);
    if (r < 0)
        return r;
    TAKE_FD(fd);
    return 0;
}

void http_drop_outside(struct http_server *server)
{
    struct http_connection *next;
    for (struct http_connection *connection = server->connections; connection != NULL; connection = next) {
        next = connection->next;
        if (!connection->outside)
            continue;
        /* A reset rather than an orderly end: the other side may be gone, and retransmissions would keep the
         * guest busy. */
        setsockopt(connection->source.fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
        destroy(connection);
    }
}
