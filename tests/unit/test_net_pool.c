/*
 * The pool of networks over its whole life, crashes included, and the choice of addresses; in a world of its own
 * (net_world.h).
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "net/claim.h"
#include "net/firewall.h"
#include "net/namespace.h"
#include "net_world.h"

static struct world world;

static void claim_of_others(unsigned slot, const char *instance, const char *data)
{
    char path[64];
    char text[128];
    snprintf(path, sizeof(path), CLAIM_DIRECTORY "/%u", slot);
    snprintf(text, sizeof(text), "%s\n%s", instance, data);
    assert_int_equal(io_make_directories(CLAIM_DIRECTORY, 0755), 0);
    assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0644), 0);
}

static bool exists(const char *format, unsigned slot)
{
    char path[64];
    snprintf(path, sizeof(path), format, slot);
    return access(path, F_OK) == 0;
}

static bool has_claim(unsigned slot)
{
    return exists(CLAIM_DIRECTORY "/%u", slot);
}

static bool has_namespace(unsigned slot)
{
    return exists("/run/netns/dormouse-%u", slot);
}

static bool has_veth(unsigned slot)
{
    return world_shell(world.host_fd, "ip link show dmh%u >/dev/null 2>&1", slot) == 0;
}

static void assert_all_gone(unsigned slot)
{
    assert_false(has_namespace(slot));
    assert_false(has_veth(slot));
    assert_false(has_claim(slot));
}

static void assert_all_there(unsigned slot)
{
    assert_true(has_namespace(slot));
    assert_true(has_veth(slot));
    assert_true(has_claim(slot));
}

/* ---- the pool ---- */

static void test_release_removes_everything(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 2);
    struct network *networks[] = {world_take(pool), world_take(pool), world_take(pool)};
    unsigned slots[ARRAY_SIZE(networks)];
    for (size_t i = 0; i < ARRAY_SIZE(networks); i++) {
        slots[i] = networks[i]->slot;
        assert_all_there(slots[i]);
    }
    assert_int_not_equal(slots[0], slots[1]);
    assert_int_not_equal(slots[1], slots[2]);
    /* A descriptor that somebody still holds keeps the namespace, but not its way to the host. */
    CLEANUP_CLOSE int lingering = network_socket(networks[0], NULL);
    assert_true(lingering >= 0);
    for (size_t i = 0; i < ARRAY_SIZE(networks); i++)
        network_release(pool, networks[i]);
    network_release(pool, NULL);
    network_pool_close(pool);
    for (unsigned slot = 0; slot < 16; slot++)
        assert_all_gone(slot);
    assert_false(firewall_host_present());
}

/* In between, nobody else's copy of it could keep the device busy. */
static void test_a_tap_device_is_open_from_the_beginning(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 1);
    struct network *network = world_take(pool);
    assert_int_equal(namespace_open_tap(network->namespace_fd, NULL), -EBUSY);
    int first = network_open_tap(network, NULL);
    assert_true(first >= 0);
    assert_int_equal(network_open_tap(network, NULL), -EBUSY);
    close(first);
    CLEANUP_CLOSE int again = network_open_tap(network, NULL);
    assert_true(again >= 0);
    network_release(pool, network);
    network_pool_close(pool);
}

struct taker {
    struct network_pool *pool;
    struct network *first;
    struct network *second;
    pthread_t thread;
};

static void *take_two(void *argument)
{
    struct taker *taker = argument;
    struct network *released = NULL;
    if (network_take(taker->pool, &taker->first, NULL) == 0 && network_take(taker->pool, &released, NULL) == 0) {
        network_release(taker->pool, released);
        (void)network_take(taker->pool, &taker->second, NULL);
    }
    return NULL;
}

