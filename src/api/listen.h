/*
 * listen.h: the daemon's two listening sockets.
 *
 * The descriptors are O_CLOEXEC and belong to the caller.
 */
#ifndef DORMOUSE_API_LISTEN_H
#define DORMOUSE_API_LISTEN_H

#include <stdint.h>

#include "base/error.h"

/*
 * "127.0.0.1:PORT", "[::1]:PORT" or "localhost:PORT"; port 0 takes a free one. *ret_port is the one in use.
 * Returns the descriptor; -EINVAL for what is no loopback address, -EADDRINUSE.
 */
int listen_tcp(const char *address, uint16_t *ret_port, struct error *err);

/*
 * A unix socket at `path`, mode 0600. A socket file that nobody listens on is replaced; -EADDRINUSE when somebody
 * does, -EEXIST when it is something else than a socket.
 */
int listen_unix(const char *path, struct error *err);

/* Whether listen_tcp would take the address, without doing it; 0 or -EINVAL. */
int listen_check(const char *address, struct error *err);

/* The host part of an address that listen_tcp accepted, as it stands in a URL; the caller frees it. */
char *listen_host(const char *address);

#endif
