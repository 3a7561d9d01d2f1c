/*
 * state.h: the states of a sandbox, the one table of what may follow what, and what the end of its time means.
 *
 * Pure; any thread.
 */
#ifndef DORMOUSE_SANDBOX_STATE_H
#define DORMOUSE_SANDBOX_STATE_H

#include <stdbool.h>

enum sandbox_state {
    SANDBOX_CREATING, /* its VMM is being started for the first time */
    SANDBOX_RUNNING,
    SANDBOX_PAUSING,  /* the VMM is frozen and kept until the snapshot is committed */
    SANDBOX_PAUSED,   /* a committed snapshot, no process */
    SANDBOX_RESUMING, /* its VMM is being started from the snapshot */
    SANDBOX_KILLED,   /* being removed; no operation applies any more */
    SANDBOX_LOST,     /* the VMM ended or failed without a snapshot to go back to; the reason is recorded */
    SANDBOX_STATE_COUNT,
};

/* "creating", "running", …; what the registry, the API and the CLI show. */
const char *sandbox_state_name(enum sandbox_state state);

/* -1 when there is no such state. */
int sandbox_state_parse(const char *name);

bool sandbox_state_may_follow(enum sandbox_state from, enum sandbox_state to);

/* What happens when a sandbox's time is over. */
enum timeout_action { TIMEOUT_KILL, TIMEOUT_PAUSE, TIMEOUT_PAUSE_DISK };

/* "kill", "pause", "pause-disk"; -EINVAL for anything else. */
const char *timeout_action_name(enum timeout_action action);
int timeout_action_parse(const char *name, enum timeout_action *ret);

#endif
