#include "control/client.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/io.h"

/* A guest that sends this much without a reply in it is broken or hostile. */
#define SKIPPED_MAX (4u << 20)

struct exchange {
    int fd;
    int other_fd;
    int64_t deadline_ns;
    uint32_t sequence;
    struct strbuf input;
    size_t skipped;
};

static int wait_for(const struct exchange *exchange, short events, struct error *err)
{
    for (;;) {
        int64_t left_ns = exchange->deadline_ns - clock_monotonic_ns();
        if (left_ns <= 0) {
            error_set(err, ETIMEDOUT, "the guest agent does not answer");
            error_hint(err, "look at the guest's console: dormouse logs");
            return -ETIMEDOUT;
        }
        struct pollfd fds[2] = {{.fd = exchange->fd, .events = events},
                                {.fd = exchange->other_fd, .events = POLLIN}};
        int n = poll(fds, 2, (int)(left_ns / 1000000) + 1);
        if (n < 0 && errno != EINTR)
            return error_errno(err, "waiting for the guest agent");
        if (n > 0 && fds[0].revents != 0)
            return 0;
        if (n > 0)
            return error_set(err, EPIPE, "the VMM ended");
    }
}

static int send_all(const struct exchange *exchange, const struct strbuf *message, struct error *err)
{
    for (size_t done = 0; done < message->length;) {
        ssize_t n = send(exchange->fd, message->data + done, message->length - done, MSG_NOSIGNAL);
        if (n >= 0) {
            done += (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return error_errno(err, "writing to the guest agent");
        int r = wait_for(exchange, POLLOUT, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static void copy_text(char *to, size_t size, const struct control_field *field)
{
    size_t length = MIN((size_t)field->length, size - 1);
    memcpy(to, field->bytes, length);
    to[length] = '\0';
    for (size_t i = 0; i < length; i++)
        if (to[i] < ' ' || to[i] > '~')
            to[i] = '?'; /* it is shown on terminals */
}

static int read_reply(const uint8_t *body, size_t length, struct control_reply *ret, struct error *err)
{
    struct control_reply reply = {0};
    char text[200] = "no reason given";
    int32_t status = -1;
    size_t position = 0;
    struct control_field field;
    int r;
    while ((r = control_next_field(body, length, &position, &field)) > 0) {
        if (field.tag == CONTROL_STATUS)
            r = control_field_i32(&field, &status);
        else if (field.tag == CONTROL_MESSAGE)
            copy_text(text, sizeof(text), &field);
        else if (field.tag == CONTROL_BOOT_ID)
            copy_text(reply.boot_id, sizeof(reply.boot_id), &field);
        else if (field.tag == CONTROL_VERSION)
            copy_text(reply.version, sizeof(reply.version), &field);
        else if (field.tag == CONTROL_FROZEN)
            r = control_field_i32(&field, &reply.frozen);
        else if (field.tag == CONTROL_SYNCED)
            r = control_field_i32(&field, &reply.synced);
        if (r < 0)
            break;
    }
    if (r < 0 || status < 0 || status > 4095)
        return error_set(err, EBADMSG, "the guest agent sent a malformed reply");
    if (status > 0)
        return error_set(err, status, "the guest agent failed: %s", text);
    *ret = reply;
    return 0;
}

/* Looks at what has arrived: 1 when the reply was in it (and *result is the outcome), 0 when more is needed. */
static int take_reply(struct exchange *exchange, struct control_reply *ret, int *result, struct error *err)
{
    struct strbuf *input = &exchange->input;
    while (input->length >= CONTROL_HEADER_SIZE) {
        struct control_header header;
        const uint8_t *bytes = (const uint8_t *)input->data;
        if (control_parse_header(bytes, &header) < 0) {
            exchange->skipped++;
            strbuf_consume(input, 1);
            continue;
        }
        size_t total = CONTROL_HEADER_SIZE + (size_t)header.length;
        if (input->length < total)
            return 0;
        if (header.type == CONTROL_REPLY && header.sequence == exchange->sequence) {
            *result = read_reply(bytes + CONTROL_HEADER_SIZE, header.length, ret, err);
            return 1;
        }
        exchange->skipped += total;
        strbuf_consume(input, total);
    }
    return 0;
}

static int receive_reply(struct exchange *exchange, struct control_reply *ret, struct error *err)
{
    int result = 0;
    while (take_reply(exchange, ret, &result, err) == 0) {
        if (exchange->skipped > SKIPPED_MAX)
            return error_set(err, EBADMSG, "the guest agent sends rubbish");
        int r = wait_for(exchange, POLLIN, err);
        if (r < 0)
            return r;
        char chunk[4096];
        ssize_t n = recv(exchange->fd, chunk, sizeof(chunk), 0);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return error_set(err, EPIPE, "the VMM has closed the control channel");
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return error_errno(err, "reading from the guest agent");
        if (n > 0)
            strbuf_append(&exchange->input, chunk, (size_t)n);
        if (exchange->input.failed)
            return error_set(err, ENOMEM, "out of memory");
    }
    return result;
}

int control_request(int fd, int other_fd, struct strbuf *message, int timeout_ms, struct control_reply *ret,
                    struct error *err)
{
    if (message->failed || message->length < CONTROL_HEADER_SIZE)
        return error_set(err, E2BIG, "the message to the guest agent is too large");
    struct exchange exchange = {
        .fd = fd,
        .other_fd = other_fd,
        .deadline_ns = clock_monotonic_ns() + (int64_t)timeout_ms * 1000000,
    };
    if (getrandom(&exchange.sequence, sizeof(exchange.sequence), 0) != (ssize_t)sizeof(exchange.sequence))
        return error_errno(err, "no random numbers");
    uint32_t wire = htole32(exchange.sequence);
    memcpy(message->data + 8, &wire, sizeof(wire));
    int r = send_all(&exchange, message, err);
    if (r == 0)
        r = receive_reply(&exchange, ret, err);
    strbuf_done(&exchange.input);
    return r;
}
