/* The client against a daemon that a thread plays, step by step: what it sends is what each test writes. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "cli/client.h"
#include "cli/connect_frame.h"
#include "cli/exec_session.h"
#include "cli/signals.h"
#include "unit.h"

#define OK_HEAD     "HTTP/1.1 200 OK\r\nConnection: close\r\n"
#define STREAM_HEAD OK_HEAD "Content-Type: application/connect+json\r\n\r\n"

struct daemon {
    char *path;
    int listener;
    pthread_t thread;
    void (*play)(struct daemon *daemon);
    int pipe[2];            /* the test's own use */
    struct strbuf received; /* bodies, in order, as far as `play` kept them */
};

static void *run_daemon(void *context)
{
    struct daemon *daemon = context;
    daemon->play(daemon);
    return NULL;
}

static void start_daemon(struct daemon *daemon, const char *directory, void (*play)(struct daemon *))
{
    *daemon = (struct daemon){.play = play, .path = unit_path(directory, "s"), .pipe = {-1, -1}};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert_true(strlen(daemon->path) < sizeof(address.sun_path));
    strcpy(address.sun_path, daemon->path);
    daemon->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(daemon->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(daemon->listener, 8), 0);
    assert_int_equal(pipe2(daemon->pipe, O_CLOEXEC), 0);
    assert_int_equal(pthread_create(&daemon->thread, NULL, run_daemon, daemon), 0);
}

static void stop_daemon(struct daemon *daemon)
{
    pthread_join(daemon->thread, NULL);
    close(daemon->listener);
    for (int i = 0; i < 2; i++)
        if (daemon->pipe[i] >= 0)
            close(daemon->pipe[i]);
    strbuf_done(&daemon->received);
    free(daemon->path);
}

/* Takes the next request whole; *ret_body, if given, gets its body. Returns the connection. */
static int take_request(struct daemon *daemon, const char *expected_start, struct strbuf *ret_body)
{
    int fd = accept(daemon->listener, NULL, NULL);
    CLEANUP_STRBUF struct strbuf request = STRBUF_INIT;
    size_t wanted = SIZE_MAX;
    while (request.length < wanted) {
        char block[65536];
        ssize_t n = read(fd, block, sizeof(block));
        if (n <= 0)
            abort();
        strbuf_append(&request, block, (size_t)n);
        const char *end = strstr(request.data, "\r\n\r\n");
        const char *length = strstr(request.data, "Content-Length: ");
        if (end != NULL)
            wanted = (size_t)(end - request.data) + 4 + (length != NULL ? strtoul(length + 16, NULL, 10) : 0);
    }
    if (strncmp(request.data, expected_start, strlen(expected_start)) != 0) {
        print_error("expected %s, got %s\n", expected_start, request.data);
        abort();
    }
    const char *body = strstr(request.data, "\r\n\r\n") + 4;
    if (ret_body != NULL)
        strbuf_append(ret_body, body, request.length - (size_t)(body - request.data));
    return fd;
}

static void say(int fd, const char *text)
{
    (void)!write(fd, text, strlen(text));
}

static void say_frame(int fd, const char *json, bool end_of_stream)
{
    CLEANUP_STRBUF struct strbuf frame = STRBUF_INIT;
    frame_encode(&frame, json, strlen(json));
    frame.data[0] = end_of_stream ? 2 : 0;
    (void)!write(fd, frame.data, frame.length);
}

/* A request that is answered with `answer` and the end of the connection. */
static void answer_once(struct daemon *daemon, const char *expected_start, const char *answer)
{
    int fd = take_request(daemon, expected_start, &daemon->received);
    say(fd, answer);
    close(fd);
}

/* ---- calls ---- */

/* Calls GET /x of a daemon that plays `play`; the error's message and hint go to `err`. */
static int call(const char *directory, void (*play)(struct daemon *), json_t **ret, struct error *err)
{
    struct daemon daemon;
    start_daemon(&daemon, directory, play);
    CLEANUP_CLIENT struct client *client = NULL;
    assert_int_equal(client_open(daemon.path, &client, NULL), 0);
    int r = client_call(client, "GET", "/x", NULL, ret, err);
    client_close(&client);
    stop_daemon(&daemon);
    return r;
}

static void nobody_there(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_FREE char *path = unit_path(*state, "absent");
    assert_int_equal(client_open(path, &client, NULL), 0);
    assert_int_equal(client_call(client, "GET", "/x", NULL, NULL, &err), -ENOENT);
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.hint, "dormoused"));
    client_close(&client);
    char long_path[200];
    memset(long_path, 'a', sizeof(long_path));
    long_path[199] = '\0';
    assert_int_equal(client_open(long_path, &client, &err), -ENAMETOOLONG);
}

