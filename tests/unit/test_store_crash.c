/*
 * Every point at which the process or the host can die during a commit, a removal with gc, and a compaction: what
 * is left must hold each snapshot wholly or not at all, and what was promised before.
 */
#include "crash_fs.h"
#include "store_fixture.h"

#define SNAPSHOTS_MAX 2

/* A snapshot that may be there. */
struct expected {
    char *id;
    struct model model;
    /* It has to be there at these points, and at no other may be from `gone` on. */
    size_t sure_from;
    size_t sure_until;
    size_t gone;
};

struct run {
    struct world world; /* that is recorded */
    char *scratch;      /* where states are rebuilt */
    struct crash_log *log;
    struct expected snapshots[SNAPSHOTS_MAX];
    size_t count;
};

static struct expected *expect_always(struct run *run, char *id, const struct model *model)
{
    struct expected *snapshot = &run->snapshots[run->count++];
    *snapshot = (struct expected){.id = id, .model = *model, .sure_until = SIZE_MAX, .gone = SIZE_MAX};
    return snapshot;
}

static void open_run(const char *directory, struct run *run)
{
    struct model model;
    *run = (struct run){.scratch = unit_path(directory, "scratch")};
    open_world(directory, &run->world);
    char *id = commit_first(&run->world, 1, &model);
    expect_always(run, id, &model);
}

static void close_run(struct run *run)
{
    crash_log_free(run->log);
    for (size_t i = 0; i < run->count; i++)
        free(run->snapshots[i].id);
    free(run->scratch);
    close_world(&run->world);
}

static void stop(struct run *run)
{
    run->log = crash_stop();
}

static void collect_all(struct run *run)
{
    struct store_gc_result result;
    assert_int_equal(store_gc(run->world.store, &result, NULL), 0);
}

static void record_commit(struct run *run)
{
    struct model model = run->snapshots[0].model;
    uint32_t seed = 2;
    model_change(&model, 8, &seed);
    crash_record(run->world.data);
    char *id = commit(&run->world, run->snapshots[0].id, &run->snapshots[0].model, &model);
    expect_always(run, id, &model)->sure_from = crash_mark();
    stop(run);
}

static void record_removal(struct run *run)
{
    struct model model = run->snapshots[0].model;
    uint32_t seed = 3;
    model_change(&model, 8, &seed);
    char *id = commit(&run->world, run->snapshots[0].id, &run->snapshots[0].model, &model);
    struct expected *removed = expect_always(run, id, &model);
    crash_record(run->world.data);
    removed->sure_until = crash_mark();
    assert_int_equal(store_remove(run->world.store, id, NULL), 0);
    removed->gone = crash_mark();
    collect_all(run);
    stop(run);
}

static void record_compaction(struct run *run)
{
    struct model model = run->snapshots[0].model;
    uint32_t seed = 4;
    char *id = NULL;
    for (unsigned i = 0; i < 9; i++) {
        struct model changed = model;
        model_change(&changed, 4, &seed);
        char *child = commit(&run->world, id != NULL ? id : run->snapshots[0].id, &model, &changed);
        if (id != NULL)
            assert_int_equal(store_remove(run->world.store, id, NULL), 0);
        free(id);
        id = child;
        model = changed;
    }
    expect_always(run, id, &model);
    crash_record(run->world.data);
    assert_int_equal(store_compact(run->world.store, id, NULL), 0);
    collect_all(run);
    stop(run);
}

static const struct expected *find_expected(const struct run *run, const char *id)
{
    for (size_t i = 0; i < run->count; i++)
        if (strcmp(run->snapshots[i].id, id) == 0)
            return &run->snapshots[i];
    return NULL;
}

static bool is_listed(char **ids, const char *id)
{
    for (size_t i = 0; ids[i] != NULL; i++)
        if (strcmp(ids[i], id) == 0)
            return true;
    return false;
}

static int check_listed(const struct run *run, char **ids, size_t point, struct error *err)
{
    for (size_t i = 0; ids[i] != NULL; i++) {
        const struct expected *snapshot = find_expected(run, ids[i]);
        if (snapshot == NULL || point >= snapshot->gone)
            return error_set(err, EEXIST, "snapshot %s is there", ids[i]);
    }
    for (size_t i = 0; i < run->count; i++) {
        const struct expected *snapshot = &run->snapshots[i];
        if (point >= snapshot->sure_from && point <= snapshot->sure_until && !is_listed(ids, snapshot->id))
            return error_set(err, ENOENT, "snapshot %s is not there", snapshot->id);
    }
    return 0;
}

static int check_pages(const struct run *run, struct store *store, char **ids, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && ids[i] != NULL; i++)
        r = model_check(store, ids[i], &find_expected(run, ids[i])->model, err);
    return r;
}

static int check_layer_needed(void *context, const char *name, struct error *err)
{
    return id_set_has(context, name) ? 0 : error_set(err, EEXIST, "layers/%s is a stray", name);
}

static int check_snapshot_file(void *context, const char *name, struct error *err)
{
    static const char *const names[] = {"manifest", "kernel", "initrd"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(name, names[i]) == 0)
            return 0;
    return error_set(err, EEXIST, "%s/%s is a stray", (const char *)context, name);
}

struct listing {
    const struct store *store;
    char **ids;
};

