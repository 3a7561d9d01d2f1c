/*
 * Capture of disks: the blocks of an overlay's frozen generations, and a raw image as a whole.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/capture_pipeline.h"

_Static_assert(OVERLAY_BLOCK_BYTES == IMAGE_PAGE_BYTES, "a block of the overlay is a page of the image");

struct disk_source {
    struct overlay_view *view;
    uint64_t block; /* where to go on */
};

static int next_blocks(void *context, struct capture_run *ret, struct error *err)
{
    struct disk_source *source = context;
    uint64_t count;
    enum overlay_block kind;
    int r = overlay_view_next(source->view, &source->block, &count, &kind);
    if (r < 0)
        return error_code(err, r, "reading the overlay's map");
    if (r == 0)
        return 0;
    *ret = (struct capture_run){.page = source->block, .count = count, .zero = kind == OVERLAY_ZERO};
    source->block += count;
    return 1;
}

static int read_blocks(void *context, const struct capture_run *runs, size_t count, uint8_t *to, struct error *err)
{
    struct disk_source *source = context;
    for (size_t i = 0; i < count; i++) {
        int r = overlay_view_read(source->view, runs[i].page, runs[i].count, to, err);
        if (r < 0)
            return r;
        to += runs[i].count * OVERLAY_BLOCK_BYTES;
    }
    return 0;
}

int capture_disk(const struct capture_disk *source, struct layer_writer *layer, uint32_t layer_index,
                 struct capture_result *ret, struct error *err)
{
    if (source->view == NULL) {
        *ret = (struct capture_result){0};
        return 0;
    }
    struct disk_source disk = {.view = source->view};
    struct capture_source runs = {.next = next_blocks,
                                  .read = read_blocks,
                                  .context = &disk,
                                  .parent = &source->parent,
                                  .cancelled = source->cancelled};
    return capture_pipeline_run(&runs, layer, layer_index, ret, err);
}

struct file_source {
    int fd;
    uint64_t end;
    uint64_t next; /* where to go on, bytes */
};

/* Runs are those of data, extended to whole pages: a file system's blocks may be smaller. */
static int next_data(void *context, struct capture_run *ret, struct error *err)
{
    struct file_source *source = context;
    if (source->next >= source->end)
        return 0;
    off_t data = lseek(source->fd, (off_t)source->next, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0;
    off_t hole = data < 0 ? -1 : lseek(source->fd, data, SEEK_HOLE);
    if (hole < 0)
        return error_errno(err, "looking for data in the image");
    uint64_t start = MAX((uint64_t)data / IMAGE_PAGE_BYTES * IMAGE_PAGE_BYTES, source->next);
    uint64_t end = MIN(ROUND_UP((uint64_t)hole, IMAGE_PAGE_BYTES), source->end);
    if (start >= end)
        return 0;
    source->next = end;
    *ret = (struct capture_run){
        .page = start / IMAGE_PAGE_BYTES,
        .count = (end - start) / IMAGE_PAGE_BYTES,
    };
    return 1;
}

static int read_data(void *context, const struct capture_run *runs, size_t count, uint8_t *to, struct error *err)
{
    const struct file_source *source = context;
    for (size_t i = 0; i < count; i++) {
        int r = capture_read_file(source->fd, runs[i].page, runs[i].count, to, "image", err);
        if (r < 0)
            return r;
        to += runs[i].count * IMAGE_PAGE_BYTES;
    }
    return 0;
}

int capture_file(int fd, uint64_t bytes, struct layer_writer *layer, uint32_t layer_index,
                 struct capture_result *ret, struct error *err)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_errno(err, "looking at the image");
    if (bytes % IMAGE_PAGE_BYTES != 0 || (uint64_t)status.st_size < bytes)
        return error_set(err, EINVAL, "an image of %llu bytes can't be taken from a file of %llu",
                         (unsigned long long)bytes, (unsigned long long)status.st_size);
    struct file_source file = {.fd = fd, .end = bytes};
    struct capture_parent nothing = {.map = NULL, .fd = -1};
    struct capture_source runs = {.next = next_data, .read = read_data, .context = &file, .parent = &nothing};
    return capture_pipeline_run(&runs, layer, layer_index, ret, err);
}
