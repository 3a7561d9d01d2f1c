/*
 * libmicrohttpd's own timeout measures the time since the last byte, so a client that sends a byte a minute lives
 * for ever, and it also hits replies whose handler took long. Therefore it is off, and each connection has a
 * deadline instead: set when it begins to wait for a request, lifted when the request has been read, set again for
 * the sending of a bounded reply. One thread looks at all deadlines and shuts down the sockets that are past them.
 *
 * libmicrohttpd 0.9.75 cannot answer in the middle of an upload, and a client that is still sending when the
 * connection closes may never see the answer: so a refused body is read and dropped, within the deadline. The
 * exceptions are clients that wait for leave to send, and bodies announced as larger than DROPPED_MAX.
 */
#include "api/http.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "api/reply.h"
#include "base/io.h"

#define LISTENERS_MAX   2
#define DROPPED_MAX     (64 * UINT64_C(1024) * 1024)
#define THREAD_STACK    (2 * (size_t)1024 * 1024)
#define NO_DEADLINE     INT64_MAX
#define SECOND_NS       INT64_C(1000000000)
#define DEADLINE_PERIOD 1 /* s between looks at the deadlines */

struct listener {
    struct http_server *server;
    struct MHD_Daemon *daemon;
    bool trusted;
};

struct connection {
    struct connection *previous;
    struct connection *next;
    int socket;
    int hangup_fd;       /* -1 until somebody wants it */
    int64_t deadline_ns; /* CLOCK_MONOTONIC; under the server's lock */
};

struct http_server {
    struct http_handlers handlers;
    struct listener listeners[LISTENERS_MAX];
    size_t listener_count;
    int stop_fd; /* eventfd, readable once the server stops */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* ends the deadline thread */
    bool stopping;
    struct connection *connections;
    pthread_t deadline_thread;
};

/* What libmicrohttpd carries along for each request. */
struct exchange {
    struct http_request request;
    struct listener *listener;
    struct connection *connection;
    char *target; /* as on the request line; cut in two for request.path and request.query */
    bool opened;
    bool streamed;
    struct http_reply refusal; /* filled: the body is dropped */
};

static void set_deadline(struct http_server *server, struct connection *connection, int64_t deadline_ns)
{
    pthread_mutex_lock(&server->lock);
    connection->deadline_ns = deadline_ns;
    pthread_mutex_unlock(&server->lock);
}

static int64_t deadline_from_now(const struct http_server *server)
{
    unsigned seconds = server->handlers.request_seconds;
    return clock_monotonic_ns() + (seconds != 0 ? seconds : HTTP_REQUEST_SECONDS) * SECOND_NS;
}

static void *watch_deadlines(void *argument)
{
    struct http_server *server = argument;
    pthread_mutex_lock(&server->lock);
    while (!server->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += DEADLINE_PERIOD;
        pthread_cond_timedwait(&server->wake, &server->lock, &until);
        int64_t now = clock_monotonic_ns();
        for (struct connection *c = server->connections; c != NULL; c = c->next)
            if (c->deadline_ns < now)
                shutdown(c->socket, SHUT_RDWR); /* the connection's own thread then closes it */
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

static void begin_connection(struct http_server *server, struct MHD_Connection *mhd, void **socket_context)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL || info == NULL) {
        free(connection);
        return; /* its requests are refused: see handle_request */
    }
    connection->socket = info->connect_fd;
    connection->hangup_fd = -1;
    connection->deadline_ns = deadline_from_now(server);
    pthread_mutex_lock(&server->lock);
    connection->next = server->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    server->connections = connection;
    pthread_mutex_unlock(&server->lock);
    *socket_context = connection;
}

static void end_connection(struct http_server *server, struct connection *connection)
{
    if (connection == NULL)
        return;
    pthread_mutex_lock(&server->lock);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        server->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    pthread_mutex_unlock(&server->lock);
    if (connection->hangup_fd >= 0)
        close(connection->hangup_fd);
    free(connection);
}

static void notify_connection(void *context, struct MHD_Connection *mhd, void **socket_context,
                              enum MHD_ConnectionNotificationCode code)
{
    struct listener *listener = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        begin_connection(listener->server, mhd, socket_context);
    else
        end_connection(listener->server, *socket_context);
}

static void *begin_exchange(void *context, const char *target, struct MHD_Connection *mhd)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));
    if (exchange == NULL)
        return NULL;
    exchange->listener = context;
    exchange->request.connection = mhd;
    exchange->target = strdup(target);
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    exchange->connection = info != NULL ? info->socket_context : NULL;
    return exchange;
}

