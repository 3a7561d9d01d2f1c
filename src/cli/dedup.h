/*
 * dedup.h: what finding equal blocks would save in a data directory's snapshots. Measures; changes nothing.
 *
 * dedup_examine reads manifests and layers as any reader does: no daemon is needed, one may run, no lock is taken.
 * When a snapshot goes meanwhile, all is done again, a few times: name those that stay where many come and go.
 *
 * What is counted, for each size of block, memory and disk separately: blocks that aren't zero, and are not already
 * shared with the parent by being the same stored pages at the same place (`fresh`). Of those, the distinct ones of
 * each parent chain (`chain`): a block that is also in an ancestor, or elsewhere in the snapshot, counts once. And
 * the distinct ones of all snapshots (`all`). Chains consist of the snapshots examined. `compressed_bytes` is by
 * the store's codec, each block on its own.
 *
 * Memory: `memory_limit` for what is known of blocks (24 bytes each), and maps. What exceeds it is done in several
 * passes, each reading everything and keeping one part of the digests. Blocks are told apart by 128-bit XXH3.
 * One thread. Errors: -EBADMSG a damaged snapshot, -ENOENT no such snapshot, -EAGAIN they go
 * faster than they can be read.
 */
#ifndef DORMOUSE_CLI_DEDUP_H
#define DORMOUSE_CLI_DEDUP_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "store/manifest.h"

#define DEDUP_SIZES 5

extern const uint32_t dedup_block_bytes[DEDUP_SIZES];

struct dedup_blocks {
    uint64_t count;
    uint64_t bytes;
    uint64_t compressed_bytes;
};

struct dedup_row {
    uint64_t zero_blocks;
    uint64_t inherited_blocks; /* the parent's, by its map */
    struct dedup_blocks fresh;
    struct dedup_blocks chain;
    struct dedup_blocks all;
};

struct dedup_image {
    uint64_t bytes;        /* of the images as the guests see them, zeros included */
    uint64_t stored_bytes; /* of the layers they use, as files, each once */
    uint64_t stored_pages; /* in these layers */
    struct dedup_row rows[DEDUP_SIZES];
};

struct dedup_report {
    char (*ids)[LAYER_ID_LENGTH + 1]; /* parents before their children */
    size_t count;
    unsigned passes;
    struct dedup_image images[IMAGE_KINDS];
};
void dedup_report_done(struct dedup_report *report);

/* `ids`: prefixes that fit one snapshot each; none: all snapshots. */
int dedup_examine(const char *data_directory, char *const *ids, size_t id_count, uint64_t memory_limit,
                  struct dedup_report *ret, struct error *err);

#endif
