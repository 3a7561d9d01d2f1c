#include "api/upgrade.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "api/proxy_target.h"
#include "base/io.h"
#include "net/net.h"

#define HEAD_BYTES_MAX (32 * 1024UL)
#define PIPE_BYTES     (16 * 1024)
#define TICK_MS        1000
#define LINGER_MS      5000 /* for the rest of an answer or of a stream, once its end is near */

bool upgrade_wanted(struct http_request *request)
{
    const char *connection = http_request_header(request, MHD_HTTP_HEADER_CONNECTION);
    return strcmp(request->method, MHD_HTTP_METHOD_GET) == 0 && connection != NULL &&
           proxy_list_has(connection, "upgrade") && http_request_header(request, MHD_HTTP_HEADER_UPGRADE) != NULL &&
           http_request_header(request, MHD_HTTP_HEADER_CONTENT_LENGTH) == NULL &&
           http_request_header(request, MHD_HTTP_HEADER_TRANSFER_ENCODING) == NULL;
}

static enum upgrade_result connect_guest(struct upgrade *upgrade, int *ret_fd)
{
    struct guest_endpoint *endpoint = upgrade->endpoint;
    CLEANUP_CLOSE int fd = manager_socket(endpoint->manager, endpoint->sandbox_id, &endpoint->socket_error);
    if (fd < 0)
        return UPGRADE_NO_SOCKET;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)endpoint->port)};
    inet_pton(AF_INET, NET_GUEST_ADDRESS, &address.sin_addr);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return UPGRADE_REFUSED;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != EINPROGRESS)
        return UPGRADE_REFUSED;
    struct pollfd fds[] = {{.fd = fd, .events = POLLOUT}, {.fd = upgrade->hangup_fd, .events = POLLIN}};
    int problem = 0;
    socklen_t length = sizeof(problem);
    if (poll(fds, ARRAY_SIZE(fds), GUEST_CONNECT_MS) <= 0)
        return UPGRADE_REFUSED;
    if (fds[1].revents != 0)
        return UPGRADE_ABORTED;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &problem, &length) < 0 || problem != 0)
        return UPGRADE_REFUSED;
    *ret_fd = TAKE_FD(fd);
    return UPGRADE_DONE;
}

struct head_writer {
    struct strbuf head;
    const char *connection; /* the request's Connection header */
};

static enum MHD_Result append_header(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    struct head_writer *writer = context;
    if (!proxy_header_stays(name, writer->connection))
        strbuf_printf(&writer->head, "%s: %s\r\n", name, value != NULL ? value : "");
    return MHD_YES;
}

static int send_request(struct upgrade *upgrade, int guest)
{
    struct http_request *request = upgrade->request;
    struct head_writer writer = {STRBUF_INIT, http_request_header(request, MHD_HTTP_HEADER_CONNECTION)};
    strbuf_printf(&writer.head, "GET %s%s%s HTTP/1.1\r\n", request->path, request->query[0] != '\0' ? "?" : "",
                  request->query);
    MHD_get_connection_values(request->connection, MHD_HEADER_KIND, append_header, &writer);
    strbuf_printf(&writer.head, "Connection: Upgrade\r\nUpgrade: %s\r\n\r\n",
                  http_request_header(request, MHD_HTTP_HEADER_UPGRADE));
    /* An empty send buffer takes it whole; when it doesn't, the guest does not play by the rules. */
    ssize_t n = writer.head.failed ? -1 : send(guest, writer.head.data, writer.head.length, MSG_NOSIGNAL);
    bool sent = n == (ssize_t)writer.head.length;
    strbuf_done(&writer.head);
    return sent ? 0 : -EIO;
}

