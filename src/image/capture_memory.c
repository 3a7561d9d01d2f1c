/*
 * Capture of a guest's memory: its private pages, found in the VMM's page tables and copied out of its address
 * space.
 *
 * A process that ends has no pages left to find, so its page tables look like those of a guest that changed
 * nothing. Therefore a capture only counts if the address space was still there after the last read. It can't come
 * back once it was gone, and it is the one that was opened at the beginning, whatever has become of the pid.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "image/capture_aside.h"
#include "image/capture_pipeline.h"
#include "image/pages.h"

/* Made ahead when most pages will be taken over from the last snapshot. */
#define ROOM_FOR_CHANGES (16u << 20)

_Static_assert(PAGE_SIZE_BYTES == IMAGE_PAGE_BYTES, "an image's page is the host's");

struct memory_source {
    const struct capture_memory *memory;
    int pagemap_fd;
    bool use_scan;
    size_t range_next;
    const struct vmm_ram_range *range; /* being walked; NULL: none */
    struct page_walk walk;
};

static int check_ranges(const struct capture_memory *memory, struct error *err)
{
    uint64_t end = 0;
    for (size_t i = 0; i < memory->range_count; i++) {
        const struct vmm_ram_range *range = &memory->ranges[i];
        uint64_t after;
        if ((range->address | range->length | range->offset) % PAGE_SIZE_BYTES != 0 || range->offset < end ||
            __builtin_add_overflow(range->offset, range->length, &after) ||
            __builtin_add_overflow(range->address, range->length, &(uint64_t){0}))
            return error_set(err, EINVAL, "the guest's memory ranges are not in order");
        end = after;
    }
    return 0;
}

static int next_run(void *context, struct capture_run *ret, struct error *err)
{
    struct memory_source *source = context;
    for (;;) {
        struct page_run run;
        int r = source->range == NULL ? 0 : page_walk_next(&source->walk, &run, err);
        if (r > 0)
            *ret = (struct capture_run){
                .page = (source->range->offset + (run.address - source->range->address)) / PAGE_SIZE_BYTES,
                .count = run.length / PAGE_SIZE_BYTES,
                .position = run.address,
            };
        if (r != 0)
            return r;
        if (source->range_next == source->memory->range_count)
            return 0;
        source->range = &source->memory->ranges[source->range_next++];
        page_walk_init(&source->walk, source->pagemap_fd, PAGES_PRIVATE, source->use_scan, source->range->address,
                       source->range->length);
    }
}

static struct iovec remote_part(uint64_t address, size_t length)
{
    /* Never dereferenced here. */
    return (struct iovec){(void *)(uintptr_t)address, length};
}

/* Says which page it is that can't be read, if it still can't. */
static int read_single_pages(pid_t pid, const struct capture_run *runs, size_t count, uint8_t *to,
                             struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        for (uint64_t page = 0; page < runs[i].count; page++) {
            uint64_t address = runs[i].position + page * PAGE_SIZE_BYTES;
            struct iovec local = {to, PAGE_SIZE_BYTES};
            struct iovec remote = remote_part(address, PAGE_SIZE_BYTES);
            ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
            if (n < 0 && errno == ESRCH)
                return error_set(err, ESRCH, "the VMM ended");
            if (n != (ssize_t)PAGE_SIZE_BYTES)
                return error_set(err, EIO, "page %llu of the guest's memory can't be read",
                                 (unsigned long long)(runs[i].page + page));
            to += PAGE_SIZE_BYTES;
        }
    }
    return 0;
}

static int read_runs(void *context, const struct capture_run *runs, size_t count, uint8_t *to, struct error *err)
{
    const struct memory_source *source = context;
    struct iovec remote[CAPTURE_BATCH_PAGES];
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        remote[i] = remote_part(runs[i].position, runs[i].count * PAGE_SIZE_BYTES);
        length += remote[i].iov_len;
    }
    struct iovec local = {to, length};
    ssize_t n = process_vm_readv(source->memory->pid, &local, 1, remote, count, 0);
    if (n == (ssize_t)length)
        return 0;
    if (n < 0 && errno == ESRCH)
        return error_set(err, ESRCH, "the VMM ended");
    if (n < 0 && errno != EFAULT)
        return error_errno(err, "reading guest memory");
    return read_single_pages(source->memory->pid, runs, count, to, err);
}

