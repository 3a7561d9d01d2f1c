/*
 * images_internal.h: what the files images*.c share.
 *
 * An image is counted by three kinds of holders. `holders` are VMs, open files and queued work: while there is one,
 * the layers are open. `lookups` is the kernel's count: while it or a holder is there, the object is, and with it
 * the inode and its cached pages, which outlive the last VM and are found again by the next one.
 */
#ifndef DORMOUSE_IMAGED_IMAGES_INTERNAL_H
#define DORMOUSE_IMAGED_IMAGES_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "imaged/fuse_mount.h"
#include "imaged/images.h"
#include "imaged/read_ahead.h"

#define SERVED_NAME_MAX 40

struct served {
    struct images *images;
    struct served *next;
    char name[SERVED_NAME_MAX + 1];
    uint64_t generation; /* tells apart inodes whose objects had the same address */
    uint64_t pages;
    bool empty; /* all zero, no snapshot */
    struct read_ahead ahead;
    _Atomic bool prefetching;

    pthread_mutex_t recording_lock;
    unsigned recorders;
    struct working_set recorded; /* empty without recorders */

    /* Under images->lock. */
    gid_t gid;
    uint64_t lookups;
    uint64_t holders;
    bool listed;                    /* can be found by name */
    _Atomic(struct image *) opened; /* read without the lock by holders */
};

struct job;

struct store_queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    bool stopping;
    struct job *jobs; /* ring */
    unsigned first;
    unsigned count;
    struct frame_buffer **spare; /* buffers that no thread and no job has */
    unsigned spare_count;
    pthread_t *threads;
    unsigned thread_count;
    _Atomic uint64_t *recent; /* frames decompressed lately: not again for running ahead */
};

/* What a thread that answers reads has for itself. */
struct reader {
    struct images *images;
    struct frame_buffer *frame;
    uint8_t *reply; /* FUSE_MOUNT_MAX_BYTES */
};

struct prefetch;

struct prefetcher {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    bool stopping;
    struct prefetch *list;  /* those with pages left to give out */
    struct reader *workers; /* one a thread; without a reply */
    pthread_t *threads;
    unsigned thread_count;
};

struct images {
    struct images_options options;
    char *mount_path;
    int layers_fd;
    struct fuse_mount *mount;
    struct reader *readers; /* one a thread */
    struct store_queue queue;
    struct prefetcher prefetcher;

    pthread_mutex_t lock;
    struct served *list;
    uint64_t next_generation;
};

/* images.c */

/* As lookup: counts for the kernel. NULL and *ret_error: a positive errno. */
struct served *images_lookup(struct images *images, const char *name, int *ret_error);
void served_forget(struct served *served, uint64_t lookups);
/* Opens the image if it isn't; pairs with served_put. */
int served_open(struct served *served, struct error *err);
/* Only for who holds it already. */
void served_hold(struct served *served);
void served_put(struct served *served);

/* images_fuse.c */

extern const struct fuse_lowlevel_ops images_operations;
void images_enter_thread(void *context, unsigned thread);
void served_attributes(const struct served *served, struct stat *ret);

/* images_store.c */

int store_queue_start(struct images *images, struct error *err);
/* Ends the threads, which needs those that answer; afterwards all work is dropped. */
void store_queue_stop(struct images *images);
/* After those that answer have ended. */
void store_queue_done(struct images *images);

/*
 * The other pages of the frame in *frame, which was read for `page`; *frame is exchanged for an empty buffer.
 * Nothing happens when the queue is full.
 */
void store_frame(struct served *served, uint64_t page, struct frame_buffer **frame, const uint8_t *pages,
                 unsigned page_count);

/* Reads and pushes a run of pages. */
void store_run(struct served *served, struct page_run run);

/*
 * The same at once, by the calling thread, which must not be one that answers reads: zeros, or the whole frame in
 * which `page` is, `place` being where. Frames are best announced before, and given up afterwards.
 */
void store_zeros_now(struct served *served, struct page_run run);
void store_frame_now(struct served *served, uint64_t page, const struct image_place *place,
                     struct frame_buffer *frame);
void store_will_read(struct served *served, struct page_run run);
void store_have_read(struct served *served, struct page_run run);

/* Throws a run of pages out of the page cache. */
void store_invalidate(struct served *served, struct page_run run);

/* Notes that a frame has been decompressed; whether it had been lately. */
bool store_note_frame(struct images *images, const struct layer *layer, uint32_t frame);

/* images_prefetch.c */

int prefetcher_start(struct images *images, struct error *err);
void prefetcher_stop(struct images *images);
void prefetcher_done(struct images *images);
void served_record(struct served *served, struct page_run run);

#endif
