/* Compaction, and everything beside everything else. */
#include <pthread.h>
#include <stdatomic.h>

#include "store_fixture.h"

static const struct compact_bounds wanted = {STORE_LAYERS_WANTED, STORE_EXTENTS_WANTED};

static void compaction_changes_no_page(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct world *world = *state;
    struct model model;
    uint32_t seed = 99;
    unsigned compactions = 0;
    char *id = commit_first(world, 1, &model);
    for (unsigned generation = 0; generation < 200; generation++) {
        struct model changed = model;
        model_change(&changed, 1 + seed % 6, &seed);
        char *child = commit(world, id, &model, &changed);
        model = changed;
        assert_int_equal(store_remove(world->store, id, NULL), 0);
        free(id);
        id = child;
        CLEANUP(snapshot_done) struct snapshot snapshot = {0};
        assert_int_equal(store_read(world->store, id, &snapshot, NULL), 0);
        bool exceeds = store_wants_compaction(&snapshot);
        assert_true(exceeds == (snapshot.layer_count > STORE_LAYERS_WANTED));
        uint32_t before = snapshot.layer_count;
        if (store_compact(world->store, id, &err) < 0)
            fail_msg("%s", error_message(&err));
        snapshot_done(&snapshot);
        assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
        assert_int_equal(snapshot.layer_count <= STORE_LAYERS_WANTED / 2, exceeds || before <= 8);
        compactions += exceeds;
        check(world, id, &model);
        struct store_gc_result result;
        assert_int_equal(store_gc(world->store, &result, NULL), 0);
        assert_int_equal(count_names(world, "layers"), snapshot.layer_count);
    }
    /* Each time room was made for some generations. */
    assert_in_range(compactions, 200 * 2 / STORE_LAYERS_WANTED - 10, 200 * 2 * 2 / STORE_LAYERS_WANTED + 1);
    free(id);
}

/* Every second page twice, so that pages that are neighbours lie in two layers. */
static void too_many_extents_are_joined(void **state)
{
    const struct compact_bounds bounds = {.layers = 16, .extents = 8};
    const struct model none = {0};
    struct world *world = *state;
    struct model first = {0};
    for (uint32_t page = 0; page < MODEL_PAGES; page++)
        first.pages[IMAGE_MEMORY][page] = page % 2 == 0 ? page + 1 : 0;
    first.pages[IMAGE_DISK][0] = 1;
    struct model second = first;
    for (uint32_t page = 1; page < MODEL_PAGES; page += 2)
        second.pages[IMAGE_MEMORY][page] = page + 1;
    CLEANUP_FREE char *parent = commit(world, NULL, &none, &first);
    CLEANUP_FREE char *id = commit(world, parent, &first, &second);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    /* As many runs as extents: nothing can be won. */
    assert_int_equal(store_load(world->store, parent, &snapshot, NULL), 0);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, MODEL_PAGES / 2);
    assert_false(store_exceeds(&snapshot, &bounds));
    snapshot_done(&snapshot);
    assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, MODEL_PAGES);
    assert_true(store_exceeds(&snapshot, &bounds));
    assert_false(store_exceeds(&snapshot, &wanted));
    char disk_layer[LAYER_ID_LENGTH + 1];
    memcpy(disk_layer, snapshot.layers[snapshot.maps[IMAGE_DISK].extents[0].layer].id, sizeof(disk_layer));
    snapshot_done(&snapshot);

    assert_int_equal(store_compact_to(world->store, id, &bounds, NULL), 0);
    assert_int_equal(store_load(world->store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 2);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].count, 1);
    assert_string_equal(snapshot.layers[snapshot.maps[IMAGE_DISK].extents[0].layer].id, disk_layer);
    check(world, id, &second);
    check(world, parent, &first);
}

