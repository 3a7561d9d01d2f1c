/*
 * namespace.h: makes, enters and removes the network namespace of one slot.
 *
 * A namespace is bound to /run/netns/dormouse-SLOT, so `ip netns exec dormouse-SLOT …` looks into it, and lives as
 * long as that, or anything inside it. Its devices: NET_TAP_NAME towards the guest, NAMESPACE_INSIDE_VETH towards
 * the host, where the other end is called dmhSLOT.
 *
 * Whoever calls namespace_make or namespace_remove holds the slot's claim. A thread that has entered a namespace
 * never comes back: each entry is by a short-lived thread of its own (some 100 µs), so no thread of the daemon can
 * be left in a guest's namespace.
 *
 * Threads: any, all in the host's network namespace; one at a time for a slot.
 */
#ifndef DORMOUSE_NET_NAMESPACE_H
#define DORMOUSE_NET_NAMESPACE_H

#include <stdbool.h>

#include "base/error.h"
#include "net/range.h"

#define NAMESPACE_VETH_PREFIX "dmh"
#define NAMESPACE_INSIDE_VETH "eth0"
#define NAMESPACE_PATH_BYTES  sizeof("/run/netns/dormouse-4294967295")
#define NAMESPACE_NAME_PREFIX "dormouse-"

/* Runs `function` in a thread of its own inside a namespace (-1: a new one) and returns what it returns, or a
 * negative errno. */
int namespace_run(int namespace_fd, int (*function)(void *context, struct error *err), void *context,
                  struct error *err);

/* Makes /run/netns as ip-netns(8) wants it. */
int namespace_prepare_directory(struct error *err);

/*
 * Makes the slot's namespace with all its devices, routes and rules, after removing whatever an interrupted attempt
 * left. `host_fd` is the host's network namespace. Returns its descriptor, and that of its TAP device in
 * *ret_tap_fd (both O_CLOEXEC). Nothing is left on failure.
 */
int namespace_make(const struct range *range, unsigned slot, int host_fd, int *ret_tap_fd, struct error *err);

/* -ENOENT when the slot has none. */
int namespace_open(unsigned slot, struct error *err);

/* Removes everything of the slot, in whatever state it is; absent is success. Cuts off the guest at once even if a
 * process still lives in the namespace. */
int namespace_remove(unsigned slot, struct error *err);

/* Sets and tells whether packets leave towards the host. */
int namespace_set_egress(int namespace_fd, const struct range *range, unsigned slot, bool allowed,
                         struct error *err);
int namespace_get_egress(int namespace_fd, bool *ret_allowed, struct error *err);

/* Opens NET_TAP_NAME. -EBUSY while it is open somewhere. */
int namespace_open_tap(int namespace_fd, struct error *err);

#endif