static void play_object(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", OK_HEAD "Content-Length: 8\r\n\r\n{\"a\": 1}");
}

static void object(void **state)
{
    json_t *answer = NULL;
    assert_int_equal(call(*state, play_object, &answer, NULL), 0);
    assert_int_equal(json_integer_value(json_object_get(answer, "a")), 1);
    json_decref(answer);
}

static void play_refusal(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ",
                "HTTP/1.1 409 Conflict\r\nConnection: close\r\n\r\n"
                "{\"code\":409,\"message\":\"it is \\u001b[31mpaused\\n\",\"hint\":\"resume it\"}");
}

static void refusal_is_one_clean_line(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(call(*state, play_refusal, NULL, &err), -EBUSY);
    assert_string_equal(err.message, "it is ?[31mpaused?");
    assert_string_equal(err.hint, "resume it");
}

static void play_dumb_refusal(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", "HTTP/1.1 507 No\r\nConnection: close\r\n\r\n<html>no</html>");
}

static void refusal_without_words(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(call(*state, play_dumb_refusal, NULL, &err), -ENOSPC);
    assert_non_null(strstr(err.message, "507"));
}

static void play_text(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", OK_HEAD "\r\nnot JSON");
}

static void play_nothing(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", OK_HEAD "Content-Length: 0\r\n\r\n");
}

static void play_half(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", OK_HEAD "Content-Length: 100\r\n\r\n{\"a\":");
}

static void play_hang_up(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", "");
}

static void play_other_protocol(struct daemon *daemon)
{
    answer_once(daemon, "GET /x ", "SSH-2.0-OpenSSH_9.2\r\n");
}

static void broken_answers(void **state)
{
    static const struct {
        void (*play)(struct daemon *);
        int code;
    } cases[] = {
        {play_text, EPROTO},        {play_nothing, EPROTO},        {play_half, ECONNRESET},
        {play_hang_up, ECONNRESET}, {play_other_protocol, EPROTO},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        CLEANUP_FREE char *directory = unit_path(*state, "d");
        assert_int_equal(io_make_directories(directory, 0700), 0);
        json_t *answer = NULL;
        assert_int_equal(call(directory, cases[i].play, &answer, &err), -cases[i].code);
        assert_null(answer);
        assert_non_null(err.message);
        assert_int_equal(io_remove_tree(directory), 0);
    }
}

static void play_endless(struct daemon *daemon)
{
    int fd = take_request(daemon, "GET /x ", NULL);
    say(fd, OK_HEAD "\r\n[");
    char block[65536];
    memset(block, ' ', sizeof(block));
    while (send(fd, block, sizeof(block), MSG_NOSIGNAL) > 0)
        ;
    close(fd);
}

static void endless_answer_is_bounded(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *answer = NULL;
    assert_int_equal(call(*state, play_endless, &answer, &err), -EFBIG);
}

static void play_silence(struct daemon *daemon)
{
    int fd = take_request(daemon, "GET /x ", NULL);
    say(daemon->pipe[1], "x");
    char byte;
    (void)!read(fd, &byte, 1); /* until the client goes */
    close(fd);
}

static void canceled(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct daemon daemon;
    start_daemon(&daemon, *state, play_silence);
    CLEANUP_CLIENT struct client *client = NULL;
    assert_int_equal(client_open(daemon.path, &client, NULL), 0);
    client_set_cancel(client, daemon.pipe[0]);
    assert_int_equal(client_call(client, "GET", "/x", NULL, NULL, &err), -ECANCELED);
    client_close(&client);
    stop_daemon(&daemon);
}

/* ---- commands ---- */

struct run {
    struct exec_options options;
    struct exec_output out;
    struct exec_output errors;
    struct exec_outcome outcome;
    struct error err;
};

static const char *const command[] = {"program", "argument"};

static void run_init(struct run *run)
{
    *run = (struct run){
        .options = {.guest = {.sandbox_id = "abc"},
                    .command = command,
                    .command_count = 2,
                    .stdin_fd = -1,
                    .terminal_fd = -1,
                    .signal_fd = -1},
        .out = {.fd = -1, .keep_max = 4096},
        .errors = {.fd = -1, .keep_max = 4096},
    };
}

