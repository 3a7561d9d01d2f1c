/*
 * pages.h: walks the pages of a range in another process that are its own (private), as runs.
 *
 * Order of calls: page_map_open, page_walk_init, page_walk_next until it returns 0, page_map_check: the pages of a
 * process that ends meanwhile are gone without an error of the walk. One thread at a time.
 * With PAGEMAP_SCAN a step costs one ioctl for up to PAGE_WALK_RUNS runs.
 */
#ifndef DORMOUSE_IMAGE_PAGES_H
#define DORMOUSE_IMAGE_PAGES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define PAGE_SIZE_BYTES 4096u
#define PAGE_WALK_RUNS  512

enum page_kind {
    PAGES_PRIVATE,  /* anonymous, present or swapped */
    PAGES_RESIDENT, /* present, whosever */
};

struct page_run {
    uint64_t address; /* bytes, page-aligned */
    uint64_t length;  /* bytes, whole pages */
};

struct page_walk {
    int pagemap_fd;
    enum page_kind kind;
    bool use_scan;
    uint64_t next; /* where the walk goes on */
    uint64_t end;
    struct page_run runs[PAGE_WALK_RUNS];
    size_t run_count;
    size_t run_next;
};

/* `pagemap_fd` is /proc/PID/pagemap, opened by page_map_open; it stays the caller's. */
void page_walk_init(struct page_walk *walk, int pagemap_fd, enum page_kind kind, bool use_scan, uint64_t address,
                    uint64_t length);

/* 1 and the next run, in ascending order; 0 at the end; or a negative errno. Neighbouring runs may touch. */
int page_walk_next(struct page_walk *walk, struct page_run *ret, struct error *err);

/* Returns a descriptor (O_CLOEXEC); -ESRCH when there is no such process, or none any more. */
int page_map_open(pid_t pid, struct error *err);

/* -ESRCH when the address space that page_map_open found is gone. */
int page_map_check(int pagemap_fd, struct error *err);

/* Whether this kernel has PAGEMAP_SCAN. */
bool page_scan_supported(int pagemap_fd);

#endif
