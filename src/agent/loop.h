/*
 * loop.h: the agent's event loop: descriptors by epoll, deadlines by its timeout.
 *
 * An idle guest must stay quiet: with no timer armed the loop sleeps without a timeout. Events are taken one at
 * a time, so a callback may remove and free any source or timer, its own included.
 *
 * Order of calls: loop_init, loop_add and timer_set, loop_run. Sources and timers belong to the caller and stay
 * at their address while registered. One thread.
 */
#ifndef DORMOUSE_AGENT_LOOP_H
#define DORMOUSE_AGENT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct loop_source {
    int fd;
    uint32_t events; /* as registered: EPOLLIN … */
    void (*ready)(struct loop_source *source, uint32_t events);
    void *owner;
};

struct loop_timer {
    void (*expired)(struct loop_timer *timer);
    void *owner;
    int64_t deadline_ns; /* CLOCK_MONOTONIC */
    bool armed;
    struct loop_timer *previous, *next;
};

struct loop {
    int epoll_fd;
    struct loop_timer *first; /* by deadline */
};

int loop_init(struct loop *loop, struct error *err);

/* `source->fd`, `ready` and `owner` are set by the caller. */
int loop_add(struct loop *loop, struct loop_source *source, uint32_t events, struct error *err);
void loop_change(struct loop *loop, struct loop_source *source, uint32_t events);

/* Unregisters and closes the descriptor, which becomes -1; nothing happens if it is -1 already. */
void loop_close(struct loop *loop, struct loop_source *source);

/* Arms the timer, again if it is armed. */
void loop_timer_set(struct loop *loop, struct loop_timer *timer, int64_t after_ns);
void loop_timer_cancel(struct loop *loop, struct loop_timer *timer);

/* Runs for ever; returns only on failure. */
int loop_run(struct loop *loop, struct error *err);

#endif
