#include "image/overlay_map.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/macro.h"

_Static_assert(1 + 2 * OVERLAY_GENERATIONS_MAX <= 256, "an entry is one byte");

_Atomic uint64_t *overlay_bits_new(size_t pages)
{
    return calloc(overlay_bits_words(pages), sizeof(uint64_t));
}

void overlay_bits_set(_Atomic uint64_t *bits, uint64_t block, uint64_t count)
{
    for (uint64_t page = block / OVERLAY_MAP_PAGE; page <= (block + count - 1) / OVERLAY_MAP_PAGE; page++)
        atomic_fetch_or_explicit(&bits[page / 64], UINT64_C(1) << page % 64, memory_order_acq_rel);
}

static bool is_touched(const struct overlay_map *map, uint64_t page)
{
    return (atomic_load_explicit(&map->touched[page / 64], memory_order_acquire) >> page % 64 & 1) != 0;
}

int overlay_map_init(struct overlay_map *map, uint64_t blocks)
{
    map->blocks = blocks;
    map->pages = (blocks + OVERLAY_MAP_PAGE - 1) / OVERLAY_MAP_PAGE;
    map->touched = overlay_bits_new(map->pages);
    if (map->touched == NULL)
        return -ENOMEM;
    void *entries = mmap(NULL, blocks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (entries == MAP_FAILED) {
        free(map->touched);
        map->touched = NULL;
        return -ENOMEM;
    }
    map->entries = entries;
    return 0;
}

void overlay_map_done(struct overlay_map *map)
{
    if (map->entries != NULL)
        munmap((void *)map->entries, map->blocks);
    free(map->touched);
    *map = (struct overlay_map){0};
}

bool overlay_map_set(struct overlay_map *map, uint64_t block, uint64_t count, uint8_t entry)
{
    bool changed = false;
    for (uint64_t i = block; i < block + count; i++) {
        if (atomic_load_explicit(&map->entries[i], memory_order_relaxed) == entry)
            continue;
        atomic_store_explicit(&map->entries[i], entry, memory_order_release);
        changed = true;
    }
    if (changed)
        overlay_bits_set(map->touched, block, count);
    return changed;
}

uint64_t overlay_map_next(const struct overlay_map *map, uint64_t block)
{
    while (block < map->blocks) {
        uint64_t page = block / OVERLAY_MAP_PAGE;
        uint64_t end = MIN((page + 1) * OVERLAY_MAP_PAGE, map->blocks);
        if (is_touched(map, page)) {
            for (; block < end; block++) {
                if (overlay_map_get(map, block) != 0)
                    return block;
            }
        }
        block = end;
    }
    return map->blocks;
}

void overlay_map_drop(struct overlay_map *map, const bool drop[OVERLAY_GENERATIONS_MAX])
{
    for (uint64_t block = overlay_map_next(map, 0); block < map->blocks; block = overlay_map_next(map, block + 1)) {
        uint8_t entry = overlay_map_get(map, block);
        if (drop[overlay_entry_slot(entry)])
            atomic_store_explicit(&map->entries[block], 0, memory_order_relaxed);
    }
}
