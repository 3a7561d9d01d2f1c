/*
 * Capture from a real process: a child maps a parent image privately, as a VMM does, changes some pages, and waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image/capture.h"
#include "image/clone.h"
#include "image/pages.h"
#include "unit.h"

#define PAGES 3000u
#define SIZE  ((uint64_t)PAGES * PAGE_SIZE_BYTES)

struct guest {
    pid_t pid;
    struct vmm_ram_range range;
    int parent_fd;
    uint8_t *expected; /* what the guest's memory holds */
};

static void fill_page(uint8_t *page, unsigned seed)
{
    for (size_t i = 0; i < PAGE_SIZE_BYTES; i++)
        page[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

/* Every third page of the first half holds data; the rest is a hole. */
static int make_parent(const char *directory, uint8_t *content)
{
    CLEANUP_FREE char *path = unit_path(directory, "parent");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)SIZE), 0);
    for (unsigned i = 0; i < PAGES / 2; i += 3) {
        fill_page(content + (size_t)i * PAGE_SIZE_BYTES, i);
        assert_int_equal(
            io_pwrite_full(fd, content + (size_t)i * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, (off_t)i * PAGE_SIZE_BYTES),
            0);
    }
    return fd;
}

/* Which pages the child writes: scattered ones, a long run, a page set to what it was, and a zero over a hole. */
static void change_memory(uint8_t *memory)
{
    for (unsigned i = 0; i < PAGES; i += 17)
        fill_page(memory + (size_t)i * PAGE_SIZE_BYTES, i + 1000);
    for (unsigned i = 1100; i < 2600; i++)
        fill_page(memory + (size_t)i * PAGE_SIZE_BYTES, i + 5);
    fill_page(memory + 3 * (size_t)PAGE_SIZE_BYTES, 3);               /* page 3 again as in the parent */
    memory[(size_t)2999 * PAGE_SIZE_BYTES] = 0;                       /* a hole becomes a private page of zeros */
    memset(memory + 6 * (size_t)PAGE_SIZE_BYTES, 0, PAGE_SIZE_BYTES); /* data becomes zeros */
}

static void start_guest(const char *directory, struct guest *guest)
{
    guest->expected = calloc(1, SIZE);
    assert_non_null(guest->expected);
    guest->parent_fd = make_parent(directory, guest->expected);
    uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, guest->parent_fd, 0);
    assert_true(memory != MAP_FAILED);
    change_memory(guest->expected);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    guest->pid = fork();
    if (guest->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        change_memory(memory);
        (void)!write(ready[1], "x", 1);
        for (;;)
            pause();
    }
    char byte;
    assert_int_equal(io_read_full(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    munmap(memory, SIZE);
    guest->range = (struct vmm_ram_range){.address = (uint64_t)(uintptr_t)memory, .length = SIZE, .offset = 0};
}

static void end_guest(struct guest *guest)
{
    kill(guest->pid, SIGKILL);
    waitpid(guest->pid, NULL, 0);
    close(guest->parent_fd);
    free(guest->expected);
}

static void check_capture(const char *directory, const char *name, const struct guest *guest, bool without_scan,
                          struct capture_result *ret)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = unit_path(directory, name);
    CLEANUP_CLOSE int image = image_clone_to(guest->parent_fd, path, &err);
    assert_true(image >= 0);
    struct capture_source source = {guest->pid, &guest->range, 1, guest->parent_fd, without_scan};
    if (capture_memory(&source, image, ret, &err) < 0)
        fail_msg("%s", error_message(&err));
    CLEANUP_FREE uint8_t *captured = malloc(SIZE);
    assert_int_equal(pread(image, captured, SIZE, 0), SIZE);
    assert_memory_equal(captured, guest->expected, SIZE);
}

static void both_ways_find_the_same(void **state)
{
    struct guest guest;
    start_guest(*state, &guest);
    struct capture_result scanned;
    struct capture_result read;
    check_capture(*state, "by-scan", &guest, false, &scanned);
    check_capture(*state, "by-pagemap", &guest, true, &read);
    assert_int_equal(scanned.private_bytes, read.private_bytes);
    assert_int_equal(scanned.written_bytes, read.written_bytes);
    /* Pages 3 and 2999 are private but as in the parent. */
    assert_int_equal(scanned.private_bytes - scanned.written_bytes, 2 * PAGE_SIZE_BYTES);
    end_guest(&guest);
}

