/*
 * net.h: one network namespace per sandbox, made ahead.
 *
 * Inside every namespace everything is the same: a TAP device `tap0` with the host side NET_GATEWAY/30 on it and
 * a permanent neighbour entry for the guest, which always has NET_GUEST_ADDRESS and NET_GUEST_MAC. So a fork or a
 * resume needs no reconfiguration in the guest. A veth pair leads from the namespace to the host; its addresses
 * come from the slot number. The guest's traffic leaves by NAT in the namespace and again on the host.
 *
 * Allowed: guest → outside (unless egress is denied), host → guest (from inside the namespace only, see
 * network_socket). Blocked: guest → any address of the host itself (also one that the host forwards to a
 * container), guest → other guests, guest → link-local addresses (the cloud's metadata service), forged senders,
 * IPv6. Not blocked: private networks that the host can reach. A guest may hold FIREWALL_CONNECTIONS_MAX
 * connections.
 *
 * What it leaves on the host: namespaces `dormouse-SLOT` (ip netns exec dormouse-0 …), interfaces `dmhSLOT`, claims
 * and a lock under /run/dormouse/net, one nftables table `inet dormouse`, which is put back when something like
 * `nft flush ruleset` removes it, and net.ipv4.ip_forward=1, which stays on. The addresses of the veth pairs are a
 * /18 that the host does not use, or what DORMOUSE_NETWORK says (range.h). Another firewall that drops forwarded
 * packets, such as Docker's, has to let `dmh*` pass; no rule of ours can.
 *
 * A slot is unique on the host, across daemons: a claim file per slot names the owner (the daemon's instance, its
 * data directory), so that a daemon that starts again finds its own, and what belonged to a data directory that
 * is gone is reclaimed by whoever comes next.
 *
 * Order of calls: network_pool_open; network_adopt for each sandbox that still runs; network_pool_start, which
 * removes what this instance owned and nobody adopted and begins to fill the pool; then take and release.
 * Threads: all functions may be called from any thread that is in the network namespace in which the pool was
 * opened; a struct network belongs to its sandbox and is used under the sandbox's lock, except network_socket,
 * which may be called at any time between take and release.
 */
#ifndef DORMOUSE_NET_NET_H
#define DORMOUSE_NET_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define NET_GUEST_ADDRESS "169.254.77.2"
#define NET_GATEWAY       "169.254.77.1"
#define NET_PREFIX_LENGTH 30
#define NET_GUEST_MAC     "02:00:5e:00:00:02"
#define NET_GATEWAY_MAC   "02:00:5e:00:00:01" /* also the same everywhere: it is in the guest's ARP cache */
#define NET_TAP_NAME      "tap0"

struct network_pool;

struct network {
    unsigned slot;      /* unique on this host while held */
    int namespace_fd;   /* of the network namespace, O_CLOEXEC */
    bool egress_denied; /* as last set */
};

struct network_pool_options {
    const char *instance;       /* the daemon's own name, kept in its data directory; [a-z0-9]+ */
    const char *data_directory; /* whose disappearance frees the slots */
    unsigned ahead;             /* how many namespaces are kept ready */
};

/*
 * Claims nothing yet, but installs the host's firewall table and turns forwarding on. -EPERM without the needed
 * capabilities, -ENOENT when a tool or device is missing, -EADDRINUSE when there is no free range of addresses,
 * each with the remedy.
 */
int network_pool_open(const struct network_pool_options *options, struct network_pool **ret, struct error *err);

/* Takes back the namespace of a sandbox that survived a restart of the daemon. -ENOENT: it is gone. */
int network_adopt(struct network_pool *pool, unsigned slot, struct network **ret, struct error *err);

/* Removes this instance's leftovers and fills the pool, both in the background. */
int network_pool_start(struct network_pool *pool, struct error *err);

/* A ready namespace, or one made now when the pool is empty. -EAGAIN when all slots of the host are in use. */
int network_take(struct network_pool *pool, struct network **ret, struct error *err);

/* Opens the TAP device (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) for a VMM; returns a file descriptor. -EBUSY while
 * another VMM has it. */
int network_open_tap(struct network *network, struct error *err);

/* Allows or denies guest → outside, at once, established connections included. The guest is told (ICMP). */
int network_set_egress(struct network *network, bool allowed, struct error *err);

/* A TCP socket made inside the namespace (O_CLOEXEC), from which NET_GUEST_ADDRESS can be reached. */
int network_socket(const struct network *network, struct error *err);

/* Removes namespace, devices and rules in the background, and frees the object. NULL is allowed. */
void network_release(struct network_pool *pool, struct network *network);

/*
 * Frees the pool and every struct network taken from it. The namespaces of those stay (the daemon ends, the
 * sandboxes go on) for network_adopt to find; the ready and unused ones are removed. Waits for the background work.
 */
void network_pool_close(struct network_pool *pool);

#endif
