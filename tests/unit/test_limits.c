/* Admission and control groups. */
#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "sandbox/admission.h"
#include "vmm/cgroup.h"

#define MIB (UINT64_C(1) << 20)

/* ---- admission: memory and numbers ---- */

struct world {
    uint64_t available;
    uint64_t owned;
    unsigned looks; /* at every VMM */
};

static int available(void *context, uint64_t *ret, struct error *err)
{
    (void)err;
    *ret = ((struct world *)context)->available;
    return 0;
}

static uint64_t owned(void *context)
{
    struct world *world = context;
    world->looks++;
    return world->owned;
}

static struct admission *make(struct world *world, struct admission_limits limits)
{
    if (limits.overcommit_percent == 0)
        limits.overcommit_percent = 100;
    if (limits.start_wait_ms == 0)
        limits.start_wait_ms = 20000;
    const struct host_memory memory = {available, owned, world};
    struct admission *admission = admission_new(&limits, &memory);
    assert_non_null(admission);
    return admission;
}

static void expect_refused(struct admission *admission, uint64_t bytes, const char *reason)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(admission_promise(admission, bytes, &err), -EAGAIN);
    assert_string_equal(err.reason, reason);
    assert_non_null(err.hint);
}

static void expect_promised(struct admission *admission, uint64_t bytes)
{
    assert_int_equal(admission_promise(admission, bytes, NULL), 0);
}

static void test_without_overcommit(void **state)
{
    (void)state;
    struct world world = {.available = ADMISSION_RESERVE + 1000 * MIB};
    struct admission *admission = make(&world, (struct admission_limits){0});
    expect_refused(admission, 1001 * MIB, "out_of_memory");
    expect_promised(admission, 600 * MIB);
    expect_promised(admission, 400 * MIB);
    assert_int_equal(world.looks, 1); /* only for the one that did not fit at first sight */
    expect_refused(admission, 1 * MIB, "out_of_memory");
    /* They have taken what they were promised: nothing changes. */
    world.owned = 900 * MIB;
    world.available -= 900 * MIB;
    expect_refused(admission, 1 * MIB, "out_of_memory");
    admission_withdraw(admission, 600 * MIB);
    world.owned = 400 * MIB;
    world.available += 500 * MIB;
    expect_promised(admission, 600 * MIB);
    expect_refused(admission, 1 * MIB, "out_of_memory");
    /* Somebody else uses the host's memory. */
    admission_withdraw(admission, 600 * MIB);
    world.available = ADMISSION_RESERVE + 99 * MIB;
    expect_refused(admission, 100 * MIB, "out_of_memory");
    expect_promised(admission, 99 * MIB);
    world.available = ADMISSION_RESERVE / 2;
    expect_refused(admission, 1 * MIB, "out_of_memory");
    admission_free(admission);
}

static void test_with_overcommit(void **state)
{
    (void)state;
    struct world world = {.available = ADMISSION_RESERVE + 1000 * MIB};
    struct admission *admission = make(&world, (struct admission_limits){.overcommit_percent = 250});
    expect_refused(admission, 1001 * MIB, "out_of_memory"); /* alone it would fill the host */
    expect_promised(admission, 1000 * MIB);
    expect_promised(admission, 1000 * MIB);
    expect_promised(admission, 500 * MIB);
    expect_refused(admission, 1 * MIB, "out_of_memory");
    admission_withdraw(admission, 1000 * MIB);
    /* Promises would do, but what is owned leaves less than this one may need. */
    world.owned = 800 * MIB;
    world.available -= 800 * MIB;
    expect_refused(admission, 201 * MIB, "out_of_memory");
    expect_promised(admission, 200 * MIB);
    admission_free(admission);
}

static void test_with_a_limit(void **state)
{
    (void)state;
    struct world world = {.available = ADMISSION_RESERVE + 1000 * MIB};
    struct admission *admission =
        make(&world, (struct admission_limits){.memory_bytes = 300 * MIB, .overcommit_percent = 200});
    expect_refused(admission, 301 * MIB, "out_of_memory");
    expect_promised(admission, 300 * MIB);
    expect_promised(admission, 300 * MIB);
    expect_refused(admission, 1 * MIB, "out_of_memory");
    /* A limit makes no memory: what the host has counts, too. */
    admission_withdraw(admission, 300 * MIB);
    world.available = ADMISSION_RESERVE + 50 * MIB;
    world.owned = 100 * MIB;
    expect_refused(admission, 51 * MIB, "out_of_memory");
    admission_free(admission);
}

static void test_numbers(void **state)
{
    (void)state;
    struct world world = {.available = 10000 * MIB};
    struct admission *admission = make(&world, (struct admission_limits){.sandboxes = 2});
    expect_promised(admission, MIB);
    admission_note(admission, MIB); /* taken over */
    expect_refused(admission, MIB, "too_many_sandboxes");
    admission_withdraw(admission, MIB);
    expect_promised(admission, MIB);
    admission_free(admission);
}

