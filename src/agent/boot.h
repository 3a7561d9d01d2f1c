/*
 * boot.h: from the kernel's first user process to a mounted root: modules, devices, network, switch of root.
 *
 * Order of calls, all by PID 1 in the initial RAM disk:
 *
 *     boot_mount_early       /proc /sys /dev; then the console can be opened
 *     boot_load_modules      the names in /modules/order, one a line, as /modules/NAME.ko
 *     boot_wait_for_devices  the root disk and the control port
 *     boot_mount_root        at BOOT_NEW_ROOT
 *     network_configure      lo and eth0 (network.h)
 *     boot_switch_root       frees the RAM disk's files; from here on / is the disk
 *     boot_mount_late        the rest that programs expect, and /etc
 *
 * Every step fails with an error that names what is missing; nothing is retried. One thread.
 */
#ifndef DORMOUSE_AGENT_BOOT_H
#define DORMOUSE_AGENT_BOOT_H

#include "base/error.h"

#define BOOT_ROOT_DISK "/dev/vda"
#define BOOT_NEW_ROOT  "/newroot"

int boot_mount_early(struct error *err);
int boot_load_modules(struct error *err);
int boot_wait_for_devices(struct error *err);
int boot_mount_root(struct error *err);
int boot_switch_root(struct error *err);
int boot_mount_late(struct error *err);

#endif
