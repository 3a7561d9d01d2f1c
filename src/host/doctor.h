/*
 * doctor.h: what this host has and lacks for running sandboxes, with the remedy for each lack.
 *
 * Every check looks at the real thing: a tool is found in PATH, a namespace is made and gets a sandbox's firewall.
 * Nothing is left behind. Needs no daemon; without root several checks fail, which they say.
 *
 * Whether KVM really runs a guest is not tried here, since that takes a kernel to boot: the first template build
 * does, and leaves its verdict in DATA/kvm-verdict (first line "works" or not, second line what it holds for).
 *
 * Threads: any, in the host's network namespace.
 */
#ifndef DORMOUSE_HOST_DOCTOR_H
#define DORMOUSE_HOST_DOCTOR_H

#include <stddef.h>

#include "base/error.h"

enum doctor_status {
    DOCTOR_OK,
    DOCTOR_WARN, /* works, but slower, or not in every case */
    DOCTOR_FAIL, /* sandboxes can't run, or templates can't be built */
};

struct doctor_check {
    const char *name; /* stable: "root", "qemu", "kvm" … */
    enum doctor_status status;
    char *detail; /* what was found; never NULL */
    char *remedy; /* commands to type; NULL when the status is DOCTOR_OK */
};

struct doctor_report {
    struct doctor_check *checks;
    size_t count;
};

/* Makes all checks. `data_directory` need not exist. -ENOMEM only. The caller ends with doctor_report_done. */
int doctor_examine(const char *data_directory, struct doctor_report *ret, struct error *err);

/* "ok", "warn", "fail" */
const char *doctor_status_name(enum doctor_status status);

void doctor_report_done(struct doctor_report *report);
#define CLEANUP_DOCTOR_REPORT CLEANUP(doctor_report_done)

#endif
