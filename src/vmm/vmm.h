/*
 * vmm.h: one VMM process, whatever the VMM.
 *
 * A VMM runs in a jail whose /vm is the sandbox's VM directory on the host, with these files, the same for every
 * sandbox, so that device state never names its owner:
 *
 *     memory        the memory image, mapped privately: the guest's writes never reach it
 *     rootfs        the sandbox's disk, raw
 *     kernel, initrd  what was booted
 *     state         device state (written by vmm_save_device_state)
 *     console.log   what the guest printed
 *     vmm.log       what the VMM printed
 *     qmp.sock, control.sock  the VMM's control socket, and the guest agent's port
 *
 * memory and rootfs are files of the image server, bound there inside the jail; on the host their places are empty
 * files.
 *
 * Order of calls: fill the directory; vmm_boot or vmm_restore; vmm_wait_running; then pause, continue,
 * save_device_state, ram_ranges in any sensible order; vmm_kill; vmm_free. A daemon that starts again gets a live
 * VMM back by vmm_adopt. vmm_free without vmm_kill leaves the process running.
 *
 * What a VMM does before it looks at its guest takes most of a restore. It can be done ahead: vmm_prepare on an
 * empty directory; later rename and fill the directory, and vmm_restore_prepared in place of vmm_restore.
 *
 * Threads: one struct vmm is used by one thread at a time (the sandbox's lock); vmm_pidfd may be polled by others.
 * Errors: negative errno; -EPIPE or -ESRCH when the VMM ended, with the last line it printed in the error object.
 * A VMM is not trusted: its replies are bounded in size and time, and whatever it sends can only fail calls.
 */
#ifndef DORMOUSE_VMM_VMM_H
#define DORMOUSE_VMM_VMM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define VMM_FILE_MEMORY  "memory"
#define VMM_FILE_ROOTFS  "rootfs"
#define VMM_FILE_KERNEL  "kernel"
#define VMM_FILE_INITRD  "initrd"
#define VMM_FILE_STATE   "state"
#define VMM_FILE_CONSOLE "console.log"
#define VMM_FILE_LOG     "vmm.log"
#define VMM_FILE_QMP     "qmp.sock"
#define VMM_FILE_CONTROL "control.sock"

/* The group every VMM runs in: it may open (not own) the images. User ids begin here too, one per slot. */
#define VMM_GROUP_ID      810000
#define VMM_USER_ID_FIRST 810001

/* The machine's shape: device state of one revision can't be loaded by another. */
#define VMM_MACHINE_REVISION 1

/* Device state is some tens of KiB; a VMM that writes more is broken or hostile. */
#define VMM_STATE_MAX (16 << 20)

enum vmm_accelerator { VMM_ACCELERATOR_TCG, VMM_ACCELERATOR_KVM };

const char *vmm_accelerator_name(enum vmm_accelerator accelerator);
/* -EINVAL when there is no such accelerator. */
int vmm_accelerator_parse(const char *name, enum vmm_accelerator *ret);

/* What a VMM with a guest of so much memory may come to own: that, and what it needs itself. Bytes. */
uint64_t vmm_memory_bytes(enum vmm_accelerator accelerator, uint64_t guest_bytes);

struct vmm;

struct vmm_config {
    const char *directory; /* absolute path of the VM directory */
    const char *marker;    /* "KEY=value" put into the VMM's environment, by which a lost process is found again */
    enum vmm_accelerator accelerator;
    unsigned cpus;
    uint64_t memory_bytes;
    const char *cgroup;      /* directory of its control group; NULL: none of its own */
    uid_t uid;               /* of the VMM; owns what it may write */
    int namespace_fd;        /* network namespace; -1: an empty one of its own */
    int tap_fd;              /* -1: neither network nor disk (for probing an accelerator only) */
    const char *memory_path; /* the memory image; NULL: the directory's own `memory` */
    const char *rootfs_path; /* the disk; not used without tap_fd */
    int state_fd; /* vmm_restore: a file with the device state, read from its beginning; stays the caller's */
};

