/*
 * One map, shared by all threads, says which generation holds each block (overlay_map.h). The active generation's
 * own map, as it is on disk, is what the shared map says of its slot.
 *
 * Invariants:
 * - An entry is set only after the bytes it stands for were written to the data file. So a reader sees the old
 * block or the new one, and a flush that has copied an entry makes its bytes durable when it then syncs the data
 * file.
 * - A bit in `dirty` is set after the entries of its page; a flush clears the bit before it copies the page. So no
 * entry misses its way to disk.
 * - Files of frozen generations never change.
 *
 * Locks, in this order:
 * - `lock`: shared by input and output, exclusive where generations come to an end (freeze, rebase).
 * - `stripes`, by ascending index: writers of whole blocks share them, and who completes part of a block from what
 * is below has its stripe alone, since a write between its read and its write would be lost.
 * - `flushing`: one flush at a time; those that waited find their work done.
 * - `beginning`: makes the active generation.
 */
#include "image/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/macro.h"
#include "image/overlay_generation.h"
#include "image/overlay_map.h"

#define STRIPES       32u
#define STRIPE_BLOCKS 256u

/* Blocks looked up at a time in a read, and the longest gap in a run of data that is read rather than skipped. */
#define READ_BLOCKS 256u
#define READ_GAP    8u

/* Pages of the map copied at a time in a flush. */
#define FLUSH_PAGES 256u

struct overlay {
    int directory_fd;
    uint64_t disk_bytes;
    overlay_base_read base;
    void *context;
    struct overlay_map map;
    struct bounce_pool pool;

    pthread_rwlock_t lock;
    pthread_rwlock_t stripes[STRIPES];

    pthread_mutex_t beginning;
    struct generation *generations[OVERLAY_GENERATIONS_MAX]; /* by slot; NULL: free */
    atomic_int active;                                       /* the slot being written, or -1 */
    uint64_t next_number;

    _Atomic uint64_t *dirty; /* a bit for each page of the map that differs from the active generation's map file */
    _Atomic uint64_t changes; /* writes so far */

    _Atomic uint64_t limit; /* bytes; 0: none */
    _Atomic int64_t room;   /* what may surely be written before it has to be looked at again */

    pthread_mutex_t flushing;
    uint64_t flushed; /* `changes` that are durable */
    int failed;       /* of the first sync that failed */
    uint8_t *copies;  /* FLUSH_PAGES pages */
    uint64_t copied[FLUSH_PAGES];
};

static void lock_init(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    /* Else a guest that never stops writing could hold off its freeze for ever. */
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
}

static int open_generations(struct overlay *overlay, struct error *err)
{
    int r = generation_remove_unsynced(overlay->directory_fd, err);
    if (r < 0)
        return r;
    CLEANUP_FREE uint64_t *numbers = NULL;
    size_t count;
    r = generation_list(overlay->directory_fd, UINT64_MAX, &numbers, &count, err);
    if (r < 0)
        return r;
    if (count == OVERLAY_GENERATIONS_MAX)
        return error_set(err, E2BIG, "the overlay has %zu generations, and none can be added", count);
    for (unsigned slot = 0; slot < count; slot++) {
        r = generation_open(overlay->directory_fd, numbers[slot], overlay->disk_bytes, slot, &overlay->map,
                            &overlay->pool, &overlay->generations[slot], err);
        if (r < 0)
            return r;
        overlay->next_number = numbers[slot] + 1;
    }
    return 0;
}

