#include <sys/wait.h>

#include "store_fixture.h"
#include "vmm/vmm.h"

static void a_snapshot_is_read_back(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    check(world, id, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, id, &snapshot, NULL), 0);
    assert_string_equal(snapshot.manifest.id, id);
    assert_int_equal(snapshot.manifest.cpus, 2);
    assert_int_equal(snapshot.layer_count, 2);
    snapshot_done(&snapshot);
    assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
    assert_memory_equal(snapshot.device_state, "device state", snapshot.device_state_bytes);
    assert_false(store_wants_compaction(&snapshot));
    assert_int_equal(count_snapshots(world), 1);

    CLEANUP_FREE char *manifest = world_path(world, "snapshots/%s/manifest", id);
    CLEANUP_FREE char *kernel = world_path(world, "snapshots/%s/kernel", id);
    struct stat status;
    assert_int_equal(stat(manifest, &status), 0);
    assert_int_equal(status.st_mode, S_IFREG | 0600);
    assert_int_equal(stat(kernel, &status), 0);
    assert_int_equal(status.st_mode, S_IFREG | 0440);
    assert_int_equal(status.st_nlink, 2);

    assert_int_equal(store_remove(world->store, id, NULL), 0);
    assert_int_equal(count_snapshots(world), 0);
    assert_int_equal(store_remove(world->store, id, NULL), -ENOENT);
    collect(world, 2);
    assert_int_equal(count_names(world, "layers"), 0);
}

static void only_a_commit_makes_a_snapshot(void **state)
{
    struct world *world = *state;
    struct model model;
    const struct model none = {0};
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = begin(world, NULL, &none, &model, &snapshot);
    assert_int_equal(count_snapshots(world), 1);
    store_abort(writer);
    check(world, id, &model);
    assert_int_equal(count_names(world, "layers"), 2);
    assert_int_equal(count_names(world, "snapshots"), 1);
}

static void what_a_crash_left_is_removed(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP_FREE char *layer = world_path(world, "layers/tmp.abc");
    CLEANUP_FREE char *directory = world_path(world, "snapshots/tmp.abc");
    CLEANUP_FREE char *inside = world_path(world, "snapshots/tmp.abc/manifest");
    CLEANUP_FREE char *manifest = world_path(world, "snapshots/%s/tmp.manifest", id);
    put_file(layer, "x", 1);
    assert_int_equal(mkdir(directory, 0700), 0);
    put_file(inside, "x", 1);
    put_file(manifest, "x", 1);
    shut_store(world);
    open_store(world);
    assert_int_equal(count_names(world, "layers"), 2);
    assert_int_equal(count_names(world, "snapshots"), 1);
    assert_int_equal(access(manifest, F_OK), -1);
    check(world, id, &model);
}

static void an_incomplete_snapshot_is_not_committed(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world->store, &writer, &err), 0);
    assert_int_equal(snapshot_writer_link(writer, world->vm, VMM_FILE_KERNEL, &err), 0);
    assert_int_equal(store_commit(writer, &snapshot, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "the snapshot has no initrd"));
    assert_int_equal(count_snapshots(world), 1);
    assert_int_equal(count_names(world, "snapshots"), 1);
}

static void layers_that_hold_nothing_are_left_out(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    struct model same = model;
    same.pages[IMAGE_DISK][3] = 77;
    CLEANUP_FREE char *child = commit(world, id, &model, &same);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, child, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 3);
    assert_int_equal(count_names(world, "layers"), 3);
    check(world, child, &same);
}

static void a_vm_outlives_its_snapshot(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP_FREE char *vm = materialize(world, id, "child");
    assert_int_equal(count_names(world, "vms/child"), 3);
    assert_int_equal(store_remove(world->store, id, NULL), 0);
    collect(world, 0);
    /* What it is made of can still be read, and committed under another name. */
    CLEANUP_FREE char *manifest = unit_path(vm, STORE_FILE_MANIFEST);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(manifest_read(manifest, MANIFEST_ALL, &snapshot, NULL), 0);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world->store, &writer, NULL), 0);
    assert_int_equal(snapshot_writer_link(writer, vm, VMM_FILE_KERNEL, NULL), 0);
    assert_int_equal(snapshot_writer_link(writer, vm, VMM_FILE_INITRD, NULL), 0);
    assert_int_equal(store_commit(writer, &snapshot, NULL), 0);
    assert_int_equal(io_remove_tree(vm), 0);
    collect(world, 0);
    check(world, snapshot.manifest.id, &model);
    assert_int_equal(store_remove(world->store, snapshot.manifest.id, NULL), 0);
    collect(world, 2);
}

