/*
 * qmp.h: a client of QEMU's machine protocol (QEMU's docs/interop/qmp-spec.txt) on a unix socket.
 *
 * Order of calls: qmp_connect; qmp_wait_greeting if wanted; qmp_negotiate; any number of qmp_execute and
 * qmp_wait_event; qmp_free. The negotiation isn't waited for, so it can be sent before QEMU accepts the connection.
 *
 * Threads: one at a time. Events that arrive while a reply is awaited are kept (the last few) for qmp_wait_event.
 * The peer isn't trusted: a message longer than QMP_MESSAGE_MAX or that isn't JSON ends the connection (-EBADMSG).
 * After any error other than a refused command the connection is of no more use; -EPIPE: the peer has closed it.
 */
#ifndef DORMOUSE_VMM_QMP_H
#define DORMOUSE_VMM_QMP_H

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"

#define QMP_MESSAGE_MAX (1 << 20)

struct qmp;

int qmp_connect(const char *path, struct qmp **ret, struct error *err);

/* Waits until QEMU has accepted the connection and said so. */
int qmp_wait_greeting(struct qmp *qmp, int timeout_ms, struct error *err);

/* Puts the connection into the state in which commands are allowed and events sent. */
int qmp_negotiate(struct qmp *qmp, struct error *err);

/*
 * Executes a command. `arguments` may be NULL; its reference is taken in any case. *ret (if not NULL) gets the
 * "return" value, to be released by json_decref. -EREMOTEIO when QEMU refuses, with its description.
 */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, int timeout_ms, json_t **ret,
                struct error *err);

/* As qmp_execute, without a reply's value, and hands over a copy of the descriptor `fd` with the command. */
int qmp_execute_with_fd(struct qmp *qmp, const char *command, json_t *arguments, int fd, int timeout_ms,
                        struct error *err);

/*
 * Waits for an event of that name, also one that came earlier and was not yet waited for. *ret_time_ns (if not
 * NULL) is when it happened, CLOCK_REALTIME. -ETIMEDOUT.
 */
int qmp_wait_event(struct qmp *qmp, const char *name, int timeout_ms, int64_t *ret_time_ns, struct error *err);

void qmp_free(struct qmp *qmp);

#endif
