#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "sandbox/registry.h"
#include "sandbox/state.h"
#include "unit.h"

static struct registry *open_registry(const char *path)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct registry *registry = NULL;
    if (registry_open(path, &registry, &err) < 0)
        fail_msg("%s", error_message(&err));
    return registry;
}

static int count_visit(void *context, const char *id, const json_t *document, struct error *err)
{
    (void)err;
    assert_string_equal(id, "one");
    *(int *)context += (int)json_integer_value(json_object_get(document, "n"));
    return 0;
}

static int refuse_visit(void *context, const char *id, const json_t *document, struct error *err)
{
    (void)context;
    (void)document;
    return error_set(err, ECANCELED, "at %s", id);
}

static void put(struct registry *registry, const char *id, int n)
{
    json_t *document = json_pack("{s:i}", "n", n);
    assert_int_equal(registry_put(registry, REGISTRY_SANDBOX, id, document, false, NULL), 0);
    json_decref(document);
}

static void objects_survive_reopening(void **state)
{
    CLEANUP_FREE char *path = unit_path(*state, "registry.db");
    struct registry *registry = open_registry(path);
    put(registry, "one", 1);
    put(registry, "one", 5);
    put(registry, "two", 7);
    assert_int_equal(registry_delete(registry, REGISTRY_SANDBOX, "two", NULL), 0);
    registry_close(registry);
    registry = open_registry(path);
    int sum = 0;
    assert_int_equal(registry_visit(registry, REGISTRY_SANDBOX, count_visit, &sum, NULL), 0);
    assert_int_equal(sum, 5);
    sum = 0;
    assert_int_equal(registry_visit(registry, REGISTRY_TEMPLATE, count_visit, &sum, NULL), 0);
    assert_int_equal(sum, 0);
    assert_int_equal(registry_visit(registry, REGISTRY_SANDBOX, refuse_visit, NULL, NULL), -ECANCELED);
    registry_close(registry);
}

static void a_damaged_file_is_refused_and_left_alone(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = unit_path(*state, "registry.db");
    static const char rubbish[] = "this was a database once, and should not be written over by anybody at all";
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(io_write_full(fd, rubbish, sizeof(rubbish)), 0);
    struct registry *registry = NULL;
    assert_int_equal(registry_open(path, &registry, &err), -EUCLEAN);
    assert_null(registry);
    assert_non_null(strstr(error_message(&err), path));
    assert_non_null(strstr(err.hint, "recover"));
    char back[sizeof(rubbish)];
    assert_int_equal(pread(fd, back, sizeof(back), 0), sizeof(back));
    assert_memory_equal(back, rubbish, sizeof(rubbish));
}

static void a_damaged_page_is_found(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = unit_path(*state, "registry.db");
    struct registry *registry = open_registry(path);
    for (int i = 0; i < 500; i++) {
        char id[32];
        snprintf(id, sizeof(id), "id%d", i);
        put(registry, id, i);
    }
    registry_close(registry);
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    char junk[4096];
    memset(junk, 0x5a, sizeof(junk));
    assert_int_equal(io_pwrite_full(fd, junk, sizeof(junk), 4096), 0);
    assert_int_equal(registry_open(path, &registry, &err), -EUCLEAN);
}

static void states_are_named_both_ways(void **state)
{
    (void)state;
    for (int i = 0; i < SANDBOX_STATE_COUNT; i++)
        assert_int_equal(sandbox_state_parse(sandbox_state_name((enum sandbox_state)i)), i);
    assert_int_equal(sandbox_state_parse("asleep"), -1);
}

static void the_table_holds_what_life_cycle_promises(void **state)
{
    (void)state;
    assert_true(sandbox_state_may_follow(SANDBOX_PAUSING, SANDBOX_RUNNING));
    assert_true(sandbox_state_may_follow(SANDBOX_RESUMING, SANDBOX_PAUSED));
    assert_false(sandbox_state_may_follow(SANDBOX_RUNNING, SANDBOX_RESUMING));
    assert_false(sandbox_state_may_follow(SANDBOX_PAUSED, SANDBOX_RUNNING));
    assert_false(sandbox_state_may_follow(SANDBOX_LOST, SANDBOX_RUNNING));
    for (int i = 0; i < SANDBOX_STATE_COUNT; i++) {
        assert_false(sandbox_state_may_follow(SANDBOX_KILLED, (enum sandbox_state)i));
        if (i != SANDBOX_KILLED)
            assert_true(sandbox_state_may_follow((enum sandbox_state)i, SANDBOX_KILLED));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(objects_survive_reopening),
        UNIT_TEST(a_damaged_file_is_refused_and_left_alone),
        UNIT_TEST(a_damaged_page_is_found),
        cmocka_unit_test(states_are_named_both_ways),
        cmocka_unit_test(the_table_holds_what_life_cycle_promises),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