static void test_many_may_take_at_once(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 3);
    struct taker takers[6] = {0};
    bool seen[CLAIM_SLOTS] = {false};
    for (size_t i = 0; i < ARRAY_SIZE(takers); i++) {
        takers[i].pool = pool;
        assert_int_equal(pthread_create(&takers[i].thread, NULL, take_two, &takers[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(takers); i++)
        assert_int_equal(pthread_join(takers[i].thread, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(takers); i++) {
        struct network *const both[] = {takers[i].first, takers[i].second};
        for (size_t j = 0; j < ARRAY_SIZE(both); j++) {
            assert_non_null(both[j]);
            assert_false(seen[both[j]->slot]);
            seen[both[j]->slot] = true;
            assert_all_there(both[j]->slot);
            network_release(pool, both[j]);
        }
    }
    network_pool_close(pool);
    for (unsigned slot = 0; slot < CLAIM_SLOTS; slot++)
        assert_false(has_claim(slot));
}

static void test_sandbox_survives_the_daemon(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 1);
    struct network *network = world_take(pool);
    unsigned slot = network->slot;
    struct guest guest;
    assert_int_equal(guest_attach(&guest, network), 0);
    assert_int_equal(network_set_egress(network, false, NULL), 0);
    CLEANUP_CLOSE int to_guest = network_socket(network, NULL);
    assert_true(to_guest >= 0);
    network_pool_close(pool);
    assert_all_there(slot);
    assert_true(firewall_host_present());

    pool = world_open_pool("one", WORLD_DATA "/one", 1);
    network = NULL;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), 0);
    assert_true(network->egress_denied);
    struct network *twice;
    assert_int_equal(network_adopt(pool, slot, &twice, NULL), -EBUSY);
    assert_int_equal(network_adopt(pool, slot + 1, &twice, NULL), -ENOENT);
    assert_int_equal(network_adopt(pool, 4000000000u, &twice, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    struct network *another = world_take(pool);
    assert_int_not_equal(another->slot, slot);
    assert_int_equal(guest_barrier(&guest, network), 0);
    guest_detach(&guest);
    network_release(pool, network);
    network_release(pool, another);
    network_pool_close(pool);
    assert_all_gone(slot);
}

/* Runs in a process of its own, where no assertion may be made. Ends by being killed. */
static void hold_sandboxes(int ready_fd)
{
    const struct network_pool_options options = {"one", WORLD_DATA "/one", 2};
    struct network_pool *pool;
    struct network *networks[2];
    if (network_pool_open(&options, &pool, NULL) < 0 || network_pool_start(pool, NULL) < 0 ||
        network_take(pool, &networks[0], NULL) < 0 || network_take(pool, &networks[1], NULL) < 0)
        return;
    const unsigned slots[] = {networks[0]->slot, networks[1]->slot};
    if (io_write_full(ready_fd, slots, sizeof(slots)) == 0)
        pause();
}

static void crash(unsigned slots[2])
{
    int pipe_fds[2];
    assert_int_equal(io_make_directories(WORLD_DATA "/one", 0700), 0);
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        hold_sandboxes(pipe_fds[1]);
        _exit(1);
    }
    close(pipe_fds[1]);
    assert_int_equal(io_read_full(pipe_fds[0], slots, 2 * sizeof(*slots)), 2 * sizeof(*slots));
    close(pipe_fds[0]);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_crash_is_cleaned_up_at_start(void **state)
{
    (void)state;
    unsigned slots[2];
    crash(slots);
    assert_all_there(slots[0]);
    assert_all_there(slots[1]);
    /* What a crash in the middle of making or removing leaves. */
    claim_of_others(100, "one", WORLD_DATA "/one");
    claim_of_others(101, "one", WORLD_DATA "/one");
    claim_of_others(102, "earlier", WORLD_DATA "/one");
    assert_int_equal(world_shell(world.host_fd, "touch /run/netns/dormouse-101"), 0);
    assert_int_equal(world_shell(world.host_fd, "ip link add dmh102 type veth peer name other102"), 0);

    struct network_pool *pool = world_open_pool("one", WORLD_DATA "/one", 0);
    struct network *network = NULL;
    assert_int_equal(network_adopt(pool, 101, &network, NULL), -ENOENT);
    assert_int_equal(network_adopt(pool, slots[1], &network, NULL), 0);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_pool_close(pool);
    assert_all_there(slots[1]);
    for (unsigned slot = 0; slot < 128; slot++)
        if (slot != slots[1])
            assert_all_gone(slot);
    network_pool_close(world_start_pool("one", WORLD_DATA "/one", 0));
    assert_all_gone(slots[1]);
}

static void test_claims_of_others_are_left_alone(void **state)
{
    (void)state;
    struct network_pool *other = world_start_pool("two", WORLD_DATA "/two", 1);
    struct network *theirs = world_take(other);
    unsigned slot = theirs->slot;
    struct network_pool *pool = world_open_pool("one", WORLD_DATA "/one", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network = world_take(pool);
    assert_int_not_equal(network->slot, slot);
    network_release(pool, network);
    network_pool_close(pool);
    assert_all_there(slot);
    assert_true(firewall_host_present());
    network_release(other, theirs);
    network_pool_close(other);
    assert_all_gone(slot);
}

static void test_slots_of_a_vanished_data_directory_are_reclaimed(void **state)
{
    (void)state;
    struct network_pool *other = world_start_pool("two", WORLD_DATA "/two", 0);
    unsigned slot = world_take(other)->slot;
    network_pool_close(other);
    network_pool_close(world_start_pool("one", WORLD_DATA "/one", 0));
    assert_all_there(slot);
    assert_int_equal(io_remove_tree(WORLD_DATA "/two"), 0);
    struct network_pool *pool = world_open_pool("one", WORLD_DATA "/one", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_pool_close(pool);
    assert_all_gone(slot);
}

static void test_moved_data_directory_keeps_its_sandboxes(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("two", WORLD_DATA "/two", 0);
    unsigned slot = world_take(pool)->slot;
    network_pool_close(pool);
    assert_int_equal(rename(WORLD_DATA "/two", WORLD_DATA "/three"), 0);
    pool = world_open_pool("two", WORLD_DATA "/three", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), 0);
    network_pool_close(world_start_pool("one", WORLD_DATA "/one", 0));
    assert_all_there(slot);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_release(pool, network);
    network_pool_close(pool);
    assert_all_gone(slot);
}

static void test_no_slot_left(void **state)
{
    (void)state;
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 0);
    assert_int_equal(io_make_directories(WORLD_DATA "/two", 0700), 0);
    for (unsigned slot = 0; slot < CLAIM_SLOTS; slot++)
        if (slot != 77)
            claim_of_others(slot, "two", WORLD_DATA "/two");
    struct network *network = world_take(pool);
    assert_int_equal(network->slot, 77);
    struct network *none = NULL;
    assert_int_equal(network_take(pool, &none, NULL), -EAGAIN);
    network_release(pool, network);
    assert_int_equal(io_remove_tree(WORLD_DATA "/two"), 0);
    network_pool_close(pool);
    network_pool_close(world_start_pool("one", WORLD_DATA "/one", 0));
    assert_false(has_claim(0));
    assert_false(has_claim(CLAIM_SLOTS - 1));
}

/* ---- the range of addresses ---- */

static int try_open(const char *network, struct error *err)
{
    const struct network_pool_options options = {"three", WORLD_DATA "/one", 0};
    struct network_pool *pool = NULL;
    assert_int_equal(io_make_directories(WORLD_DATA "/one", 0700), 0);
    setenv("DORMOUSE_NETWORK", network, 1);
    int r = network_pool_open(&options, &pool, err);
    unsetenv("DORMOUSE_NETWORK");
    if (r == 0)
        network_pool_close(pool);
    return r;
}

static void test_range_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *network;
        int result;
    } cases[] = {
        {"10.77.64.0/18", 0},
        {"10.77.64.0/16", -EINVAL},
        {"10.77.65.0/18", -EINVAL},
        {"10.77.64/18", -EINVAL},
        {"", -EINVAL},
        {"fd00::/18", -EINVAL},
        {"10.77.64.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0/18", -EINVAL},
        {"198.51.64.0/18", -EADDRINUSE}, /* where WORLD_HOST_ADDRESS is */
        {"198.51.0.0/18", 0},
        {"0.0.0.0/18", -EINVAL},
        {"127.0.0.0/18", -EINVAL},
        {"169.254.64.0/18", -EINVAL},
        {"240.0.0.0/18", -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(try_open(cases[i].network, &err), cases[i].result);
        if (cases[i].result < 0)
            assert_non_null(err.hint);
    }
}

static void test_range_avoids_the_hosts_networks(void **state)
{
    (void)state;
    /* A route to a part of the first candidate, one to the second in another table, one around the third. */
    assert_int_equal(world_shell(world.host_fd,
                                 "ip route add 10.213.9.0/24 via " WORLD_OUTSIDE_ADDRESS
                                 " && ip route add 10.213.64.0/18 via " WORLD_OUTSIDE_ADDRESS
                                 " table 7 && ip route add 172.16.0.0/12 via " WORLD_OUTSIDE_ADDRESS),
                     0);
    struct network_pool *pool = world_start_pool("one", WORLD_DATA "/one", 0);
    CLEANUP_FREE char *text = NULL;
    assert_int_equal(io_read_file(CLAIM_DIRECTORY "/range", 64, &text, NULL), 0);
    network_pool_close(pool);
    assert_int_equal(world_shell(world.host_fd, "ip route del 10.213.9.0/24; ip route flush table 7; "
                                                "ip route del 172.16.0.0/12"),
                     0);
    assert_string_equal(text, "192.168.192.0/18");
}

static void test_range_in_use_is_not_changed(void **state)
{
    (void)state;
    struct network_pool *pool =
        world_open_pool("one", WORLD_DATA "/one", 0); /* without its thread: setenv is for one */
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(try_open("10.77.64.0/18", &err), -EBUSY);
    assert_non_null(err.hint);
    assert_int_equal(try_open("10.213.0.0/18", NULL), 0);
    assert_true(firewall_host_present());
    /* Neither while only sandboxes use it. */
    struct network *network = world_take(pool);
    unsigned slot = network->slot;
    network_pool_close(pool);
    assert_int_equal(try_open("10.77.64.0/18", NULL), -EBUSY);
    pool = world_start_pool("one", WORLD_DATA "/one", 0);
    network_pool_close(pool);
    assert_all_gone(slot);
    assert_int_equal(try_open("10.77.64.0/18", NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_release_removes_everything),
        cmocka_unit_test(test_a_tap_device_is_open_from_the_beginning),
        cmocka_unit_test(test_many_may_take_at_once),
        cmocka_unit_test(test_sandbox_survives_the_daemon),
        cmocka_unit_test(test_crash_is_cleaned_up_at_start),
        cmocka_unit_test(test_claims_of_others_are_left_alone),
        cmocka_unit_test(test_slots_of_a_vanished_data_directory_are_reclaimed),
        cmocka_unit_test(test_moved_data_directory_keeps_its_sandboxes),
        cmocka_unit_test(test_no_slot_left),
        cmocka_unit_test(test_range_is_checked),
        cmocka_unit_test(test_range_avoids_the_hosts_networks),
        cmocka_unit_test(test_range_in_use_is_not_changed),
    };
    int r = world_enter(&world, "test_net_pool");
    return r != 0 ? r : cmocka_run_group_tests(tests, NULL, NULL);
}
