/*
 * client.h: how the control plane talks to the image server, dormouse-imaged.
 *
 * The server is a process of its own that outlives the daemon. It serves three FUSE mounts in the data directory:
 *
 *     DATA/images/memory/SNAPSHOT   read-only memory images; one inode for all that use the same snapshot
 *     DATA/images/disk/SNAPSHOT     the same for disk images
 *     DATA/overlays/VM              the writable disk of one VM
 *
 * An image is there for every snapshot in DATA/snapshots, attached or not: DATA/images/disk/SNAPSHOT can be mounted
 * (-o ro,loop,noload). Memory and disk are two mounts because the kernel's read-ahead is a property of a mount.
 *
 * Order of calls: imaged_start, which finds the running server or starts one; imaged_attach before a VMM starts;
 * imaged_detach after it has ended and before its VM directory is removed; imaged_close (the server goes on).
 *
 * The protocol is one JSON object a request and one a reply, each a packet of a SOCK_SEQPACKET socket
 * (DATA/imaged.sock, mode 0600), so neither side parses a stream. Every call is bounded by IMAGED_TIMEOUT_MS.
 *
 * Threads: any; each call takes a connection of its own. Errors: negative errno, the server's message; -EHOSTDOWN
 * when the server is gone: every VM attached to it is lost.
 */
#ifndef DORMOUSE_IMAGED_CLIENT_H
#define DORMOUSE_IMAGED_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define IMAGED_TIMEOUT_MS 30000

struct imaged;

/*
 * `program`: path of dormouse-imaged. Mounts that a dead server left are taken away first. *ret_restarted: the
 * server is a new one, so VMs that were attached to the one before are lost.
 */
int imaged_start(const char *data_directory, const char *program, struct imaged **ret, bool *ret_restarted,
                 struct error *err);
/* After the server has ended: takes its mounts away and starts another. Calls by other threads fail meanwhile. */
int imaged_restart(struct imaged *imaged, struct error *err);
void imaged_close(struct imaged *imaged);

pid_t imaged_pid(const struct imaged *imaged);
/* Readable when the server has ended. */
int imaged_pidfd(const struct imaged *imaged);
/* Ends the server; its mounts go. For a daemon that ends with no VM left, and for tests. */
int imaged_stop(struct imaged *imaged, struct error *err);

struct imaged_attach {
    const char *vm;           /* id */
    const char *vm_directory; /* holds `manifest`, perhaps `disk-manifest`, and the overlay's generations */
    uid_t uid;                /* who may open the overlay */
    gid_t gid;                /* who may open the memory image */
    uint64_t empty_memory;    /* bytes: for booting; an image of zeros instead of the snapshot's */
    uint64_t disk_limit;      /* bytes that the overlay may occupy on the host's disk; 0: any number */
};

/* Paths of the files for the VMM; freed by imaged_files_done. */
struct imaged_files {
    char *memory;
    char *memory_parent; /* what a capture compares with: the same file */
    char *disk;          /* the overlay */
    char *disk_parent;   /* the base image below all frozen generations */
};
void imaged_files_done(struct imaged_files *files);

/* Attaching a VM that is attached gives the same again. */
int imaged_attach(struct imaged *imaged, const struct imaged_attach *attach, struct imaged_files *ret,
                  struct error *err);
int imaged_detach(struct imaged *imaged, const char *vm, struct error *err);

/* The VMM's process, whose threads are then watched for stalls in balance_dirty_pages. For statistics only. */
int imaged_set_vmm(struct imaged *imaged, const char *vm, pid_t pid, struct error *err);

/*
 * The memory image has been opened (so the page cache has somewhere to put it): push its working set there ahead of
 * the guest. Returns at once. No working set: nothing happens.
 */
int imaged_prefetch(struct imaged *imaged, const char *vm, struct error *err);

/* The same for a snapshot that no VM uses yet: `directory` is DATA/snapshots/ID, and its memory image is open. */
int imaged_warm(struct imaged *imaged, const char *directory, gid_t gid, struct error *err);

/*
 * Ends the recording that attach began for a snapshot without a working set of its own, and writes the runs touched
 * so far to `path` (a new file, renamed into place). -ENODATA when nothing was recorded.
 */
int imaged_save_working_set(struct imaged *imaged, const char *vm, const char *path, struct error *err);

/* The overlay's newest frozen generation; see image/overlay.h. */
int imaged_freeze(struct imaged *imaged, const char *vm, uint64_t *ret_generation, struct error *err);

/* VM_DIRECTORY/disk-manifest holds now what the generations up to this one hold. */
int imaged_rebase(struct imaged *imaged, const char *vm, uint64_t generation, struct error *err);

/* Why a VM can't be served any more (a damaged frame, an unreadable disk): 1 and *ret, freed by the caller; 0: it
 * can.
 */
int imaged_failure(struct imaged *imaged, const char *vm, char **ret, struct error *err);

/* A descriptor that becomes readable when a VM fails; imaged_next_failure then gives its id. */
int imaged_watch(struct imaged *imaged, struct error *err);
/* 1 and *ret_vm and *ret_reason, freed by the caller; 0: none at present. */
int imaged_next_failure(int watch_fd, char **ret_vm, char **ret_reason, struct error *err);

/* Metrics (docs/operations.md names them); *ret is the caller's. */
int imaged_statistics(struct imaged *imaged, json_t **ret, struct error *err);

#endif
