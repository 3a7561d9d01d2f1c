/* The storers: threads that push pages into the page cache (images.h says why they are separate). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "imaged/images_internal.h"
#include "imaged/priority.h"

#define JOBS_MAX        512u
#define SPARE_BUFFERS   64u
#define RECENT_FRAMES   4096u
#define RUN_PAGES       64u /* of one job, so that several storers share a long run */
#define ZERO_PAGES_ONCE 512u

struct job {
    enum { JOB_FRAME, JOB_RUN, JOB_INVALIDATE } kind;
    struct served *served; /* held */
    struct page_run run;   /* JOB_FRAME: `page` is one that is in the frame */
    struct frame_buffer *frame;
    const uint8_t *pages;
    unsigned page_count;
};

static uint8_t zero_pages[ZERO_PAGES_ONCE * IMAGE_PAGE_BYTES];

bool store_note_frame(struct images *images, const struct layer *layer, uint32_t frame)
{
    uint64_t key = ((uint64_t)(uintptr_t)layer << 26) ^ frame;
    uint64_t hash = (key * UINT64_C(0x9e3779b97f4a7c15)) >> 52;
    return atomic_exchange_explicit(&images->queue.recent[hash % RECENT_FRAMES], key, memory_order_relaxed) == key;
}

/* false: there is no file any more to push into. */
static bool push(struct served *served, uint64_t page, const void *bytes, uint64_t count)
{
    struct images *images = served->images;
    struct fuse_bufvec buffers = FUSE_BUFVEC_INIT(count * IMAGE_PAGE_BYTES);
    buffers.buf[0].mem = (void *)(uintptr_t)bytes;
    int r = fuse_lowlevel_notify_store(fuse_mount_session(images->mount), (fuse_ino_t)(uintptr_t)served,
                                       (off_t)(page * IMAGE_PAGE_BYTES), &buffers, 0);
    if (r == 0)
        metric_add(&images->options.metrics->stored_pages, count);
    return r == 0;
}

/* With `answered`, `page` itself is there already. */
static void push_mates(struct served *served, const struct image *image, uint64_t page, bool answered,
                       const uint8_t *pages, unsigned page_count)
{
    struct image_mate mates[LAYER_FRAME_PAGES_MAX];
    size_t count = image_frame_mates(image, page, mates);
    for (size_t i = 0; i < count;) {
        size_t run = 1;
        while (i + run < count && mates[i + run].page == mates[i].page + run &&
               mates[i + run].index == mates[i].index + run)
            run++;
        bool needed = run > 1 || mates[i].page != page || !answered;
        if (needed && mates[i].index + run <= page_count &&
            !push(served, mates[i].page, pages + (size_t)mates[i].index * IMAGE_PAGE_BYTES, run))
            return;
        i += run;
    }
}

/* Calls `hint` for the runs of frames that hold the pages. */
static void hint_frames(const struct image *image, struct page_run run,
                        void (*hint)(struct layer *layer, uint32_t first, uint32_t count))
{
    struct layer *layer = NULL;
    uint32_t first = 0;
    uint32_t count = 0;
    for (uint64_t page = run.page; image != NULL && page < run.page + run.count;) {
        struct image_place place;
        image_locate(image, page, &place);
        page += place.count;
        if (place.zero)
            continue;
        if (place.layer == layer && place.frame - first <= count) {
            count = MAX(count, place.frame - first + 1);
            continue;
        }
        if (layer != NULL)
            hint(layer, first, count);
        layer = place.layer;
        first = place.frame;
        count = 1;
    }
    if (layer != NULL)
        hint(layer, first, count);
}

void store_will_read(struct served *served, struct page_run run)
{
    hint_frames(atomic_load(&served->opened), run, layer_will_read);
}

void store_have_read(struct served *served, struct page_run run)
{
    hint_frames(atomic_load(&served->opened), run, layer_have_read);
}

