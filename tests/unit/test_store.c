#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store.h"
#include "unit.h"
#include "vmm/vmm.h"

#define MEMORY_BYTES (1u << 20)

struct world {
    char *store_path;
    char *vm;
    struct store *store;
};

static void put_file(const char *directory, const char *name, const char *text, off_t size)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
    if (size > 0)
        assert_int_equal(ftruncate(fd, size), 0);
}

static char *get_file(const char *directory, const char *name)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    char *text = NULL;
    assert_int_equal(io_read_file(path, 2 << 20, &text, NULL), 0);
    return text;
}

static void open_world(const char *directory, struct world *world)
{
    world->store_path = unit_path(directory, "snapshots");
    world->vm = unit_path(directory, "vm");
    assert_int_equal(store_open(world->store_path, &world->store, NULL), 0);
    assert_int_equal(mkdir(world->vm, 0700), 0);
    put_file(world->vm, VMM_FILE_BASE, "base", 0);
    put_file(world->vm, VMM_FILE_OVERLAY, "overlay", 0);
    put_file(world->vm, VMM_FILE_KERNEL, "kernel", 0);
    put_file(world->vm, VMM_FILE_INITRD, "initrd", 0);
    put_file(world->vm, VMM_FILE_STATE, "state", 0);
}

static void close_world(struct world *world)
{
    store_close(world->store);
    free(world->store_path);
    free(world->vm);
}

static struct snapshot_manifest make_manifest(void)
{
    return (struct snapshot_manifest){
        .parent_id = strdup("p"),
        .sandbox_id = strdup("s"),
        .template_id = strdup("t"),
        .vmm = strdup("qemu 7.2"),
        .accelerator = strdup("tcg"),
        .kernel = strdup("6.1"),
        .machine_revision = 1,
        .cpus = 2,
        .memory_bytes = MEMORY_BYTES,
        .disk_bytes = 4,
        .state_bytes = 5,
        .created_ns = 99,
    };
}

static struct snapshot_writer *fill_snapshot(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world->store, &writer, &err), 0);
    CLEANUP_CLOSE int memory = snapshot_writer_open(writer, VMM_FILE_MEMORY, &err);
    assert_true(memory >= 0);
    assert_int_equal(io_pwrite_full(memory, "memory", 6, 0), 0);
    assert_int_equal(ftruncate(memory, MEMORY_BYTES), 0);
    static const char *const shared[] = {VMM_FILE_BASE, VMM_FILE_KERNEL, VMM_FILE_INITRD};
    for (size_t i = 0; i < ARRAY_SIZE(shared); i++)
        assert_int_equal(snapshot_writer_link(writer, world->vm, shared[i], &err), 0);
    assert_int_equal(snapshot_writer_clone(writer, world->vm, VMM_FILE_STATE, &err), 0);
    assert_int_equal(snapshot_writer_clone(writer, world->vm, VMM_FILE_OVERLAY, &err), 0);
    return writer;
}

static char *commit(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP(snapshot_manifest_done) struct snapshot_manifest manifest = make_manifest();
    if (store_commit(fill_snapshot(world), &manifest, &err) < 0)
        fail_msg("%s", error_message(&err));
    return strdup(manifest.id);
}

static size_t count_snapshots(struct world *world)
{
    char **ids = NULL;
    assert_int_equal(store_list(world->store, &ids, NULL), 0);
    size_t count = 0;
    while (ids[count] != NULL)
        count++;
    store_list_done(ids);
    return count;
}

static void a_snapshot_is_read_back(void **state)
{
    struct world world;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit(&world);
    CLEANUP(snapshot_manifest_done) struct snapshot_manifest manifest = {0};
    assert_int_equal(store_read(world.store, id, &manifest, NULL), 0);
    assert_string_equal(manifest.id, id);
    assert_string_equal(manifest.parent_id, "p");
    assert_string_equal(manifest.accelerator, "tcg");
    assert_int_equal(manifest.cpus, 2);
    assert_int_equal(manifest.memory_bytes, MEMORY_BYTES);
    assert_int_equal(manifest.created_ns, 99);
    struct snapshot_usage usage;
    assert_int_equal(store_usage(world.store, id, &usage, NULL), 0);
    assert_true(usage.memory_bytes > 0 && usage.memory_bytes < MEMORY_BYTES);
    assert_int_equal(count_snapshots(&world), 1);
    assert_int_equal(store_remove(world.store, id, NULL), 0);
    assert_int_equal(count_snapshots(&world), 0);
    assert_int_equal(store_remove(world.store, id, NULL), -ENOENT);
    close_world(&world);
}

