#include "image/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* From linux/fs.h of Linux 6.7; Debian 12's headers are older. */
struct scan_request {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};
struct scan_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};
#define SCAN_IOCTL   _IOWR('f', 16, struct scan_request)
#define SCAN_FILE    (1u << 2)
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)

/* /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst. */
#define MAP_PRESENT (UINT64_C(1) << 63)
#define MAP_SWAPPED (UINT64_C(1) << 62)
#define MAP_FILE    (UINT64_C(1) << 61)
#define MAP_BATCH   4096

int page_map_open(pid_t pid, struct error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return error_set(err, ESRCH, "the VMM ended");
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    int r = page_map_check(fd, err);
    return r < 0 ? r : TAKE_FD(fd);
}

int page_map_check(int pagemap_fd, struct error *err)
{
    uint64_t entry;
    ssize_t n = pread(pagemap_fd, &entry, sizeof(entry), 0);
    return n < 0    ? error_errno(err, "reading the VMM's page tables")
           : n == 0 ? error_set(err, ESRCH, "the VMM ended")
                    : 0;
}

void page_walk_init(struct page_walk *walk, int pagemap_fd, enum page_kind kind, bool use_scan, uint64_t address,
                    uint64_t length)
{
    walk->pagemap_fd = pagemap_fd;
    walk->kind = kind;
    walk->use_scan = use_scan;
    walk->next = address;
    walk->end = address + length;
    walk->run_count = 0;
    walk->run_next = 0;
}

static int scan(struct page_walk *walk, struct error *err)
{
    struct scan_region regions[PAGE_WALK_RUNS];
    struct scan_request request = {
        .size = sizeof(request),
        .start = walk->next,
        .end = walk->end,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = PAGE_WALK_RUNS,
        /* Asking for a category that is always absent keeps neighbours in one region. */
        .return_mask = SCAN_FILE,
    };
    if (walk->kind == PAGES_PRIVATE) {
        request.category_inverted = SCAN_FILE;
        request.category_mask = SCAN_FILE;
        request.category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED;
    } else {
        request.category_mask = SCAN_PRESENT;
        request.return_mask = SCAN_SWAPPED;
    }
    int n = ioctl(walk->pagemap_fd, SCAN_IOCTL, &request);
    if (n < 0)
        return error_errno(err, "scanning the guest's page tables");
    for (int i = 0; i < n; i++)
        walk->runs[i] = (struct page_run){regions[i].start, regions[i].end - regions[i].start};
    walk->run_count = (size_t)n;
    walk->next = request.walk_end;
    return 0;
}

static bool entry_matches(uint64_t entry, enum page_kind kind)
{
    if (kind == PAGES_RESIDENT)
        return (entry & MAP_PRESENT) != 0;
    return (entry & (MAP_PRESENT | MAP_SWAPPED)) != 0 && (entry & MAP_FILE) == 0;
}

static int read_entries(struct page_walk *walk, struct error *err)
{
    uint64_t entries[MAP_BATCH];
    uint64_t pages = MIN((walk->end - walk->next) / PAGE_SIZE_BYTES, (uint64_t)MAP_BATCH);
    ssize_t n = pread(walk->pagemap_fd, entries, pages * sizeof(entries[0]),
                      (off_t)(walk->next / PAGE_SIZE_BYTES * sizeof(entries[0])));
    if (n <= 0)
        return n < 0 ? error_errno(err, "reading the guest's page tables") : error_set(err, ESRCH, "the VMM ended");
    pages = (uint64_t)n / sizeof(entries[0]);
    struct page_run *run = NULL;
    uint64_t i = 0;
    for (; i < pages; i++) {
        if (!entry_matches(entries[i], walk->kind)) {
            run = NULL;
            continue;
        }
        if (run == NULL && walk->run_count == PAGE_WALK_RUNS)
            break;
        if (run == NULL) {
            run = &walk->runs[walk->run_count++];
            *run = (struct page_run){walk->next + i * PAGE_SIZE_BYTES, 0};
        }
        run->length += PAGE_SIZE_BYTES;
    }
    walk->next += i * PAGE_SIZE_BYTES;
    return 0;
}

int page_walk_next(struct page_walk *walk, struct page_run *ret, struct error *err)
{
    while (walk->run_next == walk->run_count) {
        if (walk->next >= walk->end)
            return 0;
        walk->run_count = 0;
        walk->run_next = 0;
        int r = walk->use_scan ? scan(walk, err) : read_entries(walk, err);
        if (r < 0)
            return r;
    }
    *ret = walk->runs[walk->run_next++];
    return 1;
}

bool page_scan_supported(int pagemap_fd)
{
    struct scan_request request = {
        .size = sizeof(request), .return_mask = SCAN_PRESENT, .category_mask = SCAN_PRESENT};
    return ioctl(pagemap_fd, SCAN_IOCTL, &request) >= 0;
}