void store_frame_now(struct served *served, uint64_t page, const struct image_place *place,
                     struct frame_buffer *frame)
{
    const uint8_t *pages;
    int count = layer_read_frame(place->layer, place->frame, frame, &pages, NULL);
    if (count < 0)
        return; /* who really wants the page will learn why */
    metric_add(&served->images->options.metrics->decompressed_bytes, (uint64_t)count * IMAGE_PAGE_BYTES);
    push_mates(served, atomic_load(&served->opened), page, false, pages, (unsigned)count);
}

void store_zeros_now(struct served *served, struct page_run run)
{
    while (run.count > 0) {
        uint64_t count = MIN(run.count, ZERO_PAGES_ONCE);
        if (!push(served, run.page, zero_pages, count))
            return;
        run.page += count;
        run.count -= count;
    }
}

static void store_run_now(struct served *served, struct page_run run, struct frame_buffer *frame)
{
    struct images *images = served->images;
    const struct image *image = atomic_load(&served->opened);
    uint64_t end = run.page + run.count;
    store_will_read(served, run);
    for (uint64_t page = run.page; page < end;) {
        struct image_place place = {.zero = true, .count = end - page};
        if (image != NULL)
            image_locate(image, page, &place);
        uint64_t count = MIN(place.count, end - page);
        if (place.zero)
            store_zeros_now(served, (struct page_run){page, count});
        else if (!store_note_frame(images, place.layer, place.frame))
            store_frame_now(served, page, &place, frame);
        page += count;
    }
    store_have_read(served, run);
}

static void work(struct job *job, struct frame_buffer *frame)
{
    struct served *served = job->served;
    int64_t begin_ns = clock_monotonic_ns();
    switch (job->kind) {
    case JOB_FRAME:
        push_mates(served, atomic_load(&served->opened), job->run.page, true, job->pages, job->page_count);
        break;
    case JOB_RUN:
        store_run_now(served, job->run, frame);
        break;
    case JOB_INVALIDATE:
        fuse_lowlevel_notify_inval_inode(fuse_mount_session(served->images->mount), (fuse_ino_t)(uintptr_t)served,
                                         (off_t)(job->run.page * IMAGE_PAGE_BYTES),
                                         (off_t)(job->run.count * IMAGE_PAGE_BYTES));
        return;
    }
    histogram_add(&served->images->options.metrics->fetch, clock_monotonic_ns() - begin_ns);
}

struct storer_start {
    struct images *images;
    struct frame_buffer *frame;
};

static void *store(void *argument)
{
    struct storer_start start = *(struct storer_start *)argument;
    free(argument);
    priority_ahead();
    struct store_queue *queue = &start.images->queue;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        while (queue->count == 0 && !queue->stopping)
            pthread_cond_wait(&queue->filled, &queue->lock);
        if (queue->stopping)
            break;
        struct job job = queue->jobs[queue->first];
        queue->first = (queue->first + 1) % JOBS_MAX;
        queue->count--;
        pthread_mutex_unlock(&queue->lock);
        work(&job, start.frame);
        served_put(job.served);
        pthread_mutex_lock(&queue->lock);
        if (job.frame != NULL)
            queue->spare[queue->spare_count++] = job.frame;
    }
    pthread_mutex_unlock(&queue->lock);
    frame_buffer_free(start.frame);
    return NULL;
}

/* Under the lock; there is room. */
static void append(struct store_queue *queue, const struct job *job)
{
    queue->jobs[(queue->first + queue->count) % JOBS_MAX] = *job;
    queue->count++;
    pthread_cond_signal(&queue->filled);
}

static void add_job(const struct job *job)
{
    struct images *images = job->served->images;
    struct store_queue *queue = &images->queue;
    served_hold(job->served);
    pthread_mutex_lock(&queue->lock);
    bool room = queue->count < JOBS_MAX && !queue->stopping;
    if (room)
        append(queue, job);
    pthread_mutex_unlock(&queue->lock);
    if (!room) {
        served_put(job->served);
        metric_add(&images->options.metrics->dropped_stores, 1);
    }
}

