#include "agent/command.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"

/* A pipe's content at its default size: what a program can have left behind when it ends. A grandchild that writes
 * on and on must not keep the end from being told. */
#define AFTER_GRACE_MAX (64 * 1024)

/* ---- life ---- */

static void free_command(struct command *command)
{
    struct command_table *table = command->table;
    if (command->previous != NULL)
        command->previous->next = command->next;
    else
        table->commands = command->next;
    if (command->next != NULL)
        command->next->previous = command->previous;
    table->count--;
    loop_timer_cancel(table->loop, &command->time_limit);
    loop_timer_cancel(table->loop, &command->grace);
    loop_timer_cancel(table->loop, &command->retention);
    json_decref(command->config);
    free(command->tag);
    free(command);
}

static bool is_open(const struct command *command)
{
    return command->outputs[0].source.fd >= 0 || command->outputs[1].source.fd >= 0;
}

/* A command without pid any more, whose grandchild still writes, is only kept to read that. */
static bool is_retired(const struct command *command)
{
    return command->finished && !command->retention.armed;
}

static void retention_over(struct loop_timer *timer)
{
    struct command *command = timer->owner;
    if (!is_open(command))
        free_command(command);
}

static void finish(struct command *command)
{
    command->finished = true;
    loop_timer_cancel(command->table->loop, &command->grace);
    loop_timer_set(command->table->loop, &command->retention, COMMAND_RETAINED_NS);
    while (command->subscribers != NULL) {
        struct command_subscriber *subscriber = command->subscribers;
        command_tell_end(subscriber);
        command_unsubscribe(subscriber);
    }
}

/* Tells the end when all that comes before it is told. Frees a retired command that has nothing to read any more.
 */
static void check_end(struct command *command)
{
    if (!command->finished && command_has_ended(command) && command->outputs[0].told && command->outputs[1].told)
        finish(command);
    else if (is_retired(command) && !is_open(command))
        free_command(command);
}

/* ---- output ---- */

static void close_output(struct command_output *output)
{
    loop_close(output->command->table->loop, &output->source);
    output->told = true;
}

/* After the grace: is there nothing left that the program itself can have written? */
static bool is_drained(const struct command_output *output)
{
    int waiting = 0;
    return output->after_grace > AFTER_GRACE_MAX || ioctl(output->source.fd, FIONREAD, &waiting) < 0 ||
           waiting == 0;
}

static bool grace_is_over(const struct command *command)
{
    return command_has_ended(command) && !command->grace.armed;
}

static bool subscribers_keep_up(const struct command *command)
{
    for (const struct command_subscriber *s = command->subscribers; s != NULL; s = s->next)
        if (http_backlog(s->connection) > COMMAND_BACKLOG_MAX)
            return false;
    return true;
}

static void output_ready(struct loop_source *source, uint32_t events)
{
    (void)events;
    static char buffer[COMMAND_CHUNK];
    struct command_output *output = source->owner;
    struct command *command = output->command;
    ssize_t n = read(source->fd, buffer, output->channel == COMMAND_PTY ? COMMAND_CHUNK_PTY : sizeof(buffer));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) { /* a terminal whose last user has closed it says EIO */
        close_output(output);
        check_end(command);
        return;
    }
    if (!command->finished)
        command_tell_output(command, output->channel, buffer, (size_t)n);
    if (grace_is_over(command)) {
        output->after_grace += (size_t)n;
        output->told |= is_drained(output);
        check_end(command);
    }
    if (!subscribers_keep_up(command))
        loop_change(command->table->loop, source, 0);
}

void command_resume(struct command *command)
{
    if (!subscribers_keep_up(command))
        return;
    for (size_t i = 0; i < ARRAY_SIZE(command->outputs); i++)
        loop_change(command->table->loop, &command->outputs[i].source, EPOLLIN);
}

/* ---- the end ---- */

bool command_has_ended(const struct command *command)
{
    return command->exit.fd < 0;
}

static void grace_over(struct loop_timer *timer)
{
    struct command *command = timer->owner;
    for (size_t i = 0; i < ARRAY_SIZE(command->outputs); i++) {
        struct command_output *output = &command->outputs[i];
        output->told |= output->source.fd < 0 || is_drained(output);
    }
    check_end(command);
}

static void exit_ready(struct loop_source *source, uint32_t events)
{
    (void)events;
    struct command *command = source->owner;
    if (waitid(P_PIDFD, (id_t)source->fd, &command->status, WEXITED | WNOHANG) < 0 || command->status.si_pid == 0)
        return;
    loop_close(command->table->loop, source);
    loop_timer_cancel(command->table->loop, &command->time_limit); /* the pid may soon be somebody else's */
    command_drop_input(command);
    loop_timer_set(command->table->loop, &command->grace, COMMAND_GRACE_NS);
    check_end(command);
}

static void time_limit_over(struct loop_timer *timer)
{
    struct command *command = timer->owner;
    spawn_signal_session(command->pid, SIGKILL);
    struct command_subscriber *next;
    for (struct command_subscriber *subscriber = command->subscribers; subscriber != NULL; subscriber = next) {
        next = subscriber->next;
        if (!subscriber->started_it)
            continue;
        command_tell_time_over(subscriber);
        command_unsubscribe(subscriber);
    }
}

/* ---- subscribers ---- */

