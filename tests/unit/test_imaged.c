/* The image server with real mounts: what is read is what was stored, whoever asks, or an error. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "imaged_world.h"
#include "unit.h"

struct reader {
    const char *path;
    const uint32_t *pages;
    size_t count;
    uint32_t seed;
    bool mapped;
    unsigned wrong;
};

static void read_mapped(struct reader *reader, int fd)
{
    uint8_t *image = mmap(NULL, reader->count * IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (image == MAP_FAILED) {
        reader->wrong++;
        return;
    }
    for (size_t i = 0; i < reader->count; i++) {
        size_t page = world_random(&reader->seed) % reader->count;
        uint8_t *bytes = image + page * IMAGE_PAGE_BYTES;
        reader->wrong += !world_is_page(bytes, reader->pages[page]);
    }
    munmap(image, reader->count * IMAGE_PAGE_BYTES);
}

static void read_file(struct reader *reader, int fd)
{
    static __thread uint8_t bytes[64 * IMAGE_PAGE_BYTES];
    for (size_t i = 0; i < reader->count / 8; i++) {
        size_t page = world_random(&reader->seed) % reader->count;
        size_t count = MIN(world_random(&reader->seed) % 64 + 1, reader->count - page);
        ssize_t n = pread(fd, bytes, count * IMAGE_PAGE_BYTES, (off_t)(page * IMAGE_PAGE_BYTES));
        if (n != (ssize_t)(count * IMAGE_PAGE_BYTES))
            reader->wrong++;
        for (size_t j = 0; j < count; j++)
            reader->wrong += !world_is_page(bytes + j * IMAGE_PAGE_BYTES, reader->pages[page + j]);
    }
}

static void *read_image(void *argument)
{
    struct reader *reader = argument;
    CLEANUP_CLOSE int fd = open(reader->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        reader->wrong++;
    else if (reader->mapped)
        read_mapped(reader, fd);
    else
        read_file(reader, fd);
    return NULL;
}

static unsigned read_by_threads(const char *path, const uint32_t *pages, size_t count)
{
    struct reader readers[4];
    pthread_t threads[4];
    unsigned wrong = 0;
    for (unsigned i = 0; i < 4; i++) {
        readers[i] =
            (struct reader){.path = path, .pages = pages, .count = count, .seed = i + 1, .mapped = i % 2 == 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_image, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        wrong += readers[i].wrong;
    }
    return wrong;
}

/* The exit status of a child that runs `body` with the VMMs' user and group, or 128 + the signal that ended it. */
static int run_as_vmm(int (*body)(const char *path), const char *path)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct sigaction action = {.sa_handler = SIG_DFL};
        sigaction(SIGBUS, &action, NULL);
        if (setgroups(0, NULL) < 0 || setgid(WORLD_GID) < 0 || setuid(WORLD_UID) < 0)
            _exit(100);
        _exit(body(path));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void test_reads_equal_what_was_stored(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 1, &snapshot, &files);
    assert_int_equal(read_by_threads(files.memory, snapshot.pages[IMAGE_MEMORY], WORLD_MEMORY_PAGES), 0);
    assert_int_equal(read_by_threads(files.disk_parent, snapshot.pages[IMAGE_DISK], WORLD_DISK_PAGES), 0);
    assert_int_equal(read_by_threads(files.disk, snapshot.pages[IMAGE_DISK], WORLD_DISK_PAGES), 0);
    CLEANUP_FREE char *reason = NULL;
    assert_int_equal(imaged_failure(world->imaged, "vm1", &reason, NULL), 0);
    world_detach(world, "vm1", &files);
}

