#include "vmm/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"
#include "base/unix_socket.h"

#define EVENTS_KEPT    16
#define EVENT_NAME_MAX 64

/* QEMU reads its socket at once, or is stopped and the socket's buffer has filled. */
#define SEND_TIMEOUT_S 5

struct event {
    char name[EVENT_NAME_MAX];
    int64_t time_ns; /* CLOCK_REALTIME; 0: not told */
};

struct qmp {
    int fd;
    struct strbuf input;
    struct event events[EVENTS_KEPT]; /* oldest first */
    size_t event_count;
    json_int_t last_id;
};

static void remember_event(struct qmp *qmp, const char *name, const json_t *message)
{
    if (qmp->event_count == EVENTS_KEPT) {
        memmove(qmp->events, qmp->events + 1, sizeof(qmp->events[0]) * (EVENTS_KEPT - 1));
        qmp->event_count--;
    }
    const json_t *timestamp = json_object_get(message, "timestamp");
    struct event *event = &qmp->events[qmp->event_count++];
    event->time_ns = json_integer_value(json_object_get(timestamp, "seconds")) * 1000000000 +
                     json_integer_value(json_object_get(timestamp, "microseconds")) * 1000;
    strncpy(event->name, name, EVENT_NAME_MAX - 1);
    event->name[EVENT_NAME_MAX - 1] = '\0';
}

static bool take_event(struct qmp *qmp, const char *name, int64_t *ret_time_ns)
{
    for (size_t i = 0; i < qmp->event_count; i++) {
        if (strcmp(qmp->events[i].name, name) != 0)
            continue;
        if (ret_time_ns != NULL)
            *ret_time_ns = qmp->events[i].time_ns;
        qmp->event_count--;
        memmove(qmp->events + i, qmp->events + i + 1, sizeof(qmp->events[0]) * (qmp->event_count - i));
        return true;
    }
    return false;
}

/* Reads what is there, after waiting for it until `deadline_ns`. */
static int receive(struct qmp *qmp, int64_t deadline_ns, struct error *err)
{
    int64_t left_ms = (deadline_ns - clock_monotonic_ns()) / 1000000;
    struct pollfd wait = {.fd = qmp->fd, .events = POLLIN};
    int n = poll(&wait, 1, left_ms < 0 ? 0 : (int)left_ms + 1);
    if (n < 0 && errno != EINTR)
        return error_errno(err, "waiting for QEMU");
    if (n <= 0)
        return clock_monotonic_ns() < deadline_ns ? 0 : error_set(err, ETIMEDOUT, "QEMU does not answer");
    char chunk[4096];
    ssize_t length = recv(qmp->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : error_errno(err, "reading from QEMU");
    if (length == 0)
        return error_set(err, EPIPE, "QEMU has closed its control socket");
    if (qmp->input.length + (size_t)length > QMP_MESSAGE_MAX)
        return error_set(err, EBADMSG, "QEMU sent a message of more than %d bytes", QMP_MESSAGE_MAX);
    strbuf_append(&qmp->input, chunk, (size_t)length);
    return qmp->input.failed ? error_set(err, ENOMEM, "out of memory") : 0;
}

/* The next whole message; the caller releases it. */
static int next_message(struct qmp *qmp, int64_t deadline_ns, json_t **ret, struct error *err)
{
    char *newline;
    while (qmp->input.length == 0 || (newline = memchr(qmp->input.data, '\n', qmp->input.length)) == NULL) {
        int r = receive(qmp, deadline_ns, err);
        if (r < 0)
            return r;
    }
    size_t length = (size_t)(newline - qmp->input.data);
    json_t *message = json_loadb(qmp->input.data, length, 0, NULL);
    strbuf_consume(&qmp->input, length + 1);
    if (!json_is_object(message)) {
        json_decref(message);
        return error_set(err, EBADMSG, "QEMU sent something that is no JSON object");
    }
    *ret = message;
    return 0;
}

static int64_t deadline_after(int timeout_ms)
{
    return clock_monotonic_ns() + (int64_t)timeout_ms * 1000000;
}

/* Sends bytes, with a descriptor unless `passed_fd` is -1. */
static ssize_t send_with_fd(int socket_fd, char *bytes, size_t length, int passed_fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr alignment;
    } control = {0};
    struct iovec body = {bytes, length};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
    if (passed_fd >= 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(passed_fd))};
        memcpy(CMSG_DATA(header), &passed_fd, sizeof(passed_fd));
    }
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL);
}

