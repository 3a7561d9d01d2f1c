/*
 * freeze.h: holds the guest's file systems still while the host takes their disk away as a snapshot.
 *
 * freeze_all freezes every writable file system on a disk (FIFREEZE, linux/fs.h), the ones mounted last first,
 * since they may lie in files of the others; one that can't be frozen is synced instead. Memory and kernel file
 * systems are left alone. If one fails, those frozen so far are thawed. Between freeze_all and thaw_all whoever
 * writes waits; the agent itself writes to no disk. Thawing what isn't frozen changes nothing. One thread.
 */
#ifndef DORMOUSE_AGENT_FREEZE_H
#define DORMOUSE_AGENT_FREEZE_H

#define FREEZE_MOUNTS_MAX 256

struct freeze_result {
    int frozen; /* file systems */
    int synced; /* that don't support freezing */
};

/* Negative errno: nothing is frozen. */
int freeze_all(struct freeze_result *ret);
void thaw_all(void);

#endif