static void compaction_spares_large_layers(void **state)
{
    const struct compact_bounds bounds = {.layers = 6, .extents = 1000};
    struct world *world = *state;
    struct model model = {0};
    const struct model none = {0};
    for (uint32_t page = 0; page < MODEL_PAGES; page++)
        model.pages[IMAGE_MEMORY][page] = page + 1;
    char *id = commit(world, NULL, &none, &model);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    assert_int_equal(store_read(world->store, id, &snapshot, NULL), 0);
    char large[LAYER_ID_LENGTH + 1];
    memcpy(large, snapshot.layers[0].id, sizeof(large));
    for (uint32_t i = 0; i < 6; i++) {
        struct model changed = model;
        changed.pages[IMAGE_MEMORY][i] = 1000 + i;
        char *child = commit(world, id, &model, &changed);
        free(id);
        id = child;
        model = changed;
    }
    assert_int_equal(store_compact_to(world->store, id, &bounds, NULL), 0);
    snapshot_done(&snapshot);
    assert_int_equal(store_read(world->store, id, &snapshot, NULL), 0);
    assert_int_equal(snapshot.layer_count, 3);
    bool kept = false;
    for (uint32_t i = 0; i < snapshot.layer_count; i++)
        kept |= strcmp(snapshot.layers[i].id, large) == 0;
    assert_true(kept);
    check(world, id, &model);
    free(id);
}

static void a_vm_keeps_what_compaction_replaced(void **state)
{
    const struct compact_bounds bounds = {.layers = 2, .extents = 1000};
    struct world *world = *state;
    struct model model;
    CLEANUP_FREE char *parent = commit_first(world, 1, &model);
    struct model changed;
    CLEANUP_FREE char *id = commit_change(world, parent, &model, 5, 7, &changed);
    assert_int_equal(store_remove(world->store, parent, NULL), 0);
    CLEANUP_FREE char *vm = materialize(world, id, "child");
    assert_int_equal(store_compact_to(world->store, id, &bounds, NULL), 0);
    collect(world, 0);
    assert_int_equal(count_names(world, "layers"), 6);
    check(world, id, &changed);
    assert_int_equal(io_remove_tree(vm), 0);
    collect(world, 4);
    check(world, id, &changed);
    assert_int_equal(store_remove(world->store, id, NULL), 0);
    assert_int_equal(store_compact(world->store, id, NULL), -ENOENT);
}

struct race {
    struct world *world;
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
        expect(race, store_gc(race->world->store, &result, &err) == 0, &err);
        expect(race, store_statistics(race->world->store, &statistics, &err) == 0, &err);
    }
    return NULL;
}

/* A line of generations: each is committed, made a VM, compacted, and its parent removed. */
static void *live_a_line(void *context)
{
    static atomic_uint lines;
    const struct compact_bounds bounds = {.layers = 4, .extents = 1000};
    struct race *race = context;
    struct store *store = race->world->store;
    unsigned line = atomic_fetch_add(&lines, 1);
    uint32_t seed = line;
    struct model model = {0};
    char *parent = NULL;
    CLEANUP_FREE char *vm = world_path(race->world, "vms/line%u", line);
    for (unsigned generation = 0; generation < 25; generation++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct model changed = model;
        char *id = NULL;
        model_change(&changed, 6, &seed);
        int r = model_commit(store, race->world->vm, parent, &model, &changed, &id, &err);
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
    struct race race = {.world = *state};
    pthread_t collector;
    pthread_t lines[3];
    assert_int_equal(pthread_create(&collector, NULL, collect_in_a_loop, &race), 0);
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        assert_int_equal(pthread_create(&lines[i], NULL, live_a_line, &race), 0);
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        pthread_join(lines[i], NULL);
    atomic_store(&race.stop, true);
    pthread_join(collector, NULL);
    assert_int_equal(atomic_load(&race.failures), 0);
    assert_int_equal(count_snapshots(race.world), ARRAY_SIZE(lines));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(compaction_changes_no_page),       STORE_TEST(too_many_extents_are_joined),
        STORE_TEST(compaction_spares_large_layers),   STORE_TEST(a_vm_keeps_what_compaction_replaced),
        STORE_TEST(everything_at_once_loses_nothing),
    };
    return cmocka_run_group_tests_name("store-compact", tests, NULL, NULL);
}
