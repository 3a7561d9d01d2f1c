/*
 * driver.h: what one kind of VMM has to provide; vmm.c does the rest.
 *
 * A driver gets a struct vmm whose `directory` is filled in. Its functions follow the
 * contracts of their namesakes in vmm.h.
 */
#ifndef DORMOUSE_VMM_DRIVER_H
#define DORMOUSE_VMM_DRIVER_H

#include "vmm/jail.h"
#include "vmm/vmm.h"

struct vmm_driver;

struct vmm {
    const struct vmm_driver *driver;
    char *directory;
    pid_t pid;
    uint64_t start_time;
    int pidfd;
    int control_fd;   /* -1: not connected */
    void *connection; /* the driver's own */
};

enum vmm_start { VMM_START_BOOT, VMM_START_RESTORE, VMM_START_PREPARE };

struct vmm_driver {
    const char *name;
    /* Starts the process in a jail, sets pid and pidfd, and connects. */
    int (*start)(struct vmm *vmm, const struct vmm_config *config, enum vmm_start how, int log_fd,
                 struct error *err);
    /* In a process started by VMM_START_PREPARE. */
    int (*restore_prepared)(struct vmm *vmm, int state_fd, uint64_t memory_bytes, struct error *err);
    /* Connects to a process that runs already. */
    int (*attach)(struct vmm *vmm, struct error *err);
    /* Closes what start or attach connected; the process goes on. */
    void (*detach)(struct vmm *vmm);
    int (*wait_running)(struct vmm *vmm, int timeout_ms, int64_t *ret_since_ns, struct error *err);
    int (*pause)(struct vmm *vmm, struct error *err);
    int (*resume)(struct vmm *vmm, struct error *err);
    int (*save_device_state)(struct vmm *vmm, struct error *err);
    int (*version)(enum vmm_accelerator accelerator, char **ret, struct error *err);
};

extern const struct vmm_driver vmm_driver_qemu;

/* The files of the image server for the jail; returns how many there are. */
#define VMM_BINDS 2
size_t vmm_binds(const struct vmm_config *config, struct jail_bind binds[static VMM_BINDS]);

#endif
