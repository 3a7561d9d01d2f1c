#include "imaged/metrics.h"

#include <stddef.h>

#include "base/macro.h"

void histogram_add(struct histogram *histogram, int64_t ns)
{
    uint64_t us = ns > 0 ? (uint64_t)ns / 1000 : 0;
    unsigned bucket = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);
    metric_add(&histogram->buckets[MIN(bucket, HISTOGRAM_BUCKETS - 1U)], 1);
    metric_add(&histogram->sum_ns, ns > 0 ? (uint64_t)ns : 0);
}

static json_t *counter_json(_Atomic uint64_t *counter)
{
    return json_integer((json_int_t)atomic_load_explicit(counter, memory_order_relaxed));
}

json_t *histogram_json(struct histogram *histogram)
{
    json_t *buckets = json_array();
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        json_array_append_new(buckets, counter_json(&histogram->buckets[i]));
    return json_pack("{s:o, s:o}", "log2_us_buckets", buckets, "sum_ns", counter_json(&histogram->sum_ns));
}

json_t *metrics_json(struct metrics *metrics)
{
    const struct {
        const char *name;
        _Atomic uint64_t *counter;
    } counters[] = {
        {"misses", &metrics->misses},
        {"miss_pages", &metrics->miss_pages},
        {"stored_pages", &metrics->stored_pages},
        {"dropped_stores", &metrics->dropped_stores},
        {"decompressed_bytes", &metrics->decompressed_bytes},
        {"failed_reads", &metrics->failed_reads},
        {"refused_writes", &metrics->refused_writes},
        {"overlay_read_bytes", &metrics->overlay_read_bytes},
        {"overlay_written_bytes", &metrics->overlay_written_bytes},
        {"overlay_full", &metrics->overlay_full},
        {"prefetches", &metrics->prefetches},
        {"prefetched_pages", &metrics->prefetched_pages},
        {"prefetch_ns", &metrics->prefetch_ns},
        {"balance_dirty_pages_samples", &metrics->stalled_samples},
        {"balance_dirty_pages_threads", &metrics->stalled_threads},
    };
    json_t *object = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(counters); i++)
        json_object_set_new(object, counters[i].name, counter_json(counters[i].counter));
    json_object_set_new(object, "fetch_to_page_cache", histogram_json(&metrics->fetch));
    return object;
}