/* ---- admission: starts ---- */

struct start {
    struct admission *admission;
    atomic_bool cancelled;
    pthread_t thread;
    int result;
    struct error error;
    unsigned *order; /* shared */
    unsigned turn;   /* as which it came, from 1 */
};

static void *run_start(void *context)
{
    struct start *start = context;
    start->result = admission_begin_start(start->admission, &start->cancelled, &start->error);
    if (start->result == 0)
        start->turn = ++*start->order; /* one at a time: that is what is tested */
    return NULL;
}

static void begin(struct start *start, struct admission *admission, unsigned *order)
{
    *start = (struct start){.admission = admission, .order = order};
    assert_int_equal(pthread_create(&start->thread, NULL, run_start, start), 0);
}

/* There is no event for having joined the line; so each is given time, and order is all that is judged. */
static void settle(void)
{
    usleep(20000);
}

static void test_starts_wait_in_order(void **state)
{
    (void)state;
    struct world world = {0};
    struct admission *admission = make(&world, (struct admission_limits){.starts = 1});
    atomic_bool never = false;
    unsigned order = 0;
    assert_int_equal(admission_begin_start(admission, &never, NULL), 0);
    struct start starts[4];
    for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
        begin(&starts[i], admission, &order);
        settle();
    }
    assert_int_equal(order, 0);
    /* One of those who wait is killed. */
    atomic_store(&starts[1].cancelled, true);
    admission_wake(admission);
    pthread_join(starts[1].thread, NULL);
    assert_int_equal(starts[1].result, -ECANCELED);
    error_done(&starts[1].error);
    static const size_t rest[] = {0, 2, 3};
    for (size_t i = 0; i < ARRAY_SIZE(rest); i++) {
        admission_end_start(admission);
        pthread_join(starts[rest[i]].thread, NULL);
        assert_int_equal(starts[rest[i]].result, 0);
        assert_int_equal(starts[rest[i]].turn, i + 1);
        assert_int_equal(order, i + 1);
    }
    admission_end_start(admission);
    assert_int_equal(admission_begin_start(admission, &never, NULL), 0);
    admission_free(admission);
}

static void test_waiting_is_bounded(void **state)
{
    (void)state;
    struct world world = {0};
    struct admission *admission = make(&world, (struct admission_limits){.starts = 1, .start_wait_ms = 50});
    atomic_bool never = false;
    assert_int_equal(admission_begin_start(admission, &never, NULL), 0);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(admission_begin_start(admission, &never, &err), -EAGAIN);
    assert_string_equal(err.reason, "too_many_starts");
    admission_end_start(admission);
    assert_int_equal(admission_begin_start(admission, &never, NULL), 0); /* who gave up holds no place */
    admission_free(admission);
}

/* ---- control groups, in a directory that only looks like a hierarchy ---- */

static void put(const char *directory, const char *name, const char *text)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0644), 0);
}

static void expect_text(const char *directory, const char *name, const char *text)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    CLEANUP_FREE char *found = NULL;
    assert_int_equal(io_read_file(path, 4096, &found, NULL), 0);
    assert_string_equal(found, text);
}

static void test_what_a_hierarchy_lacks(void **state)
{
    static const struct {
        const char *controllers;
        const char *lacking;
    } cases[] = {
        {"cpuset cpu io memory hugetlb pids rdma\n", ""},
        {"hugetlb\n", "memory, pids, cpu"},
        {"", "memory, pids, cpu"},
        {"cpuset memory pids\n", "cpu"}, /* a word within another is none */
        {"memory cpu pidsx\n", "pids"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        put(*state, "cgroup.controllers", cases[i].controllers);
        CLEANUP_FREE char *lacking = cgroup_lacking(*state);
        assert_string_equal(lacking, cases[i].lacking);
    }
}

/* As the kernel makes it: files appear with the directory. */
static void fill_group(const char *directory)
{
    static const char *const files[] = {"memory.max", "pids.max", "cpu.weight", "cgroup.procs"};
    assert_true(mkdir(directory, 0755) == 0 || errno == EEXIST);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        put(directory, files[i], "");
}

static void test_limits_are_written(void **state)
{
    CLEANUP_FREE char *top = unit_path(*state, "dormouse");
    CLEANUP_FREE char *instance = unit_path(top, "inst");
    CLEANUP_FREE char *group = unit_path(instance, "one");
    assert_int_equal(mkdir(top, 0755), 0);
    assert_int_equal(mkdir(instance, 0755), 0);
    /* What is written to switch "pids" on takes the place of the dots: here that does nothing. */
    put(instance, "cgroup.subtree_control", "........ cpu memory\n");
    fill_group(group);
    struct cgroups *cgroups;
    assert_int_equal(cgroups_open(*state, "inst", &cgroups, NULL), 0);
    assert_string_equal(cgroups_lacking(cgroups), "pids");
    const struct cgroup_limits limits = {.memory_bytes = 300 * MIB, .processes = 130, .cpu_weight = 200};
    char *path = NULL;
    assert_int_equal(cgroup_make(cgroups, "one", &limits, &path, NULL), 0);
    assert_string_equal(path, group);
    expect_text(group, "memory.max", "314572800");
    expect_text(group, "cpu.weight", "200");
    expect_text(group, "pids.max", ""); /* it isn't there: nothing is tried */
    assert_int_equal(cgroup_enter(path, 77, NULL), 0);
    expect_text(group, "cgroup.procs", "77");
    assert_false(cgroup_ran_out_of_memory(cgroups, "one"));
    put(group, "memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\n");
    assert_false(cgroup_ran_out_of_memory(cgroups, "one"));
    put(group, "memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n");
    assert_true(cgroup_ran_out_of_memory(cgroups, "one"));
    free(path);
    cgroups_close(cgroups);
}

/* ---- control groups of this host ---- */

static bool keep_kept(void *context, const char *name)
{
    (void)context;
    return strcmp(name, "kept") == 0;
}

static bool in_group(pid_t pid, const char *end)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
    CLEANUP_FREE char *text = NULL;
    return io_read_file(path, 65536, &text, NULL) == 0 && strstr(text, end) != NULL;
}