/* Everything that would change an image, tried by a VMM; 0 when all is refused. */
static int try_to_write(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return 1;
    uint8_t *image = mmap(NULL, IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (image == MAP_FAILED)
        return 2;
    uint8_t before = image[0];
    uint8_t bytes[IMAGE_PAGE_BYTES];
    memset(bytes, 0xee, sizeof(bytes));
    if (pwrite(fd, bytes, sizeof(bytes), 0) >= 0)
        return 3;
    if (ftruncate(fd, 0) == 0 || fallocate(fd, 0x02 | 0x01, 0, IMAGE_PAGE_BYTES) == 0 || fchmod(fd, 0666) == 0)
        return 4;
    if (image[0] != before)
        return 5;
    image[0] = (uint8_t)(before + 1); /* its own copy it may change */
    return 0;
}

static void test_writing_is_refused(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 2, &snapshot, &files);
    const uint32_t *pages = snapshot.pages[IMAGE_MEMORY];
    CLEANUP_CLOSE int fd = open(files.memory, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    const uint8_t *other = mmap(NULL, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(other != MAP_FAILED && world_is_page(other, pages[0]));

    assert_int_equal(run_as_vmm(try_to_write, files.memory), 0);
    assert_true(world_is_page(other, pages[0]));
    assert_int_equal(world_statistic(world, "refused_writes"), 0); /* stopped before it came so far */

    /* Root's get further, and are undone. */
    uint8_t bytes[IMAGE_PAGE_BYTES];
    memset(bytes, 0xee, sizeof(bytes));
    assert_true(pwrite(fd, bytes, sizeof(bytes), 0) < 0);
    assert_int_equal(errno, EROFS);
    assert_int_equal(world_statistic(world, "refused_writes"), 1);
    assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    assert_true(world_is_page(bytes, pages[0]));
    munmap((void *)(uintptr_t)other, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES);
    world_detach(world, "vm1", &files);
}

static int write_through_a_mapping(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t *image = mmap(NULL, IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (image == MAP_FAILED)
        return 1;
    memset(image, 0xee, IMAGE_PAGE_BYTES);
    return msync(image, IMAGE_PAGE_BYTES, MS_SYNC) < 0 ? 0 : 2;
}

/* This the kernel doesn't refuse in time, so whoever may have read it is told. */
static void test_writing_through_a_mapping_is_a_failure(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 13, &snapshot, &files);
    CLEANUP_CLOSE int watch_fd = imaged_watch(world->imaged, NULL);
    assert_int_equal(run_as_vmm(write_through_a_mapping, files.memory), 0);
    struct pollfd failed = {.fd = watch_fd, .events = POLLIN};
    assert_int_equal(poll(&failed, 1, 30000), 1);
    CLEANUP_FREE char *reason = NULL;
    assert_int_equal(imaged_failure(world->imaged, "vm1", &reason, NULL), 1);
    assert_non_null(strstr(reason, "shared mapping"));
    /* It is thrown out of the page cache. */
    CLEANUP_CLOSE int fd = open(files.memory, O_RDONLY | O_CLOEXEC);
    uint8_t bytes[IMAGE_PAGE_BYTES];
    do
        assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    while (!world_is_page(bytes, snapshot.pages[IMAGE_MEMORY][0]));
    world_detach(world, "vm1", &files);
}

/* Flips a bit in the middle of a file. */
static void damage(const struct world *world, const char *layer)
{
    CLEANUP_FREE char *path = world_path(world, "layers/%s", layer);
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    uint8_t byte;
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    assert_int_equal(pread(fd, &byte, 1, status.st_size / 4), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, status.st_size / 4), 1);
}

/* Reads the whole image; 0: all that could be read is right, and something couldn't. */
static int find_unreadable(const char *path, const struct world_snapshot *snapshot)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned unreadable = 0;
    for (size_t page = 0; page < WORLD_MEMORY_PAGES; page++) {
        uint8_t bytes[IMAGE_PAGE_BYTES];
        ssize_t n = pread(fd, bytes, sizeof(bytes), (off_t)(page * sizeof(bytes)));
        if (n < 0 && errno == EIO)
            unreadable++;
        else if (n != (ssize_t)sizeof(bytes) || !world_is_page(bytes, snapshot->pages[IMAGE_MEMORY][page]))
            return -1;
    }
    return unreadable > 0 && unreadable <= 16 ? 0 : 1;
}

static int touch_all(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    volatile uint8_t *image =
        mmap(NULL, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    for (size_t page = 0; page < WORLD_MEMORY_PAGES; page++)
        (void)image[page * IMAGE_PAGE_BYTES];
    return 0;
}

static void expect_failure(const struct world *world, int watch_fd, const char *vm)
{
    struct pollfd failed = {.fd = watch_fd, .events = POLLIN};
    assert_int_equal(poll(&failed, 1, 30000), 1);
    CLEANUP_FREE char *told_vm = NULL;
    CLEANUP_FREE char *told_reason = NULL;
    CLEANUP_FREE char *reason = NULL;
    assert_int_equal(imaged_next_failure(watch_fd, &told_vm, &told_reason, NULL), 1);
    assert_string_equal(told_vm, vm);
    assert_int_equal(imaged_failure(world->imaged, vm, &reason, NULL), 1);
    assert_string_equal(told_reason, reason);
    assert_non_null(strstr(reason, "damaged"));
}

static void test_damage_is_an_error_for_those_concerned(void **state)
{
    struct world *world = *state;
    struct world_snapshot damaged;
    struct world_snapshot whole;
    struct imaged_files files;
    struct imaged_files other_files;
    world_attach_new(world, "vm1", 3, &damaged, &files);
    world_attach_new(world, "vm2", 4, &whole, &other_files);
    CLEANUP_CLOSE int watch_fd = imaged_watch(world->imaged, NULL);
    char *none;
    assert_true(watch_fd >= 0);
    assert_int_equal(imaged_next_failure(watch_fd, &none, &none, NULL), 0);

    damage(world, damaged.layers[0]);
    assert_int_equal(run_as_vmm(touch_all, files.memory), 128 + SIGBUS);
    expect_failure(world, watch_fd, "vm1");
    assert_int_equal(find_unreadable(files.memory, &damaged), 0);

    assert_int_equal(read_by_threads(other_files.memory, whole.pages[IMAGE_MEMORY], WORLD_MEMORY_PAGES), 0);
    assert_int_equal(imaged_failure(world->imaged, "vm2", &none, NULL), 0);
    CLEANUP_CLOSE int late_fd = imaged_watch(world->imaged, NULL);
    expect_failure(world, late_fd, "vm1");

    world_detach(world, "vm1", &files);
    assert_int_equal(imaged_failure(world->imaged, "vm1", &none, NULL), -ENOENT);
    world_detach(world, "vm2", &other_files);
}

/* The disk's base is read by the server itself, through its own mount. */
static void test_damage_below_an_overlay_is_one_too(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 5, &snapshot, &files);
    CLEANUP_CLOSE int watch_fd = imaged_watch(world->imaged, NULL);
    CLEANUP_FREE char *path = world_path(world, "layers/%s", snapshot.layers[0]);
    assert_int_equal(truncate(path, 100), 0);
    CLEANUP_CLOSE int fd = open(files.disk, O_RDONLY | O_CLOEXEC);
    uint8_t bytes[IMAGE_PAGE_BYTES];
    ssize_t n = sizeof(bytes);
    for (size_t page = 0; page < WORLD_DISK_PAGES && n >= 0; page++)
        n = pread(fd, bytes, sizeof(bytes), (off_t)(page * sizeof(bytes)));
    assert_true(n < 0 && errno == EIO);
    expect_failure(world, watch_fd, "vm1");
    world_detach(world, "vm1", &files);
}

