/*
 * connect.h: the wire format of the Connect protocol: error codes, and the frames of streams.
 *
 * A frame is `u8 flags | u32 length, big-endian | JSON`. Errors travel through the agent as errno; here they get
 * their Connect code. Pure functions; any thread.
 */
#ifndef DORMOUSE_AGENT_CONNECT_H
#define DORMOUSE_AGENT_CONNECT_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

#define CONNECT_FRAME_HEADER_SIZE 5

enum connect_flags {
    CONNECT_MESSAGE = 0,
    CONNECT_COMPRESSED = 1, /* refused: no compression was offered */
    CONNECT_END_OF_STREAM = 2,
};

/* The code and the HTTP status of a positive errno. */
const char *connect_code(int error_code);
unsigned connect_http_status(int error_code);

/* Appends {"code":…,"message":…}. */
void connect_append_error(struct strbuf *out, const struct error *err);

void connect_append_frame(struct strbuf *out, enum connect_flags flags, const char *message, size_t length);

/* The end of a stream: without an error if `err` is NULL. */
void connect_append_end(struct strbuf *out, const struct error *err);

/*
 * The one message of a request of a server-streaming procedure: -EINVAL if the body is not exactly one frame (an
 * empty end-of-stream frame may follow) or the frame is compressed.
 */
int connect_parse_request(const char *body, size_t length, const char **ret_message, size_t *ret_length,
                          struct error *err);

#endif
