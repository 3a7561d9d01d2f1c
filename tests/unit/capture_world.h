/*
 * capture_world.h: what the tests of capture share: a parent image, one capture into a layer, and what the two of
 * them hold together.
 */
#ifndef DORMOUSE_TESTS_CAPTURE_WORLD_H
#define DORMOUSE_TESTS_CAPTURE_WORLD_H

#include "image/capture.h"
#include "store/layer.h"

#define PAGE ((size_t)IMAGE_PAGE_BYTES)

/* The image: two pieces of guest memory with a gap between, where the image has data, too, and one without a file.
 */
#define LOW_PAGES  3000u
#define GAP_PAGES  1000u
#define HIGH_PAGES 3000u
#define BARE_PAGES 2048u
#define HIGH_START (LOW_PAGES + GAP_PAGES)
#define BARE_START (HIGH_START + HIGH_PAGES)
#define PAGES      (BARE_START + BARE_PAGES)

#define PARENT_LAYER 0u
#define NEW_LAYER    1u

struct parent {
    int fd;
    uint8_t *content;
    struct image_map map;
};

/* Data in random stretches of the part that has a file; extents end in the middle of them, too. */
void capture_make_parent(const char *directory, uint64_t *random, struct parent *ret);
void capture_drop_parent(struct parent *parent);

/* A descriptor of a new directory for layers. */
int capture_make_layers(const char *directory);

struct captured {
    struct capture_result result;
    char layer_id[LAYER_ID_LENGTH + 1];
    uint64_t layer_bytes;
};

/* One of the three is given. */
struct subject {
    const struct capture_memory *memory;
    const struct capture_disk *disk;
    int file;
    uint64_t file_bytes;
};

int try_capture(int layers, const struct subject *subject, unsigned frame_pages, struct captured *ret,
                struct error *err);
void capture(int layers, const struct subject *subject, unsigned frame_pages, struct captured *ret);

/* What the captured image holds: the parent's pages (NULL: none) and those of the layer, by way of the maps. */
uint8_t *capture_read_image(int layers, const struct parent *parent, uint64_t pages,
                            const struct captured *captured);

/* Nothing is stored that the parent has, and frames are full, but for one. */
void capture_check_thrift(int layers, const struct captured *captured, const uint8_t *before, const uint8_t *after);

#endif
