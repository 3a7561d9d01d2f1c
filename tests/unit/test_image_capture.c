/*
 * Capture from real processes: a child maps a parent image privately, as a VMM does, changes memory in every way
 * the kernel knows, and waits. What was captured, laid over the parent, must be what the child has: it says so
 * itself, afterwards, so that the capture meets the child's page tables as its changes left them.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capture_world.h"
#include "image/pages.h"
#include "random.h"
#include "unit.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define HUGE_PAGE (2u << 20)

struct guest {
    pid_t pid;
    int command; /* closed: the guest writes its memory to `dump` and ends */
    int dump;
    struct vmm_ram_range ranges[3];
};

enum change {
    CHANGE_RANDOM,
    CHANGE_ONE_BYTE,
    CHANGE_NOTHING, /* written to, but with what was there */
    CHANGE_ZERO,
    CHANGE_DISCARD,
    CHANGE_SWAP,
    CHANGE_READ,
    CHANGES,
};

static void change_pages(uint8_t *at, size_t length, enum change change, uint64_t *random)
{
    switch (change) {
    case CHANGE_RANDOM:
        random_fill(at, length, random);
        break;
    case CHANGE_ZERO:
        memset(at, 0, length);
        break;
    case CHANGE_DISCARD:
        madvise(at, length, MADV_DONTNEED);
        break;
    case CHANGE_SWAP:
        madvise(at, length, MADV_PAGEOUT);
        break;
    default:
        for (size_t i = 0; i < length; i += PAGE) {
            volatile uint8_t *byte = at + i + random_next(random) % PAGE;
            uint8_t old = *byte;
            if (change != CHANGE_READ)
                *byte = (uint8_t)(change == CHANGE_ONE_BYTE ? old + 1 : old);
        }
        break;
    }
}

static void change_memory(uint8_t *memory, size_t pages, uint64_t *random)
{
    size_t changes = random_next(random) % 150;
    for (size_t i = 0; i < changes; i++) {
        size_t first = random_next(random) % pages;
        size_t count = 1 + random_next(random) % (random_next(random) % 8 == 0 ? 600 : 5);
        change_pages(memory + first * PAGE, MIN(count, pages - first) * PAGE,
                     (enum change)(random_next(random) % CHANGES), random);
    }
}

static _Noreturn void guest_main(const struct guest *guest, int ready, uint64_t random)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < ARRAY_SIZE(guest->ranges); i++)
        change_memory((uint8_t *)(uintptr_t)guest->ranges[i].address, guest->ranges[i].length / PAGE, &random);
    char byte = 0;
    if (write(ready, &byte, 1) != 1 || read(guest->command, &byte, 1) != 0)
        _exit(1);
    for (size_t i = 0; i < ARRAY_SIZE(guest->ranges); i++)
        if (io_pwrite_full(guest->dump, (void *)(uintptr_t)guest->ranges[i].address, guest->ranges[i].length,
                           (off_t)guest->ranges[i].offset) < 0)
            _exit(1);
    _exit(0);
}

/* A private mapping that begins at a huge page. */
static uint64_t map_range(int fd, size_t pages, size_t first)
{
    uint8_t *place = mmap(NULL, pages * PAGE + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(place != MAP_FAILED);
    uint8_t *start = (uint8_t *)ROUND_UP((uintptr_t)place, (uintptr_t)HUGE_PAGE);
    assert_true(mmap(start, pages * PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0), fd,
                     fd < 0 ? 0 : (off_t)(first * PAGE)) == start);
    madvise(start, pages * PAGE, MADV_HUGEPAGE);
    return (uintptr_t)start;
}