static void only_a_commit_makes_a_snapshot(void **state)
{
    struct world world;
    open_world(*state, &world);
    store_abort(fill_snapshot(&world));
    assert_int_equal(count_snapshots(&world), 0);
    /* A daemon that died before the commit: the next one removes what is left. */
    struct snapshot_writer *writer = fill_snapshot(&world);
    CLEANUP_FREE char *left = NULL;
    assert_true(asprintf(&left, "%s/tmp.%s", world.store_path, snapshot_writer_id(writer)) > 0);
    assert_int_equal(access(left, F_OK), 0);
    struct store *second = NULL;
    assert_int_equal(store_open(world.store_path, &second, NULL), 0);
    assert_int_equal(access(left, F_OK), -1);
    assert_int_equal(count_snapshots(&world), 0);
    store_close(second);
    store_abort(writer);
    close_world(&world);
}

static void an_incomplete_snapshot_is_not_committed(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    open_world(*state, &world);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, &err), 0);
    CLEANUP(snapshot_manifest_done) struct snapshot_manifest manifest = make_manifest();
    assert_int_equal(store_commit(writer, &manifest, &err), -ENOENT);
    assert_int_equal(count_snapshots(&world), 0);
    close_world(&world);
}

static void a_vm_outlives_its_snapshot(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit(&world);
    CLEANUP_FREE char *child = unit_path(*state, "child");
    assert_int_equal(mkdir(child, 0700), 0);
    if (store_materialize(world.store, id, child, getuid(), 0, &err) < 0)
        fail_msg("%s", error_message(&err));
    /* The child's overlay is its own. */
    put_file(child, VMM_FILE_OVERLAY, "changed", 0);
    CLEANUP_FREE char *directory = unit_path(world.store_path, id);
    CLEANUP_FREE char *original = get_file(directory, VMM_FILE_OVERLAY);
    assert_string_equal(original, "overlay");
    assert_int_equal(store_remove(world.store, id, &err), 0);
    CLEANUP_FREE char *memory = get_file(child, VMM_FILE_MEMORY);
    assert_string_equal(memory, "memory");
    CLEANUP(snapshot_manifest_done) struct snapshot_manifest origin = {0};
    assert_int_equal(store_read_origin(child, &origin, &err), 0);
    assert_string_equal(origin.id, id);
    close_world(&world);
}

static void booting_gets_empty_memory_and_no_state(void **state)
{
    struct world world;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit(&world);
    CLEANUP_FREE char *child = unit_path(*state, "child");
    assert_int_equal(mkdir(child, 0700), 0);
    assert_int_equal(store_materialize(world.store, id, child, getuid(), 8192, NULL), 0);
    CLEANUP_FREE char *memory = unit_path(child, VMM_FILE_MEMORY);
    CLEANUP_FREE char *device_state = unit_path(child, VMM_FILE_STATE);
    struct stat status;
    assert_int_equal(stat(memory, &status), 0);
    assert_int_equal(status.st_size, 8192);
    assert_int_equal(status.st_blocks, 0);
    assert_int_equal(access(device_state, F_OK), -1);
    close_world(&world);
}

static void damage_is_found(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit(&world);
    CLEANUP_FREE char *directory = unit_path(world.store_path, id);
    CLEANUP_FREE char *manifest_text = get_file(directory, "manifest.json");
    struct snapshot_manifest manifest = {0};
    static const char *const wrong[] = {
        "",
        "[]",
        "{}",
        "{\"version\": 2}",
        "{\"version\": 1, \"id\": 7}",
        "{\"version\": 1, \"id\": \"x\", \"machine_revision\": -1}",
        "{\"version\": 1, \"version\": 1}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        put_file(directory, "manifest.json", wrong[i], 0);
        int r = store_read(world.store, id, &manifest, &err);
        assert_int_equal(r, i == 3 ? -EPROTONOSUPPORT : -EBADMSG);
    }
    put_file(directory, "manifest.json", manifest_text, 0);
    put_file(directory, VMM_FILE_MEMORY, "memory", MEMORY_BYTES - 1);
    assert_int_equal(store_read(world.store, id, &manifest, &err), -EBADMSG);
    assert_non_null(strstr(error_message(&err), "has 1048575 bytes instead of 1048576"));
    close_world(&world);
}

static void ids_cannot_leave_the_store(void **state)
{
    struct world world;
    open_world(*state, &world);
    struct snapshot_manifest manifest = {0};
    assert_int_equal(store_read(world.store, "../vm", &manifest, NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "..", NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "", NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "../../../../../../a", NULL), -ENOENT);
    close_world(&world);
}

int main(void)
{
    if (geteuid() != 0) {
        fputs("skipped: the store gives files away, which needs root\n", stderr);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        UNIT_TEST(a_snapshot_is_read_back),
        UNIT_TEST(only_a_commit_makes_a_snapshot),
        UNIT_TEST(an_incomplete_snapshot_is_not_committed),
        UNIT_TEST(a_vm_outlives_its_snapshot),
        UNIT_TEST(booting_gets_empty_memory_and_no_state),
        UNIT_TEST(damage_is_found),
        UNIT_TEST(ids_cannot_leave_the_store),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