int overlay_open(const char *directory, uint64_t disk_bytes, overlay_base_read base, void *context,
                 struct overlay **ret, struct error *err)
{
    if (disk_bytes == 0 || disk_bytes % OVERLAY_BLOCK_BYTES != 0 || disk_bytes > OVERLAY_DISK_MAX)
        return error_set(err, EINVAL, "an overlay can't have %" PRIu64 " bytes", disk_bytes);
    CLEANUP_CLOSE int directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory_fd < 0)
        return error_errno(err, "cannot open %s", directory);
    struct overlay *overlay = calloc(1, sizeof(*overlay));
    if (overlay == NULL)
        return error_set(err, ENOMEM, "out of memory");
    overlay->directory_fd = TAKE_FD(directory_fd);
    overlay->disk_bytes = disk_bytes;
    overlay->base = base;
    overlay->context = context;
    overlay->active = -1;
    overlay->next_number = 1;
    bounce_pool_init(&overlay->pool);
    lock_init(&overlay->lock);
    for (unsigned i = 0; i < STRIPES; i++)
        lock_init(&overlay->stripes[i]);
    pthread_mutex_init(&overlay->beginning, NULL);
    pthread_mutex_init(&overlay->flushing, NULL);
    int r = overlay_map_init(&overlay->map, disk_bytes / OVERLAY_BLOCK_BYTES);
    overlay->dirty = r < 0 ? NULL : overlay_bits_new(overlay->map.pages);
    overlay->copies = malloc((size_t)FLUSH_PAGES * OVERLAY_MAP_PAGE);
    if (overlay->dirty == NULL || overlay->copies == NULL)
        r = error_set(err, ENOMEM, "out of memory");
    else
        r = open_generations(overlay, err);
    if (r < 0) {
        overlay_close(overlay);
        return error_wrap(err, r, "opening the overlay in %s", directory);
    }
    *ret = overlay;
    return 0;
}

void overlay_close(struct overlay *overlay)
{
    if (overlay == NULL)
        return;
    for (unsigned slot = 0; slot < OVERLAY_GENERATIONS_MAX; slot++)
        generation_close(overlay->generations[slot]);
    overlay_map_done(&overlay->map);
    free(overlay->dirty);
    free(overlay->copies);
    bounce_pool_done(&overlay->pool);
    pthread_rwlock_destroy(&overlay->lock);
    for (unsigned i = 0; i < STRIPES; i++)
        pthread_rwlock_destroy(&overlay->stripes[i]);
    pthread_mutex_destroy(&overlay->beginning);
    pthread_mutex_destroy(&overlay->flushing);
    cleanup_close(&overlay->directory_fd);
    free(overlay);
}

static uint32_t stripes_of(uint64_t block, uint64_t count)
{
    uint64_t first = block / STRIPE_BLOCKS;
    uint64_t last = (block + count - 1) / STRIPE_BLOCKS;
    uint32_t mask = 0;
    for (uint64_t i = first; i <= last && i - first < STRIPES; i++)
        mask |= UINT32_C(1) << i % STRIPES;
    return mask;
}

static void share_stripes(struct overlay *overlay, uint32_t mask)
{
    for (unsigned i = 0; i < STRIPES; i++) {
        if ((mask >> i & 1) != 0)
            pthread_rwlock_rdlock(&overlay->stripes[i]);
    }
}

static void release_stripes(struct overlay *overlay, uint32_t mask)
{
    for (unsigned i = 0; i < STRIPES; i++) {
        if ((mask >> i & 1) != 0)
            pthread_rwlock_unlock(&overlay->stripes[i]);
    }
}

static bool in_range(const struct overlay *overlay, uint64_t offset, uint64_t length)
{
    return offset <= overlay->disk_bytes && length <= overlay->disk_bytes - offset;
}

/* Bytes from `offset` that are part of one block only, or else 0: what comes is whole blocks. */
static size_t partial_length(uint64_t offset, uint64_t length)
{
    size_t in_block = offset % OVERLAY_BLOCK_BYTES;
    if (in_block == 0 && length >= OVERLAY_BLOCK_BYTES)
        return 0;
    return (size_t)MIN(length, (uint64_t)(OVERLAY_BLOCK_BYTES - in_block));
}

static int read_data(struct overlay *overlay, uint8_t entry, uint64_t block, unsigned count, uint8_t *to)
{
    return generation_read(overlay->generations[overlay_entry_slot(entry)], block * OVERLAY_BLOCK_BYTES,
                           (size_t)count * OVERLAY_BLOCK_BYTES, to);
}