static void start_guest(const char *directory, const struct parent *parent, uint64_t random, struct guest *ret)
{
    CLEANUP_FREE char *path = unit_path(directory, "dump");
    ret->dump = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(ret->dump >= 0);
    ret->ranges[2].address = map_range(-1, BARE_PAGES, 0);
    ret->ranges[1].address = map_range(parent->fd, HIGH_PAGES, HIGH_START);
    ret->ranges[0].address = map_range(parent->fd, LOW_PAGES, 0);
    ret->ranges[0].length = LOW_PAGES * PAGE;
    ret->ranges[1].length = HIGH_PAGES * PAGE;
    ret->ranges[2].length = BARE_PAGES * PAGE;
    ret->ranges[0].offset = 0;
    ret->ranges[1].offset = HIGH_START * PAGE;
    ret->ranges[2].offset = BARE_START * PAGE;
    int command[2];
    int ready[2];
    assert_int_equal(pipe2(command, O_CLOEXEC), 0);
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    ret->pid = fork();
    assert_true(ret->pid >= 0);
    ret->command = command[0];
    if (ret->pid == 0) {
        close(command[1]);
        guest_main(ret, ready[1], random);
    }
    ret->command = command[1];
    char byte;
    close(command[0]);
    close(ready[1]);
    assert_int_equal(io_read_full(ready[0], &byte, 1), 1);
    close(ready[0]);
    for (size_t i = 0; i < ARRAY_SIZE(ret->ranges); i++)
        munmap((void *)(uintptr_t)ret->ranges[i].address, ret->ranges[i].length);
}

/* Its memory is put over `content`; the gap is none of its. */
static void end_guest(struct guest *guest, uint8_t *content)
{
    close(guest->command);
    int status;
    assert_int_equal(waitpid(guest->pid, &status, 0), guest->pid);
    assert_int_equal(status, 0);
    for (size_t i = 0; i < ARRAY_SIZE(guest->ranges); i++)
        assert_int_equal(pread(guest->dump, content + guest->ranges[i].offset, guest->ranges[i].length,
                               (off_t)guest->ranges[i].offset),
                         guest->ranges[i].length);
    close(guest->dump);
}

static void kill_guest(struct guest *guest)
{
    kill(guest->pid, SIGKILL);
    waitpid(guest->pid, NULL, 0);
    close(guest->command);
    close(guest->dump);
}

/* The bytes of the guest that are in swap. */
static uint64_t swapped_bytes(const struct guest *guest)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int pagemap = page_map_open(guest->pid, &err);
    static uint64_t entries[PAGES];
    uint64_t swapped = 0;
    for (size_t i = 0; i < ARRAY_SIZE(guest->ranges); i++) {
        size_t pages = guest->ranges[i].length / PAGE;
        off_t offset = (off_t)(guest->ranges[i].address / PAGE * sizeof(entries[0]));
        ssize_t bytes = (ssize_t)(pages * sizeof(entries[0]));
        assert_int_equal(pread(pagemap, entries, (size_t)bytes, offset), bytes);
        for (size_t page = 0; page < pages; page++)
            swapped += (entries[page] >> 62 & 1) * PAGE;
    }
    return swapped;
}

static bool host_has_swap(void)
{
    struct sysinfo host;
    return sysinfo(&host) == 0 && (uint64_t)host.freeswap * host.mem_unit >= 2 * PAGES * PAGE;
}

/* Both walkers count the same then. Not all of it goes: the kernel's zero pages stay, as does what others hold. */
static void page_out(const struct guest *guest, struct capture_memory source)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int pidfd = pidfd_open(guest->pid, 0);
    for (size_t i = 0; i < ARRAY_SIZE(guest->ranges); i++) {
        struct iovec memory = {(void *)(uintptr_t)guest->ranges[i].address, guest->ranges[i].length};
        assert_int_equal(process_madvise(pidfd, &memory, 1, MADV_PAGEOUT, 0), guest->ranges[i].length);
    }
    uint64_t private_bytes[2];
    uint64_t resident_bytes;
    for (int i = 0; i < 2; i++) {
        source.without_scan = i == 1;
        assert_int_equal(capture_count(&source, &private_bytes[i], &resident_bytes, &err), 0);
    }
    assert_int_equal(private_bytes[0], private_bytes[1]);
    assert_true(!host_has_swap() || swapped_bytes(guest) > private_bytes[0] / 4);
}

