/*
 * protocol.h: the packets between the control plane and the image server.
 *
 * A packet is one JSON object of at most PROTOCOL_PACKET_MAX bytes on a SOCK_SEQPACKET socket. A request has a
 * member `op`. A reply has `ok`; without it, `code` (an errno) and `error`. After the request `watch` the server
 * sends
 * {"vm", "reason"} for each VM that has failed or fails later, and nothing else.
 */
#ifndef DORMOUSE_IMAGED_PROTOCOL_H
#define DORMOUSE_IMAGED_PROTOCOL_H

#include <jansson.h>

#include "base/error.h"

#define PROTOCOL_SOCKET     "imaged.sock"
#define PROTOCOL_LOCK       "imaged.lock"
#define PROTOCOL_LOG        "imaged.log"
#define PROTOCOL_PACKET_MAX 131072

/* What the server writes on the descriptor that it is started with, once it serves; otherwise its error message. */
#define PROTOCOL_READY "ready\n"

/* The directories of the mounts, in the data directory. */
#define PROTOCOL_MOUNT_MEMORY   "images/memory"
#define PROTOCOL_MOUNT_DISK     "images/disk"
#define PROTOCOL_MOUNT_OVERLAYS "overlays"

/* Waits up to timeout_ms for room (0: not at all). -EAGAIN when there is none, -EHOSTDOWN when the peer is gone. */
int protocol_send(int fd, int timeout_ms, const json_t *packet, struct error *err);

/*
 * 1 and *ret, which is the caller's; 0: the peer has closed. -EAGAIN when nothing comes within timeout_ms,
 * -EMSGSIZE for a packet that is too long, -EBADMSG for one that is no JSON object; the connection can be used
 * further.
 */
int protocol_receive(int fd, int timeout_ms, json_t **ret, struct error *err);

#endif
