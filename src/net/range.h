/*
 * range.h: the /18 of IPv4 addresses from which the slots' veth pairs are numbered, four addresses a slot.
 *
 * All daemons of a host use the same range, since one firewall table names it. It is chosen by the first one and
 * recorded in /run/dormouse/net/range; each daemon holds a shared lock on that file for as long as it uses the
 * range, and it is chosen anew only when no daemon runs and no slot is claimed. DORMOUSE_NETWORK in the
 * environment, e.g. "10.77.64.0/18", overrides the built-in candidates.
 */
#ifndef DORMOUSE_NET_RANGE_H
#define DORMOUSE_NET_RANGE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "net/rtnl.h"

#define RANGE_PREFIX_LENGTH      18
#define RANGE_SLOT_PREFIX_LENGTH 30
#define RANGE_TEXT_BYTES         20

struct range {
    uint32_t base; /* first address, host byte order */
};

/* -EINVAL unless `text` is ADDRESS/18 with no bits set below. */
int range_parse(const char *text, struct range *ret, struct error *err);
void range_format(const struct range *range, char ret_text[static RANGE_TEXT_BYTES]);

/* The two ends of a slot's veth pair. */
in_addr_t range_host_address(const struct range *range, unsigned slot);
in_addr_t range_inside_address(const struct range *range, unsigned slot);

/*
 * Finds or chooses the host's range; `host` speaks to the host's network namespace, which the calling thread is
 * in. The caller holds the claims' lock; `claimed` says whether any slot is claimed. *ret_fd holds the shared lock.
 * -EADDRINUSE when what DORMOUSE_NETWORK asks for, or every candidate, overlaps a network of the host;
 * -EBUSY when it asks for another range than the one in use.
 */
int range_settle(struct rtnl *host, bool claimed, struct range *ret, int *ret_fd, struct error *err);

/* Forgets the record, if no other daemon uses it. The caller holds the claims' lock. Closes `fd`. Returns whether
 * it was the last user. */
bool range_abandon(int fd);

#endif