static void check_seed(const char *directory, int layers, uint64_t seed, bool swapped)
{
    static const unsigned frame_sizes[] = {LAYER_FRAME_PAGES_MEMORY, 1, LAYER_FRAME_PAGES_DISK, 512};
    uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    struct parent parent;
    capture_make_parent(directory, &random, &parent);
    struct guest guest;
    start_guest(directory, &parent, random, &guest);
    struct capture_memory source = {
        .pid = guest.pid,
        .ranges = guest.ranges,
        .range_count = ARRAY_SIZE(guest.ranges),
        .parent = {&parent.map, parent.fd},
    };
    unsigned frame_pages = frame_sizes[seed % ARRAY_SIZE(frame_sizes)];
    struct captured captured[2];
    for (int i = 0; i < 2; i++) {
        if (swapped)
            page_out(&guest, source); /* again for the second: reading brings pages back */
        source.without_scan = i == 1;
        capture(layers, &(struct subject){.memory = &source}, frame_pages, &captured[i]);
    }
    CLEANUP_FREE uint8_t *expected = malloc(PAGES * PAGE);
    memcpy(expected, parent.content, PAGES * PAGE);
    end_guest(&guest, expected);
    /* Between the two the kernel may make a huge page of private ones and the holes among them. */
    assert_true(captured[0].result.private_bytes <= captured[1].result.private_bytes);
    assert_int_equal(captured[0].result.changed_bytes, captured[1].result.changed_bytes);
    for (int i = 0; i < 2; i++) {
        CLEANUP_FREE uint8_t *image = capture_read_image(layers, &parent, PAGES, &captured[i]);
        for (size_t page = 0; page < PAGES; page++)
            if (memcmp(image + page * PAGE, expected + page * PAGE, PAGE) != 0)
                fail_msg("seed %llu: page %zu differs", (unsigned long long)seed, page);
        capture_check_thrift(layers, &captured[i], parent.content, expected);
        unlinkat(layers, captured[i].layer_id, 0);
        capture_result_done(&captured[i].result);
    }
    capture_drop_parent(&parent);
}

static void both_walkers_capture_what_the_guest_has(void **state)
{
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    for (uint64_t seed = 1; seed <= 24; seed++)
        check_seed(*state, layers, seed, false);
}

static void both_walkers_capture_what_is_in_swap(void **state)
{
    if (!host_has_swap())
        print_message("no swap here: pages stay where they are\n");
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    for (uint64_t seed = 1; seed <= 4; seed++)
        check_seed(*state, layers, seed, true);
}

