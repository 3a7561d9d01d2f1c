/*
 * process_event.h: the messages of the agent's process.Process/Start stream.
 *
 * They come from a guest: every field is checked, what is unknown is ignored. Pure; any thread.
 */
#ifndef DORMOUSE_CLI_PROCESS_EVENT_H
#define DORMOUSE_CLI_PROCESS_EVENT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

enum process_event_kind {
    PROCESS_EVENT_OTHER, /* a keep-alive, or what this version doesn't know */
    PROCESS_EVENT_START,
    PROCESS_EVENT_STDOUT, /* or the output of a PTY */
    PROCESS_EVENT_STDERR,
    PROCESS_EVENT_END,
};

struct process_event {
    enum process_event_kind kind;
    int64_t pid;        /* START */
    struct strbuf data; /* STDOUT, STDERR */
    int exit_status;    /* END: 0 … 255, as a shell shows it: 128 + n after death by signal n */
    int signal;         /* END: n, 0 when it exited */
};

/* *ret is filled on success, then freed with process_event_done; -EPROTO for what no agent may send. */
int process_event_parse(const char *json, size_t length, struct process_event *ret, struct error *err);
void process_event_done(struct process_event *event);

/* The signal in a status text such as "signal: killed" or "signal: segmentation fault (core dumped)"; 0: none. */
int process_event_signal(const char *status);

#endif
