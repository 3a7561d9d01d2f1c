/*
 * rtnl.h: the few rtnetlink(7) requests that a sandbox's network needs, over libmnl.
 *
 * A struct rtnl speaks to the network namespace that the opening thread was in, from whichever thread uses it
 * later; one thread at a time. Addresses are IPv4 in network byte order, interfaces are named.
 * Every function but rtnl_open returns 0 or the kernel's negative errno, and says what was asked for.
 */
#ifndef DORMOUSE_NET_RTNL_H
#define DORMOUSE_NET_RTNL_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define RTNL_MAC_BYTES 6

struct rtnl;

/* One end of a veth pair. */
struct rtnl_veth_end {
    const char *name;
    const unsigned char *mac; /* RTNL_MAC_BYTES */
};

/* A route as listed by rtnl_list_routes; addresses of the host appear as routes of 32 bits. */
struct rtnl_route {
    in_addr_t destination;
    unsigned prefix_length;
    unsigned char type;  /* RTN_UNICAST … */
    unsigned char table; /* RT_TABLE_MAIN … */
    int interface_index; /* 0: none */
};

int rtnl_open(struct rtnl **ret, struct error *err);
void rtnl_close(struct rtnl *rtnl);
void rtnl_cleanup(struct rtnl **rtnl);
#define CLEANUP_RTNL CLEANUP(rtnl_cleanup)

/* Makes a pair whose end `peer` is born in the namespace `peer_namespace_fd`. */
int rtnl_add_veth(struct rtnl *rtnl, const struct rtnl_veth_end *own, const struct rtnl_veth_end *peer,
                  int peer_namespace_fd, struct error *err);

/* -ENODEV when there is none. Both ends of a veth pair go. */
int rtnl_delete_link(struct rtnl *rtnl, const char *name, struct error *err);

/* Sets the interface up, without multicast. `mac` NULL: as it is. */
int rtnl_set_link_up(struct rtnl *rtnl, const char *name, const unsigned char *mac, struct error *err);

int rtnl_add_address(struct rtnl *rtnl, const char *name, in_addr_t address, unsigned prefix_length,
                     struct error *err);

/* A permanent neighbour: no ARP is ever sent for it, and it does not count against the kernel's neighbour limit. */
int rtnl_add_neighbour(struct rtnl *rtnl, const char *name, in_addr_t address, const unsigned char *mac,
                       struct error *err);

/* Replaces the default route by one through `gateway`, or, with `name` NULL, by one that prohibits. */
int rtnl_replace_default_route(struct rtnl *rtnl, const char *name, in_addr_t gateway, struct error *err);

/* Calls `each` for every IPv4 route of every table. */
int rtnl_list_routes(struct rtnl *rtnl, void (*each)(const struct rtnl_route *route, void *context), void *context,
                     struct error *err);

#endif
