/*
 * capture_aside.h: pages copied aside while the guest stands still, to be compared and compressed when it runs on
 * (internal to capture*.c).
 *
 * Workers fill chunks of their own; together, all captures of the process have at most CAPTURE_ASIDE_MAX. When that
 * is used up there is no more room, and pages take the slow way while the guest waits.
 *
 * Memory is faulted in ahead, before the guest is stopped: new pages cost more than copying to them.
 *
 * Threads: capture_aside_room from any; the rest from one, when no worker is left.
 */
#ifndef DORMOUSE_IMAGE_CAPTURE_ASIDE_H
#define DORMOUSE_IMAGE_CAPTURE_ASIDE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "image/capture_pipeline.h"

#define ASIDE_CHUNK_PAGES 512u

struct aside_chunk {
    struct aside_chunk *next;
    uint8_t *pages;
    uint32_t count;
    uint32_t numbers[ASIDE_CHUNK_PAGES]; /* in the image, ascending */
};

struct capture_aside {
    pthread_mutex_t lock; /* of the list, while workers run */
    struct aside_chunk *chunks;
    struct aside_chunk *ready;   /* made ahead */
    struct aside_chunk *reading; /* by capture_aside_source */
    uint32_t reading_at;
};

#define CAPTURE_ASIDE_INIT                                                                                         \
    {                                                                                                              \
        .lock = PTHREAD_MUTEX_INITIALIZER                                                                          \
    }

/* Makes room ahead for so much, or less: what is missing is made when it is needed. */
void capture_aside_prepare(struct capture_aside *aside, uint64_t bytes);
void capture_aside_done(struct capture_aside *aside);

/*
 * Room for `count` pages at the end of *chunk, a worker's own, or of a new one that takes its place (NULL before
 * the first). NULL: none is left. What was written there counts when chunk->count has grown.
 */
uint8_t *capture_aside_room(struct capture_aside *aside, uint32_t count, struct aside_chunk **chunk);

/* A source that yields them all, once. */
struct capture_source capture_aside_source(struct capture_aside *aside, const struct capture_parent *parent,
                                           const atomic_bool *cancelled);

#endif
