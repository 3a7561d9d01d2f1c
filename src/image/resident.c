#include "image/resident.h"

#include <errno.h>

#include "image/pages.h"

static void mark(uint8_t *bitmap, uint64_t first, uint64_t count, uint64_t pages)
{
    for (uint64_t page = first; page < first + count && page < pages; page++)
        bitmap[page / 8] |= (uint8_t)(1u << page % 8);
}

int resident_pages(pid_t pid, const struct vmm_ram_range *ranges, size_t range_count, uint64_t pages,
                   uint8_t *bitmap, struct error *err)
{
    CLEANUP_CLOSE int pagemap_fd = page_map_open(pid, err);
    if (pagemap_fd < 0)
        return pagemap_fd;
    bool use_scan = page_scan_supported(pagemap_fd);
    int r = 0;
    for (size_t i = 0; r == 0 && i < range_count; i++) {
        struct page_walk walk;
        struct page_run run;
        page_walk_init(&walk, pagemap_fd, PAGES_RESIDENT, use_scan, ranges[i].address, ranges[i].length);
        while ((r = page_walk_next(&walk, &run, err)) > 0)
            mark(bitmap, (ranges[i].offset + run.address - ranges[i].address) / PAGE_SIZE_BYTES,
                 run.length / PAGE_SIZE_BYTES, pages);
    }
    return r;
}
