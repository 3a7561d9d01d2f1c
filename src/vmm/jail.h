/*
 * jail.h: starts a program in its own mount, pid, network, IPC and UTS namespaces, as an unprivileged user.
 *
 * What it sees: /usr, read-only, with the usual links to it; /etc/ld.so.cache; /dev with null, zero, urandom and
 * the devices asked for; /vm, the directory given, without devices or set-uid, and in it the files bound there;
 * nothing else, no /proc. It is its own session and survives the daemon. It can gain no privileges (no_new_privs),
 * share no memory (syscall_filter.h) and leaves no core file.
 *
 * Threads: any; the child between clone and exec uses nothing but system calls on prepared data, since the daemon
 * is multi-threaded.
 */
#ifndef DORMOUSE_VMM_JAIL_H
#define DORMOUSE_VMM_JAIL_H

#include <sys/types.h>

#include "base/error.h"

/* The child receives `from` as descriptor number `to`. */
struct jail_descriptor {
    int from;
    int to;
};

/* The file `from` on the host takes the place of /vm/name, which exists. */
struct jail_bind {
    const char *from;
    const char *name;
};

#define JAIL_BINDS_MAX 4

/* Binds files in a jail whose program runs already. */
int jail_bind(int pidfd, const struct jail_bind *binds, size_t count, struct error *err);

struct jail_options {
    const char *directory;         /* becomes /vm */
    const struct jail_bind *binds; /* at most JAIL_BINDS_MAX */
    size_t bind_count;
    char *const *arguments; /* [0] is the program's path inside the jail */
    char *const *environment;
    const struct jail_descriptor *descriptors; /* besides 0 (/dev/null), 1 and 2 (log_fd) */
    size_t descriptor_count;
    int log_fd;
    const char *cgroup; /* directory of the control group that it is born in; NULL: the daemon's */
    int namespace_fd;   /* network namespace to enter; -1: a new, empty one */
    const char *device; /* one device node to add, e.g. "/dev/kvm", or NULL */
    uid_t uid;
    gid_t gid;
};

/* On success the program has been executed; *ret_pidfd belongs to the caller. */
int jail_spawn(const struct jail_options *options, pid_t *ret_pid, int *ret_pidfd, struct error *err);

#endif
