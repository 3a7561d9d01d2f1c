/*
 * The control channel lies on the resume path: each instruction here is paid on every resume, and under TCG
 * translated first. So the descriptors are kept open, the boot id is read ahead, a request is validated and
 * applied in one pass each over the received bytes, and the reply reuses one buffer.
 *
 * Where messages begin: a snapshot may hold half a message whose rest will never come. What a new daemon sends
 * always starts a new virtqueue buffer, hence a new read. So a read that begins with a valid header begins a
 * message, and what was incomplete before it is dropped. (The body of a long message could hold the same bytes at
 * the start of a read by a chance of one in 2^48.)
 */
#include "agent/control_channel.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "agent/control_port.h"
#include "agent/freeze.h"
#include "base/io.h"
#include "control/control.h"

#define READ_SIZE       4096 /* what the kernel gives at most: one virtqueue buffer */
#define ENTROPY_MAX     512
#define RECEIVED_RETAIN (64 * 1024) /* a larger buffer is given back after use */

struct apply_request {
    bool time_given;
    int64_t time_ns;
    struct control_field entropy, hostname, sandbox_id, template_id, token, user, workdir; /* bytes NULL: absent */
    bool environment_given;
};

/* ---- validation ---- */

static bool text_fits(const struct control_field *field, size_t size)
{
    return field->length < size && memchr(field->bytes, '\0', field->length) == NULL;
}

static int take_field(struct apply_request *request, const struct control_field *field, const char **ret_complaint)
{
    struct control_field *text = NULL;
    size_t size = IDENTITY_TEXT_MAX;
    switch (field->tag) {
    case CONTROL_TIME:
        request->time_given = true;
        *ret_complaint = "the time is not valid";
        return control_field_i64(field, &request->time_ns) < 0 || request->time_ns < 0 ? -EINVAL : 0;
    case CONTROL_ENTROPY:
        request->entropy = *field;
        *ret_complaint = "too much entropy";
        return field->length > ENTROPY_MAX ? -EINVAL : 0;
    case CONTROL_ENV:
        request->environment_given = true;
        *ret_complaint = "an environment entry is not NAME=VALUE";
        return identity_is_environment_entry(field->bytes, field->length) ? 0 : -EINVAL;
    case CONTROL_HOSTNAME:
        text = &request->hostname;
        size = HOST_NAME_MAX + 1;
        break;
    case CONTROL_SANDBOX_ID:
        text = &request->sandbox_id;
        break;
    case CONTROL_TEMPLATE_ID:
        text = &request->template_id;
        break;
    case CONTROL_ACCESS_TOKEN:
        text = &request->token;
        break;
    case CONTROL_DEFAULT_USER:
        text = &request->user;
        break;
    case CONTROL_DEFAULT_WORKDIR:
        text = &request->workdir;
        size = PATH_MAX;
        break;
    default:
        return 0;
    }
    *text = *field;
    *ret_complaint = "a text is too long or holds a NUL";
    return text_fits(field, size) ? 0 : -EINVAL;
}

static int parse_apply(const uint8_t *body, size_t length, struct apply_request *ret, const char **ret_complaint)
{
    size_t position = 0;
    struct control_field field;
    int r;
    while ((r = control_next_field(body, length, &position, &field)) > 0) {
        r = take_field(ret, &field, ret_complaint);
        if (r < 0)
            return r;
    }
    *ret_complaint = "a field does not fit the message";
    return r;
}

/* ---- applying ---- */

static int set_clock(int64_t time_ns)
{
    struct timespec time = {.tv_sec = time_ns / 1000000000, .tv_nsec = time_ns % 1000000000};
    return clock_settime(CLOCK_REALTIME, &time) < 0 ? -errno : 0;
}

static int add_entropy(int random_fd, const struct control_field *entropy)
{
    union {
        struct rand_pool_info info;
        uint8_t room[sizeof(struct rand_pool_info) + ENTROPY_MAX];
    } pool;
    pool.info.entropy_count = (int)entropy->length * 8;
    pool.info.buf_size = (int)entropy->length;
    memcpy(pool.info.buf, entropy->bytes, entropy->length);
    if (ioctl(random_fd, RNDADDENTROPY, &pool.info) < 0 || ioctl(random_fd, RNDRESEEDCRNG) < 0)
        return -errno;
    return 0;
}

