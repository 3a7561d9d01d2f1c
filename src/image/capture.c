/*
 * The pipeline. Each worker takes a batch of runs from the source under a lock, and then works alone: it reads the
 * batch, compares it with the parent, and gives the pages that differ to the layer, several frames at once: so
 * neighbours stay neighbours, and writes are long. Fewer pages than that are kept until the next batch; what all
 * workers have left at the end is put together by the caller's thread.
 *
 * The caller is the first worker. A worker that got a full batch starts the next one, so a small capture costs no
 * thread and a large one soon has them all.
 *
 * A batch's pages that hold what they held at the last capture (page_digests.h) are where that one put them. Where
 * pages are to be left aside, the others are, as they are; else they go on to be compared.
 *
 * Invariants: a page is dropped only if it was seen equal, byte for byte, to what the parent has there, where a
 * hole of the parent's map is zeros without being read. After the first error no worker takes another batch, and
 * every worker that was started is joined. Memory: workers times (batch, parent's pages, kept pages, encoder),
 * bounded by worker_limit, and the changes.
 */
#include "image/capture.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "image/capture_aside.h"
#include "image/capture_pipeline.h"

#define WORKERS_MAX 16u
#define BATCH_BYTES (CAPTURE_BATCH_PAGES * IMAGE_PAGE_BYTES)
/* More than a frame's encoder needs besides its output: zstd's tables at its fast levels. */
#define ENCODER_STATE_BYTES (1u << 20)
/* They work while others wait for the disk. */
#define WORKERS_BEYOND_CORES 1u

_Static_assert(LAYER_ADD_PAGES <= LAYER_FRAME_PAGES_MAX, "the largest frame is the most that is kept");

struct worker {
    struct pipeline *pipeline;
    pthread_t thread;
    bool started; /* set by the one before it */

    struct capture_run runs[CAPTURE_BATCH_PAGES];
    size_t run_count;
    uint32_t numbers[CAPTURE_BATCH_PAGES]; /* in the image, of the batch's pages */
    size_t page_count;
    uint8_t *pages; /* of the batch: in `own`, or aside */
    uint8_t *own;
    uint8_t *parent_pages; /* of the stretch being compared */
    struct aside_chunk *chunk;

    struct frame_encoder *encoder;
    uint8_t *kept; /* pages that differ, until there are enough */
    uint32_t kept_numbers[LAYER_FRAME_PAGES_MAX];
    unsigned kept_count;

    struct map_extent *changes;
    size_t change_count;
    size_t change_room;
    uint64_t seen_pages;
    uint64_t changed_pages;
};

struct pipeline {
    const struct capture_source *source;
    const struct image_map *parent_map;
    struct layer_writer *layer;
    uint32_t layer_index;
    unsigned pages_at_once; /* given to the layer: whole frames */
    uint64_t image_pages;   /* no run may reach beyond */

    pthread_mutex_t lock; /* of what follows */
    struct capture_run pending;
    bool ended;
    int result; /* of the first worker that failed */
    struct error error;

    unsigned worker_count;
    struct worker workers[WORKERS_MAX];
};

static const uint8_t zero_page[IMAGE_PAGE_BYTES];

void capture_result_done(struct capture_result *result)
{
    free(result->changes);
    *result = (struct capture_result){0};
}

int capture_read_file(int fd, uint64_t page, size_t count, uint8_t *to, const char *what, struct error *err)
{
    size_t length = count * IMAGE_PAGE_BYTES;
    ssize_t n = io_pread_full(fd, to, length, (off_t)(page * IMAGE_PAGE_BYTES));
    if (n < 0)
        return error_code(err, (int)n, "reading the %s", what);
    if ((size_t)n != length)
        return error_set(err, EIO, "the %s ends before page %llu", what, (unsigned long long)(page + count));
    return 0;
}

/* One that costs nothing: the pages are there already. */
static int add_extent(struct worker *worker, uint32_t page, uint32_t count, uint32_t layer, uint32_t slot,
                      struct error *err)
{
    struct map_extent *last = worker->change_count > 0 ? &worker->changes[worker->change_count - 1] : NULL;
    if (last != NULL && last->layer == layer && last->page + last->count == page &&
        (layer == MAP_LAYER_ZERO || last->slot + last->count == slot)) {
        last->count += count;
        return 0;
    }
    if (worker->change_count == worker->change_room) {
        size_t room = MAX(worker->change_room * 2, (size_t)1024);
        struct map_extent *changes = reallocarray(worker->changes, room, sizeof(*changes));
        if (changes == NULL)
            return error_set(err, ENOMEM, "out of memory");
        worker->changes = changes;
        worker->change_room = room;
    }
    worker->changes[worker->change_count++] = (struct map_extent){page, count, layer, slot};
    return 0;
}

