/* The image server as a process: overlays, working sets, its socket, its death. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/unix_socket.h"
#include "image/overlay.h"
#include "imaged/protocol.h"
#include "imaged_world.h"
#include "unit.h"

#define DISK_BYTES ((size_t)WORLD_DISK_PAGES * IMAGE_PAGE_BYTES)

/* What a disk should hold. */
static uint8_t *model_disk(const struct world_snapshot *snapshot)
{
    uint8_t *model = malloc(DISK_BYTES);
    assert_non_null(model);
    for (size_t page = 0; page < WORLD_DISK_PAGES; page++)
        world_fill_page(model + page * IMAGE_PAGE_BYTES, snapshot->pages[IMAGE_DISK][page]);
    return model;
}

static bool disk_equals(const char *path, const uint8_t *model)
{
    CLEANUP_FREE uint8_t *bytes = malloc(DISK_BYTES);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && io_read_full(fd, bytes, DISK_BYTES) == (ssize_t)DISK_BYTES &&
           memcmp(bytes, model, DISK_BYTES) == 0;
}

/* One random change to disk and model, at any alignment. */
static void change(int fd, uint8_t *model, uint32_t *seed)
{
    static uint8_t bytes[300000];
    size_t length = world_random(seed) % (world_random(seed) % 8 == 0 ? sizeof(bytes) : 9000) + 1;
    size_t offset = world_random(seed) % (DISK_BYTES - length);
    int mode = world_random(seed) % 2 == 0 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    switch (world_random(seed) % 8) {
    case 0:
        assert_int_equal(fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length), 0);
        memset(model + offset, 0, length);
        return;
    case 1:
        assert_int_equal(fsync(fd), 0);
        return;
    default:
        for (size_t i = 0; i < length; i++)
            bytes[i] = (uint8_t)world_random(seed);
        assert_int_equal(pwrite(fd, bytes, length, (off_t)offset), length);
        memcpy(model + offset, bytes, length);
    }
}

static void test_a_disk_is_as_written(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 1, &snapshot, &files);
    struct stat status;
    assert_int_equal(stat(files.disk, &status), 0);
    assert_int_equal(status.st_size, DISK_BYTES);
    assert_int_equal(status.st_uid, WORLD_UID);
    assert_int_equal(status.st_mode & 07777, 0600);

    CLEANUP_FREE uint8_t *model = model_disk(&snapshot);
    CLEANUP_CLOSE int fd = open(files.disk, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    uint32_t seed = 5;
    for (unsigned i = 0; i < 300; i++)
        change(fd, model, &seed);
    assert_true(disk_equals(files.disk, model));
    assert_true(pwrite(fd, "x", 1, DISK_BYTES) < 0);
    assert_true(ftruncate(fd, 0) < 0);
    assert_int_equal(fsync(fd), 0);
    close(TAKE_FD(fd));

    /* What was flushed is there after another start of the VM. */
    world_detach(world, "vm1", &files);
    world_attach_again(world, "vm1", &files);
    assert_true(disk_equals(files.disk, model));
    world_detach(world, "vm1", &files);
}

struct writer {
    int fd;
    _Atomic bool stop;
    _Atomic unsigned written; /* rounds */
    unsigned failed;
};

/* Round n writes n into the blocks 0, 1, 2, …: what is frozen at any time is a falling sequence. */
static void *write_rounds(void *argument)
{
    struct writer *writer = argument;
    uint32_t block[OVERLAY_BLOCK_BYTES / 4];
    for (uint32_t round = 1; !atomic_load(&writer->stop); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(block); i++)
            block[i] = round;
        for (off_t at = 0; at < 32; at++)
            writer->failed += pwrite(writer->fd, block, sizeof(block), at * OVERLAY_BLOCK_BYTES) != sizeof(block);
        atomic_fetch_add(&writer->written, 1);
    }
    return NULL;
}

/* The frozen blocks are from one moment. */
static void check_frozen(const char *directory, uint64_t generation)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct overlay_view *view;
    assert_int_equal(overlay_view_open(directory, DISK_BYTES, generation, &view, &err), 0);
    uint32_t last = UINT32_MAX;
    uint32_t highest = 0;
    uint64_t count;
    enum overlay_block kind;
    for (uint64_t block = 0; overlay_view_next(view, &block, &count, &kind) == 1; block++) {
        uint32_t bytes[OVERLAY_BLOCK_BYTES / 4];
        assert_int_equal(overlay_view_read(view, block, 1, bytes, &err), 0);
        assert_true(bytes[0] <= last && bytes[0] == bytes[ARRAY_SIZE(bytes) - 1]);
        last = bytes[0];
        highest = MAX(highest, bytes[0]);
    }
    assert_true(highest - last <= 1);
    overlay_view_close(view);
}

