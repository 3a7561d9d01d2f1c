#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/store_internal.h"
#include "store_world.h"
#include "unit.h"
#include "vmm/vmm.h"

struct world {
    char *data;
    char *vm; /* what snapshots are made from */
    struct store *store;
};

static void open_store(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (store_open(world->data, &world->store, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void open_world(const char *directory, struct world *world)
{
    world->data = unit_path(directory, "data");
    open_store(world);
    world->vm = unit_path(directory, "data/vms/origin");
    model_make_vm(world->vm);
}

static void close_world(struct world *world)
{
    store_close(world->store);
    free(world->data);
    free(world->vm);
}

static void put_file(const char *path, const void *bytes, size_t length)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, bytes, length), 0);
}

static char *world_path(const struct world *world, const char *format, ...) PRINTF_LIKE(2, 3);
static char *world_path(const struct world *world, const char *format, ...)
{
    char *name;
    va_list arguments;
    va_start(arguments, format);
    assert_true(vasprintf(&name, format, arguments) > 0);
    va_end(arguments);
    char *path = unit_path(world->data, name);
    free(name);
    return path;
}

static size_t count_names(const struct world *world, const char *directory)
{
    CLEANUP_FREE char *path = world_path(world, "%s", directory);
    DIR *entries = opendir(path);
    assert_non_null(entries);
    size_t count = 0;
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(entries);
    return count;
}

static size_t count_snapshots(const struct world *world)
{
    char **ids = NULL;
    assert_int_equal(store_list(world->store, &ids, NULL), 0);
    size_t count = 0;
    while (ids[count] != NULL)
        count++;
    store_list_done(ids);
    return count;
}

static char *commit(const struct world *world, const char *parent_id, const struct model *parent,
                    const struct model *model)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *id = NULL;
    if (model_commit(world->store, world->vm, parent_id, parent, model, &id, &err) < 0)
        fail_msg("%s", error_message(&err));
    return id;
}

/* A snapshot without parent, of a model drawn from `seed`. */
static char *commit_first(const struct world *world, uint32_t seed, struct model *ret_model)
{
    const struct model none = {0};
    *ret_model = none;
    model_change(ret_model, MODEL_PAGES / 2, &seed);
    return commit(world, NULL, &none, ret_model);
}

static void check(const struct world *world, const char *id, const struct model *model)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (model_check(world->store, id, model, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void collect(const struct world *world, uint64_t expected)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct store_gc_result result;
    if (store_gc(world->store, &result, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_int_equal(result.layers_removed, expected);
    assert_true((result.bytes_removed > 0) == (expected > 0));
}

static char *materialize(const struct world *world, const char *id, const char *vm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *path = world_path(world, "vms/%s", vm);
    assert_int_equal(mkdir(path, 0700), 0);
    if (store_materialize(world->store, id, path, &err) < 0)
        fail_msg("%s", error_message(&err));
    return path;
}

static void a_snapshot_is_read_back(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    check(&world, id, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world.store, id, &snapshot, NULL), 0);
    assert_string_equal(snapshot.manifest.id, id);
    assert_int_equal(snapshot.manifest.cpus, 2);
    assert_int_equal(snapshot.layer_count, 2);
    snapshot_done(&snapshot);
    assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
    assert_memory_equal(snapshot.device_state, "device state", snapshot.device_state_bytes);
    assert_false(store_wants_compaction(&snapshot));
    assert_int_equal(count_snapshots(&world), 1);

    CLEANUP_FREE char *manifest = world_path(&world, "snapshots/%s/manifest", id);
    CLEANUP_FREE char *kernel = world_path(&world, "snapshots/%s/kernel", id);
    struct stat status;
    assert_int_equal(stat(manifest, &status), 0);
    assert_int_equal(status.st_mode, S_IFREG | 0600);
    assert_int_equal(stat(kernel, &status), 0);
    assert_int_equal(status.st_mode, S_IFREG | 0440);
    assert_int_equal(status.st_nlink, 2);

    assert_int_equal(store_remove(world.store, id, NULL), 0);
    assert_int_equal(count_snapshots(&world), 0);
    assert_int_equal(store_remove(world.store, id, NULL), -ENOENT);
    collect(&world, 2);
    assert_int_equal(count_names(&world, "layers"), 0);
    close_world(&world);
}

static void only_a_commit_makes_a_snapshot(void **state)
{
    struct world world;
    struct model model;
    const struct model none = {0};
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, NULL), 0);
    assert_int_equal(model_write(world.store, writer, world.vm, NULL, &none, &model, &snapshot, NULL), 0);
    assert_int_equal(count_snapshots(&world), 1);
    store_abort(writer);
    assert_int_equal(count_names(&world, "layers"), 2);
    assert_int_equal(count_names(&world, "snapshots"), 1);
    close_world(&world);
}

