/*
 * overlay_map.h: which generation holds each block of a disk, merged over all of them, in one byte a block.
 *
 * So a look-up costs one load however many generations there are. Generations are known here by slots from 0, which
 * the owner gives out; an entry is 0 (in no generation) or says slot and kind. Memory is taken as it is written: 1
 * MiB for each 4 GiB of the disk at most.
 *
 * Threads: entries may be read and set at any time by any number of threads. A thread that sees an entry sees what
 * was written to the slot's file before the entry was set.
 */
#ifndef DORMOUSE_IMAGE_OVERLAY_MAP_H
#define DORMOUSE_IMAGE_OVERLAY_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image/overlay.h"

#define OVERLAY_MAP_PAGE 4096u /* entries: what is tracked as one, and written at once */

struct overlay_map {
    _Atomic uint8_t *entries;
    uint64_t blocks;
    size_t pages;
    _Atomic uint64_t *touched; /* a bit for each page: it may have entries other than 0 */
};

/* A bit for each page of a map; NULL: out of memory. */
_Atomic uint64_t *overlay_bits_new(size_t pages);
static inline size_t overlay_bits_words(size_t pages)
{
    return (pages + 63) / 64;
}
/* For the pages of these blocks. */
void overlay_bits_set(_Atomic uint64_t *bits, uint64_t block, uint64_t count);

static inline uint8_t overlay_entry(unsigned slot, enum overlay_block kind)
{
    return (uint8_t)(1 + slot * 2 + (kind == OVERLAY_ZERO));
}
static inline enum overlay_block overlay_entry_kind(uint8_t entry)
{
    return entry == 0 ? OVERLAY_ABSENT : entry % 2 == 0 ? OVERLAY_ZERO : OVERLAY_DATA;
}
static inline unsigned overlay_entry_slot(uint8_t entry)
{
    return (entry - 1u) / 2;
}

int overlay_map_init(struct overlay_map *map, uint64_t blocks);
void overlay_map_done(struct overlay_map *map);

static inline uint8_t overlay_map_get(const struct overlay_map *map, uint64_t block)
{
    return atomic_load_explicit(&map->entries[block], memory_order_acquire);
}

/* Returns whether an entry changed. */
bool overlay_map_set(struct overlay_map *map, uint64_t block, uint64_t count, uint8_t entry);

/* The first block at or after `block` with an entry other than 0, or map->blocks. */
uint64_t overlay_map_next(const struct overlay_map *map, uint64_t block);

/* Forgets what is in the slots for which `drop` is true; nobody else uses the map meanwhile. */
void overlay_map_drop(struct overlay_map *map, const bool drop[OVERLAY_GENERATIONS_MAX]);

#endif
