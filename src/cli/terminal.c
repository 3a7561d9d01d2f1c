#include "cli/terminal.h"

#include <errno.h>

bool terminal_size(int fd, struct winsize *ret)
{
    struct winsize size;
    if (ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0 || size.ws_row == 0)
        return false;
    *ret = size;
    return true;
}

int terminal_make_raw(struct terminal *terminal, int fd, struct error *err)
{
    struct termios saved;
    if (tcgetattr(fd, &saved) < 0)
        return error_errno(err, "cannot read the terminal's settings");
    struct termios raw = saved;
    cfmakeraw(&raw);
    if (tcsetattr(fd, TCSADRAIN, &raw) < 0)
        return error_errno(err, "cannot change the terminal's settings");
    terminal->saved = saved;
    terminal->fd = fd;
    return 0;
}

void terminal_restore(struct terminal *terminal)
{
    if (terminal->fd >= 0)
        tcsetattr(terminal->fd, TCSADRAIN, &terminal->saved);
    terminal->fd = -1;
}