static int add_change(struct worker *worker, uint32_t page, uint32_t count, uint32_t layer, uint32_t slot,
                      struct error *err)
{
    worker->changed_pages += count;
    return add_extent(worker, page, count, layer, slot, err);
}

static int add_frames(struct worker *worker, const uint8_t *pages, const uint32_t *numbers, unsigned count,
                      struct error *err)
{
    struct pipeline *pipeline = worker->pipeline;
    uint32_t slot;
    int r = layer_writer_add_frames(pipeline->layer, worker->encoder, pages, count, &slot, err);
    for (unsigned i = 0; i < count && r == 0; i++)
        r = add_change(worker, numbers[i], 1, pipeline->layer_index, slot + i, err);
    return r;
}

static int add_kept(struct worker *worker, struct error *err)
{
    unsigned count = worker->kept_count;
    worker->kept_count = 0;
    return count == 0 ? 0 : add_frames(worker, worker->kept, worker->kept_numbers, count, err);
}

static int keep_page(struct worker *worker, const uint8_t *page, uint32_t number, struct error *err)
{
    memcpy(worker->kept + (size_t)worker->kept_count * IMAGE_PAGE_BYTES, page, IMAGE_PAGE_BYTES);
    worker->kept_numbers[worker->kept_count++] = number;
    return worker->kept_count == worker->pipeline->pages_at_once ? add_kept(worker, err) : 0;
}

/* Pages `changed` (places in the batch, ascending) go to the layer, now or when there are more. Nothing is copied
 * if all are there at once. */
static int store_pages(struct worker *worker, const uint32_t *changed, size_t count, struct error *err)
{
    unsigned at_once = worker->pipeline->pages_at_once;
    if (worker->kept_count == 0 && count == at_once && changed[count - 1] - changed[0] == count - 1)
        return add_frames(worker, worker->pages + (size_t)changed[0] * IMAGE_PAGE_BYTES,
                          &worker->numbers[changed[0]], at_once, err);
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = keep_page(worker, worker->pages + (size_t)changed[i] * IMAGE_PAGE_BYTES, worker->numbers[changed[i]],
                      err);
    return r;
}

/* How many pages from `page` on, up to `end`, the parent's map has (*ret_has) or doesn't have, like the first one.
 */
static uint64_t parent_stretch(const struct image_map *map, uint64_t page, uint64_t end, bool *ret_has)
{
    if (map == NULL) {
        *ret_has = false;
        return end - page;
    }
    uint64_t next;
    *ret_has = image_map_find(map, page, &next) != NULL;
    while (next < end && (image_map_find(map, next, NULL) != NULL) == *ret_has)
        image_map_find(map, next, &next);
    return MIN(next, end) - page;
}

/* Compares `count` pages of the batch with the parent's map, which has them (`has`) or is zero there. Places of
 * those to be stored are added to `changed`. */
