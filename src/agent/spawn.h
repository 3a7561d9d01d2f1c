/*
 * spawn.h: starts a program as a user, in its own session, on pipes or on a pseudo-terminal.
 *
 * Blocks until the program runs or has failed to. The descriptors are the agent's ends, non-blocking and
 * O_CLOEXEC, and belong to the caller, as does reaping the child by its pidfd. One thread.
 */
#ifndef DORMOUSE_AGENT_SPAWN_H
#define DORMOUSE_AGENT_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/users.h"
#include "base/error.h"

struct spawn_request {
    char *const *arguments;   /* [0] is looked up in the environment's PATH; NULL-terminated */
    char *const *environment; /* "K=V", NULL-terminated */
    const char *directory;
    const struct user *user;
    bool standard_input; /* a pipe; else /dev/null */
    bool terminal;       /* a pseudo-terminal as all three streams and as controlling terminal */
    uint16_t columns, rows;
};

struct spawned {
    pid_t pid;
    int pidfd;
    int input;  /* -1: none */
    int output; /* the terminal or standard output */
    int error;  /* -1 with a terminal */
};

/* -ENOENT: there is no such program; -EACCES: it may not be run; -EINVAL: the directory or the program is no good.
 */
int spawn(const struct spawn_request *request, struct spawned *ret, struct error *err);

/* Sends the signal to every process of the session that `leader` leads or led. */
void spawn_signal_session(pid_t leader, int signal);

#endif
