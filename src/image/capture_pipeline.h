/*
 * capture_pipeline.h: what the kinds of capture share (internal to capture*.c): from runs of pages to a layer.
 *
 * A kind of capture is a source: which runs of pages to look at, and how to read them. capture_pipeline_run does
 * the rest on all cores and returns what capture.h promises. What its steps are is said in capture.c.
 */
#ifndef DORMOUSE_IMAGE_CAPTURE_PIPELINE_H
#define DORMOUSE_IMAGE_CAPTURE_PIPELINE_H

#include "image/capture.h"

/* Small enough that a batch, its parent's pages and its frames stay in a core's own cache. */
#define CAPTURE_BATCH_PAGES 64u

struct capture_run {
    uint64_t page;     /* of the image */
    uint64_t count;    /* of pages */
    uint64_t position; /* of the first page, bytes, where the source has it: passed through to `read` */
    bool zero;         /* known to be zero, so it isn't read */
};

struct capture_source {
    /* 1 and the next run; 0 at the end; or a negative errno. One thread at a time. Ascending, so that neighbours
     * are stored as neighbours. */
    int (*next)(void *context, struct capture_run *ret, struct error *err);
    /* Reads the runs (parts of those from `next`), at most CAPTURE_BATCH_PAGES pages, one after the other into
     * `to`. Many threads at a time. */
    int (*read)(void *context, const struct capture_run *runs, size_t count, uint8_t *to, struct error *err);
    void *context;
    const struct capture_parent *parent;
    const atomic_bool *cancelled; /* NULL: can't be */
    /* The following may be NULL. */
    const struct capture_last *last;
    struct page_digests *record;
    struct capture_aside *aside; /* where pages are left to be captured later, as far as there is room */
};

int capture_pipeline_run(const struct capture_source *source, struct layer_writer *layer, uint32_t layer_index,
                         struct capture_result *ret, struct error *err);

/* Reads pages of an image file; `what` names it. -EIO when it is shorter. */
int capture_read_file(int fd, uint64_t page, size_t count, uint8_t *to, const char *what, struct error *err);

#endif
