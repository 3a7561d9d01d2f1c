/*
 * metrics.h: how much of its processors, memory and disk the guest uses.
 */
#ifndef DORMOUSE_AGENT_METRICS_H
#define DORMOUSE_AGENT_METRICS_H

#include <jansson.h>

#include "base/error.h"

/*
 * {ts, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_used, disk_total}: seconds, per cent of all
 * processors, bytes. The processors' use is that since the call before (at first, since boot), so nothing has to
 * be sampled in between. json_decref'd by the caller. One thread.
 */
int metrics_read(json_t **ret, struct error *err);

#endif
