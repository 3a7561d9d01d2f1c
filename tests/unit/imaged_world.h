/*
 * imaged_world.h: a data directory with snapshots whose every page is known, and an image server over it.
 *
 * A page is a number: 0 is a page of zeros, any other the seed of its bytes. Failures end the test.
 */
#ifndef DORMOUSE_TESTS_IMAGED_WORLD_H
#define DORMOUSE_TESTS_IMAGED_WORLD_H

#include "imaged/client.h"
#include "store/manifest.h"

#define WORLD_MEMORY_PAGES 2048u
#define WORLD_DISK_PAGES   1024u
#define WORLD_PAGES_MAX    2048u
#define WORLD_UID          54321
#define WORLD_GID          54322

struct world_snapshot {
    char id[LAYER_ID_LENGTH + 1];
    char layers[2][LAYER_ID_LENGTH + 1]; /* a first one with most pages, a second one with a few over it */
    uint32_t pages[IMAGE_KINDS][WORLD_PAGES_MAX];
};

struct world {
    char directory[64];
    struct imaged *imaged;
};

void world_open(struct world *world);
/* As world_open, for a data directory that is there. */
void world_start(struct world *world);
void world_close(struct world *world);

/* A cmocka setup and teardown: *state is an open world. */
int world_setup(void **state);
int world_teardown(void **state);
#define WORLD_TEST(function) cmocka_unit_test_setup_teardown(function, world_setup, world_teardown)

uint32_t world_random(uint32_t *seed);
size_t world_pages(enum image_kind kind);
void world_fill_page(uint8_t page[static IMAGE_PAGE_BYTES], uint32_t number);
/* Whether these are the bytes of that page. */
bool world_is_page(const uint8_t *bytes, uint32_t number);

/* A new snapshot with random pages, a quarter of them zero, in runs. */
void world_snapshot(struct world *world, uint32_t seed, struct world_snapshot *ret);
/* Writes layers and manifest of a snapshot whose pages and id are given. */
void world_write_snapshot(struct world *world, struct world_snapshot *snapshot);

/* Makes vms/VM with the snapshot's manifest. *ret_directory is the caller's. */
void world_make_vm(struct world *world, const char *vm, const struct world_snapshot *snapshot,
                   char **ret_directory);
/* The same, attached. */
void world_attach(struct world *world, const char *vm, const struct world_snapshot *snapshot,
                  struct imaged_files *ret);
/* The same, with a new snapshot. */
void world_attach_new(struct world *world, const char *vm, uint32_t seed, struct world_snapshot *ret_snapshot,
                      struct imaged_files *ret);
/* Attaches a VM whose directory is there. */
void world_attach_again(struct world *world, const char *vm, struct imaged_files *ret);
void world_detach(struct world *world, const char *vm, struct imaged_files *files);

char *world_path(const struct world *world, const char *format, ...) PRINTF_LIKE(2, 3);

/* A counter out of the statistics. */
int64_t world_statistic(struct world *world, const char *name);

#endif