static void keepalive_due(struct loop_timer *timer)
{
    struct command_subscriber *subscriber = timer->owner;
    int64_t now_ns = clock_monotonic_ns();
    if (now_ns - subscriber->last_sent_ns >= subscriber->keepalive_ns) {
        command_tell_keepalive(subscriber);
        subscriber->last_sent_ns = now_ns;
    }
    loop_timer_set(subscriber->command->table->loop, timer,
                   subscriber->last_sent_ns + subscriber->keepalive_ns - now_ns);
}

void command_subscribe(struct command *command, struct command_subscriber *subscriber)
{
    subscriber->command = command;
    subscriber->next = command->subscribers;
    subscriber->last_sent_ns = clock_monotonic_ns();
    subscriber->keepalive.expired = keepalive_due;
    subscriber->keepalive.owner = subscriber;
    command->subscribers = subscriber;
    loop_timer_set(command->table->loop, &subscriber->keepalive, subscriber->keepalive_ns);
    command_tell_start(subscriber);
    if (command->finished) {
        command_tell_end(subscriber);
        command_unsubscribe(subscriber);
    }
}

void command_unsubscribe(struct command_subscriber *subscriber)
{
    struct command *command = TAKE_PTR(subscriber->command);
    if (command == NULL)
        return;
    loop_timer_cancel(command->table->loop, &subscriber->keepalive);
    loop_timer_cancel(command->table->loop, &subscriber->limit);
    struct command_subscriber **link = &command->subscribers;
    while (*link != subscriber)
        link = &(*link)->next;
    *link = subscriber->next;
    command_resume(command);
}

/* ---- start ---- */

struct command *command_find(struct command_table *table, uint32_t pid, const char *tag)
{
    for (struct command *command = table->commands; command != NULL; command = command->next) {
        bool same =
            tag != NULL ? command->tag != NULL && strcmp(command->tag, tag) == 0 : (uint32_t)command->pid == pid;
        if (same && !is_retired(command))
            return command;
    }
    return NULL;
}

static void set_output(struct command *command, size_t index, int fd, enum command_channel channel)
{
    command->outputs[index] = (struct command_output){
        .command = command,
        .channel = channel,
        .told = fd < 0,
        .source = {.fd = fd, .ready = output_ready, .owner = &command->outputs[index]},
    };
}

static int watch(struct command *command, struct error *err)
{
    struct loop *loop = command->table->loop;
    int r = loop_add(loop, &command->exit, EPOLLIN, err);
    for (size_t i = 0; i < ARRAY_SIZE(command->outputs) && r == 0; i++)
        if (command->outputs[i].source.fd >= 0)
            r = loop_add(loop, &command->outputs[i].source, EPOLLIN, err);
    if (r == 0 && command->input.fd >= 0)
        r = loop_add(loop, &command->input, 0, err);
    return r;
}

static void take_spawned(struct command *command, const struct spawned *spawned)
{
    command->pid = spawned->pid;
    command->exit = (struct loop_source){.fd = spawned->pidfd, .ready = exit_ready, .owner = command};
    command->input = (struct loop_source){.fd = spawned->input, .ready = command_input_ready, .owner = command};
    set_output(command, 0, spawned->output, command->terminal ? COMMAND_PTY : COMMAND_STDOUT);
    set_output(command, 1, spawned->error, COMMAND_STDERR);
    command->time_limit = (struct loop_timer){.expired = time_limit_over, .owner = command};
    command->grace = (struct loop_timer){.expired = grace_over, .owner = command};
    command->retention = (struct loop_timer){.expired = retention_over, .owner = command};
}

static void insert(struct command_table *table, struct command *command)
{
    command->table = table;
    command->next = table->commands;
    if (command->next != NULL)
        command->next->previous = command;
    table->commands = command;
    table->count++;
}

/* Undoes a start that cannot be watched. */
static void abandon(struct command *command)
{
    struct loop *loop = command->table->loop;
    kill(command->pid, SIGKILL);
    waitpid(command->pid, NULL, 0);
    loop_close(loop, &command->exit);
    loop_close(loop, &command->outputs[0].source);
    loop_close(loop, &command->outputs[1].source);
    command_drop_input(command);
    free_command(command);
}

int command_start(struct command_table *table, const struct command_options *options, struct command **ret,
                  struct error *err)
{
    if (table->count >= COMMANDS_MAX)
        return error_set(err, EAGAIN, "%u processes are running or have just ended; no more can be started",
                         COMMANDS_MAX);
    CLEANUP_FREE struct command *command = calloc(1, sizeof(*command));
    CLEANUP_FREE char *tag = options->tag != NULL ? strdup(options->tag) : NULL;
    if (command == NULL || (options->tag != NULL && tag == NULL))
        return error_set(err, ENOMEM, "no memory for another process");
    struct spawned spawned;
    int r = spawn(&options->spawn, &spawned, err);
    if (r < 0)
        return r;
    command->config = json_incref((json_t *)(uintptr_t)options->config);
    command->tag = TAKE_PTR(tag);
    command->terminal = options->spawn.terminal;
    take_spawned(command, &spawned);
    struct command *started = TAKE_PTR(command);
    insert(table, started);
    r = watch(started, err);
    if (r < 0) {
        abandon(started);
        return r;
    }
    if (options->time_limit_ns > 0)
        loop_timer_set(table->loop, &started->time_limit, options->time_limit_ns);
    *ret = started;
    return 0;
}