static void a_working_set_is_kept_and_handed_down(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP_FREE char *hint = unit_path(world->vm, STORE_FILE_WORKING_SET);
    assert_false(store_has_working_set(world->store, id));
    assert_int_equal(store_keep_working_set(world->store, id, world->vm, NULL), -ENOENT);
    put_file(hint, "first", 5);
    assert_int_equal(store_keep_working_set(world->store, id, world->vm, NULL), 0);
    assert_true(store_has_working_set(world->store, id));
    /* The first stays. */
    assert_int_equal(unlink(hint), 0);
    put_file(hint, "second", 6);
    assert_int_equal(store_keep_working_set(world->store, id, world->vm, NULL), 0);
    CLEANUP_FREE char *vm = materialize(world, id, "child");
    static const char *const names[] = {STORE_FILE_WORKING_SET, STORE_FILE_INHERITED_SET};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = unit_path(vm, names[i]);
        CLEANUP_FREE char *text = NULL;
        assert_int_equal(io_read_file(path, 100, &text, NULL), 0);
        assert_string_equal(text, "first");
    }
    assert_int_equal(store_remove(world->store, id, NULL), 0);
    assert_int_equal(store_keep_working_set(world->store, id, world->vm, NULL), -ENOENT);
    assert_false(store_has_working_set(world->store, id));
}

static void a_disk_manifest_keeps_layers(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *first = commit_first(world, 1, &model);
    CLEANUP_FREE char *second = commit_first(world, 2, &model);
    assert_int_equal(store_link_disk_manifest(world->store, first, world->vm, NULL), 0);
    assert_int_equal(store_link_disk_manifest(world->store, first, world->vm, NULL), 0);
    assert_int_equal(count_names(world, "vms/origin"), 3);
    assert_int_equal(store_remove(world->store, first, NULL), 0);
    collect(world, 0);
    assert_int_equal(store_link_disk_manifest(world->store, second, world->vm, NULL), 0);
    assert_int_equal(count_names(world, "vms/origin"), 3);
    collect(world, 2);
    assert_int_equal(store_remove(world->store, second, NULL), 0);
    collect(world, 0);
    assert_int_equal(store_link_disk_manifest(world->store, second, world->vm, NULL), -ENOENT);
}

static void gc_leaves_what_is_being_written(void **state)
{
    struct world *world = *state;
    struct model model;
    const struct model none = {0};
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = begin(world, NULL, &none, &model, &snapshot);
    collect(world, 0);
    assert_int_equal(store_commit(writer, &snapshot, NULL), 0);
    collect(world, 0);
    check(world, snapshot.manifest.id, &model);

    /* Finished, held and named by nobody; then not held either. */
    assert_int_equal(store_remove(world->store, id, NULL), 0);
    struct layer_writer *layer = NULL;
    CLEANUP_FREE char *layer_name = NULL;
    uint64_t bytes;
    assert_int_equal(layer_writer_open(store_layers_fd(world->store), LAYER_CODEC_ZSTD, 4, &layer, NULL), 0);
    layer_name = strdup(layer_writer_id(layer));
    assert_int_equal(store_hold_layer(world->store, world, layer_name, NULL), 0);
    assert_int_equal(layer_writer_finish(layer, &bytes, NULL), 0);
    collect(world, 2);
    store_release_layers(world->store, world);
    collect(world, 1);
}

static void a_commit_on_layers_that_are_gone_fails(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    struct model changed = model;
    uint32_t seed = 5;
    model_change(&changed, 4, &seed);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = begin(world, id, &model, &changed, &snapshot);
    assert_int_equal(store_remove(world->store, id, NULL), 0);
    collect(world, 2);
    assert_int_equal(store_commit(writer, &snapshot, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "on which the snapshot builds"));
    assert_int_equal(count_names(world, "layers"), 0);
    assert_int_equal(count_names(world, "snapshots"), 0);
}

static char *layer_path(const struct world *world, const char *id, uint32_t index)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, id, &snapshot, NULL), 0);
    assert_true(index < snapshot.layer_count);
    return world_path(world, "layers/%s", snapshot.layers[index].id);
}

