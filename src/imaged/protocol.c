#include "imaged/protocol.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/io.h"

/* Waits until the descriptor is ready for `events` or the deadline has passed. */
static int await(int fd, short events, int timeout_ms, struct error *err)
{
    int64_t deadline_ns = clock_monotonic_ns() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        int64_t left_ns = deadline_ns - clock_monotonic_ns();
        struct pollfd waited = {.fd = fd, .events = events};
        int r = poll(&waited, 1, left_ns > 0 ? (int)((left_ns + 999999) / 1000000) : 0);
        if (r > 0)
            return 0;
        if (r == 0)
            return error_set(err, EAGAIN, "no answer in time");
        if (errno != EINTR)
            return error_errno(err, "cannot wait for a packet");
    }
}

static int gone(int code)
{
    return code == EPIPE || code == ECONNRESET || code == ECONNREFUSED || code == ENOTCONN;
}

int protocol_send(int fd, int timeout_ms, const json_t *packet, struct error *err)
{
    CLEANUP_FREE char *text = json_dumps(packet, JSON_COMPACT);
    if (text == NULL)
        return error_set(err, ENOMEM, "out of memory");
    size_t length = strlen(text);
    if (length > PROTOCOL_PACKET_MAX)
        return error_set(err, EMSGSIZE, "a packet of %zu bytes is too long", length);
    for (;;) {
        if (send(fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (gone(errno))
            return error_set(err, EHOSTDOWN, "the peer has closed the connection");
        if (errno != EAGAIN && errno != EINTR)
            return error_errno(err, "cannot send a packet");
        if (timeout_ms == 0)
            return error_set(err, EAGAIN, "the peer doesn't read");
        int r = await(fd, POLLOUT, timeout_ms, err);
        if (r < 0)
            return r;
    }
}

int protocol_receive(int fd, int timeout_ms, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *buffer = malloc(PROTOCOL_PACKET_MAX);
    if (buffer == NULL)
        return error_set(err, ENOMEM, "out of memory");
    ssize_t length;
    for (;;) {
        length = recv(fd, buffer, PROTOCOL_PACKET_MAX, MSG_DONTWAIT | MSG_TRUNC);
        if (length >= 0)
            break;
        if (gone(errno))
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return error_errno(err, "cannot receive a packet");
        int r = await(fd, POLLIN, timeout_ms, err);
        if (r < 0)
            return r;
    }
    if (length == 0)
        return 0;
    if (length > PROTOCOL_PACKET_MAX)
        return error_set(err, EMSGSIZE, "a packet of %zd bytes is too long", length);
    json_error_t where;
    json_t *packet = json_loadb(buffer, (size_t)length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(packet)) {
        json_decref(packet);
        return error_set(err, EBADMSG, "a packet is not a JSON object: %s", where.text);
    }
    *ret = packet;
    return 1;
}