/*
 * The end of the run of data of one generation that begins at `first`, over short gaps of what isn't data: reading
 * what they have in the file, to be replaced, costs less than another request.
 */
static unsigned data_run_end(const uint8_t *entries, unsigned first, unsigned count)
{
    unsigned end = first + 1;
    for (unsigned i = end; i < count && i - end < READ_GAP; i++) {
        if (entries[i] == entries[first])
            end = i + 1;
        else if (overlay_entry_kind(entries[i]) == OVERLAY_DATA)
            break;
    }
    return end;
}

/* At most READ_BLOCKS whole blocks. */
static int read_blocks(struct overlay *overlay, uint64_t block, unsigned count, uint8_t *to)
{
    /* Looked at once: an entry that changes between the two passes would leave what lies in a gap. */
    uint8_t entries[READ_BLOCKS];
    for (unsigned i = 0; i < count; i++)
        entries[i] = overlay_map_get(&overlay->map, block + i);
    for (unsigned i = 0; i < count;) {
        if (overlay_entry_kind(entries[i]) != OVERLAY_DATA) {
            i++;
            continue;
        }
        unsigned end = data_run_end(entries, i, count);
        int r = read_data(overlay, entries[i], block + i, end - i, to + (size_t)i * OVERLAY_BLOCK_BYTES);
        if (r < 0)
            return r;
        i = end;
    }
    for (unsigned i = 0, end; i < count; i = end) {
        enum overlay_block kind = overlay_entry_kind(entries[i]);
        for (end = i + 1; end < count && overlay_entry_kind(entries[end]) == kind;)
            end++;
        uint8_t *at = to + (size_t)i * OVERLAY_BLOCK_BYTES;
        size_t length = (size_t)(end - i) * OVERLAY_BLOCK_BYTES;
        int r = 0;
        if (kind == OVERLAY_ZERO)
            memset(at, 0, length);
        else if (kind == OVERLAY_ABSENT)
            r = overlay->base(overlay->context, (block + i) * OVERLAY_BLOCK_BYTES, length, at);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_part(struct overlay *overlay, uint64_t offset, size_t length, uint8_t *to)
{
    _Alignas(OVERLAY_BLOCK_BYTES) uint8_t bytes[OVERLAY_BLOCK_BYTES];
    int r = read_blocks(overlay, offset / OVERLAY_BLOCK_BYTES, 1, bytes);
    if (r == 0)
        memcpy(to, bytes + offset % OVERLAY_BLOCK_BYTES, length);
    return r;
}

int overlay_read(struct overlay *overlay, uint64_t offset, size_t length, void *to)
{
    if (!in_range(overlay, offset, length))
        return -ERANGE;
    uint8_t *at = to;
    int r = 0;
    pthread_rwlock_rdlock(&overlay->lock);
    while (r == 0 && length > 0) {
        size_t part = partial_length(offset, length);
        if (part > 0) {
            r = read_part(overlay, offset, part, at);
        } else {
            unsigned count = (unsigned)MIN(length / OVERLAY_BLOCK_BYTES, (size_t)READ_BLOCKS);
            part = (size_t)count * OVERLAY_BLOCK_BYTES;
            r = read_blocks(overlay, offset / OVERLAY_BLOCK_BYTES, count, at);
        }
        offset += part;
        at += part;
        length -= part;
    }
    pthread_rwlock_unlock(&overlay->lock);
    return r;
}

/* The slot that is written, beginning a generation if there is none; or a negative errno. `lock` is shared. */
static int active_slot(struct overlay *overlay)
{
    int slot = atomic_load(&overlay->active);
    if (slot >= 0)
        return slot;
    pthread_mutex_lock(&overlay->beginning);
    slot = atomic_load(&overlay->active);
    if (slot < 0) {
        slot = 0;
        while (overlay->generations[slot] != NULL)
            slot++; /* overlay_freeze leaves one free */
        int r = generation_create(overlay->directory_fd, overlay->next_number, overlay->disk_bytes, &overlay->pool,
                                  &overlay->generations[slot]);
        if (r < 0) {
            slot = r;
        } else {
            overlay->next_number++;
            atomic_store(&overlay->active, slot);
        }
    }
    pthread_mutex_unlock(&overlay->beginning);
    return slot;
}

/* Their bytes are in the data file, or are to be zero. */
static void mark(struct overlay *overlay, int slot, uint64_t block, uint64_t count, enum overlay_block kind)
{
    if (overlay_map_set(&overlay->map, block, count, overlay_entry((unsigned)slot, kind)))
        overlay_bits_set(overlay->dirty, block, count);
    atomic_fetch_add(&overlay->changes, 1);
}

static uint64_t used_bytes(struct overlay *overlay)
{
    uint64_t total = 0;
    pthread_mutex_lock(&overlay->beginning);
    for (unsigned slot = 0; slot < OVERLAY_GENERATIONS_MAX; slot++) {
        if (overlay->generations[slot] != NULL)
            total += generation_used_bytes(overlay->generations[slot]);
    }
    pthread_mutex_unlock(&overlay->beginning);
    return total;
}

/*
 * Takes the space for what is to be written, if there is a limit. What is written is only counted against the room
 * found at the last look, whether or not it takes space; when that is used up, the files tell what is left.
 */
static int take_room(struct overlay *overlay, int slot, uint64_t block, uint64_t count)
{
    uint64_t limit = atomic_load(&overlay->limit);
    if (limit == 0)
        return 0;
    uint64_t missing = 0;
    for (uint64_t i = block; i < block + count; i++)
        missing += overlay_map_get(&overlay->map, i) != overlay_entry((unsigned)slot, OVERLAY_DATA);
    int64_t bytes = (int64_t)(missing * OVERLAY_BLOCK_BYTES);
    if (bytes == 0 || atomic_fetch_sub(&overlay->room, bytes) >= bytes)
        return 0;
    int64_t room = (int64_t)(limit - MIN(limit, used_bytes(overlay)));
    atomic_store(&overlay->room, room - MIN(room, bytes));
    return room >= bytes ? 0 : -ENOSPC;
}

/* Bytes of one block; `from` NULL: zeros. */
static int write_part(struct overlay *overlay, int slot, uint64_t offset, size_t length, const uint8_t *from)
{
    _Alignas(OVERLAY_BLOCK_BYTES) uint8_t bytes[OVERLAY_BLOCK_BYTES];
    uint64_t block = offset / OVERLAY_BLOCK_BYTES;
    uint8_t *at = bytes + offset % OVERLAY_BLOCK_BYTES;
    pthread_rwlock_t *stripe = &overlay->stripes[block / STRIPE_BLOCKS % STRIPES];
    pthread_rwlock_wrlock(stripe);
    int r = take_room(overlay, slot, block, 1);
    if (r == 0)
        r = read_blocks(overlay, block, 1, bytes);
    if (r == 0) {
        if (from != NULL)
            memcpy(at, from, length);
        else
            memset(at, 0, length);
        r = generation_write(overlay->generations[slot], block * OVERLAY_BLOCK_BYTES, sizeof(bytes), bytes);
    }
    if (r == 0)
        mark(overlay, slot, block, 1, OVERLAY_DATA);
    pthread_rwlock_unlock(stripe);
    return r;
}

static int write_blocks(struct overlay *overlay, int slot, uint64_t block, uint64_t count, const uint8_t *from)
{
    uint32_t stripes = stripes_of(block, count);
    share_stripes(overlay, stripes);
    int r = take_room(overlay, slot, block, count);
    if (r == 0)
        r = generation_write(overlay->generations[slot], block * OVERLAY_BLOCK_BYTES, count * OVERLAY_BLOCK_BYTES,
                             from);
    if (r == 0)
        mark(overlay, slot, block, count, OVERLAY_DATA);
    release_stripes(overlay, stripes);
    return r;
}

int overlay_write(struct overlay *overlay, uint64_t offset, size_t length, const void *from)
{
    if (!in_range(overlay, offset, length))
        return -ERANGE;
    if (length == 0)
        return 0;
    const uint8_t *at = from;
    pthread_rwlock_rdlock(&overlay->lock);
    int slot = active_slot(overlay);
    int r = MIN(slot, 0);
    while (r == 0 && length > 0) {
        size_t part = partial_length(offset, length);
        if (part > 0) {
            r = write_part(overlay, slot, offset, part, at);
        } else {
            part = length / OVERLAY_BLOCK_BYTES * OVERLAY_BLOCK_BYTES;
            r = write_blocks(overlay, slot, offset / OVERLAY_BLOCK_BYTES, part / OVERLAY_BLOCK_BYTES, at);
        }
        offset += part;
        at += part;
        length -= part;
    }
    pthread_rwlock_unlock(&overlay->lock);
    return r;
}

/* Whether all of these blocks are zero blocks of some generation. */
static bool are_zero(const struct overlay *overlay, uint64_t block, uint64_t count)
{
    for (uint64_t i = block; i < block + count; i++) {
        if (overlay_entry_kind(overlay_map_get(&overlay->map, i)) != OVERLAY_ZERO)
            return false;
    }
    return true;
}

static bool has_entry(const struct overlay *overlay, uint64_t block, uint64_t count, uint8_t entry)
{
    for (uint64_t i = block; i < block + count; i++) {
        if (overlay_map_get(&overlay->map, i) == entry)
            return true;
    }
    return false;
}

static int zero_part(struct overlay *overlay, uint64_t offset, size_t length)
{
    if (are_zero(overlay, offset / OVERLAY_BLOCK_BYTES, 1))
        return 0;
    int slot = active_slot(overlay);
    return slot < 0 ? slot : write_part(overlay, slot, offset, length, NULL);
}

static int zero_blocks(struct overlay *overlay, uint64_t block, uint64_t count)
{
    uint32_t stripes = stripes_of(block, count);
    int r = 0;
    share_stripes(overlay, stripes);
    if (!are_zero(overlay, block, count)) {
        int slot = active_slot(overlay);
        r = MIN(slot, 0);
        if (r == 0) {
            bool takes_space = has_entry(overlay, block, count, overlay_entry((unsigned)slot, OVERLAY_DATA));
            mark(overlay, slot, block, count, OVERLAY_ZERO);
            if (takes_space)
                generation_punch(overlay->generations[slot], block * OVERLAY_BLOCK_BYTES,
                                 count * OVERLAY_BLOCK_BYTES);
        }
    }
    release_stripes(overlay, stripes);
    return r;
}

int overlay_zero(struct overlay *overlay, uint64_t offset, uint64_t length)
{
    if (!in_range(overlay, offset, length))
        return -ERANGE;
    int r = 0;
    pthread_rwlock_rdlock(&overlay->lock);
    while (r == 0 && length > 0) {
        uint64_t part = partial_length(offset, length);
        if (part > 0) {
            r = zero_part(overlay, offset, (size_t)part);
        } else {
            part = length / OVERLAY_BLOCK_BYTES * OVERLAY_BLOCK_BYTES;
            r = zero_blocks(overlay, offset / OVERLAY_BLOCK_BYTES, part / OVERLAY_BLOCK_BYTES);
        }
        offset += part;
        length -= part;
    }
    pthread_rwlock_unlock(&overlay->lock);
    return r;
}

static void copy_page(struct overlay *overlay, unsigned slot, uint64_t page, uint8_t *to)
{
    uint8_t data = overlay_entry(slot, OVERLAY_DATA);
    uint8_t zero = overlay_entry(slot, OVERLAY_ZERO);
    uint64_t first = page * OVERLAY_MAP_PAGE;
    uint64_t count = MIN((uint64_t)OVERLAY_MAP_PAGE, overlay->map.blocks - first);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t entry = overlay_map_get(&overlay->map, first + i);
        to[i] = entry == data ? OVERLAY_DATA : entry == zero ? OVERLAY_ZERO : OVERLAY_ABSENT;
    }
}

/* Copies up to FLUSH_PAGES dirty pages and takes their bits away; from *page on, which moves. */
static size_t copy_dirty_pages(struct overlay *overlay, unsigned slot, uint64_t *page)
{
    size_t count = 0;
    while (*page < overlay->map.pages && count < FLUSH_PAGES) {
        _Atomic uint64_t *word = &overlay->dirty[*page / 64];
        uint64_t bit = UINT64_C(1) << *page % 64;
        if (*page % 64 == 0 && atomic_load(word) == 0) {
            *page += 64;
            continue;
        }
        if ((atomic_fetch_and(word, ~bit) & bit) != 0) {
            copy_page(overlay, slot, *page, overlay->copies + count * OVERLAY_MAP_PAGE);
            overlay->copied[count++] = *page;
        }
        ++*page;
    }
    return count;
}

static int write_copies(struct overlay *overlay, struct generation *generation, size_t count)
{
    for (size_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && overlay->copied[end] == overlay->copied[end - 1] + 1;)
            end++;
        uint64_t offset = overlay->copied[i] * OVERLAY_MAP_PAGE;
        size_t length = (size_t)MIN((uint64_t)(end - i) * OVERLAY_MAP_PAGE, overlay->map.blocks - offset);
        int r = generation_write_map(generation, offset, length, overlay->copies + i * OVERLAY_MAP_PAGE);
        if (r < 0)
            return r;
    }
    return 0;
}

