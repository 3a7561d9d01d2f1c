/*
 * server_internal.h: what the files server*.c share.
 *
 * Locks: a VM's is held for a whole call on it, whatever that waits for. The server's is held for moments, never
 * over I/O, and taken last: the threads that answer FUSE requests take it to report failures.
 */
#ifndef DORMOUSE_IMAGED_SERVER_INTERNAL_H
#define DORMOUSE_IMAGED_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "imaged/images.h"
#include "imaged/metrics.h"
#include "imaged/overlays.h"
#include "imaged/server.h"

#define VM_ID_MAX    32
#define WATCHERS_MAX 32

/* The disk image below an overlay, read through its own mount, so that all overlays share its cached pages. */
struct base {
    int fd;
    struct served *served;
};

struct vm {
    struct vm *next;
    char id[VM_ID_MAX + 1];
    pthread_mutex_t lock;
    char *directory;
    bool recording; /* of the memory image */

    /* Changed under both locks, so read under either. */
    bool attached;
    struct served *memory; /* NULL: the snapshot has none */
    struct base *base;
    struct disk *disk;

    /* Under the server's lock. */
    unsigned references;
    char *failure; /* NULL: none */
    pid_t vmm;     /* 0: unknown */
};

struct server {
    struct images *memory;
    struct images *disks;
    struct overlays *overlays;
    struct metrics metrics;

    pthread_mutex_t lock;
    struct vm *vms;
    int watchers[WATCHERS_MAX];
    size_t watcher_count;
};

/* The attached VM `id` for one call. */
int server_enter(struct server *server, const char *id, struct vm **ret, struct error *err);
/* NULL: not attached, or busy. */
struct vm *server_try_enter(struct server *server, const char *id);
void server_leave(struct server *server, struct vm *vm);

/* The VMMs that are known; returns how many. */
size_t server_list_vmms(struct server *server, pid_t *pids, size_t limit);

/* What the mounts report. */
void server_image_failed(void *context, struct served *served, const char *reason);
void server_disk_failed(void *context, const char *name, const char *reason);

#endif