/* Receives until the blank line; what came behind it is kept too. */
static enum upgrade_result receive_head(struct upgrade *upgrade, int guest, struct strbuf *head, size_t *ret_length)
{
    for (;;) {
        const char *end = head->length > 0 ? memmem(head->data, head->length, "\r\n\r\n", 4) : NULL;
        if (end != NULL) {
            *ret_length = (size_t)(end - head->data) + 4;
            return UPGRADE_DONE;
        }
        if (head->length > HEAD_BYTES_MAX)
            return UPGRADE_MALFORMED;
        struct pollfd fds[] = {{.fd = guest, .events = POLLIN}, {.fd = upgrade->hangup_fd, .events = POLLIN}};
        int ready = poll(fds, ARRAY_SIZE(fds), TICK_MS);
        if (fds[1].revents != 0 || (ready == 0 && !upgrade->alive(upgrade->alive_context)))
            return UPGRADE_ABORTED;
        if (ready <= 0)
            continue;
        char block[4096];
        ssize_t n = recv(guest, block, sizeof(block), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return UPGRADE_MALFORMED;
        if (n > 0)
            strbuf_append(head, block, (size_t)n);
        if (head->failed)
            return UPGRADE_MALFORMED;
    }
}

/* The status, or -EBADMSG unless it is a proper status line of HTTP/1. */
static int parse_status(const struct strbuf *head)
{
    int status;
    char space;
    if (sscanf(head->data, "HTTP/1.%*1[01] %3d%c", &status, &space) != 2 || status < 101 || status > 999)
        return -EBADMSG;
    return status;
}

/*
 * A refused upgrade's answer goes to the client as it is, but says that the connection closes: what the client sent
 * on it next would otherwise be meant for us.
 */
static void close_after_answer(const struct strbuf *head, size_t length, struct strbuf *out)
{
    const char *line = head->data;
    const char *end = head->data + length - 2; /* the blank line */
    bool first = true;
    while (line < end) {
        size_t n = (size_t)((const char *)memmem(line, (size_t)(end - line), "\r\n", 2) + 2 - line);
        if (strncasecmp(line, "Connection:", strlen("Connection:")) != 0)
            strbuf_append(out, line, n);
        if (first)
            strbuf_puts(out, "Connection: close\r\n");
        first = false;
        line += n;
    }
    strbuf_append(out, end, head->length - (length - 2));
}

/* ---- joining the connections ---- */

struct pipe {
    int from;
    int to;                /* -1: what comes is dropped */
    struct strbuf pending; /* received, not yet sent */
    bool ended;            /* nothing more comes */
    bool broken;           /* nothing more can be sent */
};

static void receive(struct pipe *pipe)
{
    char block[PIPE_BYTES];
    ssize_t n = recv(pipe->from, block, sizeof(block), MSG_DONTWAIT);
    if (n > 0 && pipe->to >= 0)
        strbuf_append(&pipe->pending, block, (size_t)n);
    else if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        pipe->ended = true;
    pipe->broken |= pipe->pending.failed;
}

static void transmit(struct pipe *pipe)
{
    ssize_t n = send(pipe->to, pipe->pending.data, pipe->pending.length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0)
        strbuf_consume(&pipe->pending, (size_t)n);
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        pipe->broken = true;
}

/* What to wait for at the end that `pipe` reads from and `other` writes to. */
static short events_at(const struct pipe *pipe, const struct pipe *other)
{
    bool wants_more = !pipe->ended && pipe->pending.length == 0;
    return (short)((wants_more ? POLLIN : 0) | (other->pending.length > 0 ? POLLOUT : 0));
}

/* Whether the pipe has nothing left to do. */
static bool is_through(const struct pipe *pipe)
{
    return pipe->broken || (pipe->ended && pipe->pending.length == 0);
}

/*
 * Until either side has ended and what it sent has been passed on; the other side then gets LINGER_MS to take it.
 * `idle_ms`: silence after which it is over, too; -1: none.
 */
static void join(struct upgrade *upgrade, struct pipe *up, struct pipe *down, int idle_ms)
{
    while (!is_through(up) && !is_through(down)) {
        struct pollfd fds[] = {{.fd = up->from, .events = events_at(up, down)},
                               {.fd = down->from, .events = events_at(down, up)}};
        /* An end that nothing is wanted of is left out: its hang-up could not be acted on now. */
        for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
            if (fds[i].events == 0)
                fds[i].fd = -1;
        bool ending = up->ended || down->ended;
        int ready = poll(fds, ARRAY_SIZE(fds), ending ? LINGER_MS : idle_ms >= 0 ? idle_ms : TICK_MS);
        if (ready == 0 && (ending || idle_ms >= 0 || !upgrade->alive(upgrade->alive_context)))
            return;
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR) && up->pending.length == 0)
            receive(up);
        if (fds[1].revents & (POLLIN | POLLHUP | POLLERR) && down->pending.length == 0)
            receive(down);
        if (up->pending.length > 0)
            transmit(up);
        if (down->pending.length > 0)
            transmit(down);
    }
}

enum upgrade_result upgrade_run(struct upgrade *upgrade)
{
    CLEANUP_CLOSE int guest = -1;
    CLEANUP_STRBUF struct strbuf head = STRBUF_INIT;
    size_t length;
    enum upgrade_result result = connect_guest(upgrade, &guest);
    if (result != UPGRADE_DONE)
        return result;
    if (send_request(upgrade, guest) < 0)
        return UPGRADE_MALFORMED;
    result = receive_head(upgrade, guest, &head, &length);
    if (result != UPGRADE_DONE)
        return result;
    int status = parse_status(&head);
    if (status < 0)
        return UPGRADE_MALFORMED;

    int client = http_request_socket(upgrade->request);
    struct pipe up = {.from = client, .to = status == 101 ? guest : -1, .pending = STRBUF_INIT};
    struct pipe down = {.from = guest, .to = client, .pending = STRBUF_INIT};
    if (status == 101)
        strbuf_append(&down.pending, head.data, head.length);
    else
        close_after_answer(&head, length, &down.pending);
    down.broken = down.pending.failed;
    join(upgrade, &up, &down, status == 101 ? -1 : LINGER_MS);
    strbuf_done(&up.pending);
    strbuf_done(&down.pending);
    return UPGRADE_DONE;
}
