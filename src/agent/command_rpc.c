#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent/environment.h"
#include "agent/path.h"
#include "agent/proto.h"
#include "agent/rpc.h"
#include "base/encode.h"
#include "base/io.h"

#define DEFAULT_PATH        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define SECOND_NS           INT64_C(1000000000)
#define KEEPALIVE_DEFAULT_S 90
#define KEEPALIVE_MAX_S     86400
#define ARGUMENTS_MAX       65536

/* ---- events ---- */

static void tell(struct command_subscriber *subscriber, const struct strbuf *message)
{
    CLEANUP_STRBUF struct strbuf frame = STRBUF_INIT;
    connect_append_frame(&frame, CONNECT_MESSAGE, strbuf_text(message), message->length);
    http_stream_append(subscriber->connection, strbuf_text(&frame), frame.length);
}

void command_tell_start(struct command_subscriber *subscriber)
{
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    strbuf_printf(&message, "{\"event\":{\"start\":{\"pid\":%d}}}", subscriber->command->pid);
    tell(subscriber, &message);
}

void command_tell_keepalive(struct command_subscriber *subscriber)
{
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    strbuf_puts(&message, "{\"event\":{\"keepalive\":{}}}");
    tell(subscriber, &message);
}

void command_tell_output(struct command *command, enum command_channel channel, const void *bytes, size_t length)
{
    static const char *const names[] = {
        [COMMAND_STDOUT] = "stdout",
        [COMMAND_STDERR] = "stderr",
        [COMMAND_PTY] = "pty",
    };
    if (command->subscribers == NULL)
        return;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    strbuf_printf(&message, "{\"event\":{\"data\":{\"%s\":\"", names[channel]);
    base64_encode(&message, bytes, length);
    strbuf_puts(&message, "\"}}}");
    int64_t now_ns = clock_monotonic_ns();
    for (struct command_subscriber *s = command->subscribers; s != NULL; s = s->next) {
        tell(s, &message);
        s->last_sent_ns = now_ns;
    }
}

/* The texts are those of Go's os.ProcessState, which clients of the protocol know. */
void command_tell_end(struct command_subscriber *subscriber)
{
    const siginfo_t *status = &subscriber->command->status;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    if (status->si_code != CLD_EXITED) {
        const char *name = sigdescr_np(status->si_status);
        char text[64];
        snprintf(text, sizeof(text), "signal: %s", name != NULL ? name : "unknown");
        for (char *c = text; *c != '\0'; c++)
            *c = (char)(*c >= 'A' && *c <= 'Z' ? *c | 0x20 : *c);
        strbuf_printf(&message,
                      "{\"event\":{\"end\":{\"exitCode\":-1,\"exited\":false,\"status\":\"%s\",\"error\":\"%s\"}}}",
                      text, text);
    } else {
        int code = status->si_status;
        strbuf_printf(&message,
                      "{\"event\":{\"end\":{\"exitCode\":%d,\"exited\":true,\"status\":\"exit status %d\"", code,
                      code);
        if (code != 0)
            strbuf_printf(&message, ",\"error\":\"exit status %d\"", code);
        strbuf_puts(&message, "}}}");
    }
    tell(subscriber, &message);
    rpc_stream_end(subscriber->connection, NULL);
}

void command_tell_time_over(struct command_subscriber *subscriber)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    error_set(&err, ETIMEDOUT,
              subscriber->started_it ? "the process exceeded its time limit and was killed"
                                     : "the time limit of this request is over; the process goes on");
    rpc_stream_end(subscriber->connection, &err);
}

