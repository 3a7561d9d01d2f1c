/*
 * Many threads on one overlay while another flushes, freezes and rebases it.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "overlay_world.h"

struct crowd {
    struct overlay *overlay;
    atomic_bool end;
    atomic_bool failed;
};

struct worker {
    struct crowd *crowd;
    pthread_t thread;
    unsigned number;
    uint32_t last[BLOCKS]; /* what this worker wrote last to each of its blocks or halves */
};

#define WORKERS 4u
#define ROUNDS  1500u

static void fail_crowd(struct crowd *crowd, const char *what, uint64_t block)
{
    if (!atomic_exchange(&crowd->failed, true))
        print_error("%s, block %ju\n", what, (uintmax_t)block);
}

/* Blocks number, number + WORKERS, … are this one's alone. */
static void *use_own_blocks(void *argument)
{
    struct worker *worker = argument;
    struct crowd *crowd = worker->crowd;
    uint64_t seed = worker->number + 1;
    _Alignas(4096) uint32_t block[BLOCK / sizeof(uint32_t)];
    for (unsigned i = 0; i < ROUNDS && !atomic_load(&crowd->failed); i++) {
        uint64_t which = random_next(&seed) % (BLOCKS / WORKERS) * WORKERS + worker->number;
        if (overlay_read(crowd->overlay, which * BLOCK, BLOCK, block) < 0)
            fail_crowd(crowd, "unreadable", which);
        if (worker->last[which] != 0 && (block[0] != worker->last[which] || block[1023] != worker->last[which]))
            fail_crowd(crowd, "not what was written", which);
        worker->last[which] = random_next(&seed) | 1;
        for (size_t j = 0; j < ARRAY_SIZE(block); j++)
            block[j] = worker->last[which];
        if (overlay_write(crowd->overlay, which * BLOCK, BLOCK, block) < 0)
            fail_crowd(crowd, "unwritable", which);
    }
    return NULL;
}

/* Worker n has the n-th part of every block. */
static void *use_own_parts(void *argument)
{
    struct worker *worker = argument;
    struct crowd *crowd = worker->crowd;
    uint64_t seed = worker->number + 1;
    uint32_t part[BLOCK / WORKERS / sizeof(uint32_t)];
    for (unsigned i = 0; i < ROUNDS && !atomic_load(&crowd->failed); i++) {
        uint64_t which = random_next(&seed) % 16;
        uint64_t offset = which * BLOCK + worker->number * sizeof(part);
        if (overlay_read(crowd->overlay, offset, sizeof(part), part) < 0)
            fail_crowd(crowd, "unreadable", which);
        if (part[0] != worker->last[which] || part[ARRAY_SIZE(part) - 1] != worker->last[which])
            fail_crowd(crowd, "a part was lost", which);
        worker->last[which] = i % 5 == 0 ? 0 : random_next(&seed) | 1;
        for (size_t j = 0; j < ARRAY_SIZE(part); j++)
            part[j] = worker->last[which];
        int r = worker->last[which] == 0 ? overlay_zero(crowd->overlay, offset, sizeof(part))
                                         : overlay_write(crowd->overlay, offset, sizeof(part), part);
        if (r < 0)
            fail_crowd(crowd, "unwritable", which);
    }
    return NULL;
}

/* Worker 0 writes whole blocks, the others their first bytes: what comes after those is always worker 0's. */
static void *use_whole_and_part(void *argument)
{
    struct worker *worker = argument;
    struct crowd *crowd = worker->crowd;
    uint64_t seed = worker->number + 1;
    _Alignas(4096) uint32_t block[BLOCK / sizeof(uint32_t)];
    for (unsigned i = 0; i < ROUNDS && !atomic_load(&crowd->failed); i++) {
        uint64_t which = random_next(&seed) % 2;
        for (size_t j = 0; j < ARRAY_SIZE(block); j++)
            block[j] = i + 1;
        size_t length = worker->number == 0 ? BLOCK : 512;
        if (overlay_write(crowd->overlay, which * BLOCK, length, block) < 0)
            fail_crowd(crowd, "unwritable", which);
        if (worker->number != 0)
            continue;
        if (overlay_read(crowd->overlay, which * BLOCK, BLOCK, block) < 0)
            fail_crowd(crowd, "unreadable", which);
        for (size_t j = 512 / sizeof(block[0]); j < ARRAY_SIZE(block); j++) {
            if (block[j] != i + 1)
                fail_crowd(crowd, "a whole block was lost", which);
        }
    }
    return NULL;
}

/* Half of the blocks are written and zeroed without regard to others; a reader finds whole values of theirs only.
 */
static void *use_common_blocks(void *argument)
{
    struct worker *worker = argument;
    struct crowd *crowd = worker->crowd;
    uint64_t seed = worker->number + 1;
    _Alignas(4096) uint8_t blocks[64 * BLOCK];
    for (unsigned i = 0; i < ROUNDS / 4 && !atomic_load(&crowd->failed); i++) {
        uint64_t first = random_next(&seed) % 400;
        unsigned count = 1 + random_next(&seed) % 64;
        unsigned choice = random_next(&seed) % 3;
        int r = 0;
        if (choice == 0) {
            memset(blocks, (int)(100 + worker->number), count * BLOCK);
            r = overlay_write(crowd->overlay, first * BLOCK, count * BLOCK, blocks);
        } else if (choice == 1) {
            r = overlay_zero(crowd->overlay, first * BLOCK, count * BLOCK);
        } else {
            r = overlay_read(crowd->overlay, first * BLOCK, count * BLOCK, blocks);
            for (size_t j = 0; j < count * BLOCK; j++) {
                if (blocks[j] != 0 && blocks[j] != 50 && (blocks[j] < 100 || blocks[j] >= 100 + WORKERS))
                    fail_crowd(crowd, "garbage", first + j / BLOCK);
            }
        }
        if (r < 0)
            fail_crowd(crowd, "failed", first);
    }
    return NULL;
}

