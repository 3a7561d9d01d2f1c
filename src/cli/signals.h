/*
 * signals.h: the signals that end or disturb a session, taken synchronously.
 */
#ifndef DORMOUSE_CLI_SIGNALS_H
#define DORMOUSE_CLI_SIGNALS_H

#include "base/error.h"

/*
 * Blocks SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGWINCH and yields a signalfd of them (the caller closes it), so
 * that no way out skips a clean-up. A signal that was ignored when the
 * program started (nohup) stays ignored.
 */
int signals_block(int *ret_fd, struct error *err);

#endif
