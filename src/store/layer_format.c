#include "store/layer_format.h"

#include <string.h>
#include <xxhash.h>

bool layer_id_valid(const char *id)
{
    return strlen(id) == LAYER_ID_LENGTH && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789") == LAYER_ID_LENGTH;
}

uint64_t layer_block_checksum(const void *block)
{
    return XXH3_64bits(block, offsetof(struct layer_header, checksum));
}

uint64_t layer_frame_checksum(const struct layer_frame *frame, const char id[LAYER_ID_BYTES], uint32_t number,
                              const void *stored)
{
    uint8_t identity[offsetof(struct layer_frame, checksum) + LAYER_ID_BYTES + sizeof(number)];
    memcpy(identity, frame, offsetof(struct layer_frame, checksum));
    memcpy(identity + offsetof(struct layer_frame, checksum), id, LAYER_ID_BYTES);
    memcpy(identity + sizeof(identity) - sizeof(number), &number, sizeof(number));
    return XXH3_64bits_withSeed(stored, frame->stored_bytes, XXH3_64bits(identity, sizeof(identity)));
}