static void test_a_second_mapping_misses_nothing(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    struct imaged_files second_files;
    world_attach_new(world, "vm1", 6, &snapshot, &files);
    assert_int_equal(run_as_vmm(touch_all, files.memory), 0);
    int64_t misses = world_statistic(world, "misses");
    assert_true(misses > 0);

    world_attach(world, "vm2", &snapshot, &second_files);
    assert_string_equal(files.memory, second_files.memory);
    assert_int_equal(run_as_vmm(touch_all, second_files.memory), 0);
    assert_int_equal(world_statistic(world, "misses"), misses);
    world_detach(world, "vm1", &files);
    world_detach(world, "vm2", &second_files);

    /* And so do those who come when nobody has had it for a while. */
    world_attach_again(world, "vm1", &files);
    assert_int_equal(run_as_vmm(touch_all, files.memory), 0);
    assert_int_equal(world_statistic(world, "misses"), misses);
    world_detach(world, "vm1", &files);
}

static void test_empty_memory(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    world_snapshot(world, 7, &snapshot);
    CLEANUP_FREE char *directory = NULL;
    world_make_vm(world, "vm1", &snapshot, &directory);
    for (unsigned pages = 100; pages <= 200; pages += 100) { /* another size under the same name */
        struct imaged_attach attach = {.vm = "vm1",
                                       .vm_directory = directory,
                                       .uid = WORLD_UID,
                                       .gid = WORLD_GID,
                                       .empty_memory = (uint64_t)pages * IMAGE_PAGE_BYTES};
        struct imaged_files files;
        assert_int_equal(imaged_attach(world->imaged, &attach, &files, NULL), 0);
        struct stat status;
        assert_int_equal(stat(files.memory, &status), 0);
        assert_int_equal(status.st_size, pages * IMAGE_PAGE_BYTES);
        uint32_t zeros[200] = {0};
        assert_int_equal(read_by_threads(files.memory, zeros, pages), 0);
        world_detach(world, "vm1", &files);
    }
}

static void test_images_without_a_vm(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    world_snapshot(world, 8, &snapshot);
    CLEANUP_FREE char *disk = world_path(world, "images/disk/%s", snapshot.id);
    CLEANUP_FREE char *unknown = world_path(world, "images/disk/%s", "aaaaaaaaaaaaaaaaaaaa");
    CLEANUP_FREE char *odd = world_path(world, "images/disk/%s", "..%2f..%2fetc");
    assert_int_equal(read_by_threads(disk, snapshot.pages[IMAGE_DISK], WORLD_DISK_PAGES), 0);
    assert_true(open(unknown, O_RDONLY | O_CLOEXEC) < 0 && errno == ENOENT);
    assert_true(open(odd, O_RDONLY | O_CLOEXEC) < 0 && errno == ENOENT);

    /* Known, but removed before it was opened. */
    struct world_snapshot removed;
    world_snapshot(world, 9, &removed);
    CLEANUP_FREE char *removed_disk = world_path(world, "images/disk/%s", removed.id);
    CLEANUP_FREE char *manifest = world_path(world, "snapshots/%s/manifest", removed.id);
    struct stat status;
    assert_int_equal(stat(removed_disk, &status), 0);
    assert_int_equal(status.st_size, WORLD_DISK_PAGES * IMAGE_PAGE_BYTES);
    assert_int_equal(unlink(manifest), 0);
    assert_true(open(removed_disk, O_RDONLY | O_CLOEXEC) < 0 && errno == ENOENT);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        WORLD_TEST(test_reads_equal_what_was_stored),
        WORLD_TEST(test_writing_is_refused),
        WORLD_TEST(test_writing_through_a_mapping_is_a_failure),
        WORLD_TEST(test_damage_is_an_error_for_those_concerned),
        WORLD_TEST(test_damage_below_an_overlay_is_one_too),
        WORLD_TEST(test_a_second_mapping_misses_nothing),
        WORLD_TEST(test_empty_memory),
        WORLD_TEST(test_images_without_a_vm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