void command_tell_input_written(struct command_input_waiter *waiter, bool written)
{
    if (written) {
        json_t *empty = json_object();
        rpc_respond(waiter->connection, empty);
        json_decref(empty);
        return;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    error_set(&err, ENOTCONN, "the process ended or closed its standard input before it had read everything");
    rpc_fail(waiter->connection, &err);
}

/* ---- streams ---- */

static void stream_drained(struct http_connection *connection)
{
    struct command_subscriber *subscriber = http_owner(connection);
    if (subscriber->command != NULL)
        command_resume(subscriber->command);
}

static void stream_gone(struct http_connection *connection)
{
    struct command_subscriber *subscriber = http_owner(connection);
    command_unsubscribe(subscriber);
    free(subscriber);
}

static const struct http_handler stream_handler = {.drained = stream_drained, .gone = stream_gone};

static void stream_limit_over(struct loop_timer *timer)
{
    struct command_subscriber *subscriber = timer->owner;
    command_tell_time_over(subscriber);
    command_unsubscribe(subscriber);
}

static int64_t keepalive_interval(struct http_connection *connection)
{
    const char *header = http_header(connection, "Keepalive-Ping-Interval");
    long seconds = header != NULL ? strtol(header, NULL, 10) : 0;
    if (seconds <= 0 || seconds > KEEPALIVE_MAX_S)
        seconds = KEEPALIVE_DEFAULT_S;
    return seconds * SECOND_NS;
}

static struct command_subscriber *new_subscriber(struct http_connection *connection, struct error *err)
{
    struct command_subscriber *subscriber = calloc(1, sizeof(*subscriber));
    if (subscriber == NULL) {
        error_set(err, ENOMEM, "no memory for another subscriber");
        return NULL;
    }
    subscriber->connection = connection;
    subscriber->keepalive_ns = keepalive_interval(connection);
    subscriber->limit = (struct loop_timer){.expired = stream_limit_over, .owner = subscriber};
    return subscriber;
}

/* ---- Start ---- */

/* A request to start a process, taken apart; owns what spawn() needs. */
struct start {
    const char *tag;
    const json_t *process;
    struct command_options options;
    struct user user;
    struct environment environment;
    char **arguments; /* its texts belong to the request */
    char *directory;
};

static void start_done(struct start *start)
{
    user_done(&start->user);
    environment_done(&start->environment);
    free(start->arguments);
    free(start->directory);
}

static int read_arguments(struct start *start, struct error *err)
{
    const char *program;
    int r = proto_text(start->process, "cmd", &program, err);
    if (r < 0)
        return r;
    if (program == NULL || *program == '\0')
        return error_set(err, EINVAL, "'process.cmd' is missing");
    const json_t *list = json_object_get(start->process, "args");
    if (list != NULL && !json_is_null(list) && !json_is_array(list))
        return error_set(err, EINVAL, "'process.args' must be an array");
    size_t count = json_array_size(list);
    if (count > ARGUMENTS_MAX)
        return error_set(err, EINVAL, "there are more than %d arguments", ARGUMENTS_MAX);
    start->arguments = calloc(count + 2, sizeof(char *));
    if (start->arguments == NULL)
        return error_set(err, ENOMEM, "no memory for the arguments");
    start->arguments[0] = (char *)(uintptr_t)program;
    for (size_t i = 0; i < count; i++) {
        const char *argument = json_string_value(json_array_get(list, i));
        if (argument == NULL)
            return error_set(err, EINVAL, "'process.args' must hold strings only");
        start->arguments[i + 1] = (char *)(uintptr_t)argument;
    }
    start->options.spawn.arguments = start->arguments;
    return 0;
}

static void set_variable(void *context, const char *name, size_t name_length, const char *value)
{
    environment_set(context, name, name_length, value);
}

static int read_environment(const struct agent *agent, struct start *start, struct error *err)
{
    struct environment *environment = &start->environment;
    const char *path = getenv("PATH");
    environment_set(environment, "PATH", strlen("PATH"), path != NULL ? path : DEFAULT_PATH);
    environment_set(environment, "HOME", strlen("HOME"), start->user.home);
    environment_set(environment, "USER", strlen("USER"), start->user.name);
    environment_set(environment, "LOGNAME", strlen("LOGNAME"), start->user.name);
    identity_each_variable(agent->identity, set_variable, environment);

    const json_t *variables;
    int r = proto_object(start->process, "envs", &variables, err);
    if (r < 0)
        return r;
    const char *name;
    json_t *value;
    json_object_foreach ((json_t *)(uintptr_t)variables, name, value) {
        if (!json_is_string(value) || *name == '\0' || strchr(name, '=') != NULL)
            return error_set(err, EINVAL, "'process.envs' must map names to strings");
        environment_set(environment, name, strlen(name), json_string_value(value));
    }
    start->options.spawn.environment = environment->items;
    return environment->failed ? error_set(err, E2BIG, "there are too many environment variables") : 0;
}

static int read_directory(const struct agent *agent, struct start *start, struct error *err)
{
    const char *directory;
    int r = proto_text(start->process, "cwd", &directory, err);
    if (r < 0)
        return r;
    bool chosen = (directory != NULL && *directory != '\0') || agent->identity->workdir[0] != '\0';
    r = path_resolve(directory != NULL ? directory : "", start->user.home, agent->identity->workdir,
                     &start->directory, err);
    if (r < 0)
        return r;
    /* Small images have users without a home; that is no reason to run nothing in them. */
    if (!chosen && access(start->directory, F_OK) < 0)
        start->directory[1] = '\0'; /* "/" */
    start->options.spawn.directory = start->directory;
    return 0;
}

static int read_size(const json_t *pty, struct winsize *ret, struct error *err)
{
    const json_t *size;
    uint32_t columns;
    uint32_t rows;
    int r = proto_object(pty, "size", &size, err);
    if (r == 0)
        r = proto_uint32(size, "cols", &columns, err);
    if (r == 0)
        r = proto_uint32(size, "rows", &rows, err);
    if (r < 0)
        return r;
    if (columns > UINT16_MAX || rows > UINT16_MAX)
        return error_set(err, EINVAL, "the terminal's size is out of range");
    *ret = (struct winsize){.ws_col = (unsigned short)columns, .ws_row = (unsigned short)rows};
    return 0;
}

static int read_streams(struct start *start, const json_t *request, struct error *err)
{
    struct spawn_request *spawn = &start->options.spawn;
    const json_t *pty;
    struct winsize size = {0};
    int r = proto_object(request, "pty", &pty, err);
    if (r == 0)
        r = proto_bool(request, "stdin", true, &spawn->standard_input, err);
    if (r == 0 && pty != NULL)
        r = read_size(pty, &size, err);
    if (r < 0)
        return r;
    spawn->terminal = pty != NULL;
    spawn->columns = size.ws_col;
    spawn->rows = size.ws_row;
    return 0;
}

static int read_user(struct http_connection *connection, struct start *start, struct error *err)
{
    CLEANUP_USER_DATABASE struct user_database database = {0};
    int r = users_load(&database, err);
    if (r == 0)
        r = rpc_user(connection, &database, &start->user, err);
    start->options.spawn.user = &start->user;
    return r;
}

static int read_start(struct http_connection *connection, const json_t *request, struct start *start,
                      struct error *err)
{
    const struct agent *agent = agent_of(connection);
    int r = proto_object(request, "process", &start->process, err);
    if (r < 0)
        return r;
    r = rpc_timeout(connection, &start->options.time_limit_ns, err);
    if (r == 0)
        r = proto_text(request, "tag", &start->tag, err);
    if (r == 0)
        r = read_user(connection, start, err);
    if (r == 0)
        r = read_arguments(start, err);
    if (r == 0)
        r = read_environment(agent, start, err);
    if (r == 0)
        r = read_directory(agent, start, err);
    if (r == 0)
        r = read_streams(start, request, err);
    start->options.config = start->process;
    start->options.tag = start->tag;
    return r;
}

int command_rpc_start(struct http_connection *connection, const json_t *request, struct error *err)
{
    struct agent *agent = agent_of(connection);
    CLEANUP(start_done) struct start start = {0};
    int r = read_start(connection, request, &start, err);
    if (r < 0)
        return r;
    identity_refresh_hosts(agent->identity);
    struct command_subscriber *subscriber = new_subscriber(connection, err);
    if (subscriber == NULL)
        return -ENOMEM;
    subscriber->started_it = true;
    struct command *command;
    r = command_start(&agent->commands, &start.options, &command, err);
    if (r < 0) {
        free(subscriber);
        return r;
    }
    rpc_stream_begin(connection, &stream_handler, subscriber);
    command_subscribe(command, subscriber);
    return 0;
}

/* ---- the others ---- */

static int find_command(struct http_connection *connection, const json_t *request, struct command **ret,
                        struct error *err)
{
    const json_t *selector;
    const char *tag;
    uint32_t pid;
    int r = proto_object(request, "process", &selector, err);
    if (r == 0)
        r = proto_text(selector, "tag", &tag, err);
    if (r == 0)
        r = proto_uint32(selector, "pid", &pid, err);
    if (r < 0)
        return r;
    if (tag == NULL && pid == 0)
        return error_set(err, EINVAL, "'process' must have a pid or a tag");
    *ret = command_find(&agent_of(connection)->commands, pid, tag);
    if (*ret == NULL && tag != NULL)
        return error_set(err, ESRCH, "there is no process with the tag '%.64s'", tag);
    if (*ret == NULL)
        return error_set(err, ESRCH, "there is no process %u", pid);
    return 0;
}

static int find_running(struct http_connection *connection, const json_t *request, struct command **ret,
                        struct error *err)
{
    int r = find_command(connection, request, ret, err);
    if (r == 0 && command_has_ended(*ret))
        return error_set(err, ESRCH, "the process %d has ended", (*ret)->pid);
    return r;
}

int command_rpc_connect(struct http_connection *connection, const json_t *request, struct error *err)
{
    struct command *command;
    int64_t limit_ns;
    int r = find_command(connection, request, &command, err);
    if (r == 0)
        r = rpc_timeout(connection, &limit_ns, err);
    if (r < 0)
        return r;
    struct command_subscriber *subscriber = new_subscriber(connection, err);
    if (subscriber == NULL)
        return -ENOMEM;
    rpc_stream_begin(connection, &stream_handler, subscriber);
    if (limit_ns > 0)
        loop_timer_set(command->table->loop, &subscriber->limit, limit_ns);
    command_subscribe(command, subscriber);
    return 0;
}

static json_t *describe(const struct command *command)
{
    static const char *const shown[] = {"cmd", "args", "envs", "cwd"};
    json_t *config = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(shown); i++) {
        json_t *value = json_object_get(command->config, shown[i]);
        if (value != NULL && !json_is_null(value))
            json_object_set(config, shown[i], value);
    }
    return json_pack("{s:o, s:i, s:s*}", "config", config, "pid", (int)command->pid, "tag", command->tag);
}

