/* manifest_format.h: a manifest's structures as they lie in the file (docs/snapshot-format.md). */
#ifndef DORMOUSE_STORE_MANIFEST_FORMAT_H
#define DORMOUSE_STORE_MANIFEST_FORMAT_H

#include <stdint.h>

#define MANIFEST_MAGIC        "DORMSNAP"
#define MANIFEST_SECTIONS_MAX 64u

/* The file's integers are little-endian, and these structures are used as they lie in it. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structures need converting on this machine");

struct manifest_header {
    char magic[8];
    uint32_t compatible;
    uint32_t incompatible;
    uint64_t file_bytes;
    uint32_t sections;
    uint32_t reserved;
    uint64_t reserved2[2];
    uint64_t table_checksum;
    uint64_t checksum; /* of what is before it */
};
_Static_assert(sizeof(struct manifest_header) == 64, "as specified");

enum manifest_section_kind {
    SECTION_DESCRIPTION = 1,
    SECTION_LAYERS = 2,
    SECTION_MEMORY_MAP = 3,
    SECTION_DISK_MAP = 4,
    SECTION_DEVICE_STATE = 5,
    SECTION_KINDS
};

/* A reader that doesn't know the section's kind may go on without it. */
#define SECTION_FLAG_IGNORABLE 1u

struct manifest_section {
    uint32_t kind;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
    uint64_t checksum;
};
_Static_assert(sizeof(struct manifest_section) == 32, "as specified");

struct manifest_layer {
    char id[24]; /* padded with NUL */
    uint64_t bytes;
};
_Static_assert(sizeof(struct manifest_layer) == 32, "as specified");

#endif
