/* memory.h: how much memory this host has left, and how much of it is a process' own. From /proc; any thread. */
#ifndef DORMOUSE_HOST_MEMORY_H
#define DORMOUSE_HOST_MEMORY_H

#include <stdint.h>
#include <sys/types.h>

/* What can be had without swapping, bytes: the kernel's own estimate. Negative errno when it can't be told. */
int host_memory_available(uint64_t *ret);

/* Anonymous memory of a process, swapped out or not, bytes. -ESRCH when there is no such process. */
int process_private_bytes(pid_t pid, uint64_t *ret);

#endif