static int flush_active(struct overlay *overlay, unsigned slot)
{
    struct generation *generation = overlay->generations[slot];
    size_t written = 0;
    uint64_t page = 0;
    do {
        size_t count = copy_dirty_pages(overlay, slot, &page);
        /* Always the first time: blocks may have been written in place. */
        int r = count > 0 || written == 0 ? generation_sync_data(generation) : 0;
        if (r < 0)
            return overlay->failed = r;
        r = write_copies(overlay, generation, count);
        if (r < 0) {
            /* A full disk, perhaps: the next flush tries again. */
            for (size_t i = 0; i < count; i++)
                overlay_bits_set(overlay->dirty, overlay->copied[i] * OVERLAY_MAP_PAGE, 1);
            return r;
        }
        written += count;
    } while (page < overlay->map.pages);
    if (written == 0 && generation->map_named)
        return 0;
    return overlay->failed = generation_sync_map(generation, overlay->directory_fd);
}

/* `lock` is held either way. */
static int flush(struct overlay *overlay)
{
    uint64_t changes = atomic_load(&overlay->changes);
    pthread_mutex_lock(&overlay->flushing);
    int r = overlay->failed;
    int slot = atomic_load(&overlay->active);
    if (r == 0 && slot >= 0 && overlay->flushed < changes) {
        r = flush_active(overlay, (unsigned)slot);
        if (r == 0)
            overlay->flushed = changes;
    }
    pthread_mutex_unlock(&overlay->flushing);
    return r;
}

