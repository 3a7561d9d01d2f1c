#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent/command.h"

static size_t queued(const struct command *command)
{
    return command->input_queue.length - command->input_sent;
}

/* Answers those whose bytes are written; all of them if there is no input any more. */
static void answer_waiters(struct command *command)
{
    bool gone = command->input.fd < 0;
    struct command_input_waiter **link = &command->waiters;
    while (*link != NULL) {
        struct command_input_waiter *waiter = *link;
        bool written = waiter->until <= command->input_written;
        if (!written && !gone) {
            link = &waiter->next;
            continue;
        }
        *link = waiter->next;
        waiter->command = NULL;
        command_tell_input_written(waiter, written);
    }
}

void command_drop_input(struct command *command)
{
    loop_close(command->table->loop, &command->input);
    strbuf_done(&command->input_queue);
    command->input_sent = 0;
    answer_waiters(command);
}

/* Writes what the pipe takes. */
static void flush(struct command *command)
{
    struct strbuf *queue = &command->input_queue;
    while (queued(command) > 0) {
        ssize_t n = write(command->input.fd, queue->data + command->input_sent, queued(command));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            command_drop_input(command);
            return;
        }
        if (n < 0)
            break;
        command->input_sent += (size_t)n;
        command->input_written += (size_t)n;
    }
    if (queued(command) == 0) {
        strbuf_done(queue);
        command->input_sent = 0;
        if (command->input_closing) {
            command_drop_input(command);
            return;
        }
    }
    loop_change(command->table->loop, &command->input, queued(command) > 0 ? EPOLLOUT : 0);
    answer_waiters(command);
}

void command_input_ready(struct loop_source *source, uint32_t events)
{
    struct command *command = source->owner;
    if ((events & (EPOLLERR | EPOLLHUP)) != 0)
        command_drop_input(command); /* nobody can read it any more */
    else
        flush(command);
}

int command_write(struct command *command, const void *bytes, size_t length, struct error *err)
{
    if (command->input.fd < 0 || command->input_closing)
        return error_set(err, ENOTCONN, "the process has no open standard input");
    if (length > COMMAND_INPUT_MAX - queued(command))
        return error_set(err, EAGAIN, "the process does not read its input: %zu bytes are waiting",
                         queued(command));
    strbuf_append(&command->input_queue, bytes, length);
    if (command->input_queue.failed) {
        command_drop_input(command);
        return error_set(err, ENOMEM, "no memory for the process' input");
    }
    flush(command);
    if (command->input.fd < 0)
        return error_set(err, ENOTCONN, "the process has closed its standard input");
    return 0;
}

void command_close_input(struct command *command)
{
    if (command->input.fd < 0)
        return;
    command->input_closing = true;
    flush(command);
}

void command_await_input(struct command *command, struct command_input_waiter *waiter)
{
    waiter->command = command;
    waiter->until = command->input_written + queued(command);
    waiter->next = command->waiters;
    command->waiters = waiter;
    answer_waiters(command);
}

void command_forget_waiter(struct command_input_waiter *waiter)
{
    if (waiter->command == NULL)
        return;
    struct command_input_waiter **link = &waiter->command->waiters;
    while (*link != waiter)
        link = &(*link)->next;
    *link = waiter->next;
    waiter->command = NULL;
}
