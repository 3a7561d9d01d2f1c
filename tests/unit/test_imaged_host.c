/* What the image server takes of its host, beside answers: page cache for what it reads, and waits for disks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged_world.h"

#define DEADLINE_NS (INT64_C(60) * 1000 * 1000 * 1000)

static struct world world;
static char *slow_disk; /* where it is mounted, if it is */

static int setup(void **state)
{
    (void)state;
    world_open(&world);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (slow_disk != NULL)
        umount2(slow_disk, MNT_DETACH);
    free(TAKE_PTR(slow_disk));
    world_close(&world);
    return 0;
}

/* The first layer of the snapshot: nearly all there is of it. */
static int open_layer(const struct world_snapshot *snapshot, size_t *ret_pages)
{
    CLEANUP_FREE char *path = world_path(&world, "layers/%s", snapshot->layers[0]);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    *ret_pages = ((size_t)status.st_size + IMAGE_PAGE_BYTES - 1) / IMAGE_PAGE_BYTES;
    return fd;
}

static size_t count_cached(int fd, size_t pages)
{
    void *bytes = mmap(NULL, pages * IMAGE_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    CLEANUP_FREE unsigned char *cached = calloc(pages, 1);
    assert_true(bytes != MAP_FAILED && cached != NULL);
    assert_int_equal(mincore(bytes, pages * IMAGE_PAGE_BYTES, cached), 0);
    munmap(bytes, pages * IMAGE_PAGE_BYTES);
    size_t count = 0;
    for (size_t i = 0; i < pages; i++)
        count += cached[i] & 1;
    return count;
}

/* Neither the image nor its layer is in the page cache then. */
static void make_cold(int layer, size_t layer_pages)
{
    assert_int_equal(imaged_stop(world.imaged, NULL), 0);
    imaged_close(world.imaged);
    assert_int_equal(fdatasync(layer), 0);
    assert_int_equal(posix_fadvise(layer, 0, 0, POSIX_FADV_DONTNEED), 0);
    assert_int_equal(count_cached(layer, layer_pages), 0);
    world_start(&world);
}

/*
 * All of it, `length` pages at a time, each time `step` such pieces further: only 1 is read-ahead's business. Past
 * the image's page cache one answer is as long as what was asked for.
 */
static void read_all(const char *path, const struct world_snapshot *snapshot, size_t length, size_t step)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | (length > 1 ? O_DIRECT : 0));
    CLEANUP_FREE uint8_t *bytes = aligned_alloc(IMAGE_PAGE_BYTES, length * IMAGE_PAGE_BYTES);
    assert_true(fd >= 0 && bytes != NULL);
    size_t pieces = WORLD_MEMORY_PAGES / length;
    for (size_t i = 0; i < pieces; i++) {
        size_t first = i * step % pieces * length;
        assert_int_equal(pread(fd, bytes, length * IMAGE_PAGE_BYTES, (off_t)(first * IMAGE_PAGE_BYTES)),
                         length * IMAGE_PAGE_BYTES);
        for (size_t page = 0; page < length; page++)
            assert_true(
                world_is_page(bytes + page * IMAGE_PAGE_BYTES, snapshot->pages[IMAGE_MEMORY][first + page]));
    }
}

/* A frame is given up a moment after it was used; some of what was asked for ahead may be on its way from the disk.
 */
static void expect_layer_to_leave(int layer, size_t layer_pages)
{
    assert_true(world_statistic(&world, "decompressed_bytes") >= WORLD_MEMORY_PAGES / 2 * (int)IMAGE_PAGE_BYTES);
    int64_t deadline_ns = clock_monotonic_ns() + DEADLINE_NS;
    size_t cached;
    while ((cached = count_cached(layer, layer_pages)) > layer_pages / 8)
        if (clock_monotonic_ns() > deadline_ns)
            fail_msg("%zu of a layer's %zu pages are cached twice", cached, layer_pages);
}

struct cold {
    struct world_snapshot snapshot;
    struct imaged_files files;
    int layer;
    size_t layer_pages;
};

static void begin_cold(struct cold *ret)
{
    struct statfs file_system;
    assert_int_equal(statfs(world.directory, &file_system), 0);
    if (file_system.f_type == TMPFS_MAGIC) {
        print_message("skipped: the files of %s are nowhere but in the page cache\n", world.directory);
        skip();
    }
    CLEANUP_FREE char *directory = NULL;
    world_snapshot(&world, 21, &ret->snapshot);
    world_make_vm(&world, "vm1", &ret->snapshot, &directory);
    ret->layer = open_layer(&ret->snapshot, &ret->layer_pages);
    make_cold(ret->layer, ret->layer_pages);
    world_attach_again(&world, "vm1", &ret->files);
}