static int set_host_name(struct identity *identity, const struct control_field *name)
{
    if (sethostname((const char *)name->bytes, name->length) < 0)
        return -errno;
    identity->hosts_stale = true;
    return 0;
}

/* Cannot fail: the room is larger than any message. */
static void set_environment(struct identity *identity, const uint8_t *body, size_t length)
{
    static_assert(IDENTITY_ENVIRONMENT_MAX >= CONTROL_BODY_MAX, "an environment that was received fits");
    size_t position = 0;
    struct control_field field;
    identity_clear_environment(identity);
    while (control_next_field(body, length, &position, &field) > 0)
        if (field.tag == CONTROL_ENV)
            identity_add_environment(identity, field.bytes, field.length);
}

static void set_text(char *to, size_t size, const struct control_field *field)
{
    if (field->bytes != NULL)
        identity_set_text(to, size, field->bytes, field->length); /* validated: cannot fail */
}

static int apply(struct control_channel *channel, const uint8_t *body, size_t length, const char **ret_complaint)
{
    struct apply_request request = {0};
    int r = parse_apply(body, length, &request, ret_complaint);
    if (r < 0)
        return r;
    struct identity *identity = channel->identity;
    *ret_complaint = "cannot set the clock";
    if (request.time_given && (r = set_clock(request.time_ns)) < 0)
        return r;
    *ret_complaint = "cannot add entropy to the kernel's pool";
    if (request.entropy.bytes != NULL && (r = add_entropy(channel->random_fd, &request.entropy)) < 0)
        return r;
    *ret_complaint = "cannot set the host name";
    if (request.hostname.bytes != NULL && (r = set_host_name(identity, &request.hostname)) < 0)
        return r;
    if (request.environment_given)
        set_environment(identity, body, length);
    set_text(identity->sandbox_id, sizeof(identity->sandbox_id), &request.sandbox_id);
    set_text(identity->template_id, sizeof(identity->template_id), &request.template_id);
    set_text(identity->user, sizeof(identity->user), &request.user);
    set_text(identity->workdir, sizeof(identity->workdir), &request.workdir);
    if (request.token.bytes != NULL)
        identity_set_token(identity, request.token.bytes, request.token.length);
    return 0;
}

static int set_clock_only(const uint8_t *body, size_t length, const char **ret_complaint)
{
    struct apply_request request = {0};
    int r = parse_apply(body, length, &request, ret_complaint);
    if (r < 0)
        return r;
    *ret_complaint = "cannot set the clock";
    return request.time_given ? set_clock(request.time_ns) : -EINVAL;
}

/* ---- messages ---- */

static void append_reply(struct control_channel *channel, uint32_t sequence, int result, const char *complaint,
                         const struct freeze_result *frozen)
{
    struct strbuf *reply = &channel->reply;
    size_t start = control_begin(reply, CONTROL_REPLY, sequence);
    control_add_i32(reply, CONTROL_STATUS, -result);
    control_add_text(reply, CONTROL_BOOT_ID, channel->boot_id);
    control_add_text(reply, CONTROL_VERSION, DORMOUSE_VERSION);
    if (result < 0)
        control_add_text(reply, CONTROL_MESSAGE, complaint);
    if (frozen != NULL && result == 0) {
        control_add_i32(reply, CONTROL_FROZEN, frozen->frozen);
        control_add_i32(reply, CONTROL_SYNCED, frozen->synced);
    }
    control_end(reply, start);
}