int command_rpc_list(struct http_connection *connection, const json_t *request, json_t **ret, struct error *err)
{
    (void)request;
    json_t *processes = json_array();
    for (const struct command *c = agent_of(connection)->commands.commands; c != NULL; c = c->next)
        if (!command_has_ended(c))
            json_array_insert_new(processes, 0, describe(c));
    *ret = json_pack("{s:o}", "processes", processes);
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for the list of processes") : 0;
}

static int respond_empty(json_t **ret, struct error *err)
{
    *ret = json_object();
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for an answer") : 0;
}

int command_rpc_update(struct http_connection *connection, const json_t *request, json_t **ret, struct error *err)
{
    struct command *command;
    const json_t *pty;
    struct winsize size;
    int r = find_running(connection, request, &command, err);
    if (r == 0)
        r = proto_object(request, "pty", &pty, err);
    if (r == 0 && pty != NULL)
        r = read_size(pty, &size, err);
    if (r < 0)
        return r;
    if (pty != NULL && !command->terminal)
        return error_set(err, ENOTCONN, "the process %d has no terminal", command->pid);
    if (pty != NULL && ioctl(command->outputs[0].source.fd, TIOCSWINSZ, &size) < 0)
        return error_errno(err, "cannot resize the terminal of process %d", command->pid);
    return respond_empty(ret, err);
}

