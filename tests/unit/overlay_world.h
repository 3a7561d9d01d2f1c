/* overlay_world.h: what all tests of overlays need. */
#ifndef DORMOUSE_TESTS_OVERLAY_WORLD_H
#define DORMOUSE_TESTS_OVERLAY_WORLD_H

#include "base/macro.h"
#include "image/overlay.h"
#include "unit.h"

#define BLOCK  ((size_t)OVERLAY_BLOCK_BYTES)
#define BLOCKS 700u /* more than a read looks up at once, more than two stripes */
#define DISK   (BLOCKS * BLOCK)

/* A base too large to be there: each block says its number. */
static inline int read_numbers(void *context, uint64_t offset, size_t length, void *to)
{
    (void)context;
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
        uint64_t number = (offset + i) / BLOCK;
        memcpy((uint8_t *)to + i, &number, sizeof(number));
    }
    return 0;
}

static inline struct overlay *open_with(const char *directory, uint64_t bytes, overlay_base_read base,
                                        void *context)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay *overlay = NULL;
    if (overlay_open(directory, bytes, base, context, &overlay, &err) < 0)
        fail_msg("%s", error_message(&err));
    return overlay;
}

static inline uint64_t freeze(struct overlay *overlay)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    uint64_t generation = 0;
    if (overlay_freeze(overlay, &generation, &err) < 0)
        fail_msg("%s", error_message(&err));
    return generation;
}

static inline uint32_t random_next(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

#endif
