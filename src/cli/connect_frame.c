#include "cli/connect_frame.h"

#include <errno.h>
#include <stdint.h>

#define FLAG_END_OF_STREAM 0x02

void frame_decoder_feed(struct frame_decoder *decoder, const void *bytes, size_t length)
{
    strbuf_consume(&decoder->pending, decoder->consumed);
    decoder->consumed = 0;
    strbuf_append(&decoder->pending, bytes, length);
}

int frame_decoder_next(struct frame_decoder *decoder, struct frame *ret, struct error *err)
{
    if (decoder->pending.failed)
        return error_set(err, ENOMEM, "out of memory");
    size_t available = decoder->pending.length - decoder->consumed;
    if (available < FRAME_HEADER_SIZE)
        return 0;
    const uint8_t *header = (const uint8_t *)decoder->pending.data + decoder->consumed;
    uint32_t length =
        (uint32_t)header[1] << 24 | (uint32_t)header[2] << 16 | (uint32_t)header[3] << 8 | (uint32_t)header[4];
    if (header[0] != 0 && header[0] != FLAG_END_OF_STREAM)
        return error_set(err, EPROTO, "the agent sent a frame with unknown flags 0x%02x", header[0]);
    if (length > FRAME_LENGTH_MAX)
        return error_set(err, EPROTO, "the agent sent a frame of %u bytes", length);
    if (available - FRAME_HEADER_SIZE < length)
        return 0;
    *ret = (struct frame){header[0] == FLAG_END_OF_STREAM, (const char *)header + FRAME_HEADER_SIZE, length};
    decoder->consumed += FRAME_HEADER_SIZE + length;
    return 1;
}

void frame_decoder_done(struct frame_decoder *decoder)
{
    strbuf_done(&decoder->pending);
    decoder->consumed = 0;
}

void frame_encode(struct strbuf *out, const char *payload, size_t length)
{
    const uint8_t header[FRAME_HEADER_SIZE] = {0, (uint8_t)(length >> 24), (uint8_t)(length >> 16),
                                               (uint8_t)(length >> 8), (uint8_t)length};
    strbuf_append(out, header, sizeof(header));
    strbuf_append(out, payload, length);
}