/* What is left aside, if `aside` is given, is not in the result. */
static int walk_memory(const struct capture_memory *source, struct capture_aside *aside, struct layer_writer *layer,
                       uint32_t layer_index, struct capture_result *ret, struct error *err)
{
    int r = check_ranges(source, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int pagemap_fd = page_map_open(source->pid, err);
    if (pagemap_fd < 0)
        return pagemap_fd;
    struct memory_source memory = {
        .memory = source,
        .pagemap_fd = pagemap_fd,
        .use_scan = !source->without_scan && page_scan_supported(pagemap_fd),
    };
    struct capture_source runs = {
        .next = next_run,
        .read = read_runs,
        .context = &memory,
        .parent = &source->parent,
        .cancelled = source->cancelled,
        .last = source->last,
        .record = source->record,
        .aside = aside,
    };
    struct capture_result result;
    r = capture_pipeline_run(&runs, layer, layer_index, &result, err);
    if (r < 0)
        return r;
    r = page_map_check(pagemap_fd, err);
    if (r < 0) {
        capture_result_done(&result);
        return r;
    }
    *ret = result;
    return 0;
}

int capture_memory(const struct capture_memory *source, struct layer_writer *layer, uint32_t layer_index,
                   struct capture_result *ret, struct error *err)
{
    return walk_memory(source, NULL, layer, layer_index, ret, err);
}

struct capture_copy {
    struct capture_memory source;
    struct layer_writer *layer;
    uint32_t layer_index;
    struct capture_aside aside;
    struct capture_result result; /* without what is aside */
};

void capture_copy_free(struct capture_copy *copy)
{
    if (copy == NULL)
        return;
    capture_aside_done(&copy->aside);
    capture_result_done(&copy->result);
    free(copy);
}

int capture_copy_new(const struct capture_memory *source, struct capture_copy **ret, struct error *err)
{
    uint64_t wanted = ROOM_FOR_CHANGES;
    uint64_t resident;
    int r = source->last == NULL ? capture_count(source, &wanted, &resident, err) : 0;
    if (r < 0)
        return r;
    struct capture_copy *copy = malloc(sizeof(*copy));
    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *copy = (struct capture_copy){.source = *source, .aside = CAPTURE_ASIDE_INIT};
    capture_aside_prepare(&copy->aside, wanted);
    *ret = copy;
    return 0;
}

int capture_memory_copy(struct capture_copy *copy, struct layer_writer *layer, uint32_t layer_index,
                        struct error *err)
{
    copy->layer = layer;
    copy->layer_index = layer_index;
    return walk_memory(&copy->source, &copy->aside, layer, layer_index, &copy->result, err);
}

/* Adds `more`, of other pages. */
static int join_results(struct capture_result *result, const struct capture_result *more, struct error *err)
{
    size_t count = result->change_count + more->change_count;
    struct map_extent *changes = reallocarray(result->changes, MAX(count, (size_t)1), sizeof(*changes));
    if (changes == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (more->change_count > 0)
        memcpy(changes + result->change_count, more->changes, more->change_count * sizeof(*changes));
    result->changes = changes;
    result->change_count = map_changes_sort(changes, count);
    result->changed_bytes += more->changed_bytes;
    result->stored_bytes += more->stored_bytes;
    return 0;
}

int capture_memory_store(struct capture_copy *copy, struct capture_result *ret, struct error *err)
{
    CLEANUP(capture_result_done) struct capture_result rest = {0};
    struct capture_source source = capture_aside_source(&copy->aside, &copy->source.parent, copy->source.cancelled);
    int r = capture_pipeline_run(&source, copy->layer, copy->layer_index, &rest, err);
    if (r == 0)
        r = join_results(&copy->result, &rest, err);
    if (r < 0)
        return r;
    *ret = copy->result;
    copy->result = (struct capture_result){0};
    return 0;
}

static int count_kind(const struct capture_memory *source, int pagemap_fd, enum page_kind kind, uint64_t *ret,
                      struct error *err)
{
    uint64_t total = 0;
    bool use_scan = !source->without_scan && page_scan_supported(pagemap_fd);
    for (size_t i = 0; i < source->range_count; i++) {
        struct page_walk walk;
        page_walk_init(&walk, pagemap_fd, kind, use_scan, source->ranges[i].address, source->ranges[i].length);
        struct page_run run;
        int r;
        while ((r = page_walk_next(&walk, &run, err)) > 0)
            total += run.length;
        if (r < 0)
            return r;
    }
    *ret = total;
    return 0;
}

int capture_count(const struct capture_memory *source, uint64_t *ret_private, uint64_t *ret_resident,
                  struct error *err)
{
    CLEANUP_CLOSE int pagemap_fd = page_map_open(source->pid, err);
    if (pagemap_fd < 0)
        return pagemap_fd;
    uint64_t private_bytes;
    uint64_t resident_bytes;
    int r = count_kind(source, pagemap_fd, PAGES_PRIVATE, &private_bytes, err);
    if (r == 0)
        r = count_kind(source, pagemap_fd, PAGES_RESIDENT, &resident_bytes, err);
    if (r == 0)
        r = page_map_check(pagemap_fd, err);
    if (r < 0)
        return r;
    *ret_private = private_bytes;
    *ret_resident = resident_bytes;
    return 0;
}