static void flip(const char *path, off_t offset)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
}

static void verify_finds_every_flipped_byte(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model = {0};
    const struct model none = {0};
    model.pages[IMAGE_MEMORY][1] = model.pages[IMAGE_MEMORY][9] = model.pages[IMAGE_DISK][5] = 7;
    CLEANUP_FREE char *id = commit(world, NULL, &none, &model);
    for (uint32_t i = 0; i < 2; i++) {
        CLEANUP_FREE char *path = layer_path(world, id, i);
        struct stat status;
        assert_int_equal(stat(path, &status), 0);
        for (off_t offset = 0; offset < status.st_size; offset += 3) {
            flip(path, offset);
            int r = store_verify(world->store, id, &err);
            /* A feature flag or the version is one, too. */
            if (r != -EBADMSG && r != -EPROTONOSUPPORT)
                fail_msg("byte %ld of layer %u: %d", (long)offset, i, r);
            flip(path, offset);
        }
    }
    check(world, id, &model);
}

static void a_missing_layer_is_named_and_hurts_nobody_else(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model models[2];
    CLEANUP_FREE char *good = commit_first(world, 1, &models[0]);
    CLEANUP_FREE char *bad = commit_first(world, 2, &models[1]);
    CLEANUP_FREE char *path = layer_path(world, bad, 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(store_verify(world->store, bad, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), strrchr(path, '/') + 1));
    collect(world, 0);
    check(world, good, &models[0]);
    CLEANUP_FREE char *child = commit(world, good, &models[0], &models[1]);
    check(world, child, &models[1]);
    struct snapshot_usage usage;
    assert_int_equal(store_usage(world->store, good, &usage, NULL), 0);
    assert_int_equal(store_remove(world->store, bad, NULL), 0);
    collect(world, 1);
}

static void shared_layers_are_verified_once(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    struct model changed;
    CLEANUP_FREE char *child = commit_change(world, id, &model, 5, 3, &changed);
    struct layer_findings *findings = NULL;
    assert_int_equal(layer_findings_new(&findings, NULL), 0);
    assert_int_equal(store_verify_with(world->store, id, findings, NULL), 0);
    assert_int_equal(layer_findings_count(findings), 2);
    assert_int_equal(store_verify_with(world->store, child, findings, NULL), 0);
    assert_int_equal(layer_findings_count(findings), 4);
    layer_findings_free(findings);

    /* Damage is found again for each snapshot that has it. */
    CLEANUP_FREE char *path = layer_path(world, id, 0);
    flip(path, 100);
    assert_int_equal(layer_findings_new(&findings, NULL), 0);
    assert_int_equal(store_verify_with(world->store, id, findings, NULL), -EBADMSG);
    assert_int_equal(store_verify_with(world->store, child, findings, NULL), -EBADMSG);
    layer_findings_free(findings);
}

static void verify_finds_slots_that_are_not_there(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    CLEANUP_FREE char *kernel = world_path(world, "snapshots/%s/kernel", id);
    CLEANUP_FREE char *path = world_path(world, "snapshots/%s/manifest", id);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP_FREE void *bytes = NULL;
    size_t length = 0;
    assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
    struct image_map *map = &snapshot.maps[IMAGE_DISK];
    struct map_extent *last = &map->extents[map->count - 1];
    last->slot += 1;
    assert_int_equal(manifest_encode(&snapshot, &bytes, &length, NULL), 0);
    put_file(path, bytes, length);
    assert_int_equal(store_verify(world->store, id, &err), -EBADMSG);
    assert_non_null(strstr(error_message(&err), "which has none"));
    free(bytes);
    last->slot -= 1;
    assert_int_equal(manifest_encode(&snapshot, &bytes, &length, NULL), 0);
    put_file(path, bytes, length);
    assert_int_equal(store_verify(world->store, id, NULL), 0);
    assert_int_equal(unlink(kernel), 0);
    assert_int_equal(store_verify(world->store, id, NULL), -ENOENT);
}

