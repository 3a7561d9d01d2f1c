/* layer_format.h: a layer file's structures as they lie in it (docs/snapshot-format.md), for its writer and reader.
 */
#ifndef DORMOUSE_STORE_LAYER_FORMAT_H
#define DORMOUSE_STORE_LAYER_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "store/layer.h"

/* The file's integers are little-endian, and these structures are used as they lie in it. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structures need converting on this machine");

#define LAYER_MAGIC         "DORMLAYR"
#define LAYER_TRAILER_MAGIC "DORMLEND"
#define LAYER_FRAMES_MAX    (1u << 26)
#define LAYER_SLOTS_MAX     (UINT64_C(1) << 32)
#define LAYER_ID_BYTES      24

struct layer_header {
    char magic[8];
    uint32_t compatible;
    uint32_t incompatible;
    char id[LAYER_ID_BYTES];
    uint32_t page_bytes;
    uint32_t frame_pages;
    uint32_t reserved[2];
    uint64_t checksum; /* of what is before it */
};
_Static_assert(sizeof(struct layer_header) == 64, "as specified");

struct layer_frame {
    uint64_t offset;
    uint32_t stored_bytes;
    uint16_t pages;
    uint16_t codec;
    uint64_t checksum; /* of the stored bytes, seeded by layer_frame_seed */
};
_Static_assert(sizeof(struct layer_frame) == 24, "as specified");

struct layer_trailer {
    char magic[8];
    uint64_t table_offset;
    uint32_t frames;
    uint32_t reserved;
    uint64_t pages;
    uint64_t table_checksum;
    uint64_t reserved2[2];
    uint64_t checksum; /* of what is before it */
};
_Static_assert(sizeof(struct layer_trailer) == 64, "as specified");

/* Checksum of a header or trailer: of all but its last field. */
uint64_t layer_block_checksum(const void *block);

/* Ties a frame's checksum to its entry, its number and its layer, whose id is padded. */
uint64_t layer_frame_checksum(const struct layer_frame *frame, const char id[LAYER_ID_BYTES], uint32_t number,
                              const void *stored);

#endif