static int run_command(struct run *run, const char *directory, void (*play)(struct daemon *))
{
    struct daemon daemon;
    start_daemon(&daemon, directory, play);
    CLEANUP_CLIENT struct client *client = NULL;
    assert_int_equal(client_open(daemon.path, &client, NULL), 0);
    int r = exec_session_run(client, &run->options, &run->out, &run->errors, &run->outcome, &run->err);
    client_close(&client);
    stop_daemon(&daemon);
    return r;
}

static void run_done(struct run *run)
{
    exec_output_done(&run->out);
    exec_output_done(&run->errors);
    exec_outcome_done(&run->outcome);
    error_done(&run->err);
}

static int take_start(struct daemon *daemon)
{
    int fd = take_request(daemon, "POST /process.Process/Start ", &daemon->received);
    say(fd, STREAM_HEAD);
    say_frame(fd, "{\"event\":{\"start\":{\"pid\":7}}}", false);
    return fd;
}

static void say_end(int fd, const char *end)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "{\"event\":{\"end\":{%s}}}", end);
    say_frame(fd, strbuf_text(&text), false);
    say_frame(fd, "{}", true);
    close(fd);
}

static void play_output(struct daemon *daemon)
{
    int fd = take_start(daemon);
    say_frame(fd, "{\"event\":{\"data\":{\"stdout\":\"b3V0\"}}}", false);
    say_frame(fd, "{\"event\":{\"keepalive\":{}}}", false);
    say_frame(fd, "{\"event\":{\"data\":{\"stderr\":\"ZXJy\"}}}", false);
    say_end(fd, "\"exitCode\":3,\"exited\":true");
    static const char expected[] = "{\"process\":{\"cmd\":\"program\",\"args\":[\"argument\"]},\"stdin\":false}";
    if (daemon->received.length != FRAME_HEADER_SIZE + strlen(expected) ||
        memcmp(daemon->received.data + FRAME_HEADER_SIZE, expected, strlen(expected)) != 0)
        abort();
}

static void output_and_exit_status(void **state)
{
    struct run run;
    run_init(&run);
    assert_int_equal(run_command(&run, *state, play_output), 0);
    assert_string_equal(strbuf_text(&run.out.pending), "out");
    assert_string_equal(strbuf_text(&run.errors.pending), "err");
    assert_int_equal(run.outcome.pid, 7);
    assert_int_equal(run.outcome.exit_status, 3);
    run_done(&run);
}

static void play_not_found(struct daemon *daemon)
{
    int fd = take_request(daemon, "POST /process.Process/Start ", NULL);
    say(fd, STREAM_HEAD);
    say_frame(fd, "{\"error\":{\"code\":\"not_found\",\"message\":\"no program\"}}", true);
    close(fd);
}

static void command_not_found(void **state)
{
    struct run run;
    run_init(&run);
    assert_int_equal(run_command(&run, *state, play_not_found), 0);
    assert_int_equal(run.outcome.exit_status, 127);
    assert_string_equal(run.outcome.not_started.message, "no program");
    run_done(&run);
}

static void play_no_sandbox(struct daemon *daemon)
{
    answer_once(daemon, "POST /process.Process/Start ",
                "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n"
                "{\"code\":502,\"message\":\"The sandbox was not found\"}");
}

static void play_broken_off(struct daemon *daemon)
{
    close(take_start(daemon));
}

static void play_no_end_event(struct daemon *daemon)
{
    int fd = take_start(daemon);
    say_frame(fd, "{}", true);
    close(fd);
}

static void play_bad_frame(struct daemon *daemon)
{
    int fd = take_start(daemon);
    say(fd, "\x01 compressed");
    close(fd);
}

static void broken_streams(void **state)
{
    static const struct {
        void (*play)(struct daemon *);
        int code;
    } cases[] = {{play_no_sandbox, EIO},
                 {play_broken_off, ECONNRESET},
                 {play_no_end_event, EPROTO},
                 {play_bad_frame, EPROTO}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_FREE char *directory = unit_path(*state, "d");
        assert_int_equal(io_make_directories(directory, 0700), 0);
        struct run run;
        run_init(&run);
        assert_int_equal(run_command(&run, directory, cases[i].play), -cases[i].code);
        assert_non_null(run.err.message);
        run_done(&run);
        assert_int_equal(io_remove_tree(directory), 0);
    }
}

/* "hello" is read from a pipe: one SendInput, then CloseStdin, then the end. */
static void play_input(struct daemon *daemon)
{
    int fd = take_start(daemon);
    daemon->received.length = 0;
    answer_once(daemon, "POST /process.Process/SendInput ", OK_HEAD "Content-Length: 2\r\n\r\n{}");
    answer_once(daemon, "POST /process.Process/CloseStdin ", OK_HEAD "Content-Length: 2\r\n\r\n{}");
    if (strcmp(daemon->received.data,
               "{\"input\":{\"stdin\":\"aGVsbG8=\"},\"process\":{\"pid\":7}}{\"process\":{\"pid\":7}}") != 0)
        abort();
    say_end(fd, "\"exited\":true");
}