static void what_a_crash_left_is_removed(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP_FREE char *layer = world_path(&world, "layers/tmp.abc");
    CLEANUP_FREE char *directory = world_path(&world, "snapshots/tmp.abc");
    CLEANUP_FREE char *inside = world_path(&world, "snapshots/tmp.abc/manifest");
    CLEANUP_FREE char *manifest = world_path(&world, "snapshots/%s/tmp.manifest", id);
    put_file(layer, "x", 1);
    assert_int_equal(mkdir(directory, 0700), 0);
    put_file(inside, "x", 1);
    put_file(manifest, "x", 1);
    store_close(world.store);
    open_store(&world);
    assert_int_equal(count_names(&world, "layers"), 2);
    assert_int_equal(count_names(&world, "snapshots"), 1);
    assert_int_equal(access(manifest, F_OK), -1);
    check(&world, id, &model);
    close_world(&world);
}

static void an_incomplete_snapshot_is_not_committed(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, &err), 0);
    assert_int_equal(snapshot_writer_link(writer, world.vm, VMM_FILE_KERNEL, &err), 0);
    assert_int_equal(store_commit(writer, &snapshot, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "the snapshot has no initrd"));
    assert_int_equal(count_snapshots(&world), 1);
    assert_int_equal(count_names(&world, "snapshots"), 1);
    close_world(&world);
}

static void layers_that_hold_nothing_are_left_out(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    struct model same = model;
    same.pages[IMAGE_DISK][3] = 77;
    CLEANUP_FREE char *child = commit(&world, id, &model, &same);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world.store, child, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 3);
    assert_int_equal(count_names(&world, "layers"), 3);
    check(&world, child, &same);
    close_world(&world);
}

static void a_vm_outlives_its_snapshot(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP_FREE char *hint = world_path(&world, "snapshots/%s/working-set", id);
    put_file(hint, "hint", 4);
    CLEANUP_FREE char *vm = materialize(&world, id, "child");
    assert_int_equal(count_names(&world, "vms/child"), 4);
    assert_int_equal(store_remove(world.store, id, NULL), 0);
    collect(&world, 0);
    /* What it is made of can still be read, and committed under another name. */
    CLEANUP_FREE char *manifest = unit_path(vm, STORE_FILE_MANIFEST);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(manifest_read(manifest, &snapshot, NULL), 0);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, NULL), 0);
    assert_int_equal(snapshot_writer_link(writer, vm, VMM_FILE_KERNEL, NULL), 0);
    assert_int_equal(snapshot_writer_link(writer, vm, VMM_FILE_INITRD, NULL), 0);
    assert_int_equal(store_commit(writer, &snapshot, NULL), 0);
    assert_int_equal(io_remove_tree(vm), 0);
    collect(&world, 0);
    check(&world, snapshot.manifest.id, &model);
    assert_int_equal(store_remove(world.store, snapshot.manifest.id, NULL), 0);
    collect(&world, 2);
    close_world(&world);
}

static void a_disk_manifest_keeps_layers(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *first = commit_first(&world, 1, &model);
    CLEANUP_FREE char *second = commit_first(&world, 2, &model);
    assert_int_equal(store_link_disk_manifest(world.store, first, world.vm, NULL), 0);
    assert_int_equal(store_link_disk_manifest(world.store, first, world.vm, NULL), 0);
    assert_int_equal(count_names(&world, "vms/origin"), 3);
    assert_int_equal(store_remove(world.store, first, NULL), 0);
    collect(&world, 0);
    assert_int_equal(store_link_disk_manifest(world.store, second, world.vm, NULL), 0);
    assert_int_equal(count_names(&world, "vms/origin"), 3);
    collect(&world, 2);
    assert_int_equal(store_remove(world.store, second, NULL), 0);
    collect(&world, 0);
    assert_int_equal(store_link_disk_manifest(world.store, second, world.vm, NULL), -ENOENT);
    close_world(&world);
}