static void input_gone(struct http_connection *connection)
{
    struct command_input_waiter *waiter = http_owner(connection);
    command_forget_waiter(waiter);
    free(waiter);
}

static int read_input(const struct command *command, const json_t *request, struct strbuf *ret, struct error *err)
{
    const json_t *input;
    bool has_stdin = false;
    bool has_pty = false;
    int r = proto_object(request, "input", &input, err);
    if (r == 0)
        r = proto_bytes(input, "stdin", ret, &has_stdin, err);
    if (r == 0 && !has_stdin)
        r = proto_bytes(input, "pty", ret, &has_pty, err);
    if (r < 0)
        return r;
    if (has_stdin == has_pty)
        return error_set(err, EINVAL, "'input' must have stdin or pty");
    if (has_pty != command->terminal)
        return error_set(err, ENOTCONN, "the process %d has %s terminal", command->pid,
                         command->terminal ? "a" : "no");
    return 0;
}

int command_rpc_send_input(struct http_connection *connection, const json_t *request, json_t **ret,
                           struct error *err)
{
    static const struct http_handler handler = {.gone = input_gone};
    struct command *command;
    CLEANUP_STRBUF struct strbuf bytes = STRBUF_INIT;
    (void)ret;
    int r = find_running(connection, request, &command, err);
    if (r == 0)
        r = read_input(command, request, &bytes, err);
    if (r < 0)
        return r;
    struct command_input_waiter *waiter = calloc(1, sizeof(*waiter));
    if (waiter == NULL)
        return error_set(err, ENOMEM, "no memory for an input");
    r = command_write(command, strbuf_text(&bytes), bytes.length, err);
    if (r < 0) {
        free(waiter);
        return r;
    }
    waiter->connection = connection;
    http_handle(connection, &handler, waiter);
    command_await_input(command, waiter);
    return RPC_DEFERRED;
}

