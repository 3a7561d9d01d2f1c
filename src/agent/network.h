/*
 * network.h: the guest's fixed addresses (net/net.h): lo, eth0 and the default route.
 *
 * Every guest has the same, so that a fork or a resume needs no reconfiguration. One thread.
 */
#ifndef DORMOUSE_AGENT_NETWORK_H
#define DORMOUSE_AGENT_NETWORK_H

#include "base/error.h"

/* -ENODEV: there is no eth0; lo is up all the same. */
int network_configure(struct error *err);

#endif
