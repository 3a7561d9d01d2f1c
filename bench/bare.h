/*
 * bare.h: the reference: the same QEMU with the same arguments on the same snapshot, and nothing else. No daemon,
 * no jail, no agent, no registry.
 *
 * The arguments are those of a VMM that the daemon started, as /proc/PID/cmdline shows them; "/vm/" in them becomes
 * a plain directory. What the daemon has ready ahead of a request (network device) or hands over (sockets) is made
 * here before the clock starts. The snapshot's images are plain files in the page cache (export.c), nothing serves
 * them, and the guest's disk is a copy of its own made ahead: the reference pays for as little as can be.
 *
 * Order of calls: bare_isolate once, before any thread; for each guest bare_prepare, bare_start, then bare_command
 * and bare_wait, and bare_free, which kills it. A guest is used by one thread at a time, different ones by any
 * threads. Errors: negative errno and an error object.
 */
#ifndef DORMOUSE_BENCH_BARE_H
#define DORMOUSE_BENCH_BARE_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct bare_source {
    const char *arguments; /* file: a VMM's /proc/PID/cmdline */
    const char *snapshot;  /* directory of a snapshot's images as plain files: memory, rootfs, state */
    const char *work;      /* existing directory on the same file system, for guests' files */
};

struct bare;

/* Enters a new network namespace: the guests' network devices are nobody else's. */
int bare_isolate(struct error *err);

/* Makes everything that guest number `index` needs. */
int bare_prepare(const struct bare_source *source, unsigned index, struct bare **ret, struct error *err);

/* Starts QEMU and returns when QEMU says that the guest runs. */
int bare_start(struct bare *bare, struct error *err);

pid_t bare_pid(const struct bare *bare);
/* CLOCK_MONOTONIC: when bare_start was called, when the process existed, when the guest ran. */
int64_t bare_begun_ns(const struct bare *bare);
int64_t bare_spawned_ns(const struct bare *bare);
int64_t bare_running_ns(const struct bare *bare);

/* Sends a QMP command, a JSON text, with `fd` attached unless it is -1. */
int bare_command(struct bare *bare, const char *text, int fd, struct error *err);

/* Reads what QMP sends until a message contains `text` or, if that is not NULL, `other`. -EREMOTEIO when a command
 * or a migration failed.
 */
int bare_wait(struct bare *bare, const char *text, const char *other, struct error *err);

void bare_free(struct bare *bare);

#endif