int overlay_flush(struct overlay *overlay)
{
    pthread_rwlock_rdlock(&overlay->lock);
    int r = flush(overlay);
    pthread_rwlock_unlock(&overlay->lock);
    return r;
}

static int freeze(struct overlay *overlay, struct error *err)
{
    int r = flush(overlay);
    int slot = atomic_load(&overlay->active);
    if (r < 0)
        return error_code(err, r, "flushing the overlay");
    if (slot < 0 || !overlay->generations[slot]->map_named)
        return 0;
    unsigned used = 0;
    for (unsigned i = 0; i < OVERLAY_GENERATIONS_MAX; i++)
        used += overlay->generations[i] != NULL;
    if (used == OVERLAY_GENERATIONS_MAX) {
        error_set(err, E2BIG, "the overlay has %u frozen generations that are in no snapshot yet", used - 1);
        error_hint(err, "wait until the snapshots under way are complete");
        return -E2BIG;
    }
    cleanup_close(&overlay->generations[slot]->map_fd);
    overlay->generations[slot]->map_fd = -1;
    atomic_store(&overlay->active, -1);
    return 0;
}

int overlay_freeze(struct overlay *overlay, uint64_t *ret, struct error *err)
{
    /* Most of the work is done while the guest may still read and write. What fails here fails again below. */
    (void)overlay_flush(overlay);
    pthread_rwlock_wrlock(&overlay->lock);
    int r = freeze(overlay, err);
    uint64_t newest = 0;
    for (int slot = 0; slot < (int)OVERLAY_GENERATIONS_MAX; slot++) {
        if (overlay->generations[slot] != NULL && slot != atomic_load(&overlay->active))
            newest = MAX(newest, overlay->generations[slot]->number);
    }
    pthread_rwlock_unlock(&overlay->lock);
    if (r == 0)
        *ret = newest;
    return r;
}

