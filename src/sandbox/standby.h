/*
 * standby.h: VMMs started ahead of their guests.
 *
 * Most of what a resume costs is QEMU's own start, which is the same for every guest. So some VMMs are kept that
 * have that behind them: each in its jail, with an empty VM directory, a network namespace and the user id that
 * goes with it, waiting before it makes its machine (vmm_prepare). A start takes one, fills the directory and lets
 * it restore. A VMM serves one sandbox and ends with it; none goes back.
 *
 * What is fixed at a VMM's start, and so must match, is its shape: accelerator and number of virtual CPUs. The pool
 * holds `ahead` of them and fills up in the background, when nothing was taken for a moment, with the shape asked
 * for last; if it is full without having one, the one that waits longest gives way. Who finds none of his shape
 * starts a VMM the ordinary way.
 *
 * Nothing is recorded: a standby VMM that a crash of the daemon leaves, its directory (STANDBY_PREFIX…) and its
 * namespace are nobody's, and removed by recovery.
 *
 * Order of calls: standby_pool_open after recovery; want and take; standby_pool_close before the network pool's.
 * Threads: any.
 */
#ifndef DORMOUSE_SANDBOX_STANDBY_H
#define DORMOUSE_SANDBOX_STANDBY_H

#include "net/net.h"
#include "vmm/vmm.h"

/* Begins the name of a standby's directory; no sandbox's id holds a dash. */
#define STANDBY_PREFIX "standby-"

struct standby_pool;

struct standby_options {
    const char *instance;  /* for the marker in the VMMs' environment */
    const char *directory; /* in which the VM directories are made; existing */
    struct network_pool *networks;
    unsigned ahead; /* how many are kept; 0: none */
};

int standby_pool_open(const struct standby_options *options, struct standby_pool **ret, struct error *err);

/* Says which shape will be taken next. */
void standby_want(struct standby_pool *pool, enum vmm_accelerator accelerator, unsigned cpus);

/*
 * Takes a VMM of that shape, and makes `directory`, which must not exist, its VM directory. Both objects are then
 * the caller's. False when there is none.
 */
bool standby_take(struct standby_pool *pool, enum vmm_accelerator accelerator, unsigned cpus, const char *directory,
                  struct vmm **ret_vmm, struct network **ret_network);

/* Ends all that wait. NULL is allowed. */
void standby_pool_close(struct standby_pool *pool);

#endif
