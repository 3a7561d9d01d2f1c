/*
 * server.h: the agent's serving process: control channel and HTTP service around one event loop.
 *
 * It needs no set-up from its caller but default signal dispositions, and returns only when it cannot go on.
 */
#ifndef DORMOUSE_AGENT_SERVER_H
#define DORMOUSE_AGENT_SERVER_H

#include <stdint.h>

#include "agent/identity.h"
#include "base/error.h"

#define SERVER_PORT 49983

/*
 * In a guest: SERVER_PORT on all addresses, and the control channel. Its parent is init (init.h), which keeps the
 * identity for the next server should this one die.
 */
int server_run_in_guest(struct identity *identity, struct error *err);

/*
 * On any host, as any user, for tests and for clients in debug mode: the HTTP service alone, on 127.0.0.1. POST
 * /init then sets the identity, which in a guest only the control channel may do.
 */
int server_run_on_host(uint16_t port, struct error *err);

#endif