/* Where guest memory lies in the VMM process and in the memory image. Whole pages. */
struct vmm_ram_range {
    uint64_t address; /* in the VMM, bytes */
    uint64_t length;  /* bytes */
    uint64_t offset;  /* in the image, bytes */
};

/* Starts a VMM that boots the kernel. Returns as soon as the process exists. */
int vmm_boot(const struct vmm_config *config, struct vmm **ret, struct error *err);

/* Starts a VMM that loads the device state and continues the guest at once. Returns as soon as the process exists.
 */
int vmm_restore(const struct vmm_config *config, struct vmm **ret, struct error *err);

/*
 * Starts a VMM that waits for vmm_restore_prepared, with all that `config` says but memory, disk and state, which
 * the guest will decide. Returns when it waits.
 */
int vmm_prepare(const struct vmm_config *config, struct vmm **ret, struct error *err);

/*
 * Whether a prepared VMM still waits, and is what a start would run now: neither has its program been replaced (by
 * an upgrade of the package) nor has it ended.
 */
bool vmm_is_prepared(const struct vmm *vmm);

/*
 * Lets a prepared VMM load the device state and continue the guest; it has begun when this returns. Of `config`,
 * directory (where the VM directory is now), memory and disk and the state are looked at. After a failure the VMM
 * is good for nothing but vmm_kill.
 */
int vmm_restore_prepared(struct vmm *vmm, const struct vmm_config *config, struct error *err);

/*
 * Takes over a VMM that an earlier daemon started: the process `pid`, if its start time (clock ticks since boot,
 * /proc/PID/stat field 22) is still `start_time`. -ESRCH when it is not that process any more.
 */
int vmm_adopt(const char *directory, pid_t pid, uint64_t start_time, struct vmm **ret, struct error *err);

/*
 * Waits until the guest runs; *ret_since_ns is since when, CLOCK_REALTIME, as far as the VMM tells (else 0).
 * -ETIMEDOUT after `timeout_ms`.
 */
int vmm_wait_running(struct vmm *vmm, int timeout_ms, int64_t *ret_since_ns, struct error *err);

/*
 * Stops and continues the virtual CPUs; a paused VMM has flushed its disk. After -ETIMEDOUT the VMM still does it
 * when it wakes. Continuing a guest that runs changes nothing.
 */
int vmm_pause(struct vmm *vmm, struct error *err);
int vmm_continue(struct vmm *vmm, struct error *err);

/* Writes device state (no memory) of a paused VMM to the directory's `state`; its size to *ret_size. */
int vmm_save_device_state(struct vmm *vmm, uint64_t *ret_size, struct error *err);

/* The guest's memory in the VMM process, by image offset; the caller frees *ret. */
int vmm_ram_ranges(struct vmm *vmm, struct vmm_ram_range **ret, size_t *ret_count, struct error *err);
/* The same of a VMM that another thread uses, by its process. */
int vmm_ram_ranges_of(pid_t pid, struct vmm_ram_range **ret, size_t *ret_count, struct error *err);

/* The stream to the guest agent (control/control.h); the vmm keeps and closes it. Non-blocking. */
int vmm_control_fd(struct vmm *vmm, struct error *err);

pid_t vmm_pid(const struct vmm *vmm);
uint64_t vmm_start_time(const struct vmm *vmm);
/* Readable when the process has ended. */
int vmm_pidfd(const struct vmm *vmm);

/* Kills the process and waits until it is gone (bounded). Safe on one that has ended. */
void vmm_kill(struct vmm *vmm);
/* Closes our connections and frees the object; the process, if it lives, goes on. NULL is allowed. */
void vmm_free(struct vmm *vmm);

/* Name and version of what would be started, e.g. "qemu 7.2.22", for the record in snapshots; the caller frees it.
 */
int vmm_version(enum vmm_accelerator accelerator, char **ret, struct error *err);

#endif
