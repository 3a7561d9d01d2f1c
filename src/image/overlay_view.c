#include "image/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/macro.h"
#include "image/overlay_generation.h"
#include "image/overlay_map.h"

struct overlay_view {
    struct overlay_map map;
    struct bounce_pool pool;
    struct generation *generations[OVERLAY_GENERATIONS_MAX]; /* by slot */
    size_t count;
};

static int open_generations(struct overlay_view *view, const char *directory, uint64_t disk_bytes,
                            uint64_t generation, struct error *err)
{
    CLEANUP_CLOSE int directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory_fd < 0)
        return error_errno(err, "cannot open %s", directory);
    CLEANUP_FREE uint64_t *numbers = NULL;
    size_t count;
    int r = generation_list(directory_fd, generation, &numbers, &count, err);
    if (r < 0)
        return r;
    if (generation != 0 && (count == 0 || numbers[count - 1] != generation))
        return error_set(err, ENOENT, "%s has no frozen generation %" PRIu64, directory, generation);
    for (; view->count < count; view->count++) {
        r = generation_open(directory_fd, numbers[view->count], disk_bytes, (unsigned)view->count, &view->map,
                            &view->pool, &view->generations[view->count], err);
        if (r < 0)
            return error_wrap(err, r, "opening the overlay in %s", directory);
    }
    return 0;
}

int overlay_view_open(const char *directory, uint64_t disk_bytes, uint64_t generation, struct overlay_view **ret,
                      struct error *err)
{
    if (disk_bytes == 0 || disk_bytes % OVERLAY_BLOCK_BYTES != 0 || disk_bytes > OVERLAY_DISK_MAX)
        return error_set(err, EINVAL, "an overlay can't have %" PRIu64 " bytes", disk_bytes);
    struct overlay_view *view = calloc(1, sizeof(*view));
    if (view == NULL || overlay_map_init(&view->map, disk_bytes / OVERLAY_BLOCK_BYTES) < 0) {
        free(view);
        return error_set(err, ENOMEM, "out of memory");
    }
    bounce_pool_init(&view->pool);
    int r = open_generations(view, directory, disk_bytes, generation, err);
    if (r < 0) {
        overlay_view_close(view);
        return r;
    }
    *ret = view;
    return 0;
}

void overlay_view_close(struct overlay_view *view)
{
    if (view == NULL)
        return;
    for (size_t i = 0; i < view->count; i++)
        generation_close(view->generations[i]);
    bounce_pool_done(&view->pool);
    overlay_map_done(&view->map);
    free(view);
}

/* Zero is zero, whichever generation says so. */
static bool continues(uint8_t first, uint8_t entry)
{
    return entry == first ||
           (overlay_entry_kind(first) == OVERLAY_ZERO && overlay_entry_kind(entry) == OVERLAY_ZERO);
}

int overlay_view_next(struct overlay_view *view, uint64_t *block, uint64_t *ret_count, enum overlay_block *ret_kind)
{
    uint64_t first = overlay_map_next(&view->map, *block);
    if (first >= view->map.blocks)
        return 0;
    uint8_t entry = overlay_map_get(&view->map, first);
    uint64_t end = first + 1;
    while (end < view->map.blocks && continues(entry, overlay_map_get(&view->map, end)))
        end++;
    *block = first;
    *ret_count = end - first;
    *ret_kind = overlay_entry_kind(entry);
    return 1;
}

int overlay_view_read(struct overlay_view *view, uint64_t block, size_t count, void *to, struct error *err)
{
    if (count == 0 || block >= view->map.blocks || count > view->map.blocks - block)
        return error_set(err, EINVAL, "no blocks of the overlay");
    uint8_t entry = overlay_map_get(&view->map, block);
    bool one_run = overlay_entry_kind(entry) == OVERLAY_DATA;
    for (size_t i = 1; one_run && i < count; i++)
        one_run = overlay_map_get(&view->map, block + i) == entry;
    if (!one_run)
        return error_set(err, EINVAL, "block %" PRIu64 " and the next %zu are not one run of data", block,
                         count - 1);
    struct generation *generation = view->generations[overlay_entry_slot(entry)];
    int r = generation_read(generation, block * OVERLAY_BLOCK_BYTES, count * OVERLAY_BLOCK_BYTES, to);
    return r < 0 ? error_code(err, r, "reading generation %" PRIu64 " of the overlay", generation->number) : 0;
}
