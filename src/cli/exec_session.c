/*
 * The loop has one transfer that lasts as long as the command (the Start stream) and the short ones of exec_input.
 * Callbacks of libcurl only take bytes in and note what happened; everything is decided in run_loop.
 *
 * Invariants:
 *   - while more than BACKLOG_MAX bytes of output wait, the stream is paused: that and one frame bound the memory
 *   - the session ends by the stream's end frame, by the transfer's end without one (an error), or by `leaving`
 */
#include "cli/exec_session.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/io.h"
#include "cli/connect_frame.h"
#include "cli/exec_input.h"
#include "cli/process_event.h"
#include "cli/terminal.h"

#define BACKLOG_MAX      ((size_t)1 << 20)
#define POLL_MAX_MS      5000
#define KEEPALIVE_HEADER "Keepalive-Ping-Interval: 30"
#define SILENCE_MAX_MS   100000 /* more than three keep-alives */
#define LEAVE_MAX_MS     2000   /* for the agent to take the last signal */
#define NS_PER_MS        1000000
#define STATUS_NOT_FOUND 127
#define STATUS_NOT_RUN   126
#define STATUS_SIGNAL    128
#define COLUMNS_DEFAULT  80
#define ROWS_DEFAULT     24

struct session {
    struct client *client;
    const struct exec_options *options;
    struct exec_output *out;
    struct exec_output *errors;
    struct exec_input input;
    CURLM *multi;
    CURL *easy; /* the Start stream */
    struct curl_slist *headers;
    struct frame_decoder decoder;
    struct strbuf error_answer; /* the body of an answer that is no stream */
    bool paused;
    bool received;    /* anything since the last turn */
    bool process_end; /* the process' own end was reported */
    bool stream_end;  /* the end frame, or the transfer's end */
    struct exec_outcome outcome;
    int failed; /* what a callback found: a negative errno, with `error` */
    struct error error;
    bool leaving; /* end without waiting for the process, once the last signal is answered */
    int64_t leave_by_ns;
    int64_t silent_ms;
};

void exec_outcome_done(struct exec_outcome *outcome)
{
    error_done(&outcome->not_started);
    error_done(&outcome->refused);
}

/* ---- the request ---- */

static json_t *start_request(const struct exec_options *options)
{
    json_t *arguments = json_array();
    for (size_t i = 1; i < options->command_count; i++)
        json_array_append_new(arguments, json_string(options->command[i]));
    json_t *process = json_pack("{s:s, s:o}", "cmd", options->command[0], "args", arguments);
    if (process == NULL || json_array_size(arguments) != options->command_count - 1) {
        json_decref(process);
        return NULL;
    }
    if (options->directory != NULL)
        json_object_set_new(process, "cwd", json_string(options->directory));
    if (options->environment != NULL)
        json_object_set_new(process, "envs", json_deep_copy(options->environment));
    json_t *request = json_pack("{s:o, s:b}", "process", process, "stdin", options->stdin_fd >= 0);
    if (options->tty) {
        struct winsize size = {.ws_col = COLUMNS_DEFAULT, .ws_row = ROWS_DEFAULT};
        terminal_size(options->terminal_fd, &size);
        json_object_set_new(
            request, "pty",
            json_pack("{s:{s:i, s:i}}", "size", "cols", (int)size.ws_col, "rows", (int)size.ws_row));
    }
    return request;
}

static int encode_request(const struct exec_options *options, struct strbuf *ret, struct error *err)
{
    json_t *request = start_request(options);
    CLEANUP_FREE char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (text == NULL)
        return error_set(err, EINVAL, "the command is not UTF-8, which the agent's protocol demands");
    frame_encode(ret, text, strlen(text));
    return ret->failed ? error_set(err, ENOMEM, "out of memory") : 0;
}

/* ---- the stream ---- */