static int compare_stretch(struct worker *worker, size_t first, size_t count, bool has, uint32_t *changed,
                           size_t *changed_count, struct error *err)
{
    if (has) {
        int r = capture_read_file(worker->pipeline->source->parent->fd, worker->numbers[first], count,
                                  worker->parent_pages, "parent image", err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < count; i++) {
        const uint8_t *page = worker->pages + (first + i) * IMAGE_PAGE_BYTES;
        if (has && memcmp(page, worker->parent_pages + i * IMAGE_PAGE_BYTES, IMAGE_PAGE_BYTES) == 0)
            continue;
        if (memcmp(page, zero_page, IMAGE_PAGE_BYTES) != 0) {
            changed[(*changed_count)++] = (uint32_t)(first + i);
        } else if (has) {
            int r = add_change(worker, worker->numbers[first + i], 1, MAP_LAYER_ZERO, 0, err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* A run that is zero now: changed is what the parent has. */
static int record_zeros(struct worker *worker, const struct capture_run *run, struct error *err)
{
    uint64_t end = run->page + run->count;
    for (uint64_t page = run->page; page < end;) {
        bool has;
        uint64_t count = parent_stretch(worker->pipeline->parent_map, page, end, &has);
        int r = has ? add_change(worker, (uint32_t)page, (uint32_t)count, MAP_LAYER_ZERO, 0, err) : 0;
        if (r < 0)
            return r;
        page += count;
    }
    return 0;
}

/* The lock is held, as in take_run and fill_batch. 1, or 0 at the end of the source. */
static int refill_pending(struct pipeline *pipeline, struct error *err)
{
    struct capture_run *pending = &pipeline->pending;
    if (pending->count > 0)
        return 1;
    int r = pipeline->source->next(pipeline->source->context, pending, err);
    pipeline->ended = r == 0;
    if (r > 0 && (pending->page > pipeline->image_pages || pending->count > pipeline->image_pages - pending->page))
        return error_set(err, ERANGE, "page %llu is beyond the end of the image",
                         (unsigned long long)(pending->page + pending->count - 1));
    return r;
}

/* Moves as much of the pending run as there is room for to the worker's batch. */
static void take_run(struct pipeline *pipeline, struct worker *worker)
{
    struct capture_run *pending = &pipeline->pending;
    struct capture_run *run = &worker->runs[worker->run_count++];
    *run = *pending;
    run->count = MIN(pending->count, (uint64_t)(CAPTURE_BATCH_PAGES - worker->page_count));
    for (uint64_t i = 0; i < run->count; i++)
        worker->numbers[worker->page_count++] = (uint32_t)(run->page + i);
    pending->page += run->count;
    pending->position += run->count * IMAGE_PAGE_BYTES;
    pending->count -= run->count;
    worker->seen_pages += run->count;
}

static int fill_batch(struct pipeline *pipeline, struct worker *worker, struct error *err)
{
    while (worker->page_count < CAPTURE_BATCH_PAGES) {
        int r = refill_pending(pipeline, err);
        if (r <= 0)
            return r;
        if (!pipeline->pending.zero) {
            take_run(pipeline, worker);
            continue;
        }
        r = record_zeros(worker, &pipeline->pending, err);
        if (r < 0)
            return r;
        worker->seen_pages += pipeline->pending.count;
        pipeline->pending.count = 0;
    }
    return 0;
}

/* 1 when there is a batch to work on. */
static int take_batch(struct worker *worker, struct error *err)
{
    struct pipeline *pipeline = worker->pipeline;
    worker->run_count = 0;
    worker->page_count = 0;
    pthread_mutex_lock(&pipeline->lock);
    bool stop = pipeline->result < 0 || pipeline->ended;
    const atomic_bool *cancelled = pipeline->source->cancelled;
    if (!stop && cancelled != NULL && atomic_load(cancelled)) {
        pthread_mutex_unlock(&pipeline->lock);
        return error_set(err, ECANCELED, "it was cancelled");
    }
    int r = stop ? 0 : fill_batch(pipeline, worker, err);
    pthread_mutex_unlock(&pipeline->lock);
    return r < 0 ? r : worker->run_count > 0;
}

static int compare_and_store(struct worker *worker, struct error *err)
{
    uint32_t changed[CAPTURE_BATCH_PAGES];
    size_t changed_count = 0;
    size_t first = 0;
    int r = 0;
    for (size_t i = 0; i < worker->run_count && r == 0; i++) {
        uint64_t end = worker->runs[i].page + worker->runs[i].count;
        for (uint64_t page = worker->runs[i].page; page < end && r == 0;) {
            bool has;
            uint64_t count = parent_stretch(worker->pipeline->parent_map, page, end, &has);
            r = compare_stretch(worker, first, count, has, changed, &changed_count, err);
            first += count;
            page += count;
        }
    }
    return r < 0 ? r : store_pages(worker, changed, changed_count, err);
}

/* 1 when the page holds what it held at the last capture: it is where that one put it. */
static int take_over(struct worker *worker, uint32_t number, const uint8_t *page, struct error *err)
{
    const struct capture_source *source = worker->pipeline->source;
    const struct capture_last *last = source->last;
    struct page_digest digest = page_digest_of(source->record != NULL ? source->record : last->digests, page);
    if (source->record != NULL)
        page_digests_set(source->record, number, digest);
    if (last == NULL || !page_digests_match(last->digests, number, digest))
        return 0;
    const struct map_extent *extent = image_map_find(last->map, number, NULL);
    int r = extent == NULL
                ? add_extent(worker, number, 1, MAP_LAYER_ZERO, 0, err)
                : add_extent(worker, number, 1, extent->layer, extent->slot + (number - extent->page), err);
    return r < 0 ? r : 1;
}

/* The runs of the pages that the batch has now. */
static void rebuild_runs(struct worker *worker)
{
    worker->run_count = 0;
    for (size_t i = 0; i < worker->page_count; i++) {
        if (i == 0 || worker->numbers[i] != worker->numbers[i - 1] + 1)
            worker->runs[worker->run_count++] = (struct capture_run){.page = worker->numbers[i]};
        worker->runs[worker->run_count - 1].count++;
    }
}

/* Pages that are taken over leave the batch; the others move up. */
static int drop_known(struct worker *worker, struct error *err)
{
    size_t kept = 0;
    for (size_t i = 0; i < worker->page_count; i++) {
        const uint8_t *page = worker->pages + i * IMAGE_PAGE_BYTES;
        int r = take_over(worker, worker->numbers[i], page, err);
        if (r < 0)
            return r;
        if (r > 0)
            continue;
        if (kept < i)
            memcpy(worker->pages + kept * IMAGE_PAGE_BYTES, page, IMAGE_PAGE_BYTES);
        worker->numbers[kept++] = worker->numbers[i];
    }
    bool dropped = kept < worker->page_count;
    worker->page_count = kept;
    if (dropped)
        rebuild_runs(worker);
    return 0;
}

/* They are read to where they stay. */
static uint8_t *find_room(struct worker *worker)
{
    struct capture_aside *aside = worker->pipeline->source->aside;
    return aside != NULL ? capture_aside_room(aside, (uint32_t)worker->page_count, &worker->chunk) : NULL;
}

static void leave_aside(struct worker *worker)
{
    struct aside_chunk *chunk = worker->chunk;
    memcpy(&chunk->numbers[chunk->count], worker->numbers, worker->page_count * sizeof(worker->numbers[0]));
    chunk->count += (uint32_t)worker->page_count;
}

static int work_on_batch(struct worker *worker, struct error *err)
{
    const struct capture_source *source = worker->pipeline->source;
    uint8_t *room = find_room(worker);
    worker->pages = room != NULL ? room : worker->own;
    int r = source->read(source->context, worker->runs, worker->run_count, worker->pages, err);
    if (r == 0 && (source->last != NULL || source->record != NULL))
        r = drop_known(worker, err);
    if (r == 0 && room != NULL)
        leave_aside(worker);
    return r < 0 || room != NULL ? r : compare_and_store(worker, err);
}

static int worker_prepare(struct worker *worker, struct error *err)
{
    size_t kept_bytes = (size_t)worker->pipeline->pages_at_once * IMAGE_PAGE_BYTES;
    worker->own = aligned_alloc(IMAGE_PAGE_BYTES, BATCH_BYTES);
    worker->parent_pages = aligned_alloc(IMAGE_PAGE_BYTES, BATCH_BYTES);
    worker->kept = aligned_alloc(IMAGE_PAGE_BYTES, kept_bytes);
    if (worker->own == NULL || worker->parent_pages == NULL || worker->kept == NULL)
        return error_set(err, ENOMEM, "out of memory");
    return frame_encoder_new(worker->pipeline->layer, &worker->encoder, err);
}

static void worker_done(struct worker *worker)
{
    free(worker->own);
    free(worker->parent_pages);
    free(worker->kept);
    free(worker->changes);
    frame_encoder_free(worker->encoder);
}

static void keep_first_error(struct pipeline *pipeline, int result, struct error *err)
{
    pthread_mutex_lock(&pipeline->lock);
    if (pipeline->result == 0) {
        pipeline->result = result;
        error_move(&pipeline->error, err);
    }
    pthread_mutex_unlock(&pipeline->lock);
}

static void *worker_main(void *context);

/* Fewer workers than wanted are slower, nothing else, so a failure to start one is none. */
static void start_next_worker(struct worker *worker)
{
    struct pipeline *pipeline = worker->pipeline;
    struct worker *next = worker + 1;
    if (next == &pipeline->workers[pipeline->worker_count] || next->started)
        return;
    next->pipeline = pipeline;
    next->started = pthread_create(&next->thread, NULL, worker_main, next) == 0;
}

static void *worker_main(void *context)
{
    struct worker *worker = context;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = worker_prepare(worker, &err);
    while (r == 0 && (r = take_batch(worker, &err)) > 0) {
        if (worker->page_count == CAPTURE_BATCH_PAGES)
            start_next_worker(worker);
        r = work_on_batch(worker, &err);
    }
    if (r < 0)
        keep_first_error(worker->pipeline, r, &err);
    return NULL;
}

/* All that workers have left, as frames of the first one. */
static int store_leftovers(struct pipeline *pipeline, struct error *err)
{
    struct worker *first = &pipeline->workers[0];
    int r = 0;
    for (unsigned i = 1; i < pipeline->worker_count; i++) {
        const struct worker *worker = &pipeline->workers[i];
        for (unsigned j = 0; j < worker->kept_count && r == 0; j++)
            r = keep_page(first, worker->kept + (size_t)j * IMAGE_PAGE_BYTES, worker->kept_numbers[j], err);
    }
    return r < 0 ? r : add_kept(first, err);
}

static int collect(struct pipeline *pipeline, struct capture_result *ret, struct error *err)
{
    struct capture_result result = {0};
    size_t total = 0;
    for (unsigned i = 0; i < pipeline->worker_count; i++)
        total += pipeline->workers[i].change_count;
    struct map_extent *changes = reallocarray(NULL, MAX(total, (size_t)1), sizeof(*changes));
    if (changes == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < pipeline->worker_count; i++) {
        const struct worker *worker = &pipeline->workers[i];
        if (worker->change_count > 0)
            memcpy(changes + result.change_count, worker->changes, worker->change_count * sizeof(*changes));
        result.change_count += worker->change_count;
        result.private_bytes += worker->seen_pages * IMAGE_PAGE_BYTES;
        result.changed_bytes += worker->changed_pages * IMAGE_PAGE_BYTES;
    }
    result.change_count = map_changes_sort(changes, total);
    result.changes = changes;
    *ret = result;
    return 0;
}

static unsigned worker_limit(unsigned pages_at_once)
{
    size_t kept_bytes = (size_t)pages_at_once * IMAGE_PAGE_BYTES;
    size_t worker_bytes = 2 * BATCH_BYTES + 2 * kept_bytes + ENCODER_STATE_BYTES; /* the encoder has as much */
    size_t limit = MIN(CAPTURE_MEMORY_MAX / 2 / worker_bytes, (size_t)WORKERS_MAX);
    size_t cores = (size_t)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L);
    return (unsigned)MIN(cores + WORKERS_BEYOND_CORES, limit);
}

int capture_pipeline_run(const struct capture_source *source, struct layer_writer *layer, uint32_t layer_index,
                         struct capture_result *ret, struct error *err)
{
    CLEANUP_FREE struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    if (pipeline == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pipeline->source = source;
    pipeline->parent_map = source->parent->map;
    pipeline->layer = layer;
    pipeline->layer_index = layer_index;
    pipeline->pages_at_once = MAX(layer_writer_frame_pages(layer), LAYER_ADD_PAGES);
    pipeline->image_pages = UINT32_MAX;
    if (source->parent->map != NULL)
        pipeline->image_pages = MIN(source->parent->map->pages, pipeline->image_pages);
    pipeline->worker_count = worker_limit(pipeline->pages_at_once);
    pipeline->lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    uint64_t stored_before = layer_writer_stored_bytes(layer);

    pipeline->workers[0].pipeline = pipeline;
    worker_main(&pipeline->workers[0]);
    /* A worker is started by the one before it, which has ended here. */
    for (unsigned i = 1; i < pipeline->worker_count && pipeline->workers[i].started; i++)
        pthread_join(pipeline->workers[i].thread, NULL);
    int r = pipeline->result;
    if (r < 0)
        error_move(err, &pipeline->error);
    error_done(&pipeline->error);
    if (r == 0)
        r = store_leftovers(pipeline, err);
    if (r == 0)
        r = collect(pipeline, ret, err);
    if (r == 0)
        ret->stored_bytes = layer_writer_stored_bytes(layer) - stored_before;
    for (unsigned i = 0; i < pipeline->worker_count; i++)
        worker_done(&pipeline->workers[i]);
    return r;
}
