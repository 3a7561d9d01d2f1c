#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/http_connection.h"

#define SENDFILE_AT_ONCE (1024 * 1024) /* then others get their turn */
#define OUTPUT_RETAIN    (16 * 1024)

static const char *reason(unsigned status)
{
    switch (status) {
#define XX(number, name, text)                                                                                     \
    case number:                                                                                                   \
        return #text;
        HTTP_STATUS_MAP(XX)
#undef XX
    default:
        return "Unknown";
    }
}

static void begin_head(struct http_connection *connection, unsigned status, const char *type)
{
    strbuf_printf(&connection->output, "HTTP/1.1 %u %s\r\n", status, reason(status));
    if (type != NULL)
        strbuf_printf(&connection->output, "Content-Type: %s\r\n", type);
}

static void end_head(struct http_connection *connection)
{
    strbuf_puts(&connection->output, connection->close ? "Connection: close\r\n\r\n" : "\r\n");
}

/* A lost connection is only marked here: the caller may be walking over its subscribers. */
static void send_now(struct http_connection *connection)
{
    if (connection->settling)
        return;
    if (http_response_flush(connection) < 0)
        connection->broken = true;
    http_connection_update(connection);
}

void http_respond(struct http_connection *connection, unsigned status, const char *type, const char *headers,
                  const void *body, size_t length)
{
    begin_head(connection, status, type);
    strbuf_puts(&connection->output, headers);
    if (status != 204)
        strbuf_printf(&connection->output, "Content-Length: %zu\r\n", length);
    end_head(connection);
    if (http_method(connection) != HTTP_HEAD)
        strbuf_append(&connection->output, body, length);
    connection->answer = ANSWER_COMPLETE;
    send_now(connection);
}

void http_respond_file(struct http_connection *connection, const char *headers, int fd, uint64_t length)
{
    begin_head(connection, 200, "application/octet-stream");
    strbuf_puts(&connection->output, headers);
    strbuf_printf(&connection->output, "Content-Length: %llu\r\n", (unsigned long long)length);
    end_head(connection);
    connection->file = fd;
    connection->file_left = length;
    connection->answer = ANSWER_COMPLETE;
    send_now(connection);
}

void http_stream_begin(struct http_connection *connection, const char *type)
{
    connection->chunked = connection->parser.http_major == 1 && connection->parser.http_minor >= 1;
    if (!connection->chunked)
        connection->close = true;
    begin_head(connection, 200, type);
    if (connection->chunked)
        strbuf_puts(&connection->output, "Transfer-Encoding: chunked\r\n");
    end_head(connection);
    connection->answer = ANSWER_STREAMING;
    send_now(connection);
}

void http_stream_append(struct http_connection *connection, const void *bytes, size_t length)
{
    if (length == 0) /* an empty chunk would end the stream */
        return;
    if (connection->chunked)
        strbuf_printf(&connection->output, "%zx\r\n", length);
    strbuf_append(&connection->output, bytes, length);
    if (connection->chunked)
        strbuf_puts(&connection->output, "\r\n");
    send_now(connection);
}

void http_stream_end(struct http_connection *connection)
{
    if (connection->chunked)
        strbuf_puts(&connection->output, "0\r\n\r\n");
    connection->answer = ANSWER_COMPLETE;
    send_now(connection);
}

void http_response_continue(struct http_connection *connection)
{
    strbuf_puts(&connection->output, "HTTP/1.1 100 Continue\r\n\r\n");
}

size_t http_backlog(const struct http_connection *connection)
{
    return connection->output.length - connection->output_sent;
}

bool http_response_pending(const struct http_connection *connection)
{
    return http_backlog(connection) > 0 || connection->file_left > 0;
}

static int flush_output(struct http_connection *connection)
{
    struct strbuf *output = &connection->output;
    if (output->failed)
        return -ENOMEM;
    while (connection->output_sent < output->length) {
        int more = connection->file_left > 0 ? MSG_MORE : 0;
        ssize_t n = send(connection->source.fd, output->data + connection->output_sent,
                         output->length - connection->output_sent, MSG_NOSIGNAL | more);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -errno;
        connection->output_sent += (size_t)n;
    }
    connection->output_sent = 0;
    if (output->capacity > OUTPUT_RETAIN)
        strbuf_done(output);
    else
        strbuf_consume(output, output->length);
    return 0;
}

static int flush_file(struct http_connection *connection)
{
    size_t length = (size_t)MIN(connection->file_left, (uint64_t)SENDFILE_AT_ONCE);
    ssize_t n = sendfile(connection->source.fd, connection->file, NULL, length);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0) /* it has become shorter: the promised length cannot be kept */
        return -EIO;
    connection->file_left -= (uint64_t)n;
    return 0;
}

int http_response_flush(struct http_connection *connection)
{
    int r = flush_output(connection);
    if (r < 0 || http_backlog(connection) > 0 || connection->file_left == 0)
        return r;
    return flush_file(connection);
}

void http_response_reset(struct http_connection *connection)
{
    if (connection->file >= 0)
        close(TAKE_FD(connection->file));
    connection->file_left = 0;
    connection->answer = ANSWER_NONE;
    connection->chunked = false;
}