/* Slots of frozen generations up to `generation`. */
static int slots_up_to(struct overlay *overlay, uint64_t generation, bool ret[OVERLAY_GENERATIONS_MAX])
{
    for (int slot = 0; slot < (int)OVERLAY_GENERATIONS_MAX; slot++) {
        ret[slot] = overlay->generations[slot] != NULL && overlay->generations[slot]->number <= generation;
        if (ret[slot] && slot == atomic_load(&overlay->active))
            return -EINVAL;
    }
    return 0;
}

/* The oldest first, so that what a crash leaves on the new base is still the newest of each block. */
static int remove_slots(struct overlay *overlay, const bool slots[OVERLAY_GENERATIONS_MAX], struct error *err)
{
    uint64_t last = 0;
    for (;;) {
        uint64_t oldest = UINT64_MAX;
        for (unsigned slot = 0; slot < OVERLAY_GENERATIONS_MAX; slot++) {
            if (slots[slot] && overlay->generations[slot]->number > last)
                oldest = MIN(oldest, overlay->generations[slot]->number);
        }
        if (oldest == UINT64_MAX)
            return 0;
        int r = generation_remove(overlay->directory_fd, oldest);
        if (r < 0)
            return error_code(err, r, "removing generation %" PRIu64 " of the overlay", oldest);
        last = oldest;
    }
}

