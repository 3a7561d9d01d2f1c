/*
 * command.h: the programs that clients have started: their output, input and end.
 *
 * A command lives from command_start until COMMAND_RETAINED_NS after its end, so that a client can still learn how
 * it ended. It does not depend on any client: output that nobody subscribes to is dropped, and a subscriber that
 * does not keep up makes the command wait as a full pipe does.
 *
 * The end is told when the program has ended and its output is read; a grandchild that holds the pipe open delays
 * it only by COMMAND_GRACE_NS, and is then read into the void so that it can go on.
 *
 * Commands belong to the table, subscribers and input waiters to their HTTP exchange. One thread.
 */
#ifndef DORMOUSE_AGENT_COMMAND_H
#define DORMOUSE_AGENT_COMMAND_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/http.h"
#include "agent/loop.h"
#include "agent/spawn.h"
#include "base/strbuf.h"

#define COMMANDS_MAX        1024
#define COMMAND_RETAINED_NS (30 * INT64_C(1000000000))
#define COMMAND_GRACE_NS    (200 * INT64_C(1000000))
#define COMMAND_INPUT_MAX   (16u * 1024 * 1024) /* bytes queued for one command */
#define COMMAND_BACKLOG_MAX (256u * 1024)       /* bytes a subscriber may lag behind */
#define COMMAND_CHUNK       (32 * 1024)
#define COMMAND_CHUNK_PTY   (16 * 1024)

struct command;

struct command_table {
    struct loop *loop;
    struct command *commands; /* the newest first */
    unsigned count;
};

enum command_channel { COMMAND_STDOUT, COMMAND_STDERR, COMMAND_PTY };

/* One of the program's output streams. */
struct command_output {
    struct command *command;
    struct loop_source source; /* fd -1: at its end */
    enum command_channel channel;
    bool told;          /* all of it that belongs before the end event has been read */
    size_t after_grace; /* bytes read since the grace was over */
};

/* One client that hears what happens. */
struct command_subscriber {
    struct command *command;
    struct http_connection *connection;
    struct command_subscriber *next;
    struct loop_timer keepalive;
    int64_t keepalive_ns;
    int64_t last_sent_ns;
    struct loop_timer limit; /* of this stream, if it did not start the command */
    bool started_it;
};

/* One SendInput that is answered when its bytes are in the pipe. */
struct command_input_waiter {
    struct command *command; /* NULL once answered */
    struct http_connection *connection;
    struct command_input_waiter *next;
    uint64_t until; /* of struct command.input_written */
};

struct command {
    struct command_table *table;
    struct command *previous, *next;
    pid_t pid;
    json_t *config; /* as List shows it */
    char *tag;      /* NULL: none */
    bool terminal;

    struct loop_source exit; /* pidfd; fd -1: has ended */
    siginfo_t status;        /* valid when it has ended */
    bool finished;           /* the end has been told */
    struct command_output outputs[2];
    struct command_subscriber *subscribers;

    struct loop_source input; /* fd -1: none, or closed */
    struct strbuf input_queue;
    size_t input_sent;      /* of the queue */
    uint64_t input_written; /* of all input, ever */
    bool input_closing;     /* when the queue is empty */
    struct command_input_waiter *waiters;

    struct loop_timer time_limit; /* then it is killed */
    struct loop_timer grace;
    struct loop_timer retention;
};

/* ---- command.c ---- */

struct command_options {
    struct spawn_request spawn;
    const json_t *config;
    const char *tag;       /* NULL: none */
    int64_t time_limit_ns; /* 0: none */
};

/* -EAGAIN when there are too many; otherwise as spawn. */
int command_start(struct command_table *table, const struct command_options *options, struct command **ret,
                  struct error *err);

/* By pid, or by tag if that is not NULL; a command that has ended is found while it is retained. NULL: none. */
struct command *command_find(struct command_table *table, uint32_t pid, const char *tag);

bool command_has_ended(const struct command *command);

/* Tells the subscriber, which stays at its address until command_unsubscribe, all events from now on. */
void command_subscribe(struct command *command, struct command_subscriber *subscriber);
void command_unsubscribe(struct command_subscriber *subscriber);

/* A subscriber has taken its backlog. */
void command_resume(struct command *command);

/* ---- command_input.c ---- */

/* -ENOTCONN: it has no open input; -EAGAIN: too much is queued. */
int command_write(struct command *command, const void *bytes, size_t length, struct error *err);
/* Closes the input when all of it is written. */
void command_close_input(struct command *command);
/* Answers `waiter` when all that was written so far is in the pipe, or the input is gone. */
void command_await_input(struct command *command, struct command_input_waiter *waiter);
void command_forget_waiter(struct command_input_waiter *waiter);
/* Drops the input and what is queued; for command.c. */
void command_drop_input(struct command *command);
void command_input_ready(struct loop_source *source, uint32_t events);

/* ---- command_rpc.c: how events look on the wire ---- */

void command_tell_start(struct command_subscriber *subscriber);
void command_tell_output(struct command *command, enum command_channel channel, const void *bytes, size_t length);
void command_tell_keepalive(struct command_subscriber *subscriber);
/* Ends the stream. */
void command_tell_end(struct command_subscriber *subscriber);
/* Ends the stream of a command or subscription whose time is over. */
void command_tell_time_over(struct command_subscriber *subscriber);
void command_tell_input_written(struct command_input_waiter *waiter, bool written);

#endif
