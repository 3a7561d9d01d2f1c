/* The agent's end of the control channel. Clock, entropy and host name are the host's here and stay untouched. */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/control_channel.h"
#include "control/control.h"
#include "unit.h"

struct fixture {
    struct control_channel channel;
    struct identity identity;
    int daemon; /* the other end of the port */
    int applied, power_off;
};

static void count_applied(void *owner)
{
    ((struct fixture *)owner)->applied++;
}

static void count_power_off(void *owner)
{
    ((struct fixture *)owner)->power_off++;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int ends[2];
    if (f == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    f->daemon = ends[0];
    f->channel = (struct control_channel){
        .source = {.fd = ends[1]},
        .identity = &f->identity,
        .random_fd = -1,
        .boot_id = "the boot id",
        .applied = count_applied,
        .power_off = count_power_off,
        .owner = f,
    };
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    strbuf_done(&f->channel.received);
    strbuf_done(&f->channel.reply);
    close(f->daemon);
    close(f->channel.source.fd);
    free(f);
    return 0;
}

static void receive(struct fixture *f, const struct strbuf *bytes)
{
    control_channel_receive(&f->channel, bytes->data, bytes->length);
}

/* The status of the one reply that was sent, which must be to `sequence`. */
static int32_t take_reply(struct fixture *f, uint32_t sequence)
{
    uint8_t bytes[1024];
    struct control_header header;
    struct control_field field;
    size_t position = 0;
    int32_t status = -1;
    bool boot_id = false;
    ssize_t n = read(f->daemon, bytes, sizeof(bytes));
    assert_true(n > CONTROL_HEADER_SIZE);
    assert_int_equal(control_parse_header(bytes, &header), 0);
    assert_int_equal(header.type, CONTROL_REPLY);
    assert_int_equal(header.sequence, sequence);
    assert_int_equal(n, CONTROL_HEADER_SIZE + header.length);
    while (control_next_field(bytes + CONTROL_HEADER_SIZE, header.length, &position, &field) > 0) {
        if (field.tag == CONTROL_STATUS)
            assert_int_equal(control_field_i32(&field, &status), 0);
        boot_id |= field.tag == CONTROL_BOOT_ID && field.length == strlen("the boot id");
    }
    assert_true(boot_id);
    return status;
}

static void expect_no_reply(struct fixture *f)
{
    char byte;
    assert_int_equal(read(f->daemon, &byte, 1), -1);
    assert_int_equal(errno, EAGAIN);
}

static void append_text_message(struct strbuf *out, uint32_t sequence, enum control_tag tag, const char *text)
{
    size_t start = control_begin(out, CONTROL_APPLY, sequence);
    control_add_text(out, tag, text);
    control_end(out, start);
}

static int32_t apply_text(struct fixture *f, enum control_tag tag, const char *text)
{
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    append_text_message(&message, 5, tag, text);
    receive(f, &message);
    return take_reply(f, 5);
}

static void collect_variable(void *context, const char *name, size_t name_length, const char *value)
{
    strbuf_printf(context, "%.*s=%s;", (int)name_length, name, value);
}

static void identity_is_applied_and_acknowledged(void **state)
{
    struct fixture *f = *state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    CLEANUP_STRBUF struct strbuf variables = STRBUF_INIT;
    size_t start = control_begin(&message, CONTROL_APPLY, 77);
    control_add_text(&message, CONTROL_SANDBOX_ID, "sbx");
    control_add_text(&message, CONTROL_TEMPLATE_ID, "tpl");
    control_add_text(&message, CONTROL_ACCESS_TOKEN, "token");
    control_add_text(&message, CONTROL_ENV, "A=1");
    control_add_text(&message, CONTROL_ENV, "B=");
    control_add_text(&message, CONTROL_DEFAULT_USER, "user");
    control_add_text(&message, CONTROL_DEFAULT_WORKDIR, "/work");
    control_add_text(&message, (enum control_tag)999, "a tag of the future");
    control_end(&message, start);
    receive(f, &message);
    assert_int_equal(take_reply(f, 77), 0);
    assert_int_equal(f->applied, 1);
    assert_string_equal(f->identity.token, "token");
    assert_int_equal(f->identity.token_length, 5);
    assert_string_equal(f->identity.user, "user");
    assert_string_equal(f->identity.workdir, "/work");
    identity_each_variable(&f->identity, collect_variable, &variables);
    assert_string_equal(strbuf_text(&variables), "E2B_SANDBOX=true;E2B_SANDBOX_ID=sbx;E2B_TEMPLATE_ID=tpl;A=1;B=;");

    assert_int_equal(apply_text(f, CONTROL_ENV, "C=3"), 0);
    assert_int_equal(apply_text(f, CONTROL_ACCESS_TOKEN, ""), 0);
    strbuf_consume(&variables, variables.length);
    identity_each_variable(&f->identity, collect_variable, &variables);
    assert_string_equal(strbuf_text(&variables), "E2B_SANDBOX=true;E2B_SANDBOX_ID=sbx;E2B_TEMPLATE_ID=tpl;C=3;");
    assert_int_equal(f->identity.token_length, 0);
}

static void messages_arrive_byte_by_byte(void **state)
{
    struct fixture *f = *state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    append_text_message(&message, 1, CONTROL_SANDBOX_ID, "one");
    for (size_t i = 0; i < message.length; i++) {
        expect_no_reply(f);
        control_channel_receive(&f->channel, message.data + i, 1);
    }
    assert_int_equal(take_reply(f, 1), 0);
    assert_string_equal(f->identity.sandbox_id, "one");
}

static void garbage_is_skipped(void **state)
{
    static const char noise[] = "noise DMC1 DMC1\0\0\0\0\0\0\0\0\xff\xff\xff\xff DM";
    struct fixture *f = *state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    strbuf_append(&message, noise, sizeof(noise) - 1);
    append_text_message(&message, 2, CONTROL_SANDBOX_ID, "two");
    receive(f, &message);
    assert_int_equal(take_reply(f, 2), 0);
    assert_string_equal(f->identity.sandbox_id, "two");
}

static void half_a_message_from_before_a_snapshot_is_dropped(void **state)
{
    struct fixture *f = *state;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    append_text_message(&message, 3, CONTROL_SANDBOX_ID, "a text that is cut off by the snapshot");
    control_channel_receive(&f->channel, message.data, message.length - 10);
    expect_no_reply(f);
    assert_int_equal(apply_text(f, CONTROL_SANDBOX_ID, "new"), 0);
    assert_string_equal(f->identity.sandbox_id, "new");
    assert_int_equal(f->channel.received.length, 0);
}

static void bad_fields_change_nothing(void **state)
{
    struct fixture *f = *state;
    char text[2 * IDENTITY_TEXT_MAX];
    memset(text, 'x', sizeof(text));
    text[IDENTITY_TEXT_MAX] = '\0';
    assert_int_equal(apply_text(f, CONTROL_SANDBOX_ID, "good"), 0);
    assert_int_equal(apply_text(f, CONTROL_SANDBOX_ID, text), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_ACCESS_TOKEN, text), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_HOSTNAME, text), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_TIME, "short"), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_ENV, "no equals sign"), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_ENV, "=x"), EINVAL);
    assert_int_equal(apply_text(f, CONTROL_ENTROPY, "no descriptor for it"), EBADF);
    assert_int_equal(f->applied, 1);
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    append_text_message(&message, 4, CONTROL_SANDBOX_ID, "never");
    message.data[CONTROL_HEADER_SIZE + 4] = 100; /* the field's length */
    receive(f, &message);
    assert_int_equal(take_reply(f, 4), EBADMSG);
    assert_string_equal(f->identity.sandbox_id, "good");
    assert_int_equal(f->identity.token_length, 0);
}

static void other_requests_are_answered(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint16_t type;
        int32_t status;
    } cases[] = {{CONTROL_CLOCK, EINVAL}, {99, ENOSYS}, {CONTROL_POWER_OFF, 0}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
        control_end(&message, control_begin(&message, (enum control_type)cases[i].type, 6));
        receive(f, &message);
        assert_int_equal(take_reply(f, 6), cases[i].status);
    }
    assert_int_equal(f->power_off, 1);
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    control_end(&reply, control_begin(&reply, CONTROL_REPLY, 7));
    receive(f, &reply);
    expect_no_reply(f);
}

#define CHANNEL_TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(identity_is_applied_and_acknowledged),
        CHANNEL_TEST(messages_arrive_byte_by_byte),
        CHANNEL_TEST(garbage_is_skipped),
        CHANNEL_TEST(half_a_message_from_before_a_snapshot_is_dropped),
        CHANNEL_TEST(bad_fields_change_nothing),
        CHANNEL_TEST(other_requests_are_answered),
    };
    return cmocka_run_group_tests_name("agent control", tests, NULL, NULL);
}
