/* A snapshot's manifest comes from a disk that anybody may have written: also one who knows how to make checksums.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "fuzz.h"
#include "store/manifest.h"
#include "store/manifest_format.h"

/* What was accepted survives being written again, and what is written then is always the same. */
static void check_accepted(const struct snapshot *snapshot)
{
    CLEANUP_FREE void *first = NULL;
    CLEANUP_FREE void *second = NULL;
    size_t first_length = 0;
    size_t second_length = 0;
    int r = manifest_encode(snapshot, &first, &first_length, NULL);
    /* White space may make a long description too long. */
    if (r == -E2BIG)
        return;
    CLEANUP(snapshot_done) struct snapshot again = {0};
    if (r < 0 || manifest_decode(first, first_length, MANIFEST_ALL, &again, NULL) < 0 ||
        manifest_encode(&again, &second, &second_length, NULL) < 0)
        abort();
    if (first_length != second_length || memcmp(first, second, first_length) != 0)
        abort();
}

static void decode(const uint8_t *data, size_t size)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP(snapshot_done) struct snapshot head = {0};
    int r = manifest_decode(data, size, MANIFEST_ALL, &snapshot, &err);
    if (r < 0 && err.message == NULL)
        abort();
    if (manifest_decode(data, size, MANIFEST_HEAD, &head, NULL) < 0 && r == 0)
        abort();
    if (r == 0)
        check_accepted(&snapshot);
}

/* Gives right checksums to whatever lies where it may, so that the fuzzer gets past them. */
static void sign(uint8_t *data, size_t size)
{
    struct manifest_header header;
    if (size < sizeof(header))
        return;
    memcpy(&header, data, sizeof(header));
    size_t count = MIN((size - sizeof(header)) / sizeof(struct manifest_section), (size_t)MANIFEST_SECTIONS_MAX);
    count = MIN(count, (size_t)header.sections);
    for (size_t i = 0; i < count; i++) {
        uint8_t *at = data + sizeof(header) + i * sizeof(struct manifest_section);
        struct manifest_section section;
        memcpy(&section, at, sizeof(section));
        if (section.offset > size || section.bytes > size - section.offset)
            continue;
        section.checksum = XXH3_64bits(data + section.offset, section.bytes);
        memcpy(at, &section, sizeof(section));
    }
    header.file_bytes = size;
    header.table_checksum = XXH3_64bits(data + sizeof(header), count * sizeof(struct manifest_section));
    header.checksum = XXH3_64bits(&header, offsetof(struct manifest_header, checksum));
    memcpy(data, &header, sizeof(header));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    decode(data, size);
    CLEANUP_FREE uint8_t *copy = malloc(size + (size == 0));
    if (copy == NULL)
        abort();
    memcpy(copy, data, size);
    sign(copy, size);
    decode(copy, size);
    return 0;
}