static void end_exchange(void *context, struct MHD_Connection *mhd, void **request_context,
                         enum MHD_RequestTerminationCode code)
{
    (void)mhd;
    (void)code;
    struct listener *listener = context;
    struct exchange *exchange = *request_context;
    if (exchange == NULL)
        return;
    struct http_server *server = listener->server;
    if (exchange->opened)
        server->handlers.close(server->handlers.context, &exchange->request);
    if (exchange->connection != NULL)
        set_deadline(server, exchange->connection, deadline_from_now(server));
    if (exchange->refusal.response != NULL)
        MHD_destroy_response(exchange->refusal.response);
    strbuf_done(&exchange->request.body);
    free(exchange->target);
    free(exchange);
    *request_context = NULL;
}

/* Takes over what *reply holds. */
static enum MHD_Result send_reply(struct exchange *exchange, struct http_reply *reply)
{
    struct http_server *server = exchange->listener->server;
    struct MHD_Response *response = TAKE_PTR(reply->response);
    if (response == NULL)
        return MHD_NO;
    if (!exchange->request.unbounded_reply)
        set_deadline(server, exchange->connection, deadline_from_now(server));
    enum MHD_Result r = MHD_queue_response(exchange->request.connection, reply->status, response);
    MHD_destroy_response(response);
    return r;
}

static uint64_t announced_length(struct http_request *request)
{
    const char *text = http_request_header(request, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return text != NULL ? strtoumax(text, NULL, 10) : 0;
}

static void refuse_large_body(struct exchange *exchange)
{
    reply_error(&exchange->refusal, 413, "the request body is too large", NULL);
}

static bool split_target(struct exchange *exchange)
{
    if (exchange->target[0] != '/')
        return false;
    char *question = strchr(exchange->target, '?');
    if (question != NULL)
        *question = '\0';
    exchange->request.path = exchange->target;
    exchange->request.query = question != NULL ? question + 1 : "";
    return true;
}

static enum MHD_Result open_exchange(struct exchange *exchange, const char *method)
{
    struct http_server *server = exchange->listener->server;
    struct http_request *request = &exchange->request;
    if (exchange->target == NULL || exchange->connection == NULL)
        return MHD_NO;
    request->method = method;
    request->trusted = exchange->listener->trusted;
    if (!split_target(exchange)) {
        struct http_reply reply = {0};
        reply_error(&reply, 400, "the request target must be a path", NULL);
        return send_reply(exchange, &reply);
    }
    exchange->opened = true;
    exchange->streamed = server->handlers.open(server->handlers.context, request, &exchange->refusal);
    if (exchange->refusal.status == 0 && exchange->streamed)
        set_deadline(server, exchange->connection, NO_DEADLINE);
    else if (exchange->refusal.status == 0 && announced_length(request) > HTTP_BODY_MAX)
        refuse_large_body(exchange);
    bool waits = http_request_header(request, MHD_HTTP_HEADER_EXPECT) != NULL;
    if (exchange->refusal.status != 0 && (waits || announced_length(request) > DROPPED_MAX))
        return send_reply(exchange, &exchange->refusal);
    return MHD_YES;
}

static enum MHD_Result take_body(struct exchange *exchange, const char *data, size_t *length)
{
    struct http_server *server = exchange->listener->server;
    struct http_request *request = &exchange->request;
    size_t given = *length;
    *length = 0;
    if (exchange->refusal.status != 0)
        return MHD_YES;
    if (exchange->streamed)
        server->handlers.upload(server->handlers.context, request, data, given);
    else if (given <= HTTP_BODY_MAX - request->body.length)
        strbuf_append(&request->body, data, given);
    else
        refuse_large_body(exchange);
    return request->body.failed ? MHD_NO : MHD_YES;
}

static enum MHD_Result finish_request(struct exchange *exchange)
{
    struct http_server *server = exchange->listener->server;
    struct http_reply reply = {0};
    if (exchange->refusal.status != 0)
        return send_reply(exchange, &exchange->refusal);
    set_deadline(server, exchange->connection, NO_DEADLINE);
    server->handlers.respond(server->handlers.context, &exchange->request, &reply);
    return send_reply(exchange, &reply);
}

static enum MHD_Result handle_request(void *context, struct MHD_Connection *mhd, const char *url,
                                      const char *method, const char *version, const char *upload_data,
                                      size_t *upload_length, void **request_context)
{
    (void)context;
    (void)mhd;
    (void)url;
    (void)version;
    struct exchange *exchange = *request_context;
    if (exchange == NULL)
        return MHD_NO;
    if (!exchange->opened)
        return open_exchange(exchange, method);
    if (*upload_length > 0)
        return take_body(exchange, upload_data, upload_length);
    return finish_request(exchange);
}

static void ignore_message(void *context, const char *format, va_list args)
{
    /* libmicrohttpd reports each misbehaving client here; they get their status codes, the log stays readable. */
    (void)context;
    (void)format;
    (void)args;
}

static int start_listener(struct http_server *server, int socket, bool trusted, struct error *err)
{
    struct listener *listener = &server->listeners[server->listener_count];
    *listener = (struct listener){.server = server, .trusted = trusted};
    listener->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL | MHD_USE_ITC |
            MHD_USE_ERROR_LOG,
        0, NULL, NULL, handle_request, listener, MHD_OPTION_EXTERNAL_LOGGER, ignore_message, NULL,
        MHD_OPTION_LISTEN_SOCKET, socket, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, HTTP_HEAD_MAX, MHD_OPTION_CONNECTION_TIMEOUT, 0U,
        MHD_OPTION_THREAD_STACK_SIZE, THREAD_STACK, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_NOTIFY_CONNECTION,
        notify_connection, listener, MHD_OPTION_URI_LOG_CALLBACK, begin_exchange, listener,
        MHD_OPTION_NOTIFY_COMPLETED, end_exchange, listener, MHD_OPTION_END);
    if (listener->daemon == NULL) {
        close(socket);
        return error_set(err, EIO, "cannot start the HTTP server");
    }
    server->listener_count++;
    return 0;
}