static void a_damaged_manifest_stops_gc(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *removed = commit_first(world, 1, &model);
    CLEANUP_FREE char *id = commit_first(world, 2, &model);
    CLEANUP_FREE char *vm = materialize(world, removed, "child");
    assert_int_equal(store_link_disk_manifest(world->store, removed, vm, NULL), 0);
    assert_int_equal(store_remove(world->store, removed, NULL), 0);
    CLEANUP_FREE char *other = commit_first(world, 3, &model);
    assert_int_equal(store_remove(world->store, other, NULL), 0);
    for (size_t i = 0; i < 3; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        CLEANUP_FREE char *path = i == 0 ? world_path(world, "snapshots/%s/manifest", id)
                                         : unit_path(vm, i == 1 ? STORE_FILE_MANIFEST : STORE_FILE_DISK_MANIFEST);
        CLEANUP_FREE char *aside = unit_path(world->directory, "aside");
        assert_int_equal(rename(path, aside), 0);
        put_file(path, "damaged", 7);
        struct store_gc_result result;
        assert_int_equal(store_gc(world->store, &result, &err), -EBADMSG);
        assert_non_null(strstr(error_message(&err), path));
        assert_non_null(err.hint);
        assert_int_equal(count_names(world, "layers"), 6);
        struct store_statistics statistics;
        assert_int_equal(store_statistics(world->store, &statistics, NULL), 0);
        assert_int_equal(statistics.unreachable_bytes, 0);
        assert_int_equal(rename(aside, path), 0);
    }
    collect(world, 2);
}

static void another_snapshots_manifest_is_refused(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *first = commit_first(world, 1, &model);
    CLEANUP_FREE char *second = commit_first(world, 2, &model);
    CLEANUP_FREE char *from = world_path(world, "snapshots/%s/manifest", first);
    CLEANUP_FREE char *to = world_path(world, "snapshots/%s/manifest", second);
    assert_int_equal(unlink(to), 0);
    assert_int_equal(count_snapshots(world), 1);
    assert_int_equal(link(from, to), 0);
    struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, second, &snapshot, NULL), -EBADMSG);
    assert_int_equal(store_load(world->store, second, &snapshot, NULL), -EBADMSG);
}

static void ids_cannot_leave_the_store(void **state)
{
    struct world *world = *state;
    struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, "../vms/origin", &snapshot, NULL), -ENOENT);
    assert_int_equal(store_remove(world->store, "..", NULL), -ENOENT);
    assert_int_equal(store_remove(world->store, "", NULL), -ENOENT);
    assert_int_equal(store_remove(world->store, "../../../../../../a", NULL), -ENOENT);
    assert_int_equal(store_materialize(world->store, "../vms/origin", world->vm, NULL), -ENOENT);
}

static void figures_count_shared_layers_once(void **state)
{
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    struct model changed;
    CLEANUP_FREE char *child = commit_change(world, id, &model, 5, 3, &changed);
    struct snapshot_usage parent_usage;
    struct snapshot_usage usage;
    struct store_statistics statistics;
    assert_int_equal(store_usage(world->store, id, &parent_usage, NULL), 0);
    assert_int_equal(store_usage(world->store, child, &usage, NULL), 0);
    assert_int_equal(store_statistics(world->store, &statistics, NULL), 0);
    uint64_t pages = 0;
    for (uint32_t page = 0; page < MODEL_PAGES; page++)
        pages += changed.pages[IMAGE_MEMORY][page] != 0;
    assert_int_equal(usage.image_bytes[IMAGE_MEMORY], pages * IMAGE_PAGE_BYTES);
    assert_int_equal(parent_usage.own_bytes, 0);
    assert_true(usage.own_bytes > 0);
    assert_int_equal(usage.stored_bytes, parent_usage.stored_bytes + usage.own_bytes);
    assert_int_equal(statistics.snapshots, 2);
    assert_int_equal(statistics.layers, 4);
    assert_int_equal(statistics.layer_bytes, usage.stored_bytes);
    assert_int_equal(statistics.unreachable_bytes, 0);
    assert_true(statistics.image_bytes > usage.image_bytes[IMAGE_MEMORY] + usage.image_bytes[IMAGE_DISK]);
    assert_int_equal(store_remove(world->store, child, NULL), 0);
    assert_int_equal(store_statistics(world->store, &statistics, NULL), 0);
    assert_int_equal(statistics.unreachable_bytes, usage.own_bytes);
}

