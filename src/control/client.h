/*
 * client.h: the host's side of the control channel: one request, one reply, bounded in time.
 *
 * The descriptor is a non-blocking stream to the agent. Each request carries a random sequence; whatever else
 * arrives (a reply to a request of an earlier daemon, rubbish of a hostile guest) is skipped. Any thread, one at a
 * time per descriptor.
 */
#ifndef DORMOUSE_CONTROL_CLIENT_H
#define DORMOUSE_CONTROL_CLIENT_H

#include "base/error.h"
#include "control/control.h"

struct control_reply {
    char boot_id[64]; /* "" when not given */
    char version[64];
    int32_t frozen; /* file systems, in reply to FREEZE */
    int32_t synced;
};

/*
 * Sends a request built by control_begin(…, sequence 0)/…/control_end in `message` (its sequence is filled in) and
 * waits for the reply. `other_fd` (or -1) is also watched: when it becomes readable (a pidfd: the VMM ended), the
 * wait ends with -EPIPE. -ETIMEDOUT; or the negative errno that the agent reported, with its text.
 */
int control_request(int fd, int other_fd, struct strbuf *message, int timeout_ms, struct control_reply *ret,
                    struct error *err);

#endif
