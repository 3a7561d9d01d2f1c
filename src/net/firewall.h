/*
 * firewall.h: the nftables rules inside a sandbox's namespace, and the host's table.
 *
 * Both are tables `inet dormouse`, set by nft(8) in one transaction. (libnftables ends the process when it runs
 * out of memory or descriptors, which a daemon can't have; nft costs 2 ms.) The namespace's rules hold even while
 * the host's are missing, but can't know the host's own addresses; the host's rules do the rest.
 *
 * Threads: any. -ENOENT when nft is not installed; -EREMOTEIO with nft's words when it refuses.
 */
#ifndef DORMOUSE_NET_FIREWALL_H
#define DORMOUSE_NET_FIREWALL_H

#include <stdbool.h>

#include "base/error.h"
#include "net/range.h"

/* New connections a guest may have open, and open per second, before further ones are dropped: conntrack entries
 * are kernel memory. */
#define FIREWALL_CONNECTIONS_MAX 4096
#define FIREWALL_NEW_PER_SECOND  1000

/* In the namespace of the calling thread, which has no such table yet. */
int firewall_install_inside(const struct range *range, struct error *err);

/* In the host's namespace, which the calling thread is in: installs or replaces the table that all daemons share.
 */
int firewall_install_host(const struct range *range, struct error *err);

/* Removes the host's table; absent is success. */
int firewall_remove_host(struct error *err);

/* Whether the host's table is there. */
bool firewall_host_present(void);

/*
 * A descriptor (O_CLOEXEC, non-blocking) that gets readable when a table of the calling thread's namespace is
 * removed: `nft flush ruleset`, which reloading Debian's nftables.service does, takes ours along.
 */
int firewall_watch_open(struct error *err);

/* Reads what has arrived; whether a removal may have been among it. */
bool firewall_watch_read(int fd);

#endif