/* Sends a command whose "id" tells its reply from those of earlier ones that were not waited for long enough. */
static int send_command(struct qmp *qmp, const char *command, json_t *arguments, int fd, struct error *err)
{
    json_t *message =
        json_pack("{s:s, s:I, s:o*}", "execute", command, "id", ++qmp->last_id, "arguments", arguments);
    CLEANUP_FREE char *text = message != NULL ? json_dumps(message, JSON_COMPACT) : NULL;
    json_decref(message);
    if (text == NULL)
        return error_set(err, ENOMEM, "out of memory");
    size_t length = strlen(text);
    text[length] = '\n';
    ssize_t n = send_with_fd(qmp->fd, text, length + 1, fd);
    if (n < 0)
        return error_errno(err, "writing to QEMU");
    return (size_t)n == length + 1 ? 0 : error_set(err, EIO, "QEMU does not read its control socket");
}

int qmp_connect(const char *path, struct qmp **ret, struct error *err)
{
    struct qmp *qmp = calloc(1, sizeof(*qmp));
    if (qmp == NULL)
        return error_set(err, ENOMEM, "out of memory");
    qmp->fd = unix_socket_connect(path, err);
    struct timeval patience = {.tv_sec = SEND_TIMEOUT_S};
    if (qmp->fd >= 0)
        setsockopt(qmp->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (qmp->fd < 0) {
        int r = qmp->fd;
        qmp_free(qmp);
        return r;
    }
    *ret = qmp;
    return 0;
}

int qmp_wait_greeting(struct qmp *qmp, int timeout_ms, struct error *err)
{
    json_t *message = NULL;
    int r = next_message(qmp, deadline_after(timeout_ms), &message, err);
    if (r == 0 && json_object_get(message, "QMP") == NULL)
        r = error_set(err, EBADMSG, "QEMU didn't begin with a greeting");
    json_decref(message);
    return r < 0 ? error_wrap(err, r, "waiting for the greeting") : 0;
}

int qmp_negotiate(struct qmp *qmp, struct error *err)
{
    return send_command(qmp, "qmp_capabilities", NULL, -1, err);
}

/* Waits for the reply to the command sent last. */
static int receive_reply(struct qmp *qmp, const char *command, int timeout_ms, json_t **ret, struct error *err)
{
    int64_t deadline_ns = deadline_after(timeout_ms);
    int r = 0;
    while (r == 0) {
        json_t *message = NULL;
        r = next_message(qmp, deadline_ns, &message, err);
        if (r < 0)
            break;
        const char *event = json_string_value(json_object_get(message, "event"));
        const json_t *id = json_object_get(message, "id");
        json_t *refusal = json_object_get(message, "error");
        json_t *value = json_object_get(message, "return");
        bool is_reply = json_is_integer(id) && json_integer_value(id) == qmp->last_id;
        if (event != NULL)
            remember_event(qmp, event, message);
        else if (is_reply && refusal != NULL) {
            const char *text = json_string_value(json_object_get(refusal, "desc"));
            r = error_set(err, EREMOTEIO, "QEMU refused %s: %s", command, text != NULL ? text : "no reason given");
        } else if (is_reply && value != NULL) {
            if (ret != NULL)
                *ret = json_incref(value);
            json_decref(message);
            return 0;
        }
        json_decref(message);
    }
    return error_wrap(err, r, "%s", command);
}

int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, int timeout_ms, json_t **ret,
                struct error *err)
{
    int r = send_command(qmp, command, arguments, -1, err);
    return r == 0 ? receive_reply(qmp, command, timeout_ms, ret, err) : error_wrap(err, r, "%s", command);
}

int qmp_execute_with_fd(struct qmp *qmp, const char *command, json_t *arguments, int fd, int timeout_ms,
                        struct error *err)
{
    int r = send_command(qmp, command, arguments, fd, err);
    return r == 0 ? receive_reply(qmp, command, timeout_ms, NULL, err) : error_wrap(err, r, "%s", command);
}

int qmp_wait_event(struct qmp *qmp, const char *name, int timeout_ms, int64_t *ret_time_ns, struct error *err)
{
    int64_t deadline_ns = deadline_after(timeout_ms);
    while (!take_event(qmp, name, ret_time_ns)) {
        json_t *message = NULL;
        int r = next_message(qmp, deadline_ns, &message, err);
        if (r < 0)
            return error_wrap(err, r, "waiting for %s", name);
        const char *event = json_string_value(json_object_get(message, "event"));
        if (event != NULL)
            remember_event(qmp, event, message);
        json_decref(message);
    }
    return 0;
}

void qmp_free(struct qmp *qmp)
{
    if (qmp == NULL)
        return;
    if (qmp->fd >= 0)
        close(qmp->fd);
    strbuf_done(&qmp->input);
    free(qmp);
}