static void gc_leaves_what_is_being_written(void **state)
{
    struct world world;
    struct model model;
    const struct model none = {0};
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, NULL), 0);
    assert_int_equal(model_write(world.store, writer, world.vm, NULL, &none, &model, &snapshot, NULL), 0);
    collect(&world, 0);
    assert_int_equal(store_commit(writer, &snapshot, NULL), 0);
    collect(&world, 0);
    check(&world, snapshot.manifest.id, &model);

    /* Finished, held and named by nobody; then not held either. */
    assert_int_equal(store_remove(world.store, id, NULL), 0);
    struct layer_writer *layer = NULL;
    CLEANUP_FREE char *layer_name = NULL;
    uint64_t bytes;
    assert_int_equal(layer_writer_open(store_layers_fd(world.store), LAYER_CODEC_ZSTD, 4, &layer, NULL), 0);
    layer_name = strdup(layer_writer_id(layer));
    assert_int_equal(store_hold_layer(world.store, &world, layer_name, NULL), 0);
    assert_int_equal(layer_writer_finish(layer, &bytes, NULL), 0);
    collect(&world, 2);
    store_release_layers(world.store, &world);
    collect(&world, 1);
    close_world(&world);
}

static void a_commit_on_layers_that_are_gone_fails(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    struct model changed = model;
    uint32_t seed = 5;
    model_change(&changed, 4, &seed);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, NULL), 0);
    assert_int_equal(model_write(world.store, writer, world.vm, id, &model, &changed, &snapshot, NULL), 0);
    assert_int_equal(store_remove(world.store, id, NULL), 0);
    collect(&world, 2);
    assert_int_equal(store_commit(writer, &snapshot, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "on which the snapshot builds"));
    assert_int_equal(count_names(&world, "layers"), 0);
    assert_int_equal(count_names(&world, "snapshots"), 0);
    close_world(&world);
}

static const struct compact_bounds wanted = {STORE_LAYERS_WANTED, STORE_EXTENTS_WANTED};

static void compaction_changes_no_page(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model model;
    uint32_t seed = 99;
    unsigned compactions = 0;
    open_world(*state, &world);
    char *id = commit_first(&world, 1, &model);
    for (unsigned generation = 0; generation < 200; generation++) {
        struct model changed = model;
        model_change(&changed, 1 + seed % 6, &seed);
        char *child = commit(&world, id, &model, &changed);
        model = changed;
        assert_int_equal(store_remove(world.store, id, NULL), 0);
        free(id);
        id = child;
        CLEANUP(snapshot_done) struct snapshot snapshot = {0};
        assert_int_equal(store_read(world.store, id, &snapshot, NULL), 0);
        bool exceeds = store_wants_compaction(&snapshot);
        assert_true(exceeds == (snapshot.layer_count > STORE_LAYERS_WANTED));
        uint32_t before = snapshot.layer_count;
        if (store_compact(world.store, id, &err) < 0)
            fail_msg("%s", error_message(&err));
        snapshot_done(&snapshot);
        assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
        assert_int_equal(snapshot.layer_count <= STORE_LAYERS_WANTED / 2, exceeds || before <= 8);
        compactions += exceeds;
        check(&world, id, &model);
        struct store_gc_result result;
        assert_int_equal(store_gc(world.store, &result, NULL), 0);
        assert_int_equal(count_names(&world, "layers"), snapshot.layer_count);
    }
    /* Each time room was made for some generations. */
    assert_in_range(compactions, 200 * 2 / STORE_LAYERS_WANTED - 10, 200 * 2 * 2 / STORE_LAYERS_WANTED + 1);
    free(id);
    close_world(&world);
}

