/*
 * The overlay against a model: a plain array that every write, zero, freeze, rebase and reopening is done to as
 * well.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "overlay_world.h"

struct base {
    const uint8_t *bytes;
    uint64_t length;
    atomic_uint reads;
    int fail; /* a negative errno instead */
};

static int read_base(void *context, uint64_t offset, size_t length, void *to)
{
    struct base *base = context;
    atomic_fetch_add(&base->reads, 1);
    if (offset % BLOCK != 0 || length % BLOCK != 0 || offset + length > base->length)
        abort();
    if (base->fail != 0)
        return base->fail;
    memcpy(to, base->bytes + offset, length);
    return 0;
}

static void random_bytes(uint64_t *seed, uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)(1 + (random_next(seed) >> 7) % 255);
}

static uint8_t *new_disk(void)
{
    uint8_t *bytes = aligned_alloc(BLOCK, DISK);
    assert_non_null(bytes);
    return bytes;
}

static void copy_file(const char *from, const char *to)
{
    pid_t pid = fork();
    if (pid == 0) {
        execlp("cp", "cp", "--sparse=always", from, to, NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* What a crash of the host would leave, if everything written to the files were on the disk. */
static char *copy_overlay(const char *directory, unsigned generations)
{
    char *copy = unit_path(directory, "copy");
    assert_int_equal(io_remove_tree(copy), 0);
    assert_int_equal(mkdir(copy, 0700), 0);
    static const char *const suffixes[] = {"data", "map", "map.tmp"};
    for (unsigned i = 1; i <= generations; i++) {
        for (size_t j = 0; j < ARRAY_SIZE(suffixes); j++) {
            char name[64];
            snprintf(name, sizeof(name), "overlay.%u.%s", i, suffixes[j]);
            CLEANUP_FREE char *from = unit_path(directory, name);
            CLEANUP_FREE char *to = unit_path(copy, name);
            if (access(from, F_OK) == 0)
                copy_file(from, to);
        }
    }
    return copy;
}

/* --- random operations --- */

struct world {
    const char *directory;
    uint64_t seed;
    struct overlay *overlay;
    uint8_t *model;
    uint8_t *base_bytes;
    uint8_t *frozen_bytes; /* the model at the newest freeze */
    uint8_t *scratch;      /* DISK + BLOCK bytes */
    struct base base;
    uint64_t frozen; /* newest generation; 0: none that isn't in the base */
    uint64_t newest; /* that may be there */
};

static void check_disk(struct world *world, struct overlay *overlay, const uint8_t *expected)
{
    assert_int_equal(overlay_read(overlay, 0, DISK, world->scratch), 0);
    if (memcmp(world->scratch, expected, DISK) == 0)
        return;
    for (size_t i = 0; i < BLOCKS; i++) {
        if (memcmp(world->scratch + i * BLOCK, expected + i * BLOCK, BLOCK) != 0)
            fail_msg("block %zu differs", i);
    }
}

static void random_range(struct world *world, uint64_t *ret_offset, size_t *ret_length)
{
    static const size_t lengths[] = {1, 511, 512, 4096, 4097, 8192, 65536, 300000, 1300000};
    size_t limit = lengths[random_next(&world->seed) % ARRAY_SIZE(lengths)];
    uint64_t offset = random_next(&world->seed) % DISK;
    size_t length = 1 + random_next(&world->seed) % limit;
    if (random_next(&world->seed) % 2 == 0) {
        offset -= offset % BLOCK;
        length = ROUND_UP(length, BLOCK);
    }
    *ret_offset = offset;
    *ret_length = (size_t)MIN((uint64_t)length, DISK - offset);
}

/* Whether the memory is aligned is chance, too. */
static uint8_t *random_memory(struct world *world)
{
    return world->scratch + (random_next(&world->seed) % 2 == 0 ? 0 : 1 + random_next(&world->seed) % (BLOCK - 1));
}

static void do_write(struct world *world)
{
    uint64_t offset;
    size_t length;
    random_range(world, &offset, &length);
    uint8_t *from = random_memory(world);
    random_bytes(&world->seed, from, length);
    assert_int_equal(overlay_write(world->overlay, offset, length, from), 0);
    memcpy(world->model + offset, from, length);
}

static void do_zero(struct world *world)
{
    uint64_t offset;
    size_t length;
    random_range(world, &offset, &length);
    assert_int_equal(overlay_zero(world->overlay, offset, length), 0);
    memset(world->model + offset, 0, length);
}

static void do_read(struct world *world)
{
    uint64_t offset;
    size_t length;
    random_range(world, &offset, &length);
    uint8_t *to = random_memory(world);
    memset(to, 0xee, length);
    assert_int_equal(overlay_read(world->overlay, offset, length, to), 0);
    assert_memory_equal(to, world->model + offset, length);
}

static void check_view(struct world *world, uint64_t generation, const uint8_t *expected)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay_view *view;
    if (overlay_view_open(world->directory, DISK, generation, &view, &err) < 0)
        fail_msg("%s", error_message(&err));
    uint8_t *bytes = random_memory(world);
    memcpy(bytes, world->base_bytes, DISK);
    uint64_t block = 0;
    uint64_t last_end = 0;
    uint64_t count;
    enum overlay_block kind;
    while (overlay_view_next(view, &block, &count, &kind) == 1) {
        assert_true(block >= last_end && count > 0 && block + count <= BLOCKS);
        if (kind == OVERLAY_ZERO)
            memset(bytes + block * BLOCK, 0, count * BLOCK);
        else if (overlay_view_read(view, block, count, bytes + block * BLOCK, &err) < 0)
            fail_msg("%s", error_message(&err));
        block += count;
        last_end = block;
    }
    assert_memory_equal(bytes, expected, DISK);
    overlay_view_close(view);
}

static void do_freeze(struct world *world)
{
    world->frozen = freeze(world->overlay);
    if (world->frozen == 0)
        return;
    world->newest = MAX(world->newest, world->frozen);
    memcpy(world->frozen_bytes, world->model, DISK);
    check_view(world, world->frozen, world->model);
}

static void do_rebase(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (world->frozen == 0)
        return;
    memcpy(world->base_bytes, world->frozen_bytes, DISK);
    if (overlay_rebase(world->overlay, world->frozen, read_base, &world->base, &err) < 0)
        fail_msg("%s", error_message(&err));
    world->frozen = 0;
}

static void do_reopen(struct world *world)
{
    assert_int_equal(overlay_flush(world->overlay), 0);
    CLEANUP_FREE char *copy = copy_overlay(world->directory, (unsigned)++world->newest);
    struct overlay *copied = open_with(copy, DISK, read_base, &world->base);
    check_disk(world, copied, world->model);
    overlay_close(copied);
    overlay_close(world->overlay);
    world->overlay = open_with(world->directory, DISK, read_base, &world->base);
    check_disk(world, world->overlay, world->model);
}

static void do_something(struct world *world)
{
    unsigned choice = random_next(&world->seed) % 100;
    if (choice < 40)
        do_write(world);
    else if (choice < 55)
        do_zero(world);
    else if (choice < 85)
        do_read(world);
    else if (choice < 92)
        assert_int_equal(overlay_flush(world->overlay), 0);
    else if (choice < 96)
        do_freeze(world);
    else if (choice < 98)
        do_rebase(world);
    else
        do_reopen(world);
}

static void random_life(const char *directory, uint64_t seed)
{
    struct world world = {.directory = directory, .seed = seed};
    world.model = new_disk();
    world.base_bytes = new_disk();
    world.frozen_bytes = new_disk();
    world.scratch = aligned_alloc(BLOCK, DISK + BLOCK);
    assert_non_null(world.scratch);
    random_bytes(&world.seed, world.base_bytes, DISK);
    memcpy(world.model, world.base_bytes, DISK);
    world.base = (struct base){.bytes = world.base_bytes, .length = DISK};
    world.overlay = open_with(directory, DISK, read_base, &world.base);
    for (unsigned i = 0; i < 150; i++)
        do_something(&world);
    check_disk(&world, world.overlay, world.model);
    overlay_close(world.overlay);
    free(world.model);
    free(world.base_bytes);
    free(world.frozen_bytes);
    free(world.scratch);
}

static void random_lives(const char *directory, uint64_t first, uint64_t count)
{
    for (uint64_t seed = first; seed < first + count; seed++) {
        CLEANUP_FREE char *life = unit_path(directory, "life");
        assert_int_equal(mkdir(life, 0700), 0);
        random_life(life, seed);
        assert_int_equal(io_remove_tree(life), 0);
    }
}

static void behaves_as_its_model(void **state)
{
    const char *seeds = getenv("OVERLAY_SEEDS");
    random_lives(*state, 1, seeds != NULL ? strtoull(seeds, NULL, 10) : 12);
}

/* A teardown, so that a failed test leaves no mount either. */
static int unmount_and_remove(void **state)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/mounted", (const char *)*state) > 0)
        umount2(path, MNT_DETACH);
    return unit_remove_directory(state);
}

/* Mounts a directory, or ends the test. */
static char *small_mount(const char *directory, const char *type, const char *source, const char *options)
{
    char *path = unit_path(directory, "mounted");
    assert_int_equal(mkdir(path, 0700), 0);
    if (geteuid() != 0 || mount(source, path, type, 0, options) < 0) {
        print_message("skipped: mounting a file system needs root\n");
        free(path);
        skip();
    }
    return path;
}

static void behaves_on_tmpfs(void **state)
{
    CLEANUP_FREE char *path = small_mount(*state, "tmpfs", "overlay", "size=256m");
    random_lives(path, 1000, 3);
}

/* ext4 takes no O_DIRECT where it journals data. */
static void behaves_without_direct_io(void **state)
{
    CLEANUP_FREE char *image = unit_path(*state, "image");
    CLEANUP_FREE char *path = unit_path(*state, "mounted");
    CLEANUP_FREE char *command = NULL;
    assert_int_equal(mkdir(path, 0700), 0);
    assert_true(asprintf(&command, "truncate -s 64M %s && mkfs.ext4 -q %s && mount -o loop,data=journal %s %s",
                         image, image, image, path) > 0);
    if (geteuid() != 0 || system(command) != 0) {
        print_message("skipped: needs root, mkfs.ext4 and a loop device\n");
        skip();
    }
    random_lives(path, 2000, 2);
}

/* --- single properties --- */

static void writes_nothing_unless_written(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    CLEANUP_FREE uint8_t *bytes = new_disk();
    assert_int_equal(overlay_read(overlay, 0, DISK, bytes), 0);
    assert_int_equal(overlay_write(overlay, 5, 0, bytes), 0);
    assert_int_equal(overlay_zero(overlay, 5, 0), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    assert_int_equal(freeze(overlay), 0);
    assert_int_equal(overlay_used_bytes(overlay), 0);
    overlay_close(overlay);
    assert_int_equal(rmdir(*state), 0); /* so it is empty */
    struct overlay_view *view;
    assert_int_equal(overlay_view_open(*state, DISK, 0, &view, &err), -ENOENT);
    assert_int_equal(mkdir(*state, 0700), 0);
    assert_int_equal(overlay_view_open(*state, DISK, 0, &view, &err), 0);
    uint64_t block = 0;
    uint64_t count;
    enum overlay_block kind;
    assert_int_equal(overlay_view_next(view, &block, &count, &kind), 0);
    overlay_view_close(view);
}

static void refuses_what_is_beyond_the_end(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    uint8_t byte = 1;
    assert_int_equal(overlay_write(overlay, DISK - 1, 1, &byte), 0);
    assert_int_equal(overlay_write(overlay, DISK - 1, 2, &byte), -ERANGE);
    assert_int_equal(overlay_write(overlay, DISK, 1, &byte), -ERANGE);
    assert_int_equal(overlay_read(overlay, DISK + 1, 0, &byte), -ERANGE);
    assert_int_equal(overlay_read(overlay, UINT64_MAX, 2, &byte), -ERANGE);
    assert_int_equal(overlay_zero(overlay, 1, UINT64_MAX), -ERANGE);
    assert_int_equal(overlay_zero(overlay, DISK - 1, 1), 0);
    overlay_close(overlay);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    static const uint64_t sizes[] = {0, 4095, DISK + 512, OVERLAY_DISK_MAX + BLOCK};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        assert_int_equal(overlay_open(*state, sizes[i], read_numbers, NULL, &overlay, &err), -EINVAL);
}

static void passes_on_what_the_base_says(void **state)
{
    uint8_t *content = new_disk();
    struct base base = {.bytes = content, .length = DISK, .fail = -EIO};
    struct overlay *overlay = open_with(*state, DISK, read_base, &base);
    uint8_t bytes[512] = {1};
    assert_int_equal(overlay_read(overlay, 0, sizeof(bytes), bytes), -EIO);
    assert_int_equal(overlay_write(overlay, 0, sizeof(bytes), bytes), -EIO);
    assert_int_equal(freeze(overlay), 0); /* a generation was begun, but nothing is in it */
    base.fail = 0;
    memset(content, 7, DISK);
    assert_int_equal(overlay_read(overlay, 0, sizeof(bytes), bytes), 0);
    assert_int_equal(bytes[0], 7);
    overlay_close(overlay);
    free(content);
}

/* Which blocks come from where is known, so the base isn't asked for what it doesn't have to give. */
static void reads_the_base_only_where_it_must(void **state)
{
    uint8_t *bytes = new_disk();
    memset(bytes, 3, DISK);
    struct base base = {.bytes = bytes, .length = DISK};
    struct overlay *overlay = open_with(*state, DISK, read_base, &base);
    assert_int_equal(overlay_write(overlay, 0, 8 * BLOCK, bytes), 0);
    assert_int_equal(overlay_zero(overlay, 8 * BLOCK, 8 * BLOCK), 0);
    uint8_t read[20 * BLOCK];
    assert_int_equal(overlay_read(overlay, 0, 16 * BLOCK, read), 0);
    assert_int_equal(base.reads, 0);
    assert_int_equal(overlay_read(overlay, 0, 20 * BLOCK, read), 0);
    assert_int_equal(base.reads, 1);
    overlay_close(overlay);
    free(bytes);
}

static void gives_space_back(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    uint8_t *bytes = new_disk();
    memset(bytes, 9, DISK);
    assert_int_equal(overlay_write(overlay, 0, DISK, bytes), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    assert_true(overlay_used_bytes(overlay) >= DISK);
    assert_int_equal(overlay_zero(overlay, 0, DISK), 0);
    assert_true(overlay_used_bytes(overlay) < 64 * BLOCK);
    overlay_close(overlay);
    free(bytes);
}

/* Each block holds a number; after a crash it is that of the flush or a later one, and never anything else. */
static void survives_a_crash_between_flushes(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    static uint64_t flushed[BLOCKS];
    static uint64_t written[BLOCKS];
    uint64_t seed = 5;
    _Alignas(4096) uint64_t block[BLOCK / sizeof(uint64_t)];
    for (uint64_t i = 0; i < BLOCKS; i++)
        flushed[i] = written[i] = i;
    for (unsigned round = 0; round < 20; round++) {
        for (uint64_t i = 0; i < 100; i++) {
            uint64_t which = random_next(&seed) % BLOCKS;
            written[which] = random_next(&seed) % 4 == 0 ? 0 : (uint64_t)(round + 1) * 100000 + i;
            for (size_t j = 0; j < ARRAY_SIZE(block); j++)
                block[j] = written[which];
            assert_int_equal(written[which] == 0 ? overlay_zero(overlay, which * BLOCK, BLOCK)
                                                 : overlay_write(overlay, which * BLOCK, BLOCK, block),
                             0);
            if (i == 60) {
                assert_int_equal(overlay_flush(overlay), 0);
                memcpy(flushed, written, sizeof(flushed));
            }
        }
        CLEANUP_FREE char *copy = copy_overlay(*state, round + 1);
        struct overlay *copied = open_with(copy, DISK, read_numbers, NULL);
        for (uint64_t i = 0; i < BLOCKS; i++) {
            assert_int_equal(overlay_read(copied, i * BLOCK, BLOCK, block), 0);
            /* A hole may be on the disk before the map says so: zero it was to be. Written over since, it is data.
             */
            bool changed = flushed[i] != written[i];
            assert_true(block[0] == flushed[i] || (changed && (block[0] == written[i] || block[0] == 0)));
            for (size_t j = 1; j < ARRAY_SIZE(block); j++)
                assert_int_equal(block[j], block[0]);
        }
        overlay_close(copied);
        if (round % 5 == 4) {
            freeze(overlay);
            memcpy(flushed, written, sizeof(flushed));
        }
    }
    overlay_close(overlay);
}

/* In the map's second page. */
#define FULL_FIRST UINT64_C(5000)
#define FULL_DISK  ((FULL_FIRST + BLOCKS) * BLOCK)

static uint8_t byte_of(struct overlay *overlay, uint64_t block)
{
    uint8_t bytes[BLOCK];
    assert_int_equal(overlay_read(overlay, block * BLOCK, BLOCK, bytes), 0);
    assert_int_equal(bytes[8], bytes[BLOCK - 8]);
    return bytes[8];
}

static void says_when_the_disk_is_full(void **state)
{
    CLEANUP_FREE char *path = small_mount(*state, "tmpfs", "overlay", "size=1m");
    struct overlay *overlay = open_with(path, FULL_DISK, read_numbers, NULL);
    uint8_t block[BLOCK];
    unsigned written = 0;
    int r = 0;
    for (; r == 0 && written < BLOCKS; written += r == 0) {
        memset(block, (int)(1 + written % 255), BLOCK);
        r = overlay_write(overlay, (FULL_FIRST + written) * BLOCK, BLOCK, block);
    }
    assert_int_equal(r, -ENOSPC);
    assert_true(written > 200);
    assert_int_equal(overlay_flush(overlay), -ENOSPC);
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_int_equal(byte_of(overlay, FULL_FIRST + i), i < written ? 1 + i % 255 : (FULL_FIRST + i) % 256);
    /* Trimming makes room, and all goes on. */
    assert_int_equal(overlay_zero(overlay, FULL_FIRST * BLOCK, 100 * BLOCK), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    memset(block, 200, BLOCK);
    assert_int_equal(overlay_write(overlay, (FULL_FIRST + written) * BLOCK, BLOCK, block), 0);
    assert_int_equal(freeze(overlay), 1);
    overlay_close(overlay);
    overlay = open_with(path, FULL_DISK, read_numbers, NULL);
    for (uint64_t i = 0; i <= written; i++)
        assert_int_equal(byte_of(overlay, FULL_FIRST + i), i < 100 ? 0 : i < written ? 1 + i % 255 : 200);
    overlay_close(overlay);
}

/* A map that can't be written is written by a later flush, though nothing is marked in it again. */
static void makes_up_for_a_failed_flush(void **state)
{
    CLEANUP_FREE char *path = small_mount(*state, "tmpfs", "overlay", "size=1m");
    CLEANUP_FREE char *filler = unit_path(path, "filler");
    struct overlay *overlay = open_with(path, FULL_DISK, read_numbers, NULL);
    uint8_t block[BLOCK];
    memset(block, 99, BLOCK);
    assert_int_equal(overlay_write(overlay, FULL_FIRST * BLOCK, BLOCK, block), 0);
    CLEANUP_CLOSE int fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, block, BLOCK) > 0)
        continue;
    assert_int_equal(overlay_flush(overlay), -ENOSPC);
    assert_int_equal(unlink(filler), 0);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    overlay_close(overlay);
    overlay = open_with(path, FULL_DISK, read_numbers, NULL);
    assert_int_equal(byte_of(overlay, FULL_FIRST), 99);
    overlay_close(overlay);
}

/* --- generations --- */

static void bounds_its_generations(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    uint64_t value;
    uint64_t generation = 0;
    for (uint64_t i = 1; i < OVERLAY_GENERATIONS_MAX; i++) {
        value = i;
        assert_int_equal(overlay_write(overlay, i * BLOCK, sizeof(value), &value), 0);
        assert_int_equal(freeze(overlay), i);
        assert_int_equal(freeze(overlay), i); /* nothing new */
    }
    value = 5555;
    assert_int_equal(overlay_write(overlay, 0, sizeof(value), &value), 0);
    assert_int_equal(overlay_freeze(overlay, &generation, &err), -E2BIG);
    value = 6666; /* the sandbox goes on */
    assert_int_equal(overlay_write(overlay, 0, sizeof(value), &value), 0);
    assert_int_equal(overlay_rebase(overlay, OVERLAY_GENERATIONS_MAX, read_numbers, NULL, &err), -EINVAL);
    assert_int_equal(overlay_rebase(overlay, 3, read_numbers, NULL, &err), 0);
    for (uint64_t i = 4; i < OVERLAY_GENERATIONS_MAX; i++) {
        assert_int_equal(overlay_read(overlay, i * BLOCK, sizeof(value), &value), 0);
        assert_int_equal(value, i);
    }
    assert_int_equal(freeze(overlay), OVERLAY_GENERATIONS_MAX);
    value = 7777;
    assert_int_equal(overlay_write(overlay, 0, sizeof(value), &value), 0);
    assert_int_equal(freeze(overlay), OVERLAY_GENERATIONS_MAX + 1);
    overlay_close(overlay);
    overlay = open_with(*state, DISK, read_numbers, NULL);
    assert_int_equal(overlay_read(overlay, 0, sizeof(value), &value), 0);
    assert_int_equal(value, 7777);
    overlay_close(overlay);
}

/* Bytes and calls that this process has written. */
static void count_writes(uint64_t *ret_bytes, uint64_t *ret_calls)
{
    CLEANUP_FREE char *text = NULL;
    assert_int_equal(io_read_file("/proc/self/io", 4096, &text, NULL), 0);
    *ret_bytes = strtoull(strstr(text, "wchar: ") + strlen("wchar: "), NULL, 10);
    *ret_calls = strtoull(strstr(text, "syscw: ") + strlen("syscw: "), NULL, 10);
}

static void freeze_cost(const char *directory, uint64_t disk_bytes, uint64_t written, uint64_t *ret_bytes,
                        uint64_t *ret_calls)
{
    CLEANUP_FREE char *path = unit_path(directory, "cost");
    assert_int_equal(mkdir(path, 0700), 0);
    struct overlay *overlay = open_with(path, disk_bytes, read_numbers, NULL);
    CLEANUP_FREE uint8_t *bytes = calloc(1, 1 << 20);
    assert_non_null(bytes);
    for (uint64_t at = 0; at < written; at += 1 << 20)
        assert_int_equal(overlay_write(overlay, at, 1 << 20, bytes), 0);
    assert_int_equal(overlay_flush(overlay), 0);
    assert_int_equal(overlay_write(overlay, disk_bytes - BLOCK, BLOCK, bytes), 0);
    uint64_t bytes_before;
    uint64_t calls_before;
    count_writes(&bytes_before, &calls_before);
    assert_int_equal(freeze(overlay), 1);
    count_writes(ret_bytes, ret_calls);
    *ret_bytes -= bytes_before;
    *ret_calls -= calls_before;
    overlay_close(overlay);
    assert_int_equal(io_remove_tree(path), 0);
}

static void freezes_at_the_same_cost(void **state)
{
    uint64_t bytes[2];
    uint64_t calls[2];
    freeze_cost(*state, UINT64_C(16) << 20, 1 << 20, &bytes[0], &calls[0]);
    freeze_cost(*state, UINT64_C(64) << 30, 160 << 20, &bytes[1], &calls[1]);
    assert_true(bytes[0] > 0 && calls[0] > 0);
    assert_int_equal(bytes[0], bytes[1]);
    assert_int_equal(calls[0], calls[1]);
}

/* More map pages are dirty than one pass of a flush takes. */
static void flushes_large_disks(void **state)
{
    const uint64_t bytes = UINT64_C(64) << 30;
    const uint64_t step = UINT64_C(16) << 20;
    struct overlay *overlay = open_with(*state, bytes, read_numbers, NULL);
    for (uint64_t at = 0; at < bytes; at += step) {
        uint64_t value = at + 1;
        if (at % (step * 2) == 0 || at < bytes / 4)
            assert_int_equal(overlay_write(overlay, at, sizeof(value), &value), 0);
    }
    assert_int_equal(overlay_flush(overlay), 0);
    overlay_close(overlay);
    overlay = open_with(*state, bytes, read_numbers, NULL);
    for (uint64_t at = 0; at < bytes; at += step) {
        uint64_t value;
        assert_int_equal(overlay_read(overlay, at, sizeof(value), &value), 0);
        assert_int_equal(value, at % (step * 2) == 0 || at < bytes / 4 ? at + 1 : at / BLOCK);
    }
    assert_int_equal(overlay_zero(overlay, 1, bytes - 1), 0);
    assert_int_equal(freeze(overlay), 2);
    uint64_t value;
    assert_int_equal(overlay_read(overlay, step, sizeof(value), &value), 0);
    assert_int_equal(value, 0);
    overlay_close(overlay);
}

#define MOUNT_TEST(function) cmocka_unit_test_setup_teardown(function, unit_make_directory, unmount_and_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(behaves_as_its_model),
        MOUNT_TEST(behaves_on_tmpfs),
        MOUNT_TEST(behaves_without_direct_io),
        UNIT_TEST(writes_nothing_unless_written),
        UNIT_TEST(refuses_what_is_beyond_the_end),
        UNIT_TEST(passes_on_what_the_base_says),
        UNIT_TEST(reads_the_base_only_where_it_must),
        UNIT_TEST(gives_space_back),
        UNIT_TEST(survives_a_crash_between_flushes),
        MOUNT_TEST(says_when_the_disk_is_full),
        MOUNT_TEST(makes_up_for_a_failed_flush),
        UNIT_TEST(bounds_its_generations),
        UNIT_TEST(freezes_at_the_same_cost),
        UNIT_TEST(flushes_large_disks),
    };
    return cmocka_run_group_tests_name("overlay", tests, NULL, NULL);
}
