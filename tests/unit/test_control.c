#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control/client.h"
#include "unit.h"

static void messages_round_trip(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    size_t start = control_begin(&message, CONTROL_APPLY, 77);
    control_add_i64(&message, CONTROL_TIME, -5);
    control_add_text(&message, CONTROL_HOSTNAME, "dozy");
    control_add(&message, CONTROL_ENTROPY, "\0\1", 2);
    control_end(&message, start);
    const uint8_t *bytes = (const uint8_t *)message.data;
    struct control_header header;
    assert_int_equal(control_parse_header(bytes, &header), 0);
    assert_int_equal(header.type, CONTROL_APPLY);
    assert_int_equal(header.sequence, 77);
    assert_int_equal(header.length, message.length - CONTROL_HEADER_SIZE);
    size_t position = 0;
    struct control_field field;
    int64_t time;
    CLEANUP_FREE char *hostname = NULL;
    const uint8_t *body = bytes + CONTROL_HEADER_SIZE;
    assert_int_equal(control_next_field(body, header.length, &position, &field), 1);
    assert_int_equal(control_field_i64(&field, &time), 0);
    assert_int_equal(time, -5);
    assert_int_equal(control_next_field(body, header.length, &position, &field), 1);
    assert_int_equal(control_field_text(&field, &hostname), 0);
    assert_string_equal(hostname, "dozy");
    assert_int_equal(control_field_i64(&field, &time), -EBADMSG);
    assert_int_equal(control_next_field(body, header.length, &position, &field), 1);
    CLEANUP_FREE char *with_nul = NULL;
    assert_int_equal(control_field_text(&field, &with_nul), -EBADMSG);
    assert_int_equal(control_next_field(body, header.length, &position, &field), 0);
}

static void malformed_bytes_are_refused(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    size_t start = control_begin(&message, CONTROL_CLOCK, 1);
    control_add_i64(&message, CONTROL_TIME, 1);
    control_end(&message, start);
    struct control_header header;
    uint8_t bytes[64];
    memcpy(bytes, message.data, message.length);
    bytes[0] ^= 1;
    assert_int_equal(control_parse_header(bytes, &header), -EBADMSG);
    memcpy(bytes, message.data, message.length);
    bytes[6] = 1;
    assert_int_equal(control_parse_header(bytes, &header), -EBADMSG);
    memcpy(bytes, message.data, message.length);
    uint32_t too_long = htole32(CONTROL_BODY_MAX + 1);
    memcpy(bytes + 12, &too_long, 4);
    assert_int_equal(control_parse_header(bytes, &header), -EBADMSG);
    /* A field that is longer than its body. */
    memcpy(bytes, message.data, message.length);
    bytes[CONTROL_HEADER_SIZE + 4] = 9;
    size_t position = 0;
    struct control_field field;
    assert_int_equal(control_next_field(bytes + CONTROL_HEADER_SIZE, 16, &position, &field), -EBADMSG);
    position = 0;
    assert_int_equal(control_next_field(bytes + CONTROL_HEADER_SIZE, 5, &position, &field), -EBADMSG);
}

static void a_message_has_a_limit(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    CLEANUP_FREE char *large = calloc(1, CONTROL_BODY_MAX);
    size_t start = control_begin(&message, CONTROL_APPLY, 1);
    control_add(&message, CONTROL_ENV, large, CONTROL_BODY_MAX);
    control_end(&message, start);
    assert_true(message.failed);
}

/* ---- the client against a peer that answers as told ---- */

enum peer_behaviour {
    PEER_GOOD,
    PEER_RUBBISH_FIRST,
    PEER_FAILS,
    PEER_MALFORMED,
    PEER_FLOODS,
    PEER_CLOSES,
    PEER_SILENT
};

struct peer {
    int fd;
    enum peer_behaviour behaviour;
};

static void send_reply(int fd, uint32_t sequence, int32_t status, const char *text)
{
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    size_t start = control_begin(&reply, CONTROL_REPLY, sequence);
    control_add_i32(&reply, CONTROL_STATUS, status);
    control_add_text(&reply, status != 0 ? CONTROL_MESSAGE : CONTROL_BOOT_ID, text);
    control_end(&reply, start);
    assert_int_equal(io_write_full(fd, reply.data, reply.length), 0);
}