static int check_snapshot_directory(void *context, const char *name, struct error *err)
{
    struct listing *listing = context;
    if (!is_listed(listing->ids, name))
        return error_set(err, EEXIST, "snapshots/%s is a stray", name);
    CLEANUP_FREE char *path = unit_path(listing->store->snapshots, name);
    return store_each_name(path, check_snapshot_file, path, err);
}

static int check_layers_there(const struct store *store, const struct id_set *needed, struct error *err)
{
    for (size_t i = 0; i < needed->count; i++)
        if (faccessat(store->layers_fd, needed->ids[i], F_OK, 0) < 0)
            return error_errno(err, "layer %s after gc", needed->ids[i]);
    return 0;
}

/* gc has left what is needed, and nothing else. */
static int check_gc(struct store *store, char **ids, struct error *err)
{
    CLEANUP(id_set_done) struct id_set needed = {0};
    struct listing listing = {store, ids};
    struct store_gc_result result;
    int r = store_gc(store, &result, err);
    if (r == 0)
        r = store_needed_layers(store, &needed, err);
    if (r == 0)
        r = check_layers_there(store, &needed, err);
    if (r == 0)
        r = store_each_name(store->layers, check_layer_needed, &needed, err);
    return r == 0 ? store_each_name(store->snapshots, check_snapshot_directory, &listing, err) : r;
}

/* Opens what a crash left, as the next process does. */
static int check_state(const struct run *run, size_t point, struct error *err)
{
    struct store *store = NULL;
    char **ids = NULL;
    int r = store_open(run->scratch, &store, err);
    if (r < 0)
        return r;
    r = store_list(store, &ids, err);
    if (r == 0)
        r = check_listed(run, ids, point, err);
    if (r == 0)
        r = check_pages(run, store, ids, err);
    if (r == 0)
        r = check_gc(store, ids, err);
    store_list_done(ids);
    store_close(store);
    return r;
}

/* What the checks of a state depend on besides the state. */
static uint64_t count_promises(const struct run *run, size_t point)
{
    uint64_t promises = 0;
    for (size_t i = 0; i < run->count; i++) {
        const struct expected *snapshot = &run->snapshots[i];
        promises = promises * 4 + (point >= snapshot->sure_from) + (point > snapshot->sure_until);
        promises = promises * 2 + (point >= snapshot->gone);
    }
    return promises;
}

struct tally {
    size_t states;   /* points times kinds of crash */
    size_t distinct; /* of them, different from the same kind at the point before: opened and checked */
};

/* Goes through all states; stops at the first that is wrong. */
static int enumerate(const struct run *run, size_t without, struct tally *tally, struct error *err)
{
    static const char *const kinds[] = {"process", "host", "empty", "short", "layers first", "snapshots first"};
    struct crash_state *state = crash_replay(run->log, without);
    uint64_t last[CRASH_KINDS] = {0};
    int r = 0;
    do {
        size_t point = crash_point(state);
        for (enum crash_kind kind = 0; r == 0 && kind < CRASH_KINDS; kind++) {
            uint64_t hash = crash_hash(state, kind) + count_promises(run, point);
            tally->states++;
            if (hash == last[kind])
                continue;
            tally->distinct++;
            last[kind] = hash;
            crash_rebuild(state, kind, run->scratch);
            r = check_state(run, point, err);
            if (r < 0)
                error_wrap(err, r, "crash at point %zu, %s", point, kinds[kind]);
            assert_int_equal(io_remove_tree(run->scratch), 0);
        }
    } while (r == 0 && crash_step(state));
    crash_state_free(state);
    return r;
}

static void check_every_crash(const char *what, struct run *run)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct tally tally = {0};
    if (enumerate(run, SIZE_MAX, &tally, &err) < 0)
        fail_msg("%s: %s", what, error_message(&err));
    print_message("%s: %zu crashes enumerated, %zu of them different and checked\n", what, tally.states,
                  tally.distinct);
    /* These checks find each fsync that is left out, of anything that was changed. */
    assert_true(crash_synced_count(run->log) > 0);
    for (size_t i = 0; i < crash_synced_count(run->log); i++) {
        CLEANUP_ERROR struct error found = ERROR_INIT;
        if (enumerate(run, i, &tally, &found) == 0)
            fail_msg("%s: nobody misses the fsync of %s", what, crash_synced_name(run->log, i));
    }
}

static void a_commit_happens_or_not(void **state)
{
    struct run run;
    open_run(*state, &run);
    record_commit(&run);
    check_every_crash("commit", &run);
    close_run(&run);
}

static void a_removal_happens_or_not(void **state)
{
    struct run run;
    open_run(*state, &run);
    record_removal(&run);
    check_every_crash("removal and gc", &run);
    close_run(&run);
}

static void a_compaction_loses_nothing(void **state)
{
    struct run run;
    open_run(*state, &run);
    record_compaction(&run);
    check_every_crash("compaction and gc", &run);
    close_run(&run);
}

/* States are rebuilt in memory, by the hundred. */
static int make_directory(void **state)
{
    return unit_make_directory(state) < 0 ? -1 : mount("tmpfs", *state, "tmpfs", 0, "size=64m,mode=0700");
}

static int remove_directory(void **state)
{
    return umount2(*state, MNT_DETACH) < 0 ? -1 : unit_remove_directory(state);
}

int main(void)
{
    if (!have_own_mounts())
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_commit_happens_or_not, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(a_removal_happens_or_not, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(a_compaction_loses_nothing, make_directory, remove_directory),
    };
    return cmocka_run_group_tests_name("store-crash", tests, NULL, NULL);
}