static void another_process_is_kept_out(void **state)
{
    struct world *world = *state;
    CLEANUP_FREE char *left = world_path(world, "layers/tmp.mine");
    put_file(left, "x", 1);
    pid_t child = fork();
    if (child == 0) {
        /* What it has of its parent's lock is the same as the parent's; so a lock of its own it can't have. */
        struct store *store = NULL;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        int r = store_open(world->data, &store, &err);
        _exit(r == -EBUSY && err.hint != NULL ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    /* Nor has it cleaned up after a process that isn't dead. */
    assert_int_equal(access(left, F_OK), 0);
    shut_store(world);
    open_store(world);
    assert_int_equal(access(left, F_OK), -1);
}

static void a_store_that_cannot_be_written_is_read(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *id = commit_first(world, 1, &model);
    shut_store(world);
    assert_int_equal(mount(world->data, world->data, NULL, MS_BIND, NULL), 0);
    assert_int_equal(mount(NULL, world->data, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    open_store(world);
    check(world, id, &model);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world->store, &writer, &err), -EROFS);
    assert_int_equal(store_remove(world->store, id, &err), -EROFS);
    check(world, id, &model);
    shut_store(world);
    assert_int_equal(umount(world->data), 0);
    open_store(world);
}

static void a_full_disk_costs_the_new_snapshot_only(void **state)
{
    struct world world;
    struct model model;
    struct model changed;
    uint32_t seed = 42;
    CLEANUP_FREE char *data = unit_path(*state, "data");
    assert_int_equal(mkdir(data, 0700), 0);
    assert_int_equal(mount("tmpfs", data, "tmpfs", 0, "size=1m,mode=0700"), 0);
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP_FREE char *filler = world_path(&world, "filler");
    CLEANUP_FREE char *child = NULL;
    changed = model;
    model_change(&changed, 20, &seed);
    /* At every size of what is free, from nothing to enough. */
    unsigned failures = 0;
    for (int r = -ENOSPC; r == -ENOSPC; failures++) {
        CLEANUP_CLOSE int fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        if (failures == 0) {
            uint8_t block[IMAGE_PAGE_BYTES] = {1};
            while (write(fd, block, sizeof(block)) == (ssize_t)sizeof(block))
                ;
        }
        off_t size = lseek(fd, 0, SEEK_END);
        CLEANUP_ERROR struct error err = ERROR_INIT;
        r = model_commit(world.store, world.vm, id, &model, &changed, &child, &err);
        if (r < 0) {
            assert_int_equal(r, -ENOSPC);
            assert_int_equal(count_names(&world, "layers"), 2);
            assert_int_equal(count_names(&world, "snapshots"), 1);
            check(&world, id, &model);
            assert_true(size >= IMAGE_PAGE_BYTES);
            assert_int_equal(ftruncate(fd, size - IMAGE_PAGE_BYTES), 0);
        }
    }
    assert_true(failures > 5);
    check(&world, child, &changed);
    check(&world, id, &model);
    close_world(&world);
    assert_int_equal(umount(data), 0);
}

int main(void)
{
    if (!have_own_mounts())
        return 1;
    const struct CMUnitTest tests[] = {
        STORE_TEST(a_snapshot_is_read_back),
        STORE_TEST(only_a_commit_makes_a_snapshot),
        STORE_TEST(what_a_crash_left_is_removed),
        STORE_TEST(an_incomplete_snapshot_is_not_committed),
        STORE_TEST(layers_that_hold_nothing_are_left_out),
        STORE_TEST(a_vm_outlives_its_snapshot),
        STORE_TEST(a_working_set_is_kept_and_handed_down),
        STORE_TEST(a_disk_manifest_keeps_layers),
        STORE_TEST(gc_leaves_what_is_being_written),
        STORE_TEST(a_commit_on_layers_that_are_gone_fails),
        STORE_TEST(verify_finds_every_flipped_byte),
        STORE_TEST(a_missing_layer_is_named_and_hurts_nobody_else),
        STORE_TEST(shared_layers_are_verified_once),
        STORE_TEST(verify_finds_slots_that_are_not_there),
        STORE_TEST(a_damaged_manifest_stops_gc),
        STORE_TEST(another_snapshots_manifest_is_refused),
        STORE_TEST(ids_cannot_leave_the_store),
        STORE_TEST(figures_count_shared_layers_once),
        STORE_TEST(another_process_is_kept_out),
        STORE_TEST(a_store_that_cannot_be_written_is_read),
        UNIT_TEST(a_full_disk_costs_the_new_snapshot_only),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
