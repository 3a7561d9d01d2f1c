/*
 * connect_frame.h: the envelopes of a Connect stream: flags (1 byte), length (4 bytes, big endian), payload.
 *
 *     frame_decoder_feed(&decoder, bytes, length);
 *     while ((r = frame_decoder_next(&decoder, &frame, err)) > 0)
 *         …
 *
 * The bytes come from a guest: a frame is at most FRAME_LENGTH_MAX long, and other flags than message and end of
 * stream (compression, say, which was not asked for) are refused. Never holds more than one frame and what was fed
 * last.
 */
#ifndef DORMOUSE_CLI_CONNECT_FRAME_H
#define DORMOUSE_CLI_CONNECT_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/strbuf.h"

#define FRAME_LENGTH_MAX  ((size_t)4 << 20)
#define FRAME_HEADER_SIZE 5

struct frame {
    bool end_of_stream;
    const char *payload; /* within the decoder, until its next call; not NUL-terminated */
    size_t length;
};

struct frame_decoder {
    struct strbuf pending;
    size_t consumed; /* of pending */
};
#define FRAME_DECODER_INIT                                                                                         \
    {                                                                                                              \
        STRBUF_INIT, 0                                                                                             \
    }

void frame_decoder_feed(struct frame_decoder *decoder, const void *bytes, size_t length);

/* 1: *ret is the next frame; 0: more bytes are needed; -EPROTO, -ENOMEM: the stream can't be read on. */
int frame_decoder_next(struct frame_decoder *decoder, struct frame *ret, struct error *err);

void frame_decoder_done(struct frame_decoder *decoder);

/* Appends one message frame. */
void frame_encode(struct strbuf *out, const char *payload, size_t length);

#endif
