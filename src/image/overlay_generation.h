/*
 * overlay_generation.h: the two files of one generation of an overlay (see overlay.h).
 *
 * The data file is read and written past the page cache (O_DIRECT), because guests cache their disks themselves;
 * bytes that O_DIRECT can't take from where they lie go through aligned buffers, so that no file is ever used both
 * ways at once. Where O_DIRECT isn't supported, the page cache is used.
 *
 * A generation's map file gets its name when it is first synced, complete: a data file without a map is what a
 * crash left of a generation that was never synced, and is nothing.
 */
#ifndef DORMOUSE_IMAGE_OVERLAY_GENERATION_H
#define DORMOUSE_IMAGE_OVERLAY_GENERATION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "image/overlay_map.h"

#define BOUNCE_BYTES (256u << 10)
#define BOUNCE_KEPT  4

/* Aligned buffers; any thread. */
struct bounce_pool {
    pthread_mutex_t mutex;
    void *kept[BOUNCE_KEPT];
    unsigned count;
};
void bounce_pool_init(struct bounce_pool *pool);
void bounce_pool_done(struct bounce_pool *pool);

struct generation {
    uint64_t number;
    uint64_t disk_bytes;
    int data_fd;
    int map_fd;         /* -1 once it isn't written any more */
    bool map_named;     /* the map file has its name: something was synced */
    atomic_bool direct; /* data_fd is O_DIRECT */
    unsigned alignment; /* of memory, for O_DIRECT */
    struct bounce_pool *pool;
};

/*
 * Numbers of the generations up to `newest` that have a map, ascending; the caller frees *ret. -E2BIG when there
 * are more than OVERLAY_GENERATIONS_MAX.
 */
int generation_list(int directory_fd, uint64_t newest, uint64_t **ret, size_t *ret_count, struct error *err);
/* Removes what a crash left of generations that were never synced. */
int generation_remove_unsynced(int directory_fd, struct error *err);

/* `pool` outlives the generation. */
int generation_create(int directory_fd, uint64_t number, uint64_t disk_bytes, struct bounce_pool *pool,
                      struct generation **ret);
/* One that is not written any more; its map is merged into `map` as `slot`, over what is there. */
int generation_open(int directory_fd, uint64_t number, uint64_t disk_bytes, unsigned slot, struct overlay_map *map,
                    struct bounce_pool *pool, struct generation **ret, struct error *err);
/* The files stay. NULL is allowed. */
void generation_close(struct generation *generation);
/* Removes the files, the map first; none: success. */
int generation_remove(int directory_fd, uint64_t number);

/* Whole blocks. */
int generation_read(struct generation *generation, uint64_t offset, size_t length, void *to);
int generation_write(struct generation *generation, uint64_t offset, size_t length, const void *from);
/* Gives space back; what is there afterwards is undefined. */
void generation_punch(struct generation *generation, uint64_t offset, uint64_t length);

int generation_sync_data(struct generation *generation);
/* Bytes at `offset` of the map file. */
int generation_write_map(struct generation *generation, uint64_t offset, size_t length, const void *from);
/* Makes what was written to the map durable. */
int generation_sync_map(struct generation *generation, int directory_fd);

uint64_t generation_used_bytes(const struct generation *generation);

#endif
