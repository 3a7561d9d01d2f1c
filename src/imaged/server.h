/*
 * server.h: the VMs that the image server serves: their images and disks, attached and detached by id.
 *
 * Order of calls: server_start; the others; server_unmount. Each call on one VM waits for the one before it, none
 * for those of other VMs. Ids and paths that come in are checked here. Threads: any.
 */
#ifndef DORMOUSE_IMAGED_SERVER_H
#define DORMOUSE_IMAGED_SERVER_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct server;

int server_start(const char *data_directory, struct server **ret, struct error *err);
/* Takes the mounts away and makes the disks durable. For a process that ends: nothing is freed. */
void server_unmount(struct server *server);

struct server_attach {
    const char *vm;
    const char *directory;
    uid_t uid;
    gid_t gid;
    uint64_t empty_memory;
    uint64_t disk_limit;
};

/* Adds members `memory`, `disk` and `disk_parent` to the reply. */
int server_attach(struct server *server, const struct server_attach *attach, json_t *reply, struct error *err);
int server_detach(struct server *server, const char *vm, struct error *err);
int server_freeze(struct server *server, const char *vm, uint64_t *ret, struct error *err);
int server_rebase(struct server *server, const char *vm, uint64_t generation, struct error *err);
int server_set_vmm(struct server *server, const char *vm, pid_t pid, struct error *err);

/* Pushes the working set in the VM's directory, if there is one. */
int server_prefetch(struct server *server, const char *vm, struct error *err);

/* The same for a snapshot's directory, with no VM. */
int server_warm(struct server *server, const char *directory, gid_t gid, struct error *err);

/*
 * What was in that file and what has been missed since the VM was attached, written to `path`. Ends the recording.
 * -ENODATA: nothing was.
 */
int server_save_working_set(struct server *server, const char *vm, const char *path, struct error *err);

/* Adds `reason` to the reply if the VM has failed. */
int server_failure(struct server *server, const char *vm, json_t *reply, struct error *err);

/* Adds the metrics to the reply. */
int server_statistics(struct server *server, json_t *reply, struct error *err);

/*
 * Sends `reply`, then a packet for each VM that has failed, and from then on for each that does, until
 * server_unwatch. A peer that doesn't read is disconnected.
 */
int server_watch(struct server *server, int fd, const json_t *reply, struct error *err);
void server_unwatch(struct server *server, int fd);

#endif