static void end_cold(struct cold *cold)
{
    expect_layer_to_leave(cold->layer, cold->layer_pages);
    world_detach(&world, "vm1", &cold->files);
    close(cold->layer);
}

static void test_answered_pages_are_cached_once(void **state)
{
    (void)state;
    struct cold cold;
    begin_cold(&cold);
    read_all(cold.files.memory, &cold.snapshot, 1, 1009);
    end_cold(&cold);
}

static void test_long_answers_are_cached_once(void **state)
{
    (void)state;
    struct cold cold;
    begin_cold(&cold);
    read_all(cold.files.memory, &cold.snapshot, 32, 37);
    end_cold(&cold);
}

static void test_pages_read_ahead_are_cached_once(void **state)
{
    (void)state;
    struct cold cold;
    begin_cold(&cold);
    read_all(cold.files.memory, &cold.snapshot, 1, 1);
    end_cold(&cold);
}

static void test_prefetched_pages_are_cached_once(void **state)
{
    (void)state;
    struct cold cold;
    begin_cold(&cold);
    CLEANUP_FREE char *working_set = world_path(&world, "vms/vm1/working-set");
    read_all(cold.files.memory, &cold.snapshot, 1, 1);
    assert_int_equal(imaged_save_working_set(world.imaged, "vm1", working_set, NULL), 0);
    world_detach(&world, "vm1", &cold.files);
    make_cold(cold.layer, cold.layer_pages);
    world_attach_again(&world, "vm1", &cold.files);
    CLEANUP_CLOSE int image = open(cold.files.memory, O_RDONLY | O_CLOEXEC);
    assert_int_equal(imaged_prefetch(world.imaged, "vm1", NULL), 0);
    while (world_statistic(&world, "prefetches") == 0)
        ;
    close(TAKE_FD(image));
    end_cold(&cold);
}

static int run(const char *format, const char *first, const char *second)
{
    char command[512];
    snprintf(command, sizeof(command), format, first, second);
    return system(command);
}

/* A file system of which at most a MiB may be dirty, so that writers to it wait; no other file system notices. */
static bool mount_slow_disk(void)
{
    CLEANUP_FREE char *image = world_path(&world, "slow-image");
    CLEANUP_FREE char *point = world_path(&world, "slow");
    assert_int_equal(mkdir(point, 0700), 0);
    if (run("truncate -s 64M %s && mkfs.ext4 -q %s", image, image) != 0 ||
        run("mount -o loop %s %s", image, point) != 0)
        return false;
    slow_disk = strdup(point);
    struct stat status;
    assert_int_equal(stat(point, &status), 0);
    char limit[96];
    char most[96];
    snprintf(limit, sizeof(limit), "/sys/class/bdi/%u:%u/strict_limit", major(status.st_dev), minor(status.st_dev));
    snprintf(most, sizeof(most), "/sys/class/bdi/%u:%u/max_bytes", major(status.st_dev), minor(status.st_dev));
    return run("echo 1 > %s && echo 1048576 > %s", limit, most) == 0; /* Linux 6.2 */
}

static pid_t start_writer(void)
{
    CLEANUP_FREE char *path = world_path(&world, "slow/file");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    static const uint8_t bytes[64 << 10];
    for (size_t i = 0;; i++)
        if (pwrite(fd, bytes, sizeof(bytes), (off_t)(i % 256 * sizeof(bytes))) < 0)
            _exit(1);
}

static void test_who_waits_for_write_back_is_counted(void **state)
{
    (void)state;
    if (!mount_slow_disk()) {
        print_message("skipped: a disk that is slow at will needs root, loop devices and Linux 6.2\n");
        skip();
    }
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_snapshot(&world, 22, &snapshot);
    world_attach(&world, "vm1", &snapshot, &files);
    pid_t writer = start_writer();
    assert_int_equal(imaged_set_vmm(world.imaged, "vm1", writer, NULL), 0);
    int64_t deadline_ns = clock_monotonic_ns() + DEADLINE_NS;
    while (world_statistic(&world, "balance_dirty_pages_samples") == 0)
        assert_true(clock_monotonic_ns() < deadline_ns);
    kill(writer, SIGKILL);
    assert_int_equal(waitpid(writer, NULL, 0), writer);
    while (world_statistic(&world, "balance_dirty_pages_threads") != 0)
        assert_true(clock_monotonic_ns() < deadline_ns);
    world_detach(&world, "vm1", &files);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answered_pages_are_cached_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_answers_are_cached_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages_read_ahead_are_cached_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prefetched_pages_are_cached_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_who_waits_for_write_back_is_counted, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