static int read_signal(const json_t *request, int *ret, struct error *err)
{
    const json_t *value = json_object_get(request, "signal");
    const char *name = json_string_value(value);
    json_int_t number = json_integer_value(value);
    if (name != NULL)
        number = strcmp(name, "SIGNAL_SIGTERM") == 0 ? SIGTERM : strcmp(name, "SIGNAL_SIGKILL") == 0 ? SIGKILL : 0;
    if (number != SIGTERM && number != SIGKILL)
        return error_set(err, EINVAL, "'signal' must be SIGNAL_SIGTERM or SIGNAL_SIGKILL");
    *ret = (int)number;
    return 0;
}

int command_rpc_send_signal(struct http_connection *connection, const json_t *request, json_t **ret,
                            struct error *err)
{
    struct command *command;
    int number = 0;
    int r = read_signal(request, &number, err);
    if (r == 0)
        r = find_running(connection, request, &command, err);
    if (r < 0)
        return r;
    if (number == SIGKILL)
        spawn_signal_session(command->pid, SIGKILL);
    else
        kill(-command->pid, number);
    return respond_empty(ret, err);
}

int command_rpc_close_stdin(struct http_connection *connection, const json_t *request, json_t **ret,
                            struct error *err)
{
    struct command *command;
    int r = find_running(connection, request, &command, err);
    if (r < 0)
        return r;
    if (command->terminal)
        return error_set(err, ENOTCONN, "a terminal's input cannot be closed; send Ctrl+D (\\x04) instead");
    command_close_input(command);
    return respond_empty(ret, err);
}