/* A guest of which `pages` pages are private and full of random bytes; returns what to capture of it. */
static struct capture_memory start_simple_guest(size_t pages, struct guest *ret)
{
    uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    int ready[2];
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    ret->pid = fork();
    assert_true(ret->pid >= 0);
    if (ret->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        uint64_t random = 7;
        random_fill(memory, pages * PAGE, &random);
        if (write(ready[1], "", 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    close(ready[1]);
    char byte;
    assert_int_equal(io_read_full(ready[0], &byte, 1), 1);
    close(ready[0]);
    munmap(memory, pages * PAGE);
    ret->command = -1;
    ret->dump = -1;
    ret->ranges[0] = (struct vmm_ram_range){(uintptr_t)memory, pages * PAGE, 0};
    return (struct capture_memory){.pid = ret->pid, .ranges = ret->ranges, .range_count = 1, .parent = {NULL, -1}};
}

static uint64_t status_kib(const char *name)
{
    CLEANUP_FREE char *text = NULL;
    assert_true(io_read_file("/proc/self/status", 1 << 20, &text, NULL) >= 0);
    const char *line = strstr(text, name);
    assert_non_null(line);
    return strtoull(line + strlen(name), NULL, 10);
}

/* In a process of its own, whose peak nothing else has raised. */
static _Noreturn void measure_peak(int layers, const struct capture_memory *source, int result)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct captured captured;
    int reset = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (reset < 0 || write(reset, "5", 1) != 1)
        _exit(2);
    uint64_t before = status_kib("VmHWM:");
    int r = try_capture(layers, &(struct subject){.memory = source}, LAYER_FRAME_PAGES_MEMORY, &captured, &err);
    uint64_t growth = status_kib("VmHWM:") - before;
    _exit(r < 0 || write(result, &growth, sizeof(growth)) != sizeof(growth));
}

static void memory_is_bounded_whatever_the_guest(void **state)
{
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    struct guest guest;
    struct capture_memory source = start_simple_guest((512u << 20) / PAGE, &guest);
    int result[2];
    assert_int_equal(pipe2(result, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        measure_peak(layers, &source, result[1]);
    close(result[1]);
    uint64_t growth_kib = UINT64_MAX;
    assert_int_equal(io_read_full(result[0], &growth_kib, sizeof(growth_kib)), sizeof(growth_kib));
    close(result[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    kill_guest(&guest);
    print_message("capturing 512 MiB took %llu KiB\n", (unsigned long long)growth_kib);
    assert_true(growth_kib * 1024 <= CAPTURE_MEMORY_MAX);
}

static void a_full_disk_fails_the_capture(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *small = unit_path(*state, "small");
    assert_int_equal(io_make_directories(small, 0700), 0);
    if (geteuid() != 0 || mount("small", small, "tmpfs", 0, "size=8m") < 0) {
        print_message("skipped: mounting a small file system needs root\n");
        skip();
    }
    int layers = capture_make_layers(small);
    struct guest guest;
    struct capture_memory source = start_simple_guest((32u << 20) / PAGE, &guest);
    struct captured captured;
    int r = try_capture(layers, &(struct subject){.memory = &source}, LAYER_FRAME_PAGES_MEMORY, &captured, &err);
    kill_guest(&guest);
    CLEANUP_FREE char *path = unit_path(small, "layers");
    int removed = rmdir(path);
    close(layers);
    umount2(small, MNT_DETACH);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(removed, 0);
}

static void a_process_that_is_gone_fails_the_capture(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    struct guest guest;
    struct capture_memory source = start_simple_guest(100, &guest);
    struct captured captured;
    uint64_t private_bytes;
    uint64_t resident_bytes;
    /* Ended but not waited for, it still has its pid. */
    kill(guest.pid, SIGKILL);
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)guest.pid, &info, WEXITED | WNOWAIT), 0);
    for (int i = 0; i < 4; i++) {
        source.without_scan = i % 2 == 1;
        if (i == 2)
            kill_guest(&guest);
        assert_int_equal(try_capture(layers, &(struct subject){.memory = &source}, 4, &captured, &err), -ESRCH);
        assert_int_equal(capture_count(&source, &private_bytes, &resident_bytes, &err), -ESRCH);
    }
}

/* To a walk, a process that ended looks like one that has nothing of its own; only the check tells. */
static void an_address_space_that_is_gone_is_noticed(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct guest guest;
    start_simple_guest(100, &guest);
    CLEANUP_CLOSE int pagemap = page_map_open(guest.pid, &err);
    assert_true(pagemap >= 0);
    bool use_scan = page_scan_supported(pagemap);
    assert_int_equal(page_map_check(pagemap, &err), 0);
    kill_guest(&guest);
    struct page_walk walk;
    struct page_run run;
    page_walk_init(&walk, pagemap, PAGES_PRIVATE, use_scan, guest.ranges[0].address, guest.ranges[0].length);
    assert_true(page_walk_next(&walk, &run, &err) <= 0);
    assert_int_equal(page_map_check(pagemap, &err), -ESRCH);
    page_walk_init(&walk, pagemap, PAGES_PRIVATE, false, guest.ranges[0].address, guest.ranges[0].length);
    assert_int_equal(page_walk_next(&walk, &run, &err), -ESRCH);
}

struct killer {
    pid_t pid;
    int64_t delay_ns;
};

static void *kill_later(void *context)
{
    const struct killer *killer = context;
    struct timespec delay = {killer->delay_ns / 1000000000, killer->delay_ns % 1000000000};
    nanosleep(&delay, NULL);
    kill(killer->pid, SIGKILL);
    return NULL;
}

/* A guest that is killed `delay_ns` after its capture has begun (0: when it has ended); whether it was captured. */
static bool capture_dying_guest(int layers, bool without_scan, int64_t delay_ns)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    size_t pages = (48u << 20) / PAGE;
    struct guest guest;
    struct capture_memory source = start_simple_guest(pages, &guest);
    source.without_scan = without_scan;
    struct captured captured;
    struct killer killer = {guest.pid, delay_ns};
    pthread_t thread;
    if (delay_ns > 0)
        assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
    int r = try_capture(layers, &(struct subject){.memory = &source}, 4, &captured, &err);
    if (delay_ns > 0)
        pthread_join(thread, NULL);
    kill_guest(&guest);
    if (r < 0) {
        assert_int_equal(r, -ESRCH);
        return false;
    }
    assert_int_equal(captured.result.changed_bytes, pages * PAGE);
    capture_result_done(&captured.result);
    unlinkat(layers, captured.layer_id, 0);
    return true;
}

/* Whenever it goes: what is called a success is all of it. */
static void a_process_that_goes_meanwhile_is_never_half_captured(void **state)
{
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    int64_t start = clock_monotonic_ns();
    assert_true(capture_dying_guest(layers, false, 0));
    int64_t whole_ns = clock_monotonic_ns() - start;
    int captured = 0;
    for (int i = 0; i < 24; i++)
        captured += capture_dying_guest(layers, i % 2 == 1, 1 + whole_ns * i / 24);
    print_message("%d of 24 lived long enough\n", captured);
}

static void memory_beyond_the_image_is_refused(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    struct guest guest;
    struct capture_memory source = start_simple_guest(100, &guest);
    struct captured captured;
    struct image_map map = {.pages = 99};
    source.parent.map = &map;
    assert_int_equal(try_capture(layers, &(struct subject){.memory = &source}, 4, &captured, &err), -ERANGE);
    guest.ranges[1] = guest.ranges[0];
    source.parent.map = NULL;
    source.range_count = 2;
    assert_int_equal(try_capture(layers, &(struct subject){.memory = &source}, 4, &captured, &err), -EINVAL);
    kill_guest(&guest);
}

/* The parent's file is read only where its map has something: one that can't be read harms only those. */
static void a_parent_that_fails_fails_the_capture(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int layers = capture_make_layers(*state);
    CLEANUP_FREE char *path = unit_path(*state, "short");
    CLEANUP_CLOSE int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct guest guest;
    struct capture_memory source = start_simple_guest(1000, &guest);
    struct captured captured;
    struct map_extent extent = {900, 1, PARENT_LAYER, 0};
    struct image_map map = {.extents = &extent, .count = 0, .pages = 1000};
    source.parent = (struct capture_parent){&map, file};
    capture(layers, &(struct subject){.memory = &source}, 4, &captured);
    assert_int_equal(captured.result.changed_bytes, 1000 * PAGE);
    /* Neighbours are stored as neighbours. */
    assert_true(captured.result.change_count <= 1000 / LAYER_ADD_PAGES + 2);
    capture_result_done(&captured.result);
    map.count = 1;
    assert_int_equal(try_capture(layers, &(struct subject){.memory = &source}, 4, &captured, &err), -EIO);
    kill_guest(&guest);
}

static void counting_tells_private_from_resident(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    uint64_t random = 3;
    struct parent parent;
    capture_make_parent(*state, &random, &parent);
    struct guest guest;
    start_guest(*state, &parent, random, &guest);
    struct capture_memory source = {.pid = guest.pid, .ranges = guest.ranges, .range_count = 3};
    uint64_t scanned[2];
    uint64_t read[2];
    assert_int_equal(capture_count(&source, &scanned[0], &scanned[1], &err), 0);
    source.without_scan = true;
    assert_int_equal(capture_count(&source, &read[0], &read[1], &err), 0);
    assert_memory_equal(scanned, read, sizeof(read));
    assert_true(scanned[0] > 0);
    if (!host_has_swap())
        assert_true(scanned[0] <= scanned[1]);
    kill_guest(&guest);
    capture_drop_parent(&parent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(both_walkers_capture_what_the_guest_has),
        UNIT_TEST(both_walkers_capture_what_is_in_swap),
        UNIT_TEST(memory_is_bounded_whatever_the_guest),
        UNIT_TEST(a_full_disk_fails_the_capture),
        UNIT_TEST(a_process_that_is_gone_fails_the_capture),
        UNIT_TEST(an_address_space_that_is_gone_is_noticed),
        UNIT_TEST(a_process_that_goes_meanwhile_is_never_half_captured),
        UNIT_TEST(memory_beyond_the_image_is_refused),
        UNIT_TEST(a_parent_that_fails_fails_the_capture),
        UNIT_TEST(counting_tells_private_from_resident),
    };
    return cmocka_run_group_tests_name("image-capture", tests, NULL, NULL);
}