/* Every second page twice, so that pages that are neighbours lie in two layers. */
static void too_many_extents_are_joined(void **state)
{
    const struct compact_bounds bounds = {.layers = 16, .extents = 8};
    const struct model none = {0};
    struct world world;
    struct model first = {0};
    open_world(*state, &world);
    for (uint32_t page = 0; page < MODEL_PAGES; page++)
        first.pages[IMAGE_MEMORY][page] = page % 2 == 0 ? page + 1 : 0;
    first.pages[IMAGE_DISK][0] = 1;
    struct model second = first;
    for (uint32_t page = 1; page < MODEL_PAGES; page += 2)
        second.pages[IMAGE_MEMORY][page] = page + 1;
    CLEANUP_FREE char *parent = commit(&world, NULL, &none, &first);
    CLEANUP_FREE char *id = commit(&world, parent, &first, &second);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    /* As many runs as extents: nothing can be won. */
    assert_int_equal(store_load(world.store, parent, &snapshot, NULL), 0);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, MODEL_PAGES / 2);
    assert_false(store_exceeds(&snapshot, &bounds));
    snapshot_done(&snapshot);
    assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, MODEL_PAGES);
    assert_true(store_exceeds(&snapshot, &bounds));
    assert_false(store_exceeds(&snapshot, &wanted));
    char disk_layer[LAYER_ID_LENGTH + 1];
    memcpy(disk_layer, snapshot.layers[snapshot.maps[IMAGE_DISK].extents[0].layer].id, sizeof(disk_layer));
    snapshot_done(&snapshot);

    assert_int_equal(store_compact_to(world.store, id, &bounds, NULL), 0);
    assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 2);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, 1);
    assert_string_equal(snapshot.layers[snapshot.maps[IMAGE_DISK].extents[0].layer].id, disk_layer);
    check(&world, id, &second);
    check(&world, parent, &first);
    close_world(&world);
}

static void compaction_spares_large_layers(void **state)
{
    const struct compact_bounds bounds = {.layers = 6, .extents = 1000};
    struct world world;
    struct model model = {0};
    const struct model none = {0};
    open_world(*state, &world);
    for (uint32_t page = 0; page < MODEL_PAGES; page++)
        model.pages[IMAGE_MEMORY][page] = page + 1;
    char *id = commit(&world, NULL, &none, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world.store, id, &snapshot, NULL), 0);
    char large[LAYER_ID_LENGTH + 1];
    memcpy(large, snapshot.layers[0].id, sizeof(large));
    for (uint32_t i = 0; i < 6; i++) {
        struct model changed = model;
        changed.pages[IMAGE_MEMORY][i] = 1000 + i;
        char *child = commit(&world, id, &model, &changed);
        free(id);
        id = child;
        model = changed;
    }
    assert_int_equal(store_compact_to(world.store, id, &bounds, NULL), 0);
    snapshot_done(&snapshot);
    assert_int_equal(store_read(world.store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 3);
    bool kept = false;
    for (uint32_t i = 0; i < snapshot.layer_count; i++)
        kept |= strcmp(snapshot.layers[i].id, large) == 0;
    assert_true(kept);
    check(&world, id, &model);
    free(id);
    close_world(&world);
}

static void a_vm_keeps_what_compaction_replaced(void **state)
{
    const struct compact_bounds bounds = {.layers = 2, .extents = 1000};
    struct world world;
    struct model model;
    uint32_t seed = 7;
    open_world(*state, &world);
    CLEANUP_FREE char *parent = commit_first(&world, 1, &model);
    struct model changed = model;
    model_change(&changed, 5, &seed);
    CLEANUP_FREE char *id = commit(&world, parent, &model, &changed);
    assert_int_equal(store_remove(world.store, parent, NULL), 0);
    CLEANUP_FREE char *vm = materialize(&world, id, "child");
    assert_int_equal(store_compact_to(world.store, id, &bounds, NULL), 0);
    collect(&world, 0);
    assert_int_equal(count_names(&world, "layers"), 6);
    check(&world, id, &changed);
    assert_int_equal(io_remove_tree(vm), 0);
    collect(&world, 4);
    check(&world, id, &changed);
    assert_int_equal(store_remove(world.store, id, NULL), 0);
    assert_int_equal(store_compact(world.store, id, NULL), -ENOENT);
    close_world(&world);
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
    struct world world;
    struct model model = {0};
    const struct model none = {0};
    open_world(*state, &world);
    model.pages[IMAGE_MEMORY][1] = model.pages[IMAGE_MEMORY][9] = model.pages[IMAGE_DISK][5] = 7;
    CLEANUP_FREE char *id = commit(&world, NULL, &none, &model);
    for (uint32_t i = 0; i < 2; i++) {
        CLEANUP_FREE char *path = layer_path(&world, id, i);
        struct stat status;
        assert_int_equal(stat(path, &status), 0);
        for (off_t offset = 0; offset < status.st_size; offset += 3) {
            flip(path, offset);
            int r = store_verify(world.store, id, &err);
            /* A feature flag or the version is one, too. */
            if (r != -EBADMSG && r != -EPROTONOSUPPORT)
                fail_msg("byte %ld of layer %u: %d", (long)offset, i, r);
            flip(path, offset);
        }
    }
    check(&world, id, &model);
    close_world(&world);
}

