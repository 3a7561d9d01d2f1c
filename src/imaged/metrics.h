/*
 * metrics.h: what the image server counts. Counters are only ever added to, by any thread, without a lock.
 */
#ifndef DORMOUSE_IMAGED_METRICS_H
#define DORMOUSE_IMAGED_METRICS_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BUCKETS 24

/* Bucket i counts what took less than 2^i µs and not less than the one before; the last one, all that took longer.
 */
struct histogram {
    _Atomic uint64_t buckets[HISTOGRAM_BUCKETS];
    _Atomic uint64_t sum_ns;
};
void histogram_add(struct histogram *histogram, int64_t ns);
json_t *histogram_json(struct histogram *histogram);

struct metrics {
    _Atomic uint64_t misses;             /* reads that the page cache couldn't answer */
    _Atomic uint64_t miss_pages;         /* asked for by them */
    _Atomic uint64_t stored_pages;       /* pushed into the page cache besides */
    _Atomic uint64_t dropped_stores;     /* not pushed because the queue was full */
    _Atomic uint64_t decompressed_bytes; /* out of frames */
    _Atomic uint64_t failed_reads;       /* answered with EIO */
    _Atomic uint64_t refused_writes;     /* to images */
    _Atomic uint64_t overlay_read_bytes;
    _Atomic uint64_t overlay_written_bytes;
    _Atomic uint64_t overlay_full; /* writes answered with ENOSPC */
    _Atomic uint64_t prefetches;
    _Atomic uint64_t prefetched_pages;
    _Atomic uint64_t prefetch_ns;
    _Atomic uint64_t stalled_samples; /* threads seen in balance_dirty_pages */
    _Atomic uint64_t stalled_threads; /* of them, at the last look */
    struct histogram fetch;           /* from the begin of a fetch until its pages are in the page cache */
};

static inline void metric_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* NULL when memory runs out. */
json_t *metrics_json(struct metrics *metrics);

#endif