static void handle_event(struct session *session, struct process_event *event)
{
    switch (event->kind) {
    case PROCESS_EVENT_START:
        session->outcome.pid = event->pid;
        exec_input_started(&session->input, event->pid);
        break;
    case PROCESS_EVENT_STDOUT:
        exec_output_push(session->out, event->data.data, event->data.length);
        break;
    case PROCESS_EVENT_STDERR:
        exec_output_push(session->errors, event->data.data, event->data.length);
        break;
    case PROCESS_EVENT_END:
        session->process_end = true;
        if (!session->leaving)
            session->outcome.exit_status = event->exit_status;
        session->outcome.signal = event->signal;
        break;
    case PROCESS_EVENT_OTHER:
        break;
    }
}

/* What a shell returns for a command that it can't start. */
static int not_started_status(int r)
{
    return r == -ENOENT ? STATUS_NOT_FOUND : r == -EACCES ? STATUS_NOT_RUN : EXIT_FAILURE;
}

/* "{}" or {"error":{…}}. A command that can't be started is reported here, before any event. */
static int handle_end_of_stream(struct session *session, const struct frame *frame)
{
    session->stream_end = true;
    json_t *end = json_loadb(frame->payload, frame->length, 0, NULL);
    const json_t *error = json_object_get(end, "error");
    int r = 0;
    if (error != NULL && session->outcome.pid == 0)
        session->outcome.exit_status = not_started_status(client_peer_error(error, &session->outcome.not_started));
    else if (error != NULL)
        r = client_peer_error(error, &session->error);
    else if (!session->process_end)
        r = error_set(&session->error, EPROTO, "the agent did not say how the command ended");
    json_decref(end);
    return r;
}

static int handle_frame(struct session *session, const struct frame *frame)
{
    if (session->stream_end)
        return error_set(&session->error, EPROTO, "the agent sent more after the end of its stream");
    if (frame->end_of_stream)
        return handle_end_of_stream(session, frame);
    struct process_event event;
    int r = process_event_parse(frame->payload, frame->length, &event, &session->error);
    if (r < 0)
        return r;
    handle_event(session, &event);
    process_event_done(&event);
    return 0;
}

static int take_bytes(struct session *session, const char *data, size_t length)
{
    frame_decoder_feed(&session->decoder, data, length);
    for (;;) {
        struct frame frame;
        int r = frame_decoder_next(&session->decoder, &frame, &session->error);
        if (r > 0)
            r = handle_frame(session, &frame) < 0 ? -session->error.code : 1;
        if (r <= 0)
            return r;
    }
}