void store_frame(struct served *served, uint64_t page, struct frame_buffer **frame, const uint8_t *pages,
                 unsigned page_count)
{
    struct images *images = served->images;
    struct store_queue *queue = &images->queue;
    if (page_count < 2)
        return;
    served_hold(served);
    pthread_mutex_lock(&queue->lock);
    bool room = queue->count < JOBS_MAX && queue->spare_count > 0 && !queue->stopping;
    if (room) {
        struct job job = {.kind = JOB_FRAME,
                          .served = served,
                          .run = {page, 1},
                          .frame = *frame,
                          .pages = pages,
                          .page_count = page_count};
        *frame = queue->spare[--queue->spare_count];
        append(queue, &job);
    }
    pthread_mutex_unlock(&queue->lock);
    if (!room) {
        served_put(served);
        metric_add(&images->options.metrics->dropped_stores, 1);
    }
}

void store_run(struct served *served, struct page_run run)
{
    uint64_t end = run.page + run.count;
    while (run.page < end) {
        struct job job = {.kind = JOB_RUN, .served = served, .run = {run.page, MIN(RUN_PAGES, end - run.page)}};
        add_job(&job);
        run.page += RUN_PAGES;
    }
}

void store_invalidate(struct served *served, struct page_run run)
{
    struct job job = {.kind = JOB_INVALIDATE, .served = served, .run = run};
    add_job(&job);
}

static int start_storer(struct images *images, struct error *err)
{
    struct store_queue *queue = &images->queue;
    struct storer_start *start = malloc(sizeof(*start));
    if (start == NULL)
        return error_set(err, ENOMEM, "out of memory");
    start->images = images;
    int r = frame_buffer_new(&start->frame, err);
    if (r < 0) {
        free(start);
        return r;
    }
    struct frame_buffer *frame = start->frame;
    int code = pthread_create(&queue->threads[queue->thread_count], NULL, store, start);
    if (code != 0) {
        frame_buffer_free(frame);
        free(start);
        return error_code(err, -code, "cannot start a thread");
    }
    queue->thread_count++;
    return 0;
}

int store_queue_start(struct images *images, struct error *err)
{
    struct store_queue *queue = &images->queue;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->filled, NULL);
    queue->jobs = calloc(JOBS_MAX, sizeof(*queue->jobs));
    /* Each thread that answers exchanges the buffer it begins with, so there are never more than these to put back.
     */
    queue->spare = calloc(SPARE_BUFFERS, sizeof(struct frame_buffer *));
    queue->recent = calloc(RECENT_FRAMES, sizeof(*queue->recent));
    queue->threads = calloc(images->options.storers, sizeof(*queue->threads));
    if (queue->jobs == NULL || queue->spare == NULL || queue->recent == NULL || queue->threads == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = 0;
    for (; r == 0 && queue->spare_count < SPARE_BUFFERS; queue->spare_count += r == 0)
        r = frame_buffer_new(&queue->spare[queue->spare_count], err);
    while (r == 0 && queue->thread_count < images->options.storers)
        r = start_storer(images, err);
    return r;
}

void store_queue_stop(struct images *images)
{
    struct store_queue *queue = &images->queue;
    pthread_mutex_lock(&queue->lock);
    queue->stopping = true;
    pthread_cond_broadcast(&queue->filled);
    pthread_mutex_unlock(&queue->lock);
    for (unsigned i = 0; i < queue->thread_count; i++)
        pthread_join(queue->threads[i], NULL);
    queue->thread_count = 0;
}

void store_queue_done(struct images *images)
{
    struct store_queue *queue = &images->queue;
    for (unsigned i = 0; i < queue->count; i++)
        frame_buffer_free(queue->jobs[(queue->first + i) % JOBS_MAX].frame);
    for (unsigned i = 0; i < queue->spare_count; i++)
        frame_buffer_free(queue->spare[i]);
    free(queue->jobs);
    free(queue->spare);
    free(queue->recent);
    free(queue->threads);
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->lock);
}