static void test_freezing_while_the_guest_writes(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 2, &snapshot, &files);
    CLEANUP_FREE char *directory = world_path(world, "vms/vm1");
    uint64_t generation;
    assert_int_equal(imaged_freeze(world->imaged, "vm1", &generation, NULL), 0);
    assert_int_equal(generation, 0);

    struct writer writer = {.fd = open(files.disk, O_RDWR | O_CLOEXEC)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, write_rounds, &writer), 0);
    for (uint64_t i = 1; i <= 5; i++) {
        unsigned before = atomic_load(&writer.written);
        while (atomic_load(&writer.written) < before + 3)
            sched_yield();
        assert_int_equal(imaged_freeze(world->imaged, "vm1", &generation, NULL), 0);
        assert_int_equal(generation, i);
        check_frozen(directory, generation);
    }
    atomic_store(&writer.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(writer.failed, 0);
    close(writer.fd);
    world_detach(world, "vm1", &files);
}

static void test_rebasing(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    world_attach_new(world, "vm1", 3, &snapshot, &files);
    CLEANUP_CLOSE int fd = open(files.disk, O_RDWR | O_CLOEXEC);
    uint8_t page[IMAGE_PAGE_BYTES];
    for (uint32_t i = 0; i < 50; i++) {
        snapshot.pages[IMAGE_DISK][i * 7] = i + 1000;
        world_fill_page(page, i + 1000);
        assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)i * 7 * IMAGE_PAGE_BYTES), sizeof(page));
    }
    uint64_t generation;
    assert_int_equal(imaged_freeze(world->imaged, "vm1", &generation, NULL), 0);
    snapshot.pages[IMAGE_DISK][3] = 77; /* after the freeze: stays in the overlay */
    world_fill_page(page, 77);
    assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)3 * IMAGE_PAGE_BYTES), sizeof(page));
    CLEANUP_FREE uint8_t *model = model_disk(&snapshot);
    int64_t before = world_statistic(world, "overlay_written_bytes");
    assert_true(before > 0);

    snapshot.pages[IMAGE_DISK][3] = 0;
    assert_int_equal(random_name(snapshot.id, LAYER_ID_LENGTH), 0);
    world_write_snapshot(world, &snapshot);
    CLEANUP_FREE char *from = world_path(world, "snapshots/%s/manifest", snapshot.id);
    CLEANUP_FREE char *to = world_path(world, "vms/vm1/disk-manifest");
    CLEANUP_FREE char *frozen = world_path(world, "vms/vm1/overlay.1.data");
    assert_int_equal(link(from, to), 0);
    assert_int_equal(access(frozen, F_OK), 0);
    assert_int_equal(imaged_rebase(world->imaged, "vm1", generation, NULL), 0);
    assert_true(access(frozen, F_OK) < 0);
    assert_true(disk_equals(files.disk, model));
    close(TAKE_FD(fd));
    world_detach(world, "vm1", &files);

    world_attach_again(world, "vm1", &files);
    assert_non_null(strstr(files.disk_parent, snapshot.id));
    world_detach(world, "vm1", &files);
}

static void test_attaching_and_detaching(void **state)
{
    struct world *world = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world_snapshot snapshot;
    struct imaged_files files;
    struct imaged_files same;
    world_attach_new(world, "vm1", 4, &snapshot, &files);
    world_attach_again(world, "vm1", &same);
    assert_string_equal(files.disk, same.disk);
    assert_string_equal(files.memory, same.memory);
    imaged_files_done(&same);
    CLEANUP_CLOSE int fd = open(files.disk, O_RDWR | O_CLOEXEC);
    world_detach(world, "vm1", &files);

    /* Who still has the disk gets an error. */
    uint8_t page[IMAGE_PAGE_BYTES];
    assert_true(pread(fd, page, sizeof(page), 0) < 0);
    CLEANUP_FREE char *disk = world_path(world, "overlays/vm1");
    assert_true(open(disk, O_RDWR | O_CLOEXEC) < 0 && errno == ENOENT);
    assert_int_equal(imaged_detach(world->imaged, "vm1", &err), -ENOENT);
    uint64_t generation;
    assert_int_equal(imaged_freeze(world->imaged, "vm1", &generation, &err), -ENOENT);

    struct imaged_attach bad = {.vm = "../vm1", .vm_directory = world->directory};
    assert_int_equal(imaged_attach(world->imaged, &bad, &files, &err), -EINVAL);
    bad.vm = "vm2";
    assert_int_equal(imaged_attach(world->imaged, &bad, &files, &err), -ENOENT);
    bad.vm_directory = "relative";
    assert_int_equal(imaged_attach(world->imaged, &bad, &files, &err), -EINVAL);
    assert_int_equal(world_statistic(world, "vms"), 0);
}

