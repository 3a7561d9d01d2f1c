/*
 * process.h: identity of processes, and children that run a tool.
 *
 * A pid alone names nobody: pids are reused. pid plus start time does (proc(5), /proc/PID/stat field 22).
 */
#ifndef DORMOUSE_BASE_PROCESS_H
#define DORMOUSE_BASE_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* Start time in clock ticks since boot; -ESRCH when there is no such process. */
int process_start_time(pid_t pid, uint64_t *ret);

/* User and system time used so far, ns. */
int process_cpu_time(pid_t pid, int64_t *ret_ns);

/* A pidfd for the process, if its start time is `start_time`; -ESRCH otherwise. O_CLOEXEC. */
int process_open(pid_t pid, uint64_t start_time);

/*
 * Runs a tool to its end with the given arguments ([0] is looked up in PATH), no standard input, and its output
 * discarded but for the last part of standard error, which goes into the error object. -EREMOTEIO on a non-zero
 * exit.
 */
int process_run(const char *const *arguments, struct error *err);

#endif
