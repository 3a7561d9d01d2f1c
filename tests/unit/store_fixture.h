/* store_fixture.h: a store in a test's directory, and what its tests do with it; every step must succeed. */
#ifndef DORMOUSE_TESTS_STORE_FIXTURE_H
#define DORMOUSE_TESTS_STORE_FIXTURE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store_internal.h"
#include "store_world.h"
#include "unit.h"

struct world {
    char *directory; /* the test's own */
    char *data;
    char *vm; /* what snapshots are made from */
    struct store *store;
};

static inline void open_store(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (store_open(world->data, &world->store, &err) < 0)
        fail_msg("%s", error_message(&err));
}

/* Until it is opened again. */
static inline void shut_store(struct world *world)
{
    store_close(TAKE_PTR(world->store));
}

static inline void open_world(const char *directory, struct world *world)
{
    world->directory = strdup(directory);
    world->data = unit_path(directory, "data");
    open_store(world);
    world->vm = unit_path(directory, "data/vms/origin");
    model_make_vm(world->vm);
}

static inline void close_world(struct world *world)
{
    store_close(world->store);
    free(world->directory);
    free(world->data);
    free(world->vm);
}

/* A cmocka setup and teardown: *state is a world with an empty store. */
static inline int make_world(void **state)
{
    struct world *world = calloc(1, sizeof(*world));
    if (world == NULL || unit_make_directory(state) < 0)
        return -1;
    open_world(*state, world);
    free(*state);
    *state = world;
    return 0;
}

static inline int remove_world(void **state)
{
    struct world *world = *state;
    void *directory = TAKE_PTR(world->directory);
    close_world(world);
    free(world);
    return unit_remove_directory(&directory);
}

#define STORE_TEST(function) cmocka_unit_test_setup_teardown(function, make_world, remove_world)

static inline void put_file(const char *path, const void *bytes, size_t length)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, bytes, length), 0);
}

static inline char *world_path(const struct world *world, const char *format, ...) PRINTF_LIKE(2, 3);
static inline char *world_path(const struct world *world, const char *format, ...)
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

static inline size_t count_names(const struct world *world, const char *directory)
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

static inline size_t count_snapshots(const struct world *world)
{
    char **ids = NULL;
    assert_int_equal(store_list(world->store, &ids, NULL), 0);
    size_t count = 0;
    while (ids[count] != NULL)
        count++;
    store_list_done(ids);
    return count;
}

static inline char *commit(const struct world *world, const char *parent_id, const struct model *parent,
                           const struct model *model)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *id = NULL;
    if (model_commit(world->store, world->vm, parent_id, parent, model, &id, &err) < 0)
        fail_msg("%s", error_message(&err));
    return id;
}

/* A snapshot without parent, of a model drawn from `seed`. */
static inline char *commit_first(const struct world *world, uint32_t seed, struct model *ret_model)
{
    const struct model none = {0};
    *ret_model = none;
    model_change(ret_model, MODEL_PAGES / 2, &seed);
    return commit(world, NULL, &none, ret_model);
}

/* A child of `parent`, whose model differs in up to `count` pages of each image. */
static inline char *commit_change(const struct world *world, const char *parent_id, const struct model *parent,
                                  unsigned count, uint32_t seed, struct model *ret_model)
{
    *ret_model = *parent;
    model_change(ret_model, count, &seed);
    return commit(world, parent_id, parent, ret_model);
}

/* What `commit` does, up to the commit itself. */
static inline struct snapshot_writer *begin(const struct world *world, const char *parent_id,
                                            const struct model *parent, const struct model *model,
                                            struct snapshot *snapshot)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct snapshot_writer *writer = NULL;
    if (store_begin(world->store, &writer, &err) < 0 ||
        model_write(world->store, writer, world->vm, parent_id, parent, model, snapshot, &err) < 0)
        fail_msg("%s", error_message(&err));
    return writer;
}

static inline void check(const struct world *world, const char *id, const struct model *model)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (model_check(world->store, id, model, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static inline void collect(const struct world *world, uint64_t expected)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct store_gc_result result;
    if (store_gc(world->store, &result, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_int_equal(result.layers_removed, expected);
    assert_true((result.bytes_removed > 0) == (expected > 0));
}

static inline char *materialize(const struct world *world, const char *id, const char *vm)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *path = world_path(world, "vms/%s", vm);
    assert_int_equal(mkdir(path, 0700), 0);
    if (store_materialize(world->store, id, path, &err) < 0)
        fail_msg("%s", error_message(&err));
    return path;
}

/* Mounts of a test program are seen by, and stay with, nobody else. */
static inline bool have_own_mounts(void)
{
    if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        return true;
    perror("the store's tests need root, for mounts");
    return false;
}

#endif
