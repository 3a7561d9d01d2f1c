/*
 * stalls.h: looks once a second whether threads of this process or of a known VMM stand in balance_dirty_pages,
 * where the kernel holds up who makes pages dirty faster than disks write them. Counted in the metrics; it should
 * be never.
 */
#ifndef DORMOUSE_IMAGED_STALLS_H
#define DORMOUSE_IMAGED_STALLS_H

#include "imaged/server.h"

/* In a thread of its own, until the process ends. */
int stalls_start(struct server *server, struct error *err);

#endif
