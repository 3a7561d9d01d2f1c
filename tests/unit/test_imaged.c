/* The image server with real mounts: what is read is what was stored, whoever asks, or an error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged_world.h"

static struct world world;

static int setup(void **state)
{
    (void)state;
    world_open(&world);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    world_close(&world);
    return 0;
}

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
    (void)state;
    struct world_snapshot snapshot;
    world_snapshot(&world, 1, &snapshot);
    struct imaged_files files;
    world_attach(&world, "vm1", &snapshot, &files);
    assert_int_equal(read_by_threads(files.memory, snapshot.pages[IMAGE_MEMORY], WORLD_MEMORY_PAGES), 0);
    assert_int_equal(read_by_threads(files.disk_parent, snapshot.pages[IMAGE_DISK], WORLD_DISK_PAGES), 0);
    assert_int_equal(read_by_threads(files.disk, snapshot.pages[IMAGE_DISK], WORLD_DISK_PAGES), 0);
    CLEANUP_FREE char *reason = NULL;
    assert_int_equal(imaged_failure(world.imaged, "vm1", &reason, NULL), 0);
    world_detach(&world, "vm1", &files);
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
    (void)state;
    struct world_snapshot snapshot;
    world_snapshot(&world, 2, &snapshot);
    struct imaged_files files;
    world_attach(&world, "vm1", &snapshot, &files);
    const uint32_t *pages = snapshot.pages[IMAGE_MEMORY];
    CLEANUP_CLOSE int fd = open(files.memory, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    const uint8_t *other = mmap(NULL, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(other != MAP_FAILED && world_is_page(other, pages[0]));

    assert_int_equal(run_as_vmm(try_to_write, files.memory), 0);
    assert_true(world_is_page(other, pages[0]));
    assert_int_equal(world_statistic(&world, "refused_writes"), 0); /* stopped before it came so far */

    /* Root's get further, and are undone. */
    uint8_t bytes[IMAGE_PAGE_BYTES];
    memset(bytes, 0xee, sizeof(bytes));
    assert_true(pwrite(fd, bytes, sizeof(bytes), 0) < 0);
    assert_int_equal(errno, EROFS);
    assert_int_equal(world_statistic(&world, "refused_writes"), 1);
    assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    assert_true(world_is_page(bytes, pages[0]));
    munmap((void *)(uintptr_t)other, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES);
    world_detach(&world, "vm1", &files);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reads_equal_what_was_stored, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writing_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
