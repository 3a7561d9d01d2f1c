/*
 * compatibility.h: whether a snapshot's memory can go on on this host, known before a VMM is started.
 *
 * Device state is loaded by the same machine (revision, accelerator) of the same VMM, no older than the one that
 * saved it; and under KVM the guest goes on using the CPU features it has seen. Pure; any thread.
 */
#ifndef DORMOUSE_SANDBOX_COMPATIBILITY_H
#define DORMOUSE_SANDBOX_COMPATIBILITY_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "store/manifest.h"

struct compatibility_host {
    const char *vmm; /* that would be started for the snapshot's accelerator: name and version */
    unsigned machine_revision;
    bool kvm; /* runs guests here */
    /* vmm/cpu_model.h */
    bool (*cpu_fits)(const char *model, char *ret_lacking, size_t size);
};

/* -EBUSY, reason "snapshot_incompatible", with the difference. -EBADMSG: the snapshot names what can't exist. */
int compatibility_check(const struct snapshot_manifest *manifest, const struct compatibility_host *host,
                        struct error *err);

#endif
