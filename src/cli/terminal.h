/*
 * terminal.h: the local terminal of an interactive session.
 */
#ifndef DORMOUSE_CLI_TERMINAL_H
#define DORMOUSE_CLI_TERMINAL_H

#include <stdbool.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "base/error.h"
#include "base/macro.h"

/* False when `fd` is no terminal or has no size. */
bool terminal_size(int fd, struct winsize *ret);

struct terminal {
    int fd; /* -1: nothing to restore */
    struct termios saved;
};
#define TERMINAL_INIT                                                                                              \
    {                                                                                                              \
        .fd = -1                                                                                                   \
    }

/*
 * Passes every key through to the reader of `fd`, unechoed. terminal_restore must run on each way out: block the
 * signals that would end the program in between and handle them synchronously.
 */
int terminal_make_raw(struct terminal *terminal, int fd, struct error *err);
void terminal_restore(struct terminal *terminal);
#define CLEANUP_TERMINAL CLEANUP(terminal_restore)

#endif