int overlay_rebase(struct overlay *overlay, uint64_t generation, overlay_base_read base, void *context,
                   struct error *err)
{
    bool drop[OVERLAY_GENERATIONS_MAX];
    struct generation *dropped[OVERLAY_GENERATIONS_MAX] = {0};
    pthread_rwlock_wrlock(&overlay->lock);
    int r = slots_up_to(overlay, generation, drop);
    if (r < 0)
        error_set(err, EINVAL, "generation %" PRIu64 " of the overlay is not frozen", generation);
    else
        r = remove_slots(overlay, drop, err);
    if (r == 0) {
        overlay_map_drop(&overlay->map, drop);
        overlay->base = base;
        overlay->context = context;
    }
    for (unsigned slot = 0; r == 0 && slot < OVERLAY_GENERATIONS_MAX; slot++) {
        if (drop[slot])
            dropped[slot] = TAKE_PTR(overlay->generations[slot]);
    }
    pthread_rwlock_unlock(&overlay->lock);
    /* Here the file system frees what they held, which takes its time. */
    for (unsigned slot = 0; slot < OVERLAY_GENERATIONS_MAX; slot++)
        generation_close(dropped[slot]);
    return r;
}

uint64_t overlay_used_bytes(struct overlay *overlay)
{
    pthread_rwlock_rdlock(&overlay->lock);
    uint64_t total = used_bytes(overlay);
    pthread_rwlock_unlock(&overlay->lock);
    return total;
}

void overlay_set_limit(struct overlay *overlay, uint64_t bytes)
{
    atomic_store(&overlay->limit, bytes);
    atomic_store(&overlay->room, 0);
}