static int start_deadline_thread(struct http_server *server, struct error *err)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    int r = pthread_create(&server->deadline_thread, NULL, watch_deadlines, server);
    if (r == 0)
        return 0;
    pthread_cond_destroy(&server->wake);
    pthread_mutex_destroy(&server->lock);
    return error_code(err, -r, "cannot start a thread");
}

/* NULL, and the error, on failure. */
static struct http_server *create_server(const struct http_handlers *handlers, struct error *err)
{
    CLEANUP_FREE struct http_server *server = calloc(1, sizeof(*server));
    CLEANUP_CLOSE int stop_fd = eventfd(0, EFD_CLOEXEC);
    if (server == NULL || stop_fd < 0) {
        error_set(err, ENOMEM, "out of memory or file descriptors");
        return NULL;
    }
    server->handlers = *handlers;
    if (start_deadline_thread(server, err) < 0)
        return NULL;
    server->stop_fd = TAKE_FD(stop_fd);
    return TAKE_PTR(server);
}

int http_server_start(const int *sockets, size_t count, size_t first_trusted, const struct http_handlers *handlers,
                      struct http_server **ret, struct error *err)
{
    size_t taken = 0;
    struct http_server *server = create_server(handlers, err);
    int r = server != NULL ? 0 : -ENOMEM;
    for (; r == 0 && taken < count; taken++)
        r = start_listener(server, sockets[taken], taken >= first_trusted, err);
    if (r == 0) {
        *ret = server;
        return 0;
    }
    while (taken < count)
        close(sockets[taken++]);
    http_server_stop(server);
    return r;
}

void http_server_stop(struct http_server *server)
{
    if (server == NULL)
        return;
    (void)eventfd_write(server->stop_fd, 1);
    for (size_t i = 0; i < server->listener_count; i++)
        MHD_stop_daemon(server->listeners[i].daemon);
    pthread_mutex_lock(&server->lock);
    server->stopping = true;
    pthread_cond_signal(&server->wake);
    pthread_mutex_unlock(&server->lock);
    pthread_join(server->deadline_thread, NULL);
    pthread_cond_destroy(&server->wake);
    pthread_mutex_destroy(&server->lock);
    close(server->stop_fd);
    free(server);
}

static struct exchange *request_exchange(struct http_request *request)
{
    return (struct exchange *)((char *)request - offsetof(struct exchange, request));
}

const char *http_request_header(struct http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

int http_request_socket(struct http_request *request)
{
    return request_exchange(request)->connection->socket;
}

int http_request_hangup_fd(struct http_request *request)
{
    struct exchange *exchange = request_exchange(request);
    struct connection *connection = exchange->connection;
    if (connection->hangup_fd >= 0)
        return connection->hangup_fd;
    CLEANUP_CLOSE int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return -errno;
    /* Not EPOLLIN: the client may already have sent its next request. */
    struct epoll_event client = {.events = EPOLLRDHUP};
    struct epoll_event stop = {.events = EPOLLIN};
    if (epoll_ctl(fd, EPOLL_CTL_ADD, connection->socket, &client) < 0 ||
        epoll_ctl(fd, EPOLL_CTL_ADD, exchange->listener->server->stop_fd, &stop) < 0)
        return -errno;
    connection->hangup_fd = TAKE_FD(fd);
    return connection->hangup_fd;
}
