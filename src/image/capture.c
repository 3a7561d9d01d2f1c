/*
 * Runs of private pages are gathered until the buffer is full, read with one process_vm_readv, compared page by
 * page with the parent image (which is read, not mapped: a file that got shorter must be an error, not a signal),
 * and written in runs of differing pages.
 *
 * Invariants: the buffer's runs are in ascending image offset; a page is skipped only if it was seen equal to the
 * parent's byte for byte, where a hole of the parent counts as zeros without being read; any short read or write
 * fails the whole capture.
 */
#include "image/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"
#include "image/pages.h"

struct capture {
    const struct capture_source *source;
    int image_fd;
    uint8_t *buffer;
    size_t used;
    struct iovec remote[PAGE_WALK_RUNS];
    uint64_t offsets[PAGE_WALK_RUNS]; /* in the image, of each remote run */
    size_t run_count;
    uint8_t *parent;     /* the parent image's bytes for the run being compared */
    uint64_t data_start; /* the parent's extent of data at or after the last look-up */
    uint64_t data_end;
    struct capture_result result;
};

/* Finds the parent's first extent of data that ends after `offset`. Offsets only grow, so one extent is kept. */
static int find_extent(struct capture *capture, uint64_t offset)
{
    if (offset < capture->data_end)
        return 0;
    off_t data = lseek(capture->source->parent_fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return -errno;
    off_t hole = data < 0 ? 0 : lseek(capture->source->parent_fd, data, SEEK_HOLE);
    if (hole < 0)
        return -errno;
    capture->data_start = data < 0 ? UINT64_MAX : (uint64_t)data;
    capture->data_end = data < 0 ? UINT64_MAX : (uint64_t)hole;
    return 0;
}

/* Fills `parent` with the parent image's bytes; holes are not read, which would fill the page cache with zeros. */
static int read_parent(struct capture *capture, uint64_t offset, size_t length)
{
    for (size_t done = 0; done < length;) {
        int r = find_extent(capture, offset + done);
        if (r < 0)
            return r;
        uint64_t at = offset + done;
        uint8_t *to = capture->parent + done;
        if (at < capture->data_start) {
            size_t hole = (size_t)MIN(capture->data_start - at, (uint64_t)(length - done));
            memset(to, 0, hole);
            done += hole;
            continue;
        }
        size_t wanted = (size_t)MIN(capture->data_end - at, (uint64_t)(length - done));
        ssize_t n = pread(capture->source->parent_fd, to, wanted, (off_t)at);
        if (n <= 0)
            return n < 0 ? -errno : -EIO; /* the image got shorter, which nobody may do */
        done += (size_t)n;
    }
    return 0;
}

/* Writes the differing pages of one run. */
static int write_run(struct capture *capture, const uint8_t *bytes, uint64_t offset, size_t length)
{
    int r = read_parent(capture, offset, length);
    if (r < 0)
        return r;
    size_t start = 0; /* of the differing pages not yet written */
    for (size_t at = 0; at <= length; at += PAGE_SIZE_BYTES) {
        if (at < length && memcmp(bytes + at, capture->parent + at, PAGE_SIZE_BYTES) != 0)
            continue;
        if (at > start) {
            r = io_pwrite_full(capture->image_fd, bytes + start, at - start, (off_t)(offset + start));
            if (r < 0)
                return r;
            capture->result.written_bytes += at - start;
        }
        start = at + PAGE_SIZE_BYTES;
    }
    return 0;
}

static int flush(struct capture *capture, struct error *err)
{
    if (capture->run_count == 0)
        return 0;
    struct iovec local = {capture->buffer, capture->used};
    ssize_t n = process_vm_readv(capture->source->pid, &local, 1, capture->remote, capture->run_count, 0);
    if (n < 0)
        return error_errno(err, "reading guest memory");
    if ((size_t)n != capture->used)
        return error_set(err, EIO, "read %zd of %zu bytes of guest memory", n, capture->used);
    const uint8_t *bytes = capture->buffer;
    for (size_t i = 0; i < capture->run_count; i++) {
        int r = write_run(capture, bytes, capture->offsets[i], capture->remote[i].iov_len);
        if (r < 0)
            return error_code(err, r, "writing the memory image");
        bytes += capture->remote[i].iov_len;
    }
    /* The disk begins to write while the next runs are read; the caller's sync waits for less. */
    uint64_t first = capture->offsets[0];
    uint64_t end = capture->offsets[capture->run_count - 1] + capture->remote[capture->run_count - 1].iov_len;
    sync_file_range(capture->image_fd, (off_t)first, (off_t)(end - first), SYNC_FILE_RANGE_WRITE);
    capture->used = 0;
    capture->run_count = 0;
    return 0;
}

static int add_run(struct capture *capture, const struct page_run *run, uint64_t offset, struct error *err)
{
    capture->result.private_bytes += run->length;
    for (uint64_t done = 0; done < run->length;) {
        if (capture->used == CAPTURE_BUFFER || capture->run_count == PAGE_WALK_RUNS) {
            int r = flush(capture, err);
            if (r < 0)
                return r;
        }
        size_t length = MIN(run->length - done, (uint64_t)(CAPTURE_BUFFER - capture->used));
        /* A remote address: never dereferenced here. */
        capture->remote[capture->run_count].iov_base = (void *)(uintptr_t)(run->address + done);
        capture->remote[capture->run_count].iov_len = length;
        capture->offsets[capture->run_count++] = offset + done;
        capture->used += length;
        done += length;
    }
    return 0;
}

static int capture_ranges(struct capture *capture, int pagemap_fd, struct error *err)
{
    bool use_scan = !capture->source->without_scan && page_scan_supported(pagemap_fd);
    for (size_t i = 0; i < capture->source->range_count; i++) {
        const struct vmm_ram_range *range = &capture->source->ranges[i];
        struct page_walk walk;
        page_walk_init(&walk, pagemap_fd, PAGES_PRIVATE, use_scan, range->address, range->length);
        struct page_run run;
        int r;
        while ((r = page_walk_next(&walk, &run, err)) > 0) {
            r = add_run(capture, &run, range->offset + (run.address - range->address), err);
            if (r < 0)
                return r;
        }
        if (r < 0)
            return r;
    }
    return flush(capture, err);
}

int capture_memory(const struct capture_source *source, int image_fd, struct capture_result *ret, struct error *err)
{
    CLEANUP_CLOSE int pagemap_fd = page_map_open(source->pid, err);
    if (pagemap_fd < 0)
        return pagemap_fd;
    CLEANUP_FREE struct capture *capture = calloc(1, sizeof(*capture));
    CLEANUP_FREE uint8_t *buffer = malloc(CAPTURE_BUFFER);
    CLEANUP_FREE uint8_t *parent = malloc(CAPTURE_BUFFER);
    if (capture == NULL || buffer == NULL || parent == NULL)
        return error_set(err, ENOMEM, "out of memory");
    capture->source = source;
    capture->image_fd = image_fd;
    capture->buffer = buffer;
    capture->parent = parent;
    int r = capture_ranges(capture, pagemap_fd, err);
    if (r == 0)
        *ret = capture->result;
    return r;
}

static int count_kind(const struct capture_source *source, int pagemap_fd, enum page_kind kind, uint64_t *ret,
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

int capture_count(const struct capture_source *source, uint64_t *ret_private, uint64_t *ret_resident,
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
    if (r < 0)
        return r;
    *ret_private = private_bytes;
    *ret_resident = resident_bytes;
    return 0;
}
