/*
 * images.h: one mount of read-only images, of one kind: a file for each snapshot, named by its id.
 *
 * Order of calls: images_start; images_use for each VM that starts, images_release when it has ended; images_stop.
 * An image that nobody uses through images_use is opened when its file is, from DATA/snapshots, and closed with it.
 *
 * How a page gets into the page cache, which all VMs of a snapshot share:
 *
 *   - A guest's fault becomes a read. The thread that takes it reads, checks and decompresses one frame and
 * answers.
 *   - The rest of the frame is handed to a *storer*, which pushes it into the page cache by notify_store. Pushing
 * may wait for a page that is locked for a read, so a thread that answers reads never pushes.
 *   - Misses that follow each other make the storers run ahead (read_ahead.h). Their queue is bounded; what doesn't
 *     fit is dropped: it is only speed.
 *
 * A frame that can't be read is an error for who asked, and `failed` is called; nothing is served in its place.
 * Writing is refused before it reaches the page cache: see images_fuse.c.
 *
 * Memory: per thread one frame, 64 frames waiting for the storers, what the open layers keep. Threads: any.
 */
#ifndef DORMOUSE_IMAGED_IMAGES_H
#define DORMOUSE_IMAGED_IMAGES_H

#include <sys/types.h>

#include "imaged/metrics.h"
#include "imaged/working_set.h"
#include "store/image.h"

struct images;
struct served; /* one image */

struct images_options {
    const char *data_directory;
    const char *mount; /* below it */
    enum image_kind kind;
    unsigned threads;
    unsigned storers;
    unsigned prefetchers;
    unsigned max_readahead; /* of the kernel, bytes */
    struct metrics *metrics;
    /* An image can't be read. Called by the threads that answer: must not wait for anything. */
    void (*failed)(void *context, struct served *served, const char *reason);
    void *context;
};

int images_start(const struct images_options *options, struct images **ret, struct error *err);
/* Takes the mount away; images can still be released. */
void images_unmount(struct images *images);
void images_stop(struct images *images);
const char *images_path(const struct images *images);

/* The image of snapshot `id` if it is open, else NULL. Released by images_release. */
struct served *images_use(struct images *images, const char *id, gid_t gid);

/* Opens it from `snapshot`, whose map is taken over, unless it has been opened meanwhile. */
int images_add(struct images *images, struct snapshot *snapshot, gid_t gid, struct served **ret, struct error *err);

/* A new image of zeros. It goes when it is released. */
int images_add_empty(struct images *images, const char *name, uint64_t bytes, gid_t gid, struct served **ret,
                     struct error *err);
void images_release(struct served *served);

/*
 * Pushes the pages of a joined set that aren't in the page cache yet, in the background. The file must be open
 * somewhere, else there is nowhere to push to. Nothing happens while another prefetch of the image is under way.
 */
int images_prefetch(struct served *served, const struct working_set *set, struct error *err);

/* Records what is missed between the two, each called once by each who wants it; images_recorded adds it to a set.
 */
void images_record(struct served *served);
void images_record_end(struct served *served);
int images_recorded(struct served *served, struct working_set *set);

const char *served_name(const struct served *served);
uint64_t served_pages(const struct served *served);

#endif
