/*
 * exec_session.h: one command in a guest, from its start to its exit, over the agent's process service.
 *
 * The command is run directly, not by a shell. Its output goes to the two exec_output as it comes; when those can't
 * keep up, reading from the agent stops. Losing the connection doesn't end the command in the guest.
 *
 * One thread; the signals in `signal_fd` must be blocked by the caller and are handled here:
 *     SIGWINCH                  the PTY follows the terminal's size
 *     SIGINT, SIGTERM, SIGHUP   without a raw terminal: the guest's process is asked to terminate, and the session
 *                               goes on until it has ended; a second one before the agent answered the first, or
 *                               before the process started, ends the session at once. With a raw terminal, where
 *                               they come from elsewhere: the session ends.
 *     SIGQUIT                   the session ends at once
 */
#ifndef DORMOUSE_CLI_EXEC_SESSION_H
#define DORMOUSE_CLI_EXEC_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/client.h"
#include "cli/exec_output.h"

struct exec_options {
    struct guest guest;
    const char *directory;      /* NULL: the agent's default */
    const json_t *environment;  /* an object of strings, or NULL */
    const char *const *command; /* the program and its arguments */
    size_t command_count;       /* at least 1 */
    bool tty;
    bool raw;        /* the local terminal passes keys through: signals come from elsewhere */
    int stdin_fd;    /* -1: the process reads an end of file */
    int terminal_fd; /* with `tty`: whose size to use; -1: 80×24 */
    int signal_fd;   /* -1: none */
};

struct exec_outcome {
    int64_t pid;
    int exit_status;          /* as a shell shows it; 127 not found, 126 can't be run */
    int signal;               /* 0 unless a signal ended it */
    struct error not_started; /* why the command could not be started; code 0: it was */
    struct error refused;     /* why part of the input did not arrive; code 0: nothing was refused */
};
void exec_outcome_done(struct exec_outcome *outcome);

/*
 * -ECONNRESET: the connection or the sandbox went away. -ETIMEDOUT: the agent fell silent. Else as in client.h.
 */
int exec_session_run(struct client *client, const struct exec_options *options, struct exec_output *out,
                     struct exec_output *errors, struct exec_outcome *ret, struct error *err);

#endif
