/* random.h: xorshift64, the same everywhere from a seed, which must not be 0. */
#ifndef DORMOUSE_TESTS_RANDOM_H
#define DORMOUSE_TESTS_RANDOM_H

#include <stdint.h>
#include <string.h>

static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Fills `length` bytes, a multiple of 8. */
static inline void random_fill(uint8_t *to, size_t length, uint64_t *state)
{
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
        uint64_t word = random_next(state);
        memcpy(to + i, &word, sizeof(word));
    }
}

#endif
