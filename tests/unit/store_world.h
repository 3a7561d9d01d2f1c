/*
 * store_world.h: snapshots whose every page is known, for tests of the store.
 *
 * A page is a number: 0 is a page of zeros, any other the seed of its bytes.
 */
#ifndef DORMOUSE_TESTS_STORE_WORLD_H
#define DORMOUSE_TESTS_STORE_WORLD_H

#include "store/store.h"

#define MODEL_PAGES 96

struct model {
    uint32_t pages[IMAGE_KINDS][MODEL_PAGES];
};

/* Changes `count` pages of each image, some to zero; deterministic in *seed, which moves on. */
void model_change(struct model *model, unsigned count, uint32_t *seed);

/* Makes VM_DIRECTORY with what every snapshot links. */
void model_make_vm(const char *vm_directory);

/* Fills snapshot and writer with what differs between the models, the first of which `parent_id` (NULL: all zero)
 * is.
 */
int model_write(struct store *store, struct snapshot_writer *writer, const char *vm_directory,
                const char *parent_id, const struct model *parent, const struct model *model,
                struct snapshot *snapshot, struct error *err);

/* As above, committed. *ret_id is the caller's. */
int model_commit(struct store *store, const char *vm_directory, const char *parent_id, const struct model *parent,
                 const struct model *model, char **ret_id, struct error *err);

/* Whether the snapshot's images hold just that, and store_verify finds nothing. */
int model_check(struct store *store, const char *id, const struct model *model, struct error *err);

#endif