static void a_missing_layer_is_named_and_hurts_nobody_else(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model models[2];
    open_world(*state, &world);
    CLEANUP_FREE char *good = commit_first(&world, 1, &models[0]);
    CLEANUP_FREE char *bad = commit_first(&world, 2, &models[1]);
    CLEANUP_FREE char *path = layer_path(&world, bad, 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(store_verify(world.store, bad, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), strrchr(path, '/') + 1));
    collect(&world, 0);
    check(&world, good, &models[0]);
    CLEANUP_FREE char *child = commit(&world, good, &models[0], &models[1]);
    check(&world, child, &models[1]);
    struct snapshot_usage usage;
    assert_int_equal(store_usage(world.store, good, &usage, NULL), 0);
    assert_int_equal(store_remove(world.store, bad, NULL), 0);
    collect(&world, 1);
    close_world(&world);
}

static void verify_finds_slots_that_are_not_there(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    CLEANUP_FREE char *kernel = world_path(&world, "snapshots/%s/kernel", id);
    CLEANUP_FREE char *path = world_path(&world, "snapshots/%s/manifest", id);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP_FREE void *bytes = NULL;
    size_t length = 0;
    assert_int_equal(store_load(world.store, id, &snapshot, NULL), 0);
    struct image_map *map = &snapshot.maps[IMAGE_DISK];
    struct map_extent *last = &map->extents[map->count - 1];
    last->slot += 1;
    assert_int_equal(manifest_encode(&snapshot, &bytes, &length, NULL), 0);
    put_file(path, bytes, length);
    assert_int_equal(store_verify(world.store, id, &err), -EBADMSG);
    assert_non_null(strstr(error_message(&err), "which has none"));
    free(bytes);
    last->slot -= 1;
    assert_int_equal(manifest_encode(&snapshot, &bytes, &length, NULL), 0);
    put_file(path, bytes, length);
    assert_int_equal(store_verify(world.store, id, NULL), 0);
    assert_int_equal(unlink(kernel), 0);
    assert_int_equal(store_verify(world.store, id, NULL), -ENOENT);
    close_world(&world);
}

static void a_damaged_manifest_stops_gc(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *removed = commit_first(&world, 1, &model);
    CLEANUP_FREE char *id = commit_first(&world, 2, &model);
    CLEANUP_FREE char *vm = materialize(&world, removed, "child");
    assert_int_equal(store_link_disk_manifest(world.store, removed, vm, NULL), 0);
    assert_int_equal(store_remove(world.store, removed, NULL), 0);
    CLEANUP_FREE char *other = commit_first(&world, 3, &model);
    assert_int_equal(store_remove(world.store, other, NULL), 0);
    for (size_t i = 0; i < 3; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        CLEANUP_FREE char *path = i == 0 ? world_path(&world, "snapshots/%s/manifest", id)
                                         : unit_path(vm, i == 1 ? STORE_FILE_MANIFEST : STORE_FILE_DISK_MANIFEST);
        CLEANUP_FREE char *aside = unit_path(*state, "aside");
        assert_int_equal(rename(path, aside), 0);
        put_file(path, "damaged", 7);
        struct store_gc_result result;
        assert_int_equal(store_gc(world.store, &result, &err), -EBADMSG);
        assert_non_null(strstr(error_message(&err), path));
        assert_non_null(err.hint);
        assert_int_equal(count_names(&world, "layers"), 6);
        struct store_statistics statistics;
        assert_int_equal(store_statistics(world.store, &statistics, NULL), 0);
        assert_int_equal(statistics.unreachable_bytes, 0);
        assert_int_equal(rename(aside, path), 0);
    }
    collect(&world, 2);
    close_world(&world);
}

