/*
 * Working sets: recording what is missed, and pushing it into the page cache ahead of a guest.
 *
 * Prefetching threads are apart from the storers, so that a guest that runs already isn't held up behind a long
 * prefetch. They share each prefetch, a batch of pages at a time, and take turns between prefetches. A frame is
 * read by the one that comes first to a page in it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/images_internal.h"
#include "imaged/priority.h"

/* Some hundred KiB, compressed: what the disk is asked for at once. */
#define BATCH_PAGES 64u

struct wanted_page {
    uint32_t page;
    bool resident; /* in the page cache when the prefetch began */
    _Atomic bool claimed;
};

struct prefetch {
    struct prefetch *next;
    struct served *served; /* held */
    struct wanted_page *pages;
    size_t count;
    size_t taken;     /* pages given to threads */
    unsigned workers; /* that are at it */
    int64_t begin_ns;
};

/* The wanted page, or the first one behind it. */
static size_t find_wanted(const struct prefetch *prefetch, uint64_t page)
{
    size_t low = 0;
    size_t high = prefetch->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (prefetch->pages[middle].page < page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether this thread is the one to read the frame that holds the page; if so, others needn't for its other pages.
 */
static bool claim_frame(struct prefetch *prefetch, const struct image *image, size_t wanted)
{
    if (atomic_exchange(&prefetch->pages[wanted].claimed, true))
        return false;
    struct image_mate mates[LAYER_FRAME_PAGES_MAX];
    size_t count = image_frame_mates(image, prefetch->pages[wanted].page, mates);
    for (size_t i = 0; i < count; i++) {
        size_t other = find_wanted(prefetch, mates[i].page);
        if (other < prefetch->count && prefetch->pages[other].page == mates[i].page)
            atomic_store(&prefetch->pages[other].claimed, true);
    }
    return true;
}

/* Wanted pages from `first` on that follow each other. */
static struct page_run next_run(const struct prefetch *prefetch, size_t first, size_t end)
{
    struct page_run run = {prefetch->pages[first].page, 1};
    while (first + run.count < end && prefetch->pages[first + run.count].page == run.page + run.count)
        run.count++;
    return run;
}

static void hint_batch(struct prefetch *prefetch, size_t first, size_t end,
                       void (*hint)(struct served *served, struct page_run run))
{
    while (first < end) {
        struct page_run run = next_run(prefetch, first, end);
        if (!prefetch->pages[first].resident)
            hint(prefetch->served, run);
        first += run.count;
    }
}

static void fetch_batch(struct prefetch *prefetch, size_t first, size_t end, struct frame_buffer *frame)
{
    struct served *served = prefetch->served;
    const struct image *image = atomic_load(&served->opened);
    hint_batch(prefetch, first, end, store_will_read);
    for (size_t i = first; i < end; i++) {
        if (prefetch->pages[i].resident)
            continue;
        uint64_t page = prefetch->pages[i].page;
        struct image_place place = {.zero = true, .count = 1};
        if (image != NULL)
            image_locate(image, page, &place);
        if (place.zero) {
            struct page_run run = next_run(prefetch, i, end);
            run.count = MIN(run.count, place.count);
            store_zeros_now(served, run);
            i += run.count - 1;
        } else if (claim_frame(prefetch, image, i)) {
            store_frame_now(served, page, &place, frame);
        }
    }
    hint_batch(prefetch, first, end, store_have_read);
}

/* Under the lock. Takes the prefetch off the list when all its pages are given out, else puts it last. */
static void take_turn(struct prefetcher *prefetcher, struct prefetch *prefetch)
{
    prefetcher->list = prefetch->next;
    prefetch->next = NULL;
    if (prefetch->taken == prefetch->count)
        return;
    struct prefetch **link = &prefetcher->list;
    while (*link != NULL)
        link = &(*link)->next;
    *link = prefetch;
}

static void finish(struct prefetch *prefetch)
{
    struct served *served = prefetch->served;
    struct metrics *metrics = served->images->options.metrics;
    metric_add(&metrics->prefetch_ns, (uint64_t)(clock_monotonic_ns() - prefetch->begin_ns));
    metric_add(&metrics->prefetched_pages, prefetch->count);
    metric_add(&metrics->prefetches, 1);
    atomic_store(&served->prefetching, false);
    served_put(served);
    free(prefetch->pages);
    free(prefetch);
}

static void *prefetch_pages(void *argument)
{
    struct reader *reader = argument; /* for its frame */
    struct prefetcher *prefetcher = &reader->images->prefetcher;
    priority_ahead();
    pthread_mutex_lock(&prefetcher->lock);
    for (;;) {
        while (prefetcher->list == NULL && !prefetcher->stopping)
            pthread_cond_wait(&prefetcher->filled, &prefetcher->lock);
        if (prefetcher->stopping)
            break;
        struct prefetch *prefetch = prefetcher->list;
        size_t first = prefetch->taken;
        size_t end = MIN(first + BATCH_PAGES, prefetch->count);
        prefetch->taken = end;
        prefetch->workers++;
        take_turn(prefetcher, prefetch);
        pthread_mutex_unlock(&prefetcher->lock);
        fetch_batch(prefetch, first, end, reader->frame);
        pthread_mutex_lock(&prefetcher->lock);
        if (--prefetch->workers == 0 && prefetch->taken == prefetch->count) {
            pthread_mutex_unlock(&prefetcher->lock);
            finish(prefetch);
            pthread_mutex_lock(&prefetcher->lock);
        }
    }
    pthread_mutex_unlock(&prefetcher->lock);
    return NULL;
}

int prefetcher_start(struct images *images, struct error *err)
{
    struct prefetcher *prefetcher = &images->prefetcher;
    unsigned threads = images->options.prefetchers;
    pthread_mutex_init(&prefetcher->lock, NULL);
    pthread_cond_init(&prefetcher->filled, NULL);
    prefetcher->workers = calloc(MAX(threads, 1U), sizeof(*prefetcher->workers));
    prefetcher->threads = calloc(MAX(threads, 1U), sizeof(*prefetcher->threads));
    if (prefetcher->workers == NULL || prefetcher->threads == NULL)
        return error_set(err, ENOMEM, "out of memory");
    while (prefetcher->thread_count < threads) {
        struct reader *worker = &prefetcher->workers[prefetcher->thread_count];
        worker->images = images;
        int r = frame_buffer_new(&worker->frame, err);
        if (r < 0)
            return r;
        int code = pthread_create(&prefetcher->threads[prefetcher->thread_count], NULL, prefetch_pages, worker);
        if (code != 0) {
            frame_buffer_free(TAKE_PTR(worker->frame));
            return error_code(err, -code, "cannot start a thread");
        }
        prefetcher->thread_count++;
    }
    return 0;
}

void prefetcher_stop(struct images *images)
{
    struct prefetcher *prefetcher = &images->prefetcher;
    pthread_mutex_lock(&prefetcher->lock);
    prefetcher->stopping = true;
    pthread_cond_broadcast(&prefetcher->filled);
    pthread_mutex_unlock(&prefetcher->lock);
    for (unsigned i = 0; i < prefetcher->thread_count; i++) {
        pthread_join(prefetcher->threads[i], NULL);
        frame_buffer_free(prefetcher->workers[i].frame);
    }
    prefetcher->thread_count = 0;
}

void prefetcher_done(struct images *images)
{
    struct prefetcher *prefetcher = &images->prefetcher;
    for (struct prefetch *prefetch; (prefetch = prefetcher->list) != NULL;) {
        prefetcher->list = prefetch->next;
        free(prefetch->pages);
        free(prefetch);
    }
    free(prefetcher->workers);
    free(prefetcher->threads);
    pthread_cond_destroy(&prefetcher->filled);
    pthread_mutex_destroy(&prefetcher->lock);
}

/* Asks the kernel through a mapping of the file, as any VM has one. */
static int mark_resident(struct prefetch *prefetch, struct error *err)
{
    struct served *served = prefetch->served;
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", served->images->mount_path, served->name);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    size_t length = served->pages * IMAGE_PAGE_BYTES;
    uint8_t *mapping = mmap(NULL, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (mapping == MAP_FAILED)
        return error_errno(err, "cannot map %s", path);
    unsigned char in_cache[1024];
    for (size_t i = 0; i < prefetch->count;) {
        struct page_run run = next_run(prefetch, i, MIN(i + sizeof(in_cache), prefetch->count));
        bool known = mincore(mapping + run.page * IMAGE_PAGE_BYTES, run.count * IMAGE_PAGE_BYTES, in_cache) == 0;
        for (size_t j = 0; j < run.count; j++)
            prefetch->pages[i + j].resident = known && (in_cache[j] & 1);
        i += run.count;
    }
    munmap(mapping, length);
    return 0;
}

static int fill(struct prefetch *prefetch, const struct working_set *set, struct error *err)
{
    for (size_t i = 0; i < set->count; i++)
        prefetch->count += set->runs[i].count;
    prefetch->pages = calloc(MAX(prefetch->count, 1U), sizeof(*prefetch->pages));
    if (prefetch->pages == NULL)
        return error_set(err, ENOMEM, "out of memory");
    size_t next = 0;
    for (size_t i = 0; i < set->count; i++)
        for (uint64_t j = 0; j < set->runs[i].count; j++)
            prefetch->pages[next++].page = (uint32_t)(set->runs[i].page + j);
    return mark_resident(prefetch, err);
}

int images_prefetch(struct served *served, const struct working_set *set, struct error *err)
{
    struct prefetcher *prefetcher = &served->images->prefetcher;
    if (set->count == 0 || atomic_exchange(&served->prefetching, true))
        return 0; /* for another VM of the same snapshot: the same pages */
    struct prefetch *prefetch = calloc(1, sizeof(*prefetch));
    int r = prefetch != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
    if (r == 0) {
        prefetch->begin_ns = clock_monotonic_ns();
        prefetch->served = served;
        r = fill(prefetch, set, err);
    }
    if (r < 0) {
        atomic_store(&served->prefetching, false);
        if (prefetch != NULL)
            free(prefetch->pages);
        free(prefetch);
        return r;
    }
    served_hold(served);
    pthread_mutex_lock(&prefetcher->lock);
    prefetch->next = prefetcher->list;
    prefetcher->list = prefetch;
    pthread_cond_broadcast(&prefetcher->filled);
    pthread_mutex_unlock(&prefetcher->lock);
    return 0;
}

void images_record(struct served *served)
{
    pthread_mutex_lock(&served->recording_lock);
    served->recorders++;
    pthread_mutex_unlock(&served->recording_lock);
}

int images_recorded(struct served *served, struct working_set *set)
{
    int r = 0;
    pthread_mutex_lock(&served->recording_lock);
    working_set_join(&served->recorded);
    for (size_t i = 0; r == 0 && i < served->recorded.count; i++)
        r = working_set_add(set, served->recorded.runs[i]);
    pthread_mutex_unlock(&served->recording_lock);
    return r == -ENOSPC ? 0 : r;
}

void images_record_end(struct served *served)
{
    pthread_mutex_lock(&served->recording_lock);
    if (--served->recorders == 0)
        working_set_done(&served->recorded);
    pthread_mutex_unlock(&served->recording_lock);
}

void served_record(struct served *served, struct page_run run)
{
    pthread_mutex_lock(&served->recording_lock);
    if (served->recorders > 0)
        (void)working_set_add(&served->recorded, run);
    pthread_mutex_unlock(&served->recording_lock);
}
