/*
 * unix_socket.h: sockets in the file system: streams, or packets in order (SOCK_SEQPACKET).
 *
 * Paths may be longer than sun_path holds: the directory is opened and the socket addressed through it.
 * The descriptors are O_CLOEXEC and belong to the caller.
 */
#ifndef DORMOUSE_BASE_UNIX_SOCKET_H
#define DORMOUSE_BASE_UNIX_SOCKET_H

#include "base/error.h"

/* A listening socket at `path`, which must not exist. Returns the descriptor or a negative errno. */
int unix_socket_listen(const char *path, struct error *err);

int unix_socket_connect(const char *path, struct error *err);

int unix_socket_listen_packets(const char *path, struct error *err);
int unix_socket_connect_packets(const char *path, struct error *err);

#endif
