/*
 * working_set.h: pages of a memory image that a guest touched soon after a resume (docs/snapshot-format.md).
 *
 * Only ever a hint: what is damaged or too long is left out. Pure but for the files; any thread.
 */
#ifndef DORMOUSE_IMAGED_WORKING_SET_H
#define DORMOUSE_IMAGED_WORKING_SET_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "imaged/read_ahead.h"

#define WORKING_SET_RUNS_MAX  65536u
#define WORKING_SET_PAGES_MAX 16384u /* 64 MiB */

struct working_set {
    struct page_run *runs; /* ascending, apart from each other, after working_set_join */
    size_t count;
    size_t capacity;
    uint64_t pages; /* added; those twice count twice until they are joined */
};
void working_set_done(struct working_set *set);

/* Adds a run unless a bound is reached. -ENOSPC: it is; -ENOMEM. */
int working_set_add(struct working_set *set, struct page_run run);

/* Sorts the runs and joins those that touch. */
void working_set_join(struct working_set *set);

/* Adds what the file holds of an image of `pages`. -EBADMSG damaged, -ENOENT. */
int working_set_read(const char *path, uint64_t pages, struct working_set *set, struct error *err);

/* Of a joined set. Replaces the file by rename. */
int working_set_write(const char *path, const struct working_set *set, struct error *err);

#endif
