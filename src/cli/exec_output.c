#include "cli/exec_output.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

void exec_output_push(struct exec_output *output, const void *bytes, size_t length)
{
    if (output->fd < 0 && length > output->keep_max - output->pending.length) {
        length = output->keep_max - output->pending.length;
        output->truncated = true;
    }
    strbuf_append(&output->pending, bytes, length);
}

size_t exec_output_backlog(const struct exec_output *output)
{
    return output->fd < 0 ? 0 : output->pending.length - output->written;
}

int exec_output_flush(struct exec_output *output)
{
    if (output->pending.failed)
        return -ENOMEM;
    while (exec_output_backlog(output) > 0) {
        struct pollfd ready = {.fd = output->fd, .events = POLLOUT};
        if (poll(&ready, 1, 0) <= 0)
            return 0;
        size_t length = MIN(exec_output_backlog(output), (size_t)PIPE_BUF);
        ssize_t n = write(output->fd, output->pending.data + output->written, length);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            return 0;
        if (n < 0)
            return -errno;
        output->written += (size_t)n;
    }
    if (output->fd >= 0) {
        strbuf_consume(&output->pending, output->written);
        output->written = 0;
    }
    return 0;
}

void exec_output_done(struct exec_output *output)
{
    strbuf_done(&output->pending);
}
