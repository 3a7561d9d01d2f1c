/*
 * claim.h: which daemon owns which slot of the host.
 *
 * A claim is the file /run/dormouse/net/SLOT with the owner's instance and data directory. It outlives the daemon,
 * as sandboxes do, and ends when it is released, or when the data directory is gone: then any daemon may take it
 * over. /run is empty after a boot, and so are then the namespaces.
 *
 * Every change is made under one lock of the host (a flock), and a claim's content appears in one step, so that a
 * crash leaves either a whole claim or none. Whoever removes a slot's devices holds its claim while doing so.
 *
 * Threads: any. Errors: negative errno.
 */
#ifndef DORMOUSE_NET_CLAIM_H
#define DORMOUSE_NET_CLAIM_H

#include <stdbool.h>

#include "base/error.h"

#define CLAIM_DIRECTORY "/run/dormouse/net"
#define CLAIM_SLOTS     4096

struct claim_owner {
    const char *instance;
    const char *data_directory; /* absolute, without symbolic links */
};

/* Makes the directory and takes the lock; it is released by closing the descriptor. */
int claim_lock(struct error *err);

/* Claims the first free slot at or after `start`, going round. -EAGAIN when there is none. */
int claim_take(const struct claim_owner *owner, unsigned start, unsigned *ret_slot, struct error *err);

/* Confirms that a slot is the owner's; -ENOENT when it isn't. A data directory that has moved is recorded anew. */
int claim_confirm(const struct claim_owner *owner, unsigned slot, struct error *err);

/* Sets owned[slot] for each slot of the owner's, after taking over those whose data directory is gone. */
int claim_list(const struct claim_owner *owner, bool owned[static CLAIM_SLOTS], struct error *err);

/* Gives the slot up, if it is the owner's. */
int claim_release(const struct claim_owner *owner, unsigned slot, struct error *err);

/* Whether any slot is claimed by anyone. The caller holds the lock. */
int claim_any(bool *ret, struct error *err);

#endif