static void test_missing_layers_and_damaged_manifests(void **state)
{
    struct world *world = *state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world_snapshot snapshot;
    struct imaged_files files;
    CLEANUP_FREE char *directory = NULL;
    world_snapshot(world, 9, &snapshot);
    world_make_vm(world, "vm1", &snapshot, &directory);
    CLEANUP_FREE char *layer = world_path(world, "layers/%s", snapshot.layers[1]);
    CLEANUP_FREE char *away = world_path(world, "layers/away");
    struct imaged_attach attach = {.vm = "vm1", .vm_directory = directory};
    assert_int_equal(rename(layer, away), 0);
    assert_int_equal(imaged_attach(world->imaged, &attach, &files, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), snapshot.layers[1]));
    assert_int_equal(rename(away, layer), 0);

    CLEANUP_FREE char *manifest = world_path(world, "vms/vm1/manifest");
    struct stat status;
    assert_int_equal(stat(manifest, &status), 0);
    assert_int_equal(truncate(manifest, status.st_size - 1), 0);
    assert_int_equal(imaged_attach(world->imaged, &attach, &files, &err), -EBADMSG);
    assert_int_equal(world_statistic(world, "vms"), 0);
}

/* Sends a packet as it is; the reply's error code, 0 for none. */
static int send_raw(int fd, const void *bytes, size_t length)
{
    assert_int_equal(send(fd, bytes, length, MSG_NOSIGNAL), length);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *reply;
    assert_int_equal(protocol_receive(fd, 30000, &reply, &err), 1);
    int code = (int)json_integer_value(json_object_get(reply, "code"));
    json_decref(reply);
    return code;
}