static void another_snapshots_manifest_is_refused(void **state)
{
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *first = commit_first(&world, 1, &model);
    CLEANUP_FREE char *second = commit_first(&world, 2, &model);
    CLEANUP_FREE char *from = world_path(&world, "snapshots/%s/manifest", first);
    CLEANUP_FREE char *to = world_path(&world, "snapshots/%s/manifest", second);
    assert_int_equal(unlink(to), 0);
    assert_int_equal(count_snapshots(&world), 1);
    assert_int_equal(link(from, to), 0);
    struct snapshot snapshot = {0};
    assert_int_equal(store_read(world.store, second, &snapshot, NULL), -EBADMSG);
    assert_int_equal(store_load(world.store, second, &snapshot, NULL), -EBADMSG);
    close_world(&world);
}

static void ids_cannot_leave_the_store(void **state)
{
    struct world world;
    open_world(*state, &world);
    struct snapshot snapshot = {0};
    assert_int_equal(store_read(world.store, "../vms/origin", &snapshot, NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "..", NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "", NULL), -ENOENT);
    assert_int_equal(store_remove(world.store, "../../../../../../a", NULL), -ENOENT);
    assert_int_equal(store_materialize(world.store, "../vms/origin", world.vm, NULL), -ENOENT);
    close_world(&world);
}

static void figures_count_shared_layers_once(void **state)
{
    struct world world;
    struct model model;
    uint32_t seed = 3;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    struct model changed = model;
    model_change(&changed, 5, &seed);
    CLEANUP_FREE char *child = commit(&world, id, &model, &changed);
    struct snapshot_usage parent_usage;
    struct snapshot_usage usage;
    struct store_statistics statistics;
    assert_int_equal(store_usage(world.store, id, &parent_usage, NULL), 0);
    assert_int_equal(store_usage(world.store, child, &usage, NULL), 0);
    assert_int_equal(store_statistics(world.store, &statistics, NULL), 0);
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
    assert_int_equal(store_remove(world.store, child, NULL), 0);
    assert_int_equal(store_statistics(world.store, &statistics, NULL), 0);
    assert_int_equal(statistics.unreachable_bytes, usage.own_bytes);
    close_world(&world);
}

