/*
 * image.h: reads the pages of a snapshot's image: map and open layers together.
 *
 * Order of calls: image_open; image_locate and layer_read_frame, or image_read, from any number of threads, each
 * with a frame_buffer of its own; image_close. The layers stay readable while the image is open, even when gc has
 * removed their names. Errors as layer.h's; -ENOENT with its name when a layer is missing.
 */
#ifndef DORMOUSE_STORE_IMAGE_H
#define DORMOUSE_STORE_IMAGE_H

#include "store/manifest.h"

struct image;

/* Takes over the map and opens the layers it uses. -ENODATA when there is no such image. */
int image_open(int layers_fd, struct snapshot *snapshot, enum image_kind kind, struct image **ret,
               struct error *err);
void image_close(struct image *image);
uint64_t image_pages(const struct image *image);
const struct image_map *image_map(const struct image *image);

/* Where a page is. What the frame has at `index` is known only when it is read: it may have fewer pages. */
struct image_place {
    bool zero;
    struct layer *layer; /* unless zero */
    uint32_t frame;
    uint32_t index; /* page in the frame */
    /* Pages from this one on that are zero, too, or that follow it in the same frame. */
    uint64_t count;
};
void image_locate(const struct image *image, uint64_t page, struct image_place *ret);

/*
 * The pages of the image that lie in the same frame as `page`, itself included, ascending: once that frame has been
 * decompressed for one of them, the others cost nothing. Looks at the extents near by only, so it may miss some.
 * Returns their number, at most LAYER_FRAME_PAGES_MAX; 0 when `page` is zero.
 */
struct image_mate {
    uint64_t page;
    uint32_t index; /* page in the frame */
};
size_t image_frame_mates(const struct image *image, uint64_t page,
                         struct image_mate mates[static LAYER_FRAME_PAGES_MAX]);

/* Copies `count` pages. Reads each frame once per run of pages it holds, and has it leave the page cache. */
int image_read(struct image *image, uint64_t page, size_t count, struct frame_buffer *buffer, void *to,
               struct error *err);

#endif