static void test_malformed_packets(void **state)
{
    struct world *world = *state;
    CLEANUP_FREE char *path = world_path(world, PROTOCOL_SOCKET);
    CLEANUP_CLOSE int fd = unix_socket_connect_packets(path, NULL);
    assert_true(fd >= 0);
    static const struct {
        const char *text;
        int code;
    } packets[] = {
        {"{", EBADMSG},
        {"[]", EBADMSG},
        {"\xff\xfe", EBADMSG},
        {"{\"op\":\"hello\",\"op\":\"stop\"}", EBADMSG},
        {"{}", EINVAL},
        {"{\"op\":7}", EINVAL},
        {"{\"op\":\"nonsense\"}", EOPNOTSUPP},
        {"{\"op\":\"attach\"}", EINVAL},
        {"{\"op\":\"attach\",\"vm\":\"\",\"directory\":\"/\"}", EINVAL},
        {"{\"op\":\"attach\",\"vm\":\"a/b\",\"directory\":\"/\"}", EINVAL},
        {"{\"op\":\"attach\",\"vm\":\"a\",\"directory\":\"/\",\"uid\":-1}", EINVAL},
        {"{\"op\":\"attach\",\"vm\":\"a\",\"directory\":\"/\",\"empty_memory\":1}", EINVAL},
        {"{\"op\":\"attach\",\"vm\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"directory\":\"/\"}",
         EINVAL},
        {"{\"op\":\"rebase\",\"vm\":\"a\"}", EINVAL},
        {"{\"op\":\"save-working-set\",\"vm\":\"a\",\"path\":\"x\"}", EINVAL},
        {"{\"op\":\"hello\"}", 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(packets); i++)
        assert_int_equal(send_raw(fd, packets[i].text, strlen(packets[i].text)), packets[i].code);
    CLEANUP_FREE char *large = malloc(PROTOCOL_PACKET_MAX + 1);
    memset(large, '[', PROTOCOL_PACKET_MAX + 1);
    assert_int_equal(send_raw(fd, large, PROTOCOL_PACKET_MAX + 1), EMSGSIZE);
    assert_int_equal(send_raw(fd, large, PROTOCOL_PACKET_MAX), EBADMSG);
    assert_int_equal(send_raw(fd, "{\"op\":\"hello\"}", 14), 0);
}

static size_t count_resident(const char *path, const uint8_t *wanted, size_t *ret_others)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *image = mmap(NULL, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    unsigned char resident[WORLD_MEMORY_PAGES];
    assert_true(image != MAP_FAILED);
    assert_int_equal(mincore(image, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, resident), 0);
    munmap(image, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES);
    size_t count = 0;
    *ret_others = 0;
    for (size_t page = 0; page < WORLD_MEMORY_PAGES; page++) {
        count += wanted[page] && (resident[page] & 1);
        *ret_others += !wanted[page] && (resident[page] & 1);
    }
    return count;
}

/* Restarting the server empties the page cache of its images. */
static void restart(struct world *world)
{
    assert_int_equal(imaged_stop(world->imaged, NULL), 0);
    imaged_close(world->imaged);
    world_start(world);
}

static void touch(const char *path, const uint8_t *wanted, const struct world_snapshot *snapshot)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t *image = mmap(NULL, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(image != MAP_FAILED);
    for (size_t page = 0; page < WORLD_MEMORY_PAGES; page++)
        if (wanted[page])
            assert_true(world_is_page(image + page * IMAGE_PAGE_BYTES, snapshot->pages[IMAGE_MEMORY][page]));
    munmap(image, WORLD_MEMORY_PAGES * IMAGE_PAGE_BYTES);
}

static void test_working_set(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    uint8_t wanted[WORLD_MEMORY_PAGES] = {0};
    size_t count = 0;
    uint32_t seed = 3;
    for (unsigned i = 0; i < 60; i++) {
        size_t page = world_random(&seed) % WORLD_MEMORY_PAGES;
        count += !wanted[page];
        wanted[page] = 1;
    }
    world_attach_new(world, "vm1", 10, &snapshot, &files);
    CLEANUP_FREE char *path = world_path(world, "vms/vm1/working-set");
    CLEANUP_FREE char *second_path = world_path(world, "working-set");
    assert_int_equal(imaged_prefetch(world->imaged, "vm1", NULL), 0); /* there is none yet */
    touch(files.memory, wanted, &snapshot);
    assert_int_equal(imaged_save_working_set(world->imaged, "vm1", path, NULL), 0);
    assert_int_equal(imaged_save_working_set(world->imaged, "vm1", path, NULL), -ENODATA);
    world_detach(world, "vm1", &files);

    restart(world);
    world_attach_again(world, "vm1", &files);
    CLEANUP_CLOSE int fd = open(files.memory, O_RDONLY | O_CLOEXEC);
    size_t others;
    assert_int_equal(count_resident(files.memory, wanted, &others), 0);
    assert_int_equal(imaged_prefetch(world->imaged, "vm1", NULL), 0);
    while (world_statistic(world, "prefetches") == 0)
        ;
    assert_int_equal(count_resident(files.memory, wanted, &others), count);
    assert_true(others < WORLD_MEMORY_PAGES * 3 / 4);
    assert_int_equal(world_statistic(world, "misses"), 0);
    touch(files.memory, wanted, &snapshot);
    assert_int_equal(world_statistic(world, "misses"), 0);

    /* Saved again, it holds the old and the new. */
    for (size_t page = 100; page < 110; page++)
        wanted[page] = 1;
    touch(files.memory, wanted, &snapshot);
    assert_int_equal(imaged_save_working_set(world->imaged, "vm1", second_path, NULL), 0);
    struct stat first;
    struct stat second;
    assert_true(stat(path, &first) == 0 && stat(second_path, &second) == 0);
    assert_true(first.st_size > 24 && second.st_size > 24 && second.st_size >= first.st_size - 8);
    close(TAKE_FD(fd));
    world_detach(world, "vm1", &files);
}

static void test_a_damaged_working_set_is_none(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    struct imaged_files files;
    CLEANUP_FREE char *path = world_path(world, "vms/vm1/working-set");
    uint8_t wanted[WORLD_MEMORY_PAGES] = {[7] = 1, [1000] = 1};
    world_attach_new(world, "vm1", 11, &snapshot, &files);
    touch(files.memory, wanted, &snapshot);
    assert_int_equal(imaged_save_working_set(world->imaged, "vm1", path, NULL), 0);
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    for (off_t at = 0; at < status.st_size; at++) {
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_int_equal(imaged_prefetch(world->imaged, "vm1", NULL), 0);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_int_equal(world_statistic(world, "prefetches"), 0);
    assert_int_equal(imaged_prefetch(world->imaged, "vm1", NULL), 0);
    while (world_statistic(world, "prefetches") == 0)
        ;
    world_detach(world, "vm1", &files);
}

struct cold_reader {
    const char *path;
    const uint32_t *pages;
    size_t count;
    uint32_t seed;
    _Atomic unsigned *started;
    unsigned right;
    unsigned wrong;
    unsigned errors;
};

/* Reads until the first error. */
static void *read_until_error(void *argument)
{
    struct cold_reader *reader = argument;
    CLEANUP_CLOSE int fd = open(reader->path, O_RDONLY | O_CLOEXEC);
    for (bool first = true; reader->errors == 0; first = false) {
        uint8_t bytes[IMAGE_PAGE_BYTES];
        size_t page = world_random(&reader->seed) % reader->count;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        ssize_t n = pread(fd, bytes, sizeof(bytes), (off_t)(page * sizeof(bytes)));
        if (n != (ssize_t)sizeof(bytes))
            reader->errors++;
        else if (world_is_page(bytes, reader->pages[page]))
            reader->right++;
        else
            reader->wrong++;
        if (first)
            atomic_fetch_add(reader->started, 1);
    }
    return NULL;
}

/* Kills the server while pages are read from it, also by itself for the overlay. */
static void test_death_is_an_error_never_wrong_bytes(void **state)
{
    struct world *world = *state;
    struct world_snapshot snapshot;
    world_snapshot(world, 12, &snapshot);
    for (unsigned round = 0; round < 5; round++) {
        struct imaged_files files;
        char vm[8];
        snprintf(vm, sizeof(vm), "vm%u", round);
        world_attach(world, vm, &snapshot, &files);
        _Atomic unsigned started = 0;
        struct cold_reader readers[] = {
            {.path = files.memory,
             .pages = snapshot.pages[IMAGE_MEMORY],
             .count = WORLD_MEMORY_PAGES,
             .seed = round},
            {.path = files.disk_parent, .pages = snapshot.pages[IMAGE_DISK], .count = WORLD_DISK_PAGES, .seed = 1},
            {.path = files.disk, .pages = snapshot.pages[IMAGE_DISK], .count = WORLD_DISK_PAGES, .seed = round + 9},
            {.path = files.disk, .pages = snapshot.pages[IMAGE_DISK], .count = WORLD_DISK_PAGES, .seed = 3},
        };
        pthread_t threads[ARRAY_SIZE(readers)];
        for (size_t i = 0; i < ARRAY_SIZE(readers); i++) {
            readers[i].started = &started;
            assert_int_equal(pthread_create(&threads[i], NULL, read_until_error, &readers[i]), 0);
        }
        while (atomic_load(&started) < ARRAY_SIZE(readers))
            sched_yield();
        assert_int_equal(kill(imaged_pid(world->imaged), SIGKILL), 0);
        struct pollfd ended = {.fd = imaged_pidfd(world->imaged), .events = POLLIN};
        assert_int_equal(poll(&ended, 1, 30000), 1);
        for (size_t i = 0; i < ARRAY_SIZE(readers); i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(readers[i].wrong, 0);
            assert_int_equal(readers[i].errors, 1);
        }
        imaged_files_done(&files);
        CLEANUP_FREE char *none = NULL;
        assert_int_equal(imaged_failure(world->imaged, vm, &none, NULL), -EHOSTDOWN);
        assert_int_equal(imaged_restart(world->imaged, NULL), 0);
        assert_int_equal(world_statistic(world, "vms"), 0);
        world_attach_again(world, vm, &files);
        CLEANUP_FREE uint8_t *model = model_disk(&snapshot);
        assert_true(disk_equals(files.disk, model));
        world_detach(world, vm, &files);
    }
}

static void test_one_server_a_directory(void **state)
{
    struct world *world = *state;
    struct imaged *second;
    bool restarted = true;
    assert_int_equal(imaged_start(world->directory, getenv("IMAGED"), &second, &restarted, NULL), 0);
    assert_false(restarted);
    assert_int_equal(imaged_pid(second), imaged_pid(world->imaged));
    imaged_close(second);

    /* One that is started by hand doesn't get in its way. */
    pid_t pid = fork();
    if (pid == 0) {
        int null_fd = open("/dev/null", O_WRONLY);
        dup2(null_fd, STDERR_FILENO);
        execl(getenv("IMAGED"), "dormouse-imaged", "--data", world->directory, (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_int_equal(world_statistic(world, "vms"), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        WORLD_TEST(test_a_disk_is_as_written),
        WORLD_TEST(test_freezing_while_the_guest_writes),
        WORLD_TEST(test_rebasing),
        WORLD_TEST(test_attaching_and_detaching),
        WORLD_TEST(test_missing_layers_and_damaged_manifests),
        WORLD_TEST(test_malformed_packets),
        WORLD_TEST(test_working_set),
        WORLD_TEST(test_a_damaged_working_set_is_none),
        WORLD_TEST(test_death_is_an_error_never_wrong_bytes),
        WORLD_TEST(test_one_server_a_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