static void another_process_is_kept_out(void **state)
{
    struct world world;
    open_world(*state, &world);
    CLEANUP_FREE char *left = world_path(&world, "layers/tmp.mine");
    put_file(left, "x", 1);
    pid_t child = fork();
    if (child == 0) {
        /* What it has of its parent's lock is the same as the parent's; so a lock of its own it can't have. */
        struct store *store = NULL;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        int r = store_open(world.data, &store, &err);
        _exit(r == -EBUSY && err.hint != NULL ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    /* Nor has it cleaned up after a process that isn't dead. */
    assert_int_equal(access(left, F_OK), 0);
    store_close(world.store);
    open_store(&world);
    assert_int_equal(access(left, F_OK), -1);
    close_world(&world);
}

static void a_store_that_cannot_be_written_is_read(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world world;
    struct model model;
    open_world(*state, &world);
    CLEANUP_FREE char *id = commit_first(&world, 1, &model);
    store_close(world.store);
    assert_int_equal(mount(world.data, world.data, NULL, MS_BIND, NULL), 0);
    assert_int_equal(mount(NULL, world.data, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), 0);
    open_store(&world);
    check(&world, id, &model);
    struct snapshot_writer *writer = NULL;
    assert_int_equal(store_begin(world.store, &writer, &err), -EROFS);
    assert_int_equal(store_remove(world.store, id, &err), -EROFS);
    check(&world, id, &model);
    store_close(world.store);
    assert_int_equal(umount(world.data), 0);
    open_store(&world);
    close_world(&world);
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

struct race {
    struct world world;
    atomic_bool stop;
    atomic_uint failures;
};

static void expect(struct race *race, bool good, const struct error *err)
{
    if (good)
        return;
    atomic_fetch_add(&race->failures, 1);
    fprintf(stderr, "%s\n", error_message(err));
}

static void *collect_in_a_loop(void *context)
{
    struct race *race = context;
    while (!atomic_load(&race->stop)) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct store_gc_result result;
        struct store_statistics statistics;
        expect(race, store_gc(race->world.store, &result, &err) == 0, &err);
        expect(race, store_statistics(race->world.store, &statistics, &err) == 0, &err);
    }
    return NULL;
}

/* A line of generations: each is committed, made a VM, compacted, and its parent removed. */
static void *live_a_line(void *context)
{
    static atomic_uint lines;
    const struct compact_bounds bounds = {.layers = 4, .extents = 1000};
    struct race *race = context;
    struct store *store = race->world.store;
    unsigned line = atomic_fetch_add(&lines, 1);
    uint32_t seed = line;
    struct model model = {0};
    char *parent = NULL;
    CLEANUP_FREE char *vm = world_path(&race->world, "vms/line%u", line);
    for (unsigned generation = 0; generation < 25; generation++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct model changed = model;
        char *id = NULL;
        model_change(&changed, 6, &seed);
        int r = model_commit(store, race->world.vm, parent, &model, &changed, &id, &err);
        if (r == 0 && parent != NULL)
            r = store_remove(store, parent, &err);
        if (r == 0)
            r = io_remove_tree(vm);
        if (r == 0)
            r = mkdir(vm, 0700);
        if (r == 0)
            r = store_materialize(store, id, vm, &err);
        if (r == 0)
            r = store_compact_to(store, id, &bounds, &err);
        if (r == 0)
            r = model_check(store, id, &changed, &err);
        expect(race, r == 0, &err);
        free(parent);
        parent = id;
        model = changed;
        if (r < 0)
            break;
    }
    free(parent);
    return NULL;
}

static void everything_at_once_loses_nothing(void **state)
{
    struct race race = {0};
    pthread_t collector;
    pthread_t lines[3];
    open_world(*state, &race.world);
    assert_int_equal(pthread_create(&collector, NULL, collect_in_a_loop, &race), 0);
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        assert_int_equal(pthread_create(&lines[i], NULL, live_a_line, &race), 0);
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        pthread_join(lines[i], NULL);
    atomic_store(&race.stop, true);
    pthread_join(collector, NULL);
    assert_int_equal(atomic_load(&race.failures), 0);
    assert_int_equal(count_snapshots(&race.world), ARRAY_SIZE(lines));
    close_world(&race.world);
}

int main(void)
{
    /* Mounts of these tests are seen by, and stay with, nobody else. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        perror("the store's tests need root, for mounts");
        return 1;
    }
    const struct CMUnitTest tests[] = {
        UNIT_TEST(a_snapshot_is_read_back),
        UNIT_TEST(only_a_commit_makes_a_snapshot),
        UNIT_TEST(what_a_crash_left_is_removed),
        UNIT_TEST(an_incomplete_snapshot_is_not_committed),
        UNIT_TEST(layers_that_hold_nothing_are_left_out),
        UNIT_TEST(a_vm_outlives_its_snapshot),
        UNIT_TEST(a_disk_manifest_keeps_layers),
        UNIT_TEST(gc_leaves_what_is_being_written),
        UNIT_TEST(a_commit_on_layers_that_are_gone_fails),
        UNIT_TEST(compaction_changes_no_page),
        UNIT_TEST(too_many_extents_are_joined),
        UNIT_TEST(compaction_spares_large_layers),
        UNIT_TEST(a_vm_keeps_what_compaction_replaced),
        UNIT_TEST(verify_finds_every_flipped_byte),
        UNIT_TEST(a_missing_layer_is_named_and_hurts_nobody_else),
        UNIT_TEST(verify_finds_slots_that_are_not_there),
        UNIT_TEST(a_damaged_manifest_stops_gc),
        UNIT_TEST(another_snapshots_manifest_is_refused),
        UNIT_TEST(ids_cannot_leave_the_store),
        UNIT_TEST(figures_count_shared_layers_once),
        UNIT_TEST(another_process_is_kept_out),
        UNIT_TEST(a_store_that_cannot_be_written_is_read),
        UNIT_TEST(a_full_disk_costs_the_new_snapshot_only),
        UNIT_TEST(everything_at_once_loses_nothing),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
