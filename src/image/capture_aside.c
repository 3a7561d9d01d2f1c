#include "image/capture_aside.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define CHUNK_BYTES ((size_t)ASIDE_CHUNK_PAGES * IMAGE_PAGE_BYTES)
#define CHUNKS_MAX  (CAPTURE_ASIDE_MAX / CHUNK_BYTES)

/* Of all captures. */
static atomic_size_t chunks_used;

static struct aside_chunk *chunk_new(void)
{
    if (atomic_fetch_add(&chunks_used, 1) < CHUNKS_MAX) {
        struct aside_chunk *chunk = malloc(sizeof(*chunk));
        void *pages = mmap(NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk != NULL && pages != MAP_FAILED) {
            *chunk = (struct aside_chunk){.pages = pages};
            return chunk;
        }
        free(chunk);
        if (pages != MAP_FAILED)
            munmap(pages, CHUNK_BYTES);
    }
    atomic_fetch_sub(&chunks_used, 1);
    return NULL;
}

static void chunk_free(struct aside_chunk *chunk)
{
    munmap(chunk->pages, CHUNK_BYTES);
    free(chunk);
    atomic_fetch_sub(&chunks_used, 1);
}

static void free_all(struct aside_chunk *chunks)
{
    while (chunks != NULL) {
        struct aside_chunk *chunk = chunks;
        chunks = chunk->next;
        chunk_free(chunk);
    }
}

void capture_aside_done(struct capture_aside *aside)
{
    free_all(aside->chunks);
    free_all(aside->ready);
    aside->chunks = aside->ready = NULL;
}

void capture_aside_prepare(struct capture_aside *aside, uint64_t bytes)
{
    for (uint64_t made = 0; made < bytes; made += CHUNK_BYTES) {
        struct aside_chunk *chunk = chunk_new();
        if (chunk == NULL)
            return;
        madvise(chunk->pages, CHUNK_BYTES, MADV_POPULATE_WRITE); /* Linux 5.14; else they are made on the way */
        chunk->next = aside->ready;
        aside->ready = chunk;
    }
}

static struct aside_chunk *take_ready(struct capture_aside *aside)
{
    pthread_mutex_lock(&aside->lock);
    struct aside_chunk *chunk = aside->ready;
    if (chunk != NULL)
        aside->ready = chunk->next;
    pthread_mutex_unlock(&aside->lock);
    return chunk;
}

uint8_t *capture_aside_room(struct capture_aside *aside, uint32_t count, struct aside_chunk **chunk)
{
    if (*chunk == NULL || ASIDE_CHUNK_PAGES - (*chunk)->count < count) {
        struct aside_chunk *next = take_ready(aside);
        if (next == NULL)
            next = chunk_new();
        if (next == NULL)
            return NULL;
        pthread_mutex_lock(&aside->lock);
        next->next = aside->chunks;
        aside->chunks = next;
        pthread_mutex_unlock(&aside->lock);
        *chunk = next;
    }
    return (*chunk)->pages + (size_t)(*chunk)->count * IMAGE_PAGE_BYTES;
}

static int next_run(void *context, struct capture_run *ret, struct error *err)
{
    (void)err;
    struct capture_aside *aside = context;
    while (aside->reading != NULL && aside->reading_at == aside->reading->count) {
        aside->reading = aside->reading->next;
        aside->reading_at = 0;
    }
    const struct aside_chunk *chunk = aside->reading;
    if (chunk == NULL)
        return 0;
    uint32_t first = aside->reading_at;
    uint32_t end = first + 1;
    while (end < chunk->count && chunk->numbers[end] == chunk->numbers[end - 1] + 1)
        end++;
    aside->reading_at = end;
    *ret = (struct capture_run){
        .page = chunk->numbers[first],
        .count = end - first,
        .position = (uintptr_t)(chunk->pages + (size_t)first * IMAGE_PAGE_BYTES),
    };
    return 1;
}

static int read_runs(void *context, const struct capture_run *runs, size_t count, uint8_t *to, struct error *err)
{
    (void)context;
    (void)err;
    for (size_t i = 0; i < count; i++) {
        memcpy(to, (const void *)(uintptr_t)runs[i].position, runs[i].count * IMAGE_PAGE_BYTES);
        to += runs[i].count * IMAGE_PAGE_BYTES;
    }
    return 0;
}

struct capture_source capture_aside_source(struct capture_aside *aside, const struct capture_parent *parent,
                                           const atomic_bool *cancelled)
{
    aside->reading = aside->chunks;
    aside->reading_at = 0;
    return (struct capture_source){
        .next = next_run, .read = read_runs, .context = aside, .parent = parent, .cancelled = cancelled};
}