static void input_and_its_end(void **state)
{
    int input[2];
    assert_int_equal(pipe2(input, O_CLOEXEC), 0);
    say(input[1], "hello");
    close(input[1]);
    struct run run;
    run_init(&run);
    run.options.stdin_fd = input[0];
    assert_int_equal(run_command(&run, *state, play_input), 0);
    assert_int_equal(run.outcome.exit_status, 0);
    assert_int_equal(run.outcome.refused.code, 0);
    close(input[0]);
    run_done(&run);
}

/* The process doesn't take its input: no more of it is sent, and the session goes on to its end. */
static void play_refused_input(struct daemon *daemon)
{
    int fd = take_start(daemon);
    answer_once(daemon, "POST /process.Process/SendInput ",
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
                "{\"code\":\"failed_precondition\",\"message\":\"closed\"}");
    say_end(fd, "\"exited\":true");
}

static void refused_input(void **state)
{
    CLEANUP_CLOSE int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    struct run run;
    run_init(&run);
    run.options.stdin_fd = zero;
    assert_int_equal(run_command(&run, *state, play_refused_input), 0);
    assert_int_equal(run.outcome.exit_status, 0);
    assert_int_equal(run.outcome.refused.code, EBUSY);
    run_done(&run);
}

static void play_lost_reader(struct daemon *daemon)
{
    int fd = take_start(daemon);
    say_frame(fd, "{\"event\":{\"data\":{\"stdout\":\"b3V0\"}}}", false);
    daemon->received.length = 0;
    answer_once(daemon, "POST /process.Process/SendSignal ", OK_HEAD "Content-Length: 2\r\n\r\n{}");
    if (strstr(daemon->received.data, "SIGNAL_SIGTERM") == NULL)
        abort();
    close(fd);
}

static void nobody_reads_the_output(void **state)
{
    int output[2];
    assert_int_equal(pipe2(output, O_CLOEXEC), 0);
    close(output[0]);
    struct run run;
    run_init(&run);
    run.out.fd = output[1];
    assert_int_equal(run_command(&run, *state, play_lost_reader), 0);
    assert_int_equal(run.outcome.exit_status, 128 + SIGPIPE);
    close(output[1]);
    run_done(&run);
}

/* What the process wrote shows that the client knows its pid: from then on a signal is passed on. */
static int output_seen[2];

static void play_signal(struct daemon *daemon)
{
    int fd = take_start(daemon);
    say_frame(fd, "{\"event\":{\"data\":{\"stdout\":\"eA==\"}}}", false);
    char byte;
    (void)!read(output_seen[0], &byte, 1);
    kill(getpid(), SIGTERM);
    answer_once(daemon, "POST /process.Process/SendSignal ", OK_HEAD "Content-Length: 2\r\n\r\n{}");
    say_end(fd, "\"exitCode\":-1,\"status\":\"signal: terminated\"");
}

static void signal_is_passed_on(void **state)
{
    CLEANUP_CLOSE int signal_fd = -1;
    assert_int_equal(signals_block(&signal_fd, NULL), 0);
    assert_int_equal(pipe2(output_seen, O_CLOEXEC), 0);
    struct run run;
    run_init(&run);
    run.options.signal_fd = signal_fd;
    run.out.fd = output_seen[1];
    assert_int_equal(run_command(&run, *state, play_signal), 0);
    assert_int_equal(run.outcome.exit_status, 128 + SIGTERM);
    assert_int_equal(run.outcome.signal, SIGTERM);
    close(output_seen[0]);
    close(output_seen[1]);
    run_done(&run);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const struct CMUnitTest tests[] = {
        UNIT_TEST(nobody_there),
        UNIT_TEST(object),
        UNIT_TEST(refusal_is_one_clean_line),
        UNIT_TEST(refusal_without_words),
        UNIT_TEST(broken_answers),
        UNIT_TEST(endless_answer_is_bounded),
        UNIT_TEST(canceled),
        UNIT_TEST(output_and_exit_status),
        UNIT_TEST(command_not_found),
        UNIT_TEST(broken_streams),
        UNIT_TEST(input_and_its_end),
        UNIT_TEST(refused_input),
        UNIT_TEST(nobody_reads_the_output),
        UNIT_TEST(signal_is_passed_on),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return failed;
}
