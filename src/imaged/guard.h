/*
 * guard.h: a process that takes the server's mounts away when the server dies without doing so.
 *
 * Needed because a killed server may not get to die: a thread that pushes a page into the page cache waits,
 * uninterruptibly, for a read of that page which nobody answers any more, and keeps open what would have to be
 * closed for the read to fail. The guest would wait for ever. Aborting the connections from outside ends all of
 * this.
 */
#ifndef DORMOUSE_IMAGED_GUARD_H
#define DORMOUSE_IMAGED_GUARD_H

#include "base/error.h"

/*
 * Called once, by the main thread, with whose end the server is taken to be dead, before there are others and
 * before anything is mounted. The guard keeps `lock_fd` until it is done, so that it can't hit the next server, and
 * nothing else but the log.
 */
int guard_start(const char *data_directory, int lock_fd, struct error *err);

#endif