/* An error closes nothing: the bytes stay until the port takes more or the daemon is gone. */
static void flush_reply(struct control_channel *channel)
{
    struct strbuf *reply = &channel->reply;
    while (reply->length > 0) {
        ssize_t n = write(channel->source.fd, reply->data, reply->length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        strbuf_consume(reply, (size_t)n);
    }
}

static void handle(struct control_channel *channel, const struct control_header *header, const uint8_t *body)
{
    const char *complaint = "";
    struct freeze_result frozen = {0};
    int r;
    switch (header->type) {
    case CONTROL_APPLY:
        r = apply(channel, body, header->length, &complaint);
        break;
    case CONTROL_CLOCK:
        r = set_clock_only(body, header->length, &complaint);
        break;
    case CONTROL_SYNC:
        sync();
        r = 0;
        break;
    case CONTROL_FREEZE:
        r = freeze_all(&frozen);
        complaint = "a file system can't be frozen";
        break;
    case CONTROL_THAW:
        thaw_all();
        r = 0;
        break;
    case CONTROL_POWER_OFF:
        r = 0;
        break;
    case CONTROL_REPLY: /* nobody asked: the daemon's mistake, and an answer could make it a loop */
        return;
    default:
        r = -ENOSYS;
        complaint = "unknown request";
    }
    append_reply(channel, header->sequence, r, complaint, header->type == CONTROL_FREEZE ? &frozen : NULL);
    flush_reply(channel);
    if (header->type == CONTROL_APPLY && r == 0)
        channel->applied(channel->owner);
    if (header->type == CONTROL_POWER_OFF)
        channel->power_off(channel->owner);
}

/* Drops what precedes the next possible header. */
static void skip_to_magic(struct strbuf *received)
{
    static const uint8_t magic[4] = {
        CONTROL_MAGIC & 0xff,
        CONTROL_MAGIC >> 8 & 0xff,
        CONTROL_MAGIC >> 16 & 0xff,
        CONTROL_MAGIC >> 24,
    };
    const char *found = memmem(received->data, received->length, magic, sizeof(magic));
    if (found != NULL)
        strbuf_consume(received, (size_t)(found - received->data));
    else if (received->length >= sizeof(magic))
        strbuf_consume(received, received->length - (sizeof(magic) - 1));
}

/* Handles the first message; false when it is not complete. */
static bool next_message(struct control_channel *channel)
{
    struct strbuf *received = &channel->received;
    struct control_header header;
    if (received->length < CONTROL_HEADER_SIZE)
        return false;
    if (control_parse_header((const uint8_t *)received->data, &header) < 0) {
        size_t before = received->length;
        skip_to_magic(received);
        if (received->length == before) /* the magic stands there, but not in a valid header */
            strbuf_consume(received, 1);
        return true;
    }
    if (received->length - CONTROL_HEADER_SIZE < header.length)
        return false;
    handle(channel, &header, (const uint8_t *)received->data + CONTROL_HEADER_SIZE);
    strbuf_consume(received, CONTROL_HEADER_SIZE + header.length);
    return true;
}

void control_channel_receive(struct control_channel *channel, const void *bytes, size_t length)
{
    struct strbuf *received = &channel->received;
    struct control_header header;
    if (received->length > 0 && length >= CONTROL_HEADER_SIZE && control_parse_header(bytes, &header) == 0)
        strbuf_consume(received, received->length);
    strbuf_append(received, bytes, length);
    while (!received->failed && next_message(channel))
        ;
    if (received->failed || (received->length == 0 && received->capacity > RECEIVED_RETAIN))
        strbuf_done(received);
}

static void port_ready(struct loop_source *source, uint32_t events)
{
    (void)events; /* an edge says that something changed; the reads say what */
    struct control_channel *channel = source->owner;
    flush_reply(channel);
    for (;;) {
        uint8_t bytes[READ_SIZE];
        ssize_t n = read(source->fd, bytes, sizeof(bytes));
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0) /* the daemon is gone, and with it whoever waits for a reply */
            strbuf_consume(&channel->reply, channel->reply.length);
        if (n <= 0)
            return;
        control_channel_receive(channel, bytes, (size_t)n);
    }
}

int control_channel_open(struct control_channel *channel, struct loop *loop, struct error *err)
{
    CLEANUP_FREE char *boot_id = NULL;
    int r = io_read_file("/proc/sys/kernel/random/boot_id", sizeof(channel->boot_id) - 1, &boot_id, NULL);
    if (r < 0)
        return error_code(err, r, "cannot read the boot id");
    memcpy(channel->boot_id, boot_id, strcspn(boot_id, "\n") + 1);
    channel->boot_id[strcspn(boot_id, "\n")] = '\0';

    char path[CONTROL_PORT_PATH_MAX];
    r = control_port_find(path);
    if (r < 0)
        return error_code(err, r, "there is no virtio port " CONTROL_PORT_NAME);
    CLEANUP_CLOSE int random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    CLEANUP_CLOSE int port = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (random_fd < 0 || port < 0)
        return error_errno(err, "cannot open %s", random_fd < 0 ? "/dev/urandom" : path);
    channel->source = (struct loop_source){.fd = port, .ready = port_ready, .owner = channel};
    r = loop_add(loop, &channel->source, EPOLLIN | EPOLLOUT | EPOLLET, err);
    if (r < 0)
        return r;
    channel->random_fd = TAKE_FD(random_fd);
    TAKE_FD(port);
    return 0;
}