static void the_parent_image_stays_as_it_was(void **state)
{
    struct guest guest;
    start_guest(*state, &guest);
    CLEANUP_FREE uint8_t *before = malloc(SIZE);
    CLEANUP_FREE uint8_t *after = malloc(SIZE);
    assert_int_equal(pread(guest.parent_fd, before, SIZE, 0), SIZE);
    struct capture_result result;
    check_capture(*state, "image", &guest, false, &result);
    assert_int_equal(pread(guest.parent_fd, after, SIZE, 0), SIZE);
    assert_memory_equal(before, after, SIZE);
    end_guest(&guest);
}

static void counting_tells_private_from_resident(void **state)
{
    struct guest guest;
    start_guest(*state, &guest);
    struct capture_source source = {guest.pid, &guest.range, 1, guest.parent_fd, false};
    uint64_t private_bytes;
    uint64_t resident_bytes;
    assert_int_equal(capture_count(&source, &private_bytes, &resident_bytes, NULL), 0);
    struct capture_result result;
    check_capture(*state, "image", &guest, false, &result);
    assert_int_equal(private_bytes, result.private_bytes);
    assert_true(resident_bytes >= private_bytes);
    end_guest(&guest);
}

static void a_process_that_is_gone_fails_the_capture(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct guest guest;
    start_guest(*state, &guest);
    kill(guest.pid, SIGKILL);
    waitpid(guest.pid, NULL, 0);
    struct capture_source source = {guest.pid, &guest.range, 1, guest.parent_fd, false};
    struct capture_result result;
    assert_true(capture_memory(&source, guest.parent_fd, &result, &err) < 0);
    close(guest.parent_fd);
    free(guest.expected);
}

static void clones_keep_holes(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *from_path = unit_path(*state, "from");
    CLEANUP_FREE char *to_path = unit_path(*state, "to");
    CLEANUP_CLOSE int from = open(from_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(from, 1 << 30), 0);
    assert_int_equal(io_pwrite_full(from, "start", 5, 0), 0);
    assert_int_equal(io_pwrite_full(from, "middle", 6, (1 << 29) + 3), 0);
    CLEANUP_CLOSE int to = image_clone_to(from, to_path, &err);
    assert_true(to >= 0);
    struct stat status;
    assert_int_equal(fstat(to, &status), 0);
    assert_int_equal(status.st_size, 1 << 30);
    assert_true(status.st_blocks * 512 < 1 << 20);
    char text[7] = "";
    assert_int_equal(pread(to, text, 6, (1 << 29) + 3), 6);
    assert_string_equal(text, "middle");
    assert_int_equal(image_clone_to(from, to_path, &err), -EEXIST);
}

static void a_full_disk_leaves_no_clone(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *from_path = unit_path(*state, "from");
    CLEANUP_CLOSE int from = open(from_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CLEANUP_FREE char *data = calloc(1, 2 << 20);
    memset(data, 'x', 2 << 20);
    assert_int_equal(io_pwrite_full(from, data, 2 << 20, 0), 0);
    CLEANUP_FREE char *small = unit_path(*state, "small");
    assert_int_equal(io_make_directories(small, 0700), 0);
    if (geteuid() != 0 || mount("small", small, "tmpfs", 0, "size=1m") < 0) {
        print_message("skipped: mounting a small file system needs root\n");
        skip();
    }
    CLEANUP_FREE char *to_path = unit_path(small, "to");
    int r = image_clone_to(from, to_path, &err);
    int left = access(to_path, F_OK);
    assert_int_equal(umount2(small, MNT_DETACH), 0);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(left, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(both_ways_find_the_same),
        UNIT_TEST(the_parent_image_stays_as_it_was),
        UNIT_TEST(counting_tells_private_from_resident),
        UNIT_TEST(a_process_that_is_gone_fails_the_capture),
        UNIT_TEST(clones_keep_holes),
        UNIT_TEST(a_full_disk_leaves_no_clone),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