static size_t receive_stream(char *data, size_t unit, size_t count, void *context)
{
    struct session *session = context;
    size_t length = unit * count;
    session->received = true;
    long status = 0;
    curl_easy_getinfo(session->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status >= 400) {
        if (session->error_answer.length + length > CLIENT_ERROR_ANSWER_MAX)
            return 0;
        strbuf_append(&session->error_answer, data, length);
        return length;
    }
    if (exec_output_backlog(session->out) + exec_output_backlog(session->errors) > BACKLOG_MAX) {
        session->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    session->failed = take_bytes(session, data, length);
    return session->failed < 0 ? 0 : length;
}

static int stream_transfer_end(struct session *session, CURLcode result, struct error *err)
{
    long status = 0;
    curl_easy_getinfo(session->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status >= 400)
        return client_http_error(status, strbuf_text(&session->error_answer), session->error_answer.length, err);
    if (result == CURLE_COULDNT_CONNECT || result == CURLE_OPERATION_TIMEDOUT)
        return client_curl_error(session->client, session->easy, result, err);
    error_set(err, ECONNRESET, "the connection to the sandbox broke off before the command had ended");
    error_hint(err, "the sandbox was paused or killed, or the daemon restarted; see dormouse info");
    return -ECONNRESET;
}

/* ---- signals ---- */

static void leave(struct session *session, int exit_status, int signal)
{
    session->outcome.exit_status = exit_status;
    session->leaving = true;
    session->leave_by_ns = clock_monotonic_ns() + (int64_t)LEAVE_MAX_MS * NS_PER_MS;
    if (signal != 0 && session->outcome.pid > 0)
        exec_input_signal(&session->input, signal);
}

static void handle_signal(struct session *session)
{
    struct signalfd_siginfo info;
    if (read(session->options->signal_fd, &info, sizeof(info)) != sizeof(info))
        return;
    int signal = (int)info.ssi_signo;
    if (signal == SIGWINCH)
        session->input.resized = session->options->tty;
    else if (session->options->raw) /* a terminal that hung up takes its session with it, as it would locally */
        leave(session, STATUS_SIGNAL + signal, signal == SIGHUP ? SIGKILL : SIGTERM);
    else if (signal == SIGQUIT || session->outcome.pid == 0 || !exec_input_signal(&session->input, SIGTERM))
        leave(session, STATUS_SIGNAL + signal, 0);
}

/* ---- the loop ---- */

static int reap_transfers(struct session *session, struct error *err)
{
    int left;
    CURLMsg *message;
    while ((message = curl_multi_info_read(session->multi, &left)) != NULL) {
        if (message->msg != CURLMSG_DONE)
            continue;
        CURL *easy = message->easy_handle;
        CURLcode result = message->data.result;
        /* Who leaves doesn't care any more how the stream ends. */
        if (exec_input_finish(&session->input, easy, result) || session->stream_end || session->leaving)
            continue;
        return stream_transfer_end(session, result, err);
    }
    return 0;
}

/* Nobody reads the output any more: what a local pipe would do to the process is done to the one in the guest. */
static int flush_outputs(struct session *session, struct error *err)
{
    int r = exec_output_flush(session->out);
    int second = exec_output_flush(session->errors);
    r = r < 0 ? r : second;
    if (r == -EPIPE && !session->leaving) {
        leave(session, STATUS_SIGNAL + SIGPIPE, SIGTERM);
        return 0;
    }
    if (r < 0 && r != -EPIPE)
        return error_code(err, r, "cannot write the command's output");
    size_t backlog = exec_output_backlog(session->out) + exec_output_backlog(session->errors);
    if (session->paused && backlog <= BACKLOG_MAX / 2) {
        session->paused = false;
        curl_easy_pause(session->easy, CURLPAUSE_CONT);
    }
    return 0;
}

static bool session_over(const struct session *session)
{
    if (session->leaving)
        return !exec_input_busy(&session->input) || clock_monotonic_ns() >= session->leave_by_ns;
    return session->stream_end && exec_output_backlog(session->out) + exec_output_backlog(session->errors) == 0;
}

/* An agent that lives sends keep-alives; time during which this program itself stood still doesn't count. */
static int check_silence(struct session *session, int64_t waited_ms, struct error *err)
{
    session->silent_ms = session->received || session->paused || session->stream_end
                             ? 0
                             : session->silent_ms + MIN(waited_ms, (int64_t)POLL_MAX_MS);
    session->received = false;
    if (session->silent_ms < SILENCE_MAX_MS)
        return 0;
    error_set(err, ETIMEDOUT, "the sandbox has not given a sign of life for %d s", SILENCE_MAX_MS / 1000);
    error_hint(err, "see dormouse info and dormouse logs");
    return -ETIMEDOUT;
}

enum { WAIT_SIGNAL, WAIT_STDIN, WAIT_OUT, WAIT_ERRORS, WAIT_COUNT };

static void add_wait(struct curl_waitfd *fds, unsigned *count, int *positions, int what, int fd, bool wanted)
{
    positions[what] = -1;
    if (!wanted)
        return;
    short events = what == WAIT_OUT || what == WAIT_ERRORS ? CURL_WAIT_POLLOUT : CURL_WAIT_POLLIN;
    fds[*count] = (struct curl_waitfd){.fd = fd, .events = events};
    positions[what] = (int)(*count)++;
}

static int wait_for_events(struct session *session, struct error *err)
{
    const struct exec_options *options = session->options;
    struct curl_waitfd fds[WAIT_COUNT];
    int positions[WAIT_COUNT];
    unsigned count = 0;
    add_wait(fds, &count, positions, WAIT_SIGNAL, options->signal_fd, options->signal_fd >= 0);
    add_wait(fds, &count, positions, WAIT_STDIN, session->input.stdin_fd,
             exec_input_wants_stdin(&session->input) && !session->stream_end && !session->leaving);
    add_wait(fds, &count, positions, WAIT_OUT, session->out->fd, exec_output_backlog(session->out) > 0);
    add_wait(fds, &count, positions, WAIT_ERRORS, session->errors->fd, exec_output_backlog(session->errors) > 0);
    int64_t before = clock_monotonic_ns();
    CURLMcode m = curl_multi_poll(session->multi, fds, count, session->leaving ? LEAVE_MAX_MS : POLL_MAX_MS, NULL);
    if (m != CURLM_OK)
        return error_set(err, EIO, "cannot wait for the daemon: %s", curl_multi_strerror(m));
    int r = check_silence(session, (clock_monotonic_ns() - before) / NS_PER_MS, err);
    if (positions[WAIT_SIGNAL] >= 0 && fds[positions[WAIT_SIGNAL]].revents != 0)
        handle_signal(session);
    if (r == 0 && positions[WAIT_STDIN] >= 0 && fds[positions[WAIT_STDIN]].revents != 0)
        r = exec_input_read(&session->input, err);
    return r;
}

static int run_loop(struct session *session, struct error *err)
{
    for (;;) {
        int running;
        CURLMcode m = curl_multi_perform(session->multi, &running);
        if (m != CURLM_OK)
            return error_set(err, EIO, "cannot talk to the daemon: %s", curl_multi_strerror(m));
        if (session->failed < 0) {
            error_move(err, &session->error);
            return session->failed;
        }
        int r = flush_outputs(session, err);
        if (r == 0)
            r = reap_transfers(session, err);
        if (r < 0)
            return r;
        if (session_over(session))
            return 0;
        r = exec_input_advance(&session->input, err);
        if (r == 0)
            r = wait_for_events(session, err);
        if (r < 0)
            return r;
    }
}

static int start_stream(struct session *session, struct error *err)
{
    CLEANUP_STRBUF struct strbuf body = STRBUF_INIT;
    int r = encode_request(session->options, &body, err);
    if (r < 0)
        return r;
    session->multi = curl_multi_init();
    session->headers = curl_slist_append(NULL, "Content-Type: application/connect+json");
    session->easy = client_easy_new(session->client, "/process.Process/Start", &session->options->guest,
                                    &session->headers, err);
    if (session->easy == NULL)
        return -ENOMEM;
    struct curl_slist *longer = curl_slist_append(session->headers, KEEPALIVE_HEADER);
    CURL *easy = session->easy;
    bool ok = session->multi != NULL && longer != NULL &&
              curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body.length) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS, body.data) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, receive_stream) == CURLE_OK &&
              curl_easy_setopt(easy, CURLOPT_WRITEDATA, session) == CURLE_OK &&
              curl_multi_add_handle(session->multi, easy) == CURLM_OK;
    return ok ? 0 : error_set(err, ENOMEM, "cannot prepare a request");
}

static void session_done(struct session *session)
{
    exec_input_done(&session->input);
    if (session->easy != NULL && session->multi != NULL)
        curl_multi_remove_handle(session->multi, session->easy);
    curl_easy_cleanup(session->easy);
    curl_multi_cleanup(session->multi);
    curl_slist_free_all(session->headers);
    frame_decoder_done(&session->decoder);
    strbuf_done(&session->error_answer);
    error_done(&session->error);
}

int exec_session_run(struct client *client, const struct exec_options *options, struct exec_output *out,
                     struct exec_output *errors, struct exec_outcome *ret, struct error *err)
{
    struct session session = {
        .client = client,
        .options = options,
        .out = out,
        .errors = errors,
    };
    int r = start_stream(&session, err);
    exec_input_init(&session.input, client, &options->guest, session.multi);
    session.input.tty = options->tty;
    session.input.stdin_fd = options->stdin_fd;
    session.input.terminal_fd = options->terminal_fd;
    if (r == 0)
        r = run_loop(&session, err);
    if (r == 0) {
        error_move(&session.outcome.refused, &session.input.refused);
        *ret = session.outcome;
    } else {
        exec_outcome_done(&session.outcome);
    }
    session_done(&session);
    return r;
}
