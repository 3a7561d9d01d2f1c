/*
 * exec_input.h: what goes to a running guest process: standard input, signals, the window's size.
 *
 * Two requests may be under way at a time, each kind in order: one that carries input (the next chunk is read only
 * when the agent has taken the last one, which is the back pressure), and one that carries a signal or a size, so
 * that a process that doesn't read its input can still be interrupted. Both run in the session's multi handle.
 *
 * Order of calls: exec_input_init; exec_input_started once the pid is known; then in each turn of the loop
 * exec_input_advance, and exec_input_read when wants_stdin and the descriptor is readable; exec_input_finish for
 * each transfer that ended; exec_input_done.
 */
#ifndef DORMOUSE_CLI_EXEC_INPUT_H
#define DORMOUSE_CLI_EXEC_INPUT_H

#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"
#include "cli/client.h"

/* One unary request of the process service. */
struct exec_call {
    CURL *easy; /* NULL: none is under way */
    struct curl_slist *headers;
    struct strbuf answer;
};

struct exec_input {
    struct client *client;
    const struct guest *guest;
    CURLM *multi;
    bool tty;
    int stdin_fd;     /* -1: none, or its end was reached and reported */
    int terminal_fd;  /* whose size the PTY follows; -1: none */
    int64_t pid;      /* 0: not started yet */
    bool end_reached; /* of stdin; to be reported */
    bool resized;     /* to be reported */
    int signal;       /* to be sent; 0: none */
    struct exec_call data;
    struct exec_call control;
    struct error refused; /* why input did not get to the process; code 0: all did */
};

void exec_input_init(struct exec_input *input, struct client *client, const struct guest *guest, CURLM *multi);
void exec_input_started(struct exec_input *input, int64_t pid);

bool exec_input_wants_stdin(const struct exec_input *input);
int exec_input_read(struct exec_input *input, struct error *err);

/* SIGTERM, or SIGKILL, which hits the whole session: the protocol knows no others. False when one still waits to be
 * sent or answered. */
bool exec_input_signal(struct exec_input *input, int signal);

/* A signal or size is still under way. */
bool exec_input_busy(const struct exec_input *input);

/* Starts what can be started. */
int exec_input_advance(struct exec_input *input, struct error *err);

/* A transfer ended; false when it is not one of these. */
bool exec_input_finish(struct exec_input *input, CURL *easy, CURLcode result);

void exec_input_done(struct exec_input *input);

#endif
