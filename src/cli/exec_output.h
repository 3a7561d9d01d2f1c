/*
 * exec_output.h: where a guest process' standard output or error goes: a descriptor, or a bounded buffer.
 *
 * Writing to a descriptor never blocks the loop for long: bytes wait here until poll says that it takes some, and
 * then go out in pieces of at most PIPE_BUF, which a writable pipe takes whole. (The descriptor is shared with
 * other programs, a shell for one: O_NONBLOCK would hit them too.)
 */
#ifndef DORMOUSE_CLI_EXEC_OUTPUT_H
#define DORMOUSE_CLI_EXEC_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

struct exec_output {
    int fd; /* -1: keep it all in `pending`, up to `keep_max` */
    size_t keep_max;
    bool truncated;        /* more than `keep_max` came */
    struct strbuf pending; /* not yet written, or kept */
    size_t written;        /* of pending */
};

void exec_output_push(struct exec_output *output, const void *bytes, size_t length);

/* Bytes that wait for the descriptor. */
size_t exec_output_backlog(const struct exec_output *output);

/* Writes what the descriptor takes now; a negative errno (-EPIPE: nobody reads any more) from write. */
int exec_output_flush(struct exec_output *output);

void exec_output_done(struct exec_output *output);

#endif