static void flood(int fd)
{
    char rubbish[65536];
    memset(rubbish, 'x', sizeof(rubbish));
    while (send(fd, rubbish, sizeof(rubbish), MSG_NOSIGNAL) > 0)
        ;
}

static void *run_peer(void *context)
{
    struct peer *peer = context;
    uint8_t bytes[CONTROL_HEADER_SIZE];
    struct control_header header;
    if (io_read_full(peer->fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes) &&
        control_parse_header(bytes, &header) == 0) {
        if (peer->behaviour == PEER_RUBBISH_FIRST) {
            assert_int_equal(io_write_full(peer->fd, "rubbish DMC1 more", 17), 0);
            send_reply(peer->fd, header.sequence + 1, 0, "of another request");
        }
        if (peer->behaviour == PEER_FAILS)
            send_reply(peer->fd, header.sequence, EROFS, "no \x1b[31mway");
        else if (peer->behaviour == PEER_MALFORMED)
            send_reply(peer->fd, header.sequence, -1, "");
        else if (peer->behaviour == PEER_FLOODS)
            flood(peer->fd);
        else if (peer->behaviour == PEER_GOOD || peer->behaviour == PEER_RUBBISH_FIRST)
            send_reply(peer->fd, header.sequence, 0, "b-o-o-t");
    }
    if (peer->behaviour != PEER_SILENT)
        shutdown(peer->fd, SHUT_RDWR);
    return NULL;
}

static int ask(enum peer_behaviour behaviour, int timeout_ms, int other_fd, struct control_reply *reply,
               struct error *err)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    struct peer peer = {fds[1], behaviour};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_peer, &peer), 0);
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    control_end(&message, control_begin(&message, CONTROL_SYNC, 0));
    int r = control_request(fds[0], other_fd, &message, timeout_ms, reply, err);
    close(fds[0]);
    pthread_join(thread, NULL);
    close(fds[1]);
    return r;
}

static void the_client_gets_its_reply(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct control_reply reply = {0};
    assert_int_equal(ask(PEER_GOOD, 10000, -1, &reply, &err), 0);
    assert_string_equal(reply.boot_id, "b-o-o-t");
    assert_int_equal(ask(PEER_RUBBISH_FIRST, 10000, -1, &reply, &err), 0);
    assert_string_equal(reply.boot_id, "b-o-o-t");
}

static void the_agents_failure_is_told_harmlessly(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct control_reply reply;
    assert_int_equal(ask(PEER_FAILS, 10000, -1, &reply, &err), -EROFS);
    assert_string_equal(error_message(&err), "the guest agent failed: no ?[31mway");
}

static void a_bad_guest_only_fails_the_call(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct control_reply reply;
    assert_int_equal(ask(PEER_MALFORMED, 10000, -1, &reply, &err), -EBADMSG);
    assert_int_equal(ask(PEER_FLOODS, 60000, -1, &reply, &err), -EBADMSG);
    assert_int_equal(ask(PEER_CLOSES, 10000, -1, &reply, &err), -EPIPE);
    assert_int_equal(ask(PEER_SILENT, 10, -1, &reply, &err), -ETIMEDOUT);
}

static void the_wait_ends_with_the_vmm(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int ended = eventfd(1, EFD_CLOEXEC);
    struct control_reply reply;
    assert_int_equal(ask(PEER_SILENT, 60000, ended, &reply, &err), -EPIPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_round_trip),
        cmocka_unit_test(malformed_bytes_are_refused),
        cmocka_unit_test(a_message_has_a_limit),
        cmocka_unit_test(the_client_gets_its_reply),
        cmocka_unit_test(the_agents_failure_is_told_harmlessly),
        cmocka_unit_test(a_bad_guest_only_fails_the_call),
        cmocka_unit_test(the_wait_ends_with_the_vmm),
    };
    return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
