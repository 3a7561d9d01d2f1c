#include "imaged/read_ahead.h"

#include <stdbool.h>

#include "base/macro.h"

/* A reader may step over a little. */
#define SLACK_PAGES 16u

void read_ahead_init(struct read_ahead *ahead)
{
    *ahead = (struct read_ahead){0};
    pthread_mutex_init(&ahead->lock, NULL);
}

void read_ahead_done(struct read_ahead *ahead)
{
    pthread_mutex_destroy(&ahead->lock);
}

/* The stream that `page` belongs to, or the one that was idle for longest, emptied. */
static struct read_ahead_stream *find_stream(struct read_ahead *ahead, uint64_t page)
{
    struct read_ahead_stream *oldest = &ahead->streams[0];
    for (unsigned i = 0; i < READ_AHEAD_STREAMS; i++) {
        struct read_ahead_stream *stream = &ahead->streams[i];
        if (stream->used != 0 && page >= stream->start && page < stream->next + SLACK_PAGES)
            return stream;
        if (stream->used < oldest->used)
            oldest = stream;
    }
    *oldest = (struct read_ahead_stream){0};
    return oldest;
}

struct page_run read_ahead_miss(struct read_ahead *ahead, struct page_run missed, uint64_t pushed,
                                const struct read_ahead_limits *limits)
{
    struct page_run push = {.page = pushed};
    pthread_mutex_lock(&ahead->lock);
    struct read_ahead_stream *stream = find_stream(ahead, missed.page);
    bool known = stream->used != 0;
    stream->used = ++ahead->clock;
    if (!known) {
        push.count = limits->first;
        stream->start = missed.page;
        stream->next = pushed + push.count;
        stream->window = limits->first;
    } else if (missed.page + missed.count > stream->next) {
        stream->window = MIN(MAX(stream->window * 2, limits->next), limits->most);
        push.count = stream->window;
        stream->start = missed.page;
        stream->next = pushed + push.count;
    }
    /* Else the reader is faster than the storers, who are at it. */
    pthread_mutex_unlock(&ahead->lock);
    return push;
}
