#include "sandbox/state.h"

#include <errno.h>
#include <string.h>

#include "base/macro.h"

static const char *const names[SANDBOX_STATE_COUNT] = {
    [SANDBOX_CREATING] = "creating", [SANDBOX_RUNNING] = "running",   [SANDBOX_PAUSING] = "pausing",
    [SANDBOX_PAUSED] = "paused",     [SANDBOX_RESUMING] = "resuming", [SANDBOX_KILLED] = "killed",
    [SANDBOX_LOST] = "lost",
};

/* Row: from; column: to. */
static const bool transitions[SANDBOX_STATE_COUNT][SANDBOX_STATE_COUNT] = {
    [SANDBOX_CREATING] = {[SANDBOX_RUNNING] = true, [SANDBOX_KILLED] = true},
    /* Straight to paused: its VMM ended, and it was to be durable. */
    [SANDBOX_RUNNING] =
        {[SANDBOX_PAUSING] = true, [SANDBOX_PAUSED] = true, [SANDBOX_KILLED] = true, [SANDBOX_LOST] = true},
    /* Back to running: the capture failed, or the daemon died before the commit. */
    [SANDBOX_PAUSING] =
        {[SANDBOX_PAUSED] = true, [SANDBOX_RUNNING] = true, [SANDBOX_KILLED] = true, [SANDBOX_LOST] = true},
    [SANDBOX_PAUSED] = {[SANDBOX_RESUMING] = true, [SANDBOX_KILLED] = true},
    /* Back to paused: the VMM or the guest failed to come up; the snapshot is as it was. */
    [SANDBOX_RESUMING] = {[SANDBOX_RUNNING] = true, [SANDBOX_PAUSED] = true, [SANDBOX_KILLED] = true},
    [SANDBOX_LOST] = {[SANDBOX_KILLED] = true},
};

const char *sandbox_state_name(enum sandbox_state state)
{
    return names[state];
}

int sandbox_state_parse(const char *name)
{
    for (int i = 0; i < SANDBOX_STATE_COUNT; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

bool sandbox_state_may_follow(enum sandbox_state from, enum sandbox_state to)
{
    return transitions[from][to];
}

static const char *const timeout_actions[] = {
    [TIMEOUT_KILL] = "kill", [TIMEOUT_PAUSE] = "pause", [TIMEOUT_PAUSE_DISK] = "pause-disk"};

const char *timeout_action_name(enum timeout_action action)
{
    return timeout_actions[action];
}

int timeout_action_parse(const char *name, enum timeout_action *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(timeout_actions); i++) {
        if (strcmp(name, timeout_actions[i]) == 0) {
            *ret = (enum timeout_action)i;
            return 0;
        }
    }
    return -EINVAL;
}
