/* The frames and messages of a Start stream, which come from a guest. */
#include <errno.h>
#include <signal.h>

#include "cli/connect_frame.h"
#include "cli/process_event.h"
#include "unit.h"

/* Three frames, the last one the end of the stream. */
static void encode_stream(struct strbuf *stream)
{
    frame_encode(stream, "{\"a\":1}", 7);
    frame_encode(stream, "", 0);
    frame_encode(stream, "{}", 2);
    stream->data[stream->length - 2 - FRAME_HEADER_SIZE] = 0x02;
}

static void check_frame(const struct frame *frame, int number)
{
    static const char *const payloads[] = {"{\"a\":1}", "", "{}"};
    assert_int_equal(frame->length, strlen(payloads[number]));
    assert_memory_equal(frame->payload, payloads[number], frame->length);
    assert_int_equal(frame->end_of_stream, number == 2);
}

static void frames_in_pieces_of_any_size(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf stream = STRBUF_INIT;
    encode_stream(&stream);
    for (size_t piece = 1; piece <= stream.length; piece++) {
        struct frame_decoder decoder = FRAME_DECODER_INIT;
        int seen = 0;
        for (size_t at = 0; at < stream.length; at += piece) {
            frame_decoder_feed(&decoder, stream.data + at, MIN(piece, stream.length - at));
            struct frame frame;
            int r;
            while ((r = frame_decoder_next(&decoder, &frame, NULL)) > 0)
                check_frame(&frame, seen++);
            assert_int_equal(r, 0);
        }
        assert_int_equal(seen, 3);
        frame_decoder_done(&decoder);
    }
}

static void bad_frames(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\x01\0\0\0\x02{}",     /* compressed */
        "\x80\0\0\0\x02{}",     /* unknown */
        "\0\xff\xff\xff\xff{}", /* 4 GiB */
        "\0\0\x40\0\x01{}",     /* one byte too many */
        "HTTP/1.1 200",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct frame_decoder decoder = FRAME_DECODER_INIT;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct frame frame;
        frame_decoder_feed(&decoder, bad[i], FRAME_HEADER_SIZE + 2);
        assert_int_equal(frame_decoder_next(&decoder, &frame, &err), -EPROTO);
        assert_non_null(err.message);
        frame_decoder_done(&decoder);
    }
}

static int parse(const char *json, struct process_event *ret)
{
    return process_event_parse(json, strlen(json), ret, NULL);
}

static void output_events(void **state)
{
    (void)state;
    struct process_event event;
    assert_int_equal(parse("{\"event\":{\"start\":{\"pid\":123}}}", &event), 0);
    assert_int_equal(event.kind, PROCESS_EVENT_START);
    assert_int_equal(event.pid, 123);
    process_event_done(&event);
    assert_int_equal(parse("{\"event\":{\"data\":{\"stdout\":\"YQBi\"}}}", &event), 0);
    assert_int_equal(event.kind, PROCESS_EVENT_STDOUT);
    assert_int_equal(event.data.length, 3);
    assert_memory_equal(event.data.data, "a\0b", 3);
    process_event_done(&event);
    assert_int_equal(parse("{\"event\":{\"data\":{\"stderr\":\"\"}}}", &event), 0);
    assert_int_equal(event.kind, PROCESS_EVENT_STDERR);
    assert_int_equal(event.data.length, 0);
    process_event_done(&event);
    assert_int_equal(parse("{\"event\":{\"data\":{\"pty\":\"aGk=\"}}}", &event), 0);
    assert_int_equal(event.kind, PROCESS_EVENT_STDOUT);
    process_event_done(&event);
    static const char *const ignored[] = {"{}", "{\"event\":{\"keepalive\":{}}}", "{\"event\":{\"new\":1}}",
                                          "{\"event\":7}", "{\"event\":{\"data\":{}}}"};
    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++) {
        assert_int_equal(parse(ignored[i], &event), 0);
        assert_int_equal(event.kind, PROCESS_EVENT_OTHER);
        process_event_done(&event);
    }
}

static void bad_events(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "[]",
        "{",
        "7",
        "{\"event\":{\"start\":{}}}",
        "{\"event\":{\"start\":{\"pid\":-1}}}",
        "{\"event\":{\"start\":{\"pid\":99999999999}}}",
        "{\"event\":{\"data\":{\"stdout\":7}}}",
        "{\"event\":{\"data\":{\"stdout\":\"a\"}}}",
        "{\"event\":{\"data\":{\"stdout\":\"YQ==YQ==\"}}}",
    };
    struct process_event event;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse(bad[i], &event), -EPROTO);
}

static void ends(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int exit_status;
        int signal;
    } cases[] = {
        {"{\"event\":{\"end\":{\"exited\":true,\"status\":\"exit status 0\"}}}", 0, 0},
        {"{\"event\":{\"end\":{\"exitCode\":7,\"exited\":true}}}", 7, 0},
        {"{\"event\":{\"end\":{\"exitCode\":255,\"exited\":true}}}", 255, 0},
        {"{\"event\":{\"end\":{\"exitCode\":-1,\"exited\":false,\"status\":\"signal: killed\"}}}", 137, SIGKILL},
        {"{\"event\":{\"end\":{\"exitCode\":-1,\"error\":\"signal: terminated\"}}}", 143, SIGTERM},
        {"{\"event\":{\"end\":{\"exitCode\":-1,\"status\":\"weird\"}}}", 255, 0},
        {"{\"event\":{\"end\":{\"exitCode\":3,\"exited\":true,\"error\":\"signal: killed\"}}}", 3, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct process_event event;
        assert_int_equal(parse(cases[i].json, &event), 0);
        assert_int_equal(event.kind, PROCESS_EVENT_END);
        assert_int_equal(event.exit_status, cases[i].exit_status);
        assert_int_equal(event.signal, cases[i].signal);
        process_event_done(&event);
    }
}

/* As Go writes them, whose words the agent's protocol took over. */
static void signal_names(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int number;
    } cases[] = {
        {"signal: hangup", SIGHUP},
        {"signal: interrupt", SIGINT},
        {"signal: quit", SIGQUIT},
        {"signal: illegal instruction", SIGILL},
        {"signal: trace/breakpoint trap", SIGTRAP},
        {"signal: aborted", SIGABRT},
        {"signal: aborted (core dumped)", SIGABRT},
        {"signal: bus error", SIGBUS},
        {"signal: floating point exception", SIGFPE},
        {"signal: killed", SIGKILL},
        {"signal: user defined signal 1", SIGUSR1},
        {"signal: segmentation fault", SIGSEGV},
        {"signal: broken pipe", SIGPIPE},
        {"signal: alarm clock", SIGALRM},
        {"signal: terminated", SIGTERM},
        {"signal: bad system call", SIGSYS},
        {"signal: 34", 34},
        {"signal: 0", 0},
        {"signal: 9999", 0},
        {"signal: ", 0},
        {"signal: no such", 0},
        {"killed", 0},
        {"", 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(process_event_signal(cases[i].text), cases[i].number);
    assert_int_equal(process_event_signal(NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_in_pieces_of_any_size),
        cmocka_unit_test(bad_frames),
        cmocka_unit_test(output_events),
        cmocka_unit_test(bad_events),
        cmocka_unit_test(ends),
        cmocka_unit_test(signal_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
