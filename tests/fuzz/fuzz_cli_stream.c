/*
 * The CLI's reader of a Start stream: frames, then the messages in them. The first byte says in pieces of how many
 * bytes the rest arrives, which must make no difference to what is found.
 */
#include <stdlib.h>

#include "cli/connect_frame.h"
#include "cli/process_event.h"
#include "fuzz.h"

/* A number that depends on everything that was decoded up to the first error. */
static uint64_t decode(const uint8_t *data, size_t size, size_t piece)
{
    struct frame_decoder decoder = FRAME_DECODER_INIT;
    uint64_t sum = 0;
    int r = 0;
    for (size_t at = 0; at < size && r >= 0; at += piece) {
        frame_decoder_feed(&decoder, data + at, MIN(piece, size - at));
        struct frame frame;
        while ((r = frame_decoder_next(&decoder, &frame, NULL)) > 0) {
            struct process_event event;
            sum = sum * 31 + frame.length + frame.end_of_stream;
            if (process_event_parse(frame.payload, frame.length, &event, NULL) < 0)
                continue;
            if (event.kind == PROCESS_EVENT_END && (event.exit_status < 0 || event.exit_status > 255))
                abort();
            sum = sum * 31 + (uint64_t)event.kind + (uint64_t)event.pid + event.data.length;
            process_event_done(&event);
        }
    }
    frame_decoder_done(&decoder);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    size_t piece = (size_t)data[0] + 1;
    if (decode(data + 1, size - 1, piece) != decode(data + 1, size - 1, SIZE_MAX / 2))
        abort();
    return 0;
}