static pid_t start_sleeper(void)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    assert_true(pid > 0);
    return pid;
}

static void test_real_groups(void **state)
{
    (void)state;
    const char *hierarchy = cgroup_hierarchy();
    if (hierarchy == NULL || geteuid() != 0)
        skip();
    char instance[32];
    snprintf(instance, sizeof(instance), "test%d", (int)getpid());
    struct cgroups *cgroups;
    assert_int_equal(cgroups_open(hierarchy, instance, &cgroups, NULL), 0);
    const struct cgroup_limits limits = {.memory_bytes = 64 * MIB, .processes = 10, .cpu_weight = 50};
    char *stale = NULL;
    char *kept = NULL;
    assert_int_equal(cgroup_make(cgroups, "stale", &limits, &stale, NULL), 0);
    assert_int_equal(cgroup_make(cgroups, "kept", &limits, &kept, NULL), 0);
    pid_t pids[2] = {start_sleeper(), start_sleeper()};
    assert_int_equal(cgroup_enter(stale, pids[0], NULL), 0);
    assert_int_equal(cgroup_enter(kept, pids[1], NULL), 0);
    assert_true(in_group(pids[0], "/stale\n"));
    /* A sweep ends what is in the group; the parent is yet to know. */
    cgroups_sweep(cgroups, keep_kept, NULL);
    int status;
    assert_int_equal(waitpid(pids[0], &status, 0), pids[0]);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(access(stale, F_OK), -1);
    assert_true(in_group(pids[1], "/kept\n"));
    cgroup_remove(cgroups, "kept");
    assert_int_equal(waitpid(pids[1], &status, 0), pids[1]);
    assert_int_equal(access(kept, F_OK), -1);
    cgroup_remove(cgroups, "kept"); /* one that isn't there */
    char *directory = strdup(kept);
    *strrchr(directory, '/') = '\0';
    cgroups_close(cgroups);
    assert_int_equal(access(directory, F_OK), -1);
    free(directory);
    free(stale);
    free(kept);
}

static void test_memory_is_bounded(void **state)
{
    (void)state;
    const char *hierarchy = cgroup_hierarchy();
    struct cgroups *cgroups = NULL;
    if (hierarchy == NULL || geteuid() != 0)
        skip();
    char instance[32];
    snprintf(instance, sizeof(instance), "oom%d", (int)getpid());
    assert_int_equal(cgroups_open(hierarchy, instance, &cgroups, NULL), 0);
    if (strstr(cgroups_lacking(cgroups), "memory") != NULL) {
        cgroups_close(cgroups);
        skip();
    }
    const struct cgroup_limits limits = {.memory_bytes = 32 * MIB, .processes = 10, .cpu_weight = 50};
    char *path = NULL;
    assert_int_equal(cgroup_make(cgroups, "greedy", &limits, &path, NULL), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (cgroup_enter(path, getpid(), NULL) < 0)
            _exit(1);
        size_t length = 256 * MIB;
        char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            _exit(2);
        memset(memory, 1, length);
        _exit(3);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(cgroup_ran_out_of_memory(cgroups, "greedy"));
    cgroup_remove(cgroups, "greedy");
    cgroups_close(cgroups);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_overcommit),   cmocka_unit_test(test_with_overcommit),
        cmocka_unit_test(test_with_a_limit),         cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_starts_wait_in_order), cmocka_unit_test(test_waiting_is_bounded),
        UNIT_TEST(test_what_a_hierarchy_lacks),      UNIT_TEST(test_limits_are_written),
        cmocka_unit_test(test_real_groups),          cmocka_unit_test(test_memory_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
