/*
 * control.h: the control socket: requests as protocol.h has them, carried out by server.h.
 *
 * A thread a connection, so that one VM's slow disk holds up nobody else; at most CONTROL_CONNECTIONS_MAX, more
 * wait to be accepted. What a peer sends is checked here; the worst that a malformed packet gets is an error.
 */
#ifndef DORMOUSE_IMAGED_CONTROL_H
#define DORMOUSE_IMAGED_CONTROL_H

#include "imaged/server.h"

#define CONTROL_CONNECTIONS_MAX 128
#define CONTROL_IDLE_MS         30000

/* Serves for ever in a thread of its own; takes over the listening socket. `stop` is written to when a peer asks
 * for it. */
int control_start(struct server *server, int listen_fd, int stop_fd, struct error *err);

#endif
