/*
 * cgroup.h: a control group (version 2) for each VMM, which bounds what the VMM's process takes of the host.
 *
 *     HIERARCHY/dormouse/INSTANCE/NAME
 *
 * A VMM is born in its group (CLONE_INTO_CGROUP) or moved there; the group is removed when it has ended. What a
 * crash of the daemon leaves is swept by the next. Where the hierarchy, or controllers in it, aren't there, VMMs
 * run without the bounds: cgroup_lacking says which.
 *
 * What the guest does to its disk is done by the image server, so there is no bound on I/O here.
 *
 * Threads: any.
 */
#ifndef DORMOUSE_VMM_CGROUP_H
#define DORMOUSE_VMM_CGROUP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct cgroups;

/* Where version 2 is mounted; NULL: nowhere. */
const char *cgroup_hierarchy(void);

/*
 * Which of the controllers that are used a hierarchy lacks, e.g. "memory, pids"; "" for none. The caller frees it;
 * NULL when memory is short.
 */
char *cgroup_lacking(const char *hierarchy);

/* Makes HIERARCHY/dormouse/INSTANCE and switches its controllers on, those that can be. */
int cgroups_open(const char *hierarchy, const char *instance, struct cgroups **ret, struct error *err);
/* Removes the directories that hold nothing any more. NULL is allowed. */
void cgroups_close(struct cgroups *cgroups);
/* The controllers that could not be switched on; "" for none. */
const char *cgroups_lacking(const struct cgroups *cgroups);

struct cgroup_limits {
    uint64_t memory_bytes;
    unsigned processes; /* threads count */
    unsigned cpu_weight;
};

/* Makes the group; *ret_path is freed by the caller. */
int cgroup_make(struct cgroups *cgroups, const char *name, const struct cgroup_limits *limits, char **ret_path,
                struct error *err);
int cgroup_enter(const char *path, pid_t pid, struct error *err);
/* Whether the kernel had to kill in the group, for it had reached its memory limit. */
bool cgroup_ran_out_of_memory(struct cgroups *cgroups, const char *name);
/* Ends what is left in it, and waits (bounded) until it can be removed. One that isn't there is fine. */
void cgroup_remove(struct cgroups *cgroups, const char *name);

/* Removes the groups for which `keep` is false. */
void cgroups_sweep(struct cgroups *cgroups, bool (*keep)(void *context, const char *name), void *context);

#endif
