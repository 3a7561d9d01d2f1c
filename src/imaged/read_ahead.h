/*
 * read_ahead.h: what is worth pushing ahead of a reader, from the misses it leaves.
 *
 * Pages that are in the page cache cause no misses, so a reader that goes on where the last push ended is seen
 * exactly once for each push; each time, the next one is twice as large. A few readers are told apart.
 *
 * Pure but for its lock; any thread.
 */
#ifndef DORMOUSE_IMAGED_READ_AHEAD_H
#define DORMOUSE_IMAGED_READ_AHEAD_H

#include <pthread.h>
#include <stdint.h>

#define READ_AHEAD_STREAMS 16

struct page_run {
    uint64_t page;
    uint64_t count;
};

struct read_ahead_stream {
    uint64_t start; /* of the last push */
    uint64_t next;  /* the first page after it */
    unsigned window;
    uint64_t used; /* clock of the last miss; 0: not in use */
};

struct read_ahead {
    pthread_mutex_t lock;
    uint64_t clock;
    struct read_ahead_stream streams[READ_AHEAD_STREAMS];
};
void read_ahead_init(struct read_ahead *ahead);
void read_ahead_done(struct read_ahead *ahead);

struct read_ahead_limits {
    unsigned first; /* pages pushed after a first miss */
    unsigned next;  /* after the second one in a row; then doubled */
    unsigned most;
};

/* `missed` was read, and the pages up to `pushed` come with it. Returns what to push now; count 0: nothing. */
struct page_run read_ahead_miss(struct read_ahead *ahead, struct page_run missed, uint64_t pushed,
                                const struct read_ahead_limits *limits);

#endif