static int read_fifty(void *context, uint64_t offset, size_t length, void *to)
{
    (void)context;
    (void)offset;
    memset(to, 50, length);
    return 0;
}

static int read_zero(void *context, uint64_t offset, size_t length, void *to)
{
    (void)context;
    (void)offset;
    memset(to, 0, length);
    return 0;
}

static void *flush_and_freeze(void *argument)
{
    struct crowd *crowd = argument;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    unsigned frozen = 0;
    while (!atomic_load(&crowd->end)) {
        uint64_t generation;
        if (overlay_flush(crowd->overlay) < 0 || overlay_used_bytes(crowd->overlay) > 100 * DISK)
            fail_crowd(crowd, "flush", 0);
        if (frozen < OVERLAY_GENERATIONS_MAX - 1 && overlay_freeze(crowd->overlay, &generation, &err) < 0)
            fail_crowd(crowd, error_message(&err), 0);
        frozen++;
    }
    return NULL;
}

static void work_together(const char *directory, overlay_base_read base, void *(*work)(void *))
{
    struct crowd crowd = {.overlay = open_with(directory, DISK, base, NULL)};
    static struct worker workers[WORKERS];
    pthread_t freezer;
    assert_int_equal(pthread_create(&freezer, NULL, flush_and_freeze, &crowd), 0);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){.crowd = &crowd, .number = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(workers[i].thread, NULL);
    atomic_store(&crowd.end, true);
    pthread_join(freezer, NULL);
    assert_false(crowd.failed);
    overlay_close(crowd.overlay);
}

static void threads_keep_to_their_blocks(void **state)
{
    work_together(*state, read_numbers, use_own_blocks);
}

static void threads_share_blocks(void **state)
{
    work_together(*state, read_zero, use_own_parts);
}

static void threads_complete_blocks_that_others_write(void **state)
{
    work_together(*state, read_zero, use_whole_and_part);
}

static void threads_see_no_garbage(void **state)
{
    work_together(*state, read_fifty, use_common_blocks);
}

/* What frozen generations hold is always what the base then has, so readers can't tell. */
static void *freeze_and_rebase(void *argument)
{
    struct crowd *crowd = argument;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    while (!atomic_load(&crowd->end)) {
        uint64_t generation;
        if (overlay_freeze(crowd->overlay, &generation, &err) < 0 ||
            overlay_rebase(crowd->overlay, generation, read_fifty, NULL, &err) < 0)
            fail_crowd(crowd, error_message(&err), 0);
    }
    return NULL;
}

static void *write_fifty(void *argument)
{
    struct worker *worker = argument;
    struct crowd *crowd = worker->crowd;
    uint64_t seed = worker->number + 1;
    _Alignas(4096) uint8_t blocks[16 * BLOCK];
    for (unsigned i = 0; i < ROUNDS && !atomic_load(&crowd->failed); i++) {
        uint64_t offset = random_next(&seed) % (DISK - sizeof(blocks));
        size_t length = random_next(&seed) % sizeof(blocks);
        memset(blocks, 50, sizeof(blocks));
        if (overlay_write(crowd->overlay, offset, length, blocks) < 0)
            fail_crowd(crowd, "unwritable", offset / BLOCK);
        memset(blocks, 0, sizeof(blocks));
        if (overlay_read(crowd->overlay, offset, length, blocks) < 0)
            fail_crowd(crowd, "unreadable", offset / BLOCK);
        for (size_t j = 0; j < length; j++) {
            if (blocks[j] != 50)
                fail_crowd(crowd, "lost in a rebase", (offset + j) / BLOCK);
        }
    }
    return NULL;
}

static void rebases_under_load(void **state)
{
    struct crowd crowd = {.overlay = open_with(*state, DISK, read_fifty, NULL)};
    static struct worker workers[2];
    pthread_t freezer;
    assert_int_equal(pthread_create(&freezer, NULL, freeze_and_rebase, &crowd), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(workers); i++) {
        workers[i] = (struct worker){.crowd = &crowd, .number = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, write_fifty, &workers[i]), 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(workers); i++)
        pthread_join(workers[i].thread, NULL);
    atomic_store(&crowd.end, true);
    pthread_join(freezer, NULL);
    assert_false(crowd.failed);
    overlay_close(crowd.overlay);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(threads_keep_to_their_blocks),
        UNIT_TEST(threads_share_blocks),
        UNIT_TEST(threads_complete_blocks_that_others_write),
        UNIT_TEST(threads_see_no_garbage),
        UNIT_TEST(rebases_under_load),
    };
    return cmocka_run_group_tests_name("overlay-threads", tests, NULL, NULL);
}
