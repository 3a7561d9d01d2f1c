/*
 * Sandboxes' networks with real namespaces, devices and packets, in a world of their own (net_world.h).
 *
 * That something is blocked is shown without waiting for it not to come: the same address is first reached by
 * somebody who may; then the guest tries, guest_barrier says that its packets have been carried, and nothing has
 * arrived.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "net/claim.h"
#include "net/firewall.h"
#include "net/namespace.h"
#include "net/net.h"
#include "net/range.h"
#include "net_world.h"

#define EXIT_SKIPPED 77          /* what meson takes for "skipped" */
#define DATA         "/run/data" /* in the world's own /run */

static struct world world;

/* ---- helpers ---- */

static struct network_pool *open_pool(const char *instance, const char *data, unsigned ahead)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const struct network_pool_options options = {instance, data, ahead};
    struct network_pool *pool = NULL;
    assert_int_equal(io_make_directories(data, 0700), 0);
    if (network_pool_open(&options, &pool, &err) < 0)
        fail_msg("%s", error_message(&err));
    return pool;
}

static struct network_pool *start_pool(const char *instance, const char *data, unsigned ahead)
{
    struct network_pool *pool = open_pool(instance, data, ahead);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    return pool;
}

static struct network *take(struct network_pool *pool)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct network *network = NULL;
    if (network_take(pool, &network, &err) < 0)
        fail_msg("%s", error_message(&err));
    return network;
}

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

static void assert_reaches(int from_fd, int listener_fd, const char *address, uint16_t port)
{
    CLEANUP_CLOSE int client = peer_connect(from_fd, SOCK_STREAM, address, port);
    assert_true(client >= 0);
    assert_int_equal(peer_wait_connected(client), 0);
    CLEANUP_CLOSE int server = peer_accept(listener_fd);
    assert_true(server >= 0);
    assert_int_equal(peer_exchange(client, server), 0);
}

/* Nothing that the guest sends to the listener at `address` arrives, although `control_fd` reaches it. */
static void assert_blocked(struct guest *guest, const struct network *network, int control_fd, int server_fd,
                           const char *address)
{
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(server_fd, SOCK_STREAM, "0.0.0.0", &port);
    assert_true(listener >= 0);
    assert_reaches(control_fd, listener, address, port);
    CLEANUP_CLOSE int client = peer_connect(guest->namespace_fd, SOCK_STREAM, address, port);
    assert_true(client >= 0);
    assert_int_equal(guest_barrier(guest, network), 0);
    struct pollfd waited = {.fd = listener, .events = POLLIN};
    if (poll(&waited, 1, 0) != 0)
        fail_msg("the guest has reached %s", address);
}

/* ---- one sandbox and its guest, for the tests of what may pass ---- */

struct sandbox {
    struct network_pool *pool;
    struct network *network;
    struct guest guest;
    char host_address[INET_ADDRSTRLEN]; /* of its veth pair */
    char inside_address[INET_ADDRSTRLEN];
};

static void name_addresses(struct sandbox *sandbox)
{
    struct range range;
    CLEANUP_FREE char *text = NULL;
    assert_int_equal(io_read_file(CLAIM_DIRECTORY "/range", 64, &text, NULL), 0);
    assert_int_equal(range_parse(text, &range, NULL), 0);
    struct in_addr host = {range_host_address(&range, sandbox->network->slot)};
    struct in_addr inside = {range_inside_address(&range, sandbox->network->slot)};
    inet_ntop(AF_INET, &host, sandbox->host_address, sizeof(sandbox->host_address));
    inet_ntop(AF_INET, &inside, sandbox->inside_address, sizeof(sandbox->inside_address));
}

static int setup_sandbox(void **state)
{
    struct sandbox *sandbox = calloc(1, sizeof(*sandbox));
    assert_non_null(sandbox);
    sandbox->pool = start_pool("one", DATA "/one", 0);
    sandbox->network = take(sandbox->pool);
    name_addresses(sandbox);
    assert_int_equal(guest_attach(&sandbox->guest, sandbox->network), 0);
    *state = sandbox;
    return 0;
}

static int teardown_sandbox(void **state)
{
    struct sandbox *sandbox = *state;
    guest_detach(&sandbox->guest);
    network_release(sandbox->pool, sandbox->network);
    network_pool_close(sandbox->pool);
    free(sandbox);
    return 0;
}

static void test_host_reaches_guest(void **state)
{
    struct sandbox *sandbox = *state;
    assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
}

static void test_guest_reaches_outside(void **state)
{
    struct sandbox *sandbox = *state;
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(world.outside_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, &port);
    assert_reaches(sandbox->guest.namespace_fd, listener, WORLD_OUTSIDE_ADDRESS, port);
}

static void test_guest_does_not_reach_host(void **state)
{
    struct sandbox *sandbox = *state;
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.host_fd, WORLD_HOST_ADDRESS);
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.host_fd, sandbox->host_address);
    /* Also when the host's routing policy leads the packets to it in a way that the first chain can't see. */
    assert_int_equal(world_shell(world.host_fd, "nft flush chain inet dormouse raw"), 0);
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.host_fd, WORLD_HOST_ADDRESS);
}

/* The host forwards one of its ports to a container, as Docker does; the container stands outside here. */
static void test_guest_does_not_reach_forwarded_port(void **state)
{
    struct sandbox *sandbox = *state;
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(world.outside_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, &port);
    assert_int_equal(world_shell(world.host_fd,
                                 "nft 'table ip forwarded { chain in { type nat hook prerouting priority dstnat; "
                                 "ip daddr " WORLD_HOST_ADDRESS " tcp dport 80 dnat to " WORLD_OUTSIDE_ADDRESS
                                 ":%u; }; }'",
                                 port),
                     0);
    CLEANUP_CLOSE int client = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, WORLD_HOST_ADDRESS, 80);
    assert_true(client >= 0);
    int r = guest_barrier(&sandbox->guest, sandbox->network);
    struct pollfd waited = {.fd = listener, .events = POLLIN};
    int arrived = poll(&waited, 1, 0);
    assert_int_equal(world_shell(world.host_fd, "nft delete table ip forwarded"), 0);
    assert_int_equal(r, 0);
    assert_int_equal(arrived, 0);
}

static void test_guest_does_not_reach_own_namespace(void **state)
{
    struct sandbox *sandbox = *state;
    int inside = sandbox->network->namespace_fd;
    /* The namespace's firewall lets not even itself talk to itself, so there is no control but the barrier. */
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(inside, SOCK_STREAM, "0.0.0.0", &port);
    CLEANUP_CLOSE int first = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, NET_GATEWAY, port);
    assert_true(first >= 0);
    CLEANUP_CLOSE int second =
        peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, sandbox->inside_address, port);
    assert_true(second >= 0);
    assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
    struct pollfd waited = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&waited, 1, 0), 0);
    /* The firewall is what kept it away. */
    assert_int_equal(world_shell(inside, "nft delete table inet dormouse"), 0);
    assert_reaches(sandbox->guest.namespace_fd, listener, NET_GATEWAY, port);
}

static void test_guest_does_not_reach_metadata(void **state)
{
    struct sandbox *sandbox = *state;
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.outside_fd, WORLD_METADATA_ADDRESS);
    CLEANUP_CLOSE int client = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, WORLD_METADATA_ADDRESS, 80);
    assert_int_equal(peer_wait_connected(client), -EHOSTUNREACH);
}

/* Replaces the rules of the sandbox's namespace by the bare NAT, so that only the host's rules stand. */
static void strip_inside_rules(const struct network *network)
{
    assert_int_equal(world_shell(network->namespace_fd,
                                 "nft 'delete table inet dormouse; table ip bare { chain out { type nat hook "
                                 "postrouting priority srcnat; oifname eth0 masquerade; }; }'"),
                     0);
}

static void test_host_rules_alone_block(void **state)
{
    struct sandbox *sandbox = *state;
    strip_inside_rules(sandbox->network);
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(world.outside_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, &port);
    assert_reaches(sandbox->guest.namespace_fd, listener, WORLD_OUTSIDE_ADDRESS, port);
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.host_fd, sandbox->host_address);
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.outside_fd, WORLD_METADATA_ADDRESS);
}

/* A guest that speaks to another's slot; the other's rules are stripped, so that it would answer. */
static void try_other_guest(struct sandbox *sandbox, bool strip_own)
{
    struct sandbox other = {.pool = sandbox->pool, .network = take(sandbox->pool)};
    name_addresses(&other);
    if (strip_own)
        strip_inside_rules(sandbox->network);
    strip_inside_rules(other.network);
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(other.network->namespace_fd, SOCK_STREAM, "0.0.0.0", &port);
    assert_reaches(other.network->namespace_fd, listener, other.inside_address, port);
    CLEANUP_CLOSE int client = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, other.inside_address, port);
    assert_true(client >= 0);
    int r = guest_barrier(&sandbox->guest, sandbox->network);
    struct pollfd waited = {.fd = listener, .events = POLLIN};
    int arrived = poll(&waited, 1, 0);
    network_release(sandbox->pool, other.network);
    assert_int_equal(r, 0);
    assert_int_equal(arrived, 0);
}

static void test_guest_does_not_reach_other_guest(void **state)
{
    try_other_guest(*state, false);
}

static void test_host_rules_alone_keep_guests_apart(void **state)
{
    try_other_guest(*state, true);
}

static void test_outside_does_not_reach_slot(void **state)
{
    struct sandbox *sandbox = *state;
    strip_inside_rules(sandbox->network);
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(sandbox->network->namespace_fd, SOCK_STREAM, "0.0.0.0", &port);
    assert_reaches(sandbox->network->namespace_fd, listener, sandbox->inside_address, port);
    assert_int_equal(
        world_shell(world.outside_fd, "ip route add %s via " WORLD_HOST_ADDRESS, sandbox->inside_address), 0);
    CLEANUP_CLOSE int client = peer_connect(world.outside_fd, SOCK_STREAM, sandbox->inside_address, port);
    assert_true(client >= 0);
    /* What the outside sends next travels behind it. */
    uint16_t host_port = 0;
    CLEANUP_CLOSE int host_listener = peer_listen(world.host_fd, SOCK_STREAM, WORLD_HOST_ADDRESS, &host_port);
    assert_reaches(world.outside_fd, host_listener, WORLD_HOST_ADDRESS, host_port);
    struct pollfd waited = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&waited, 1, 0), 0);
    assert_int_equal(world_shell(world.outside_fd, "ip route del %s", sandbox->inside_address), 0);
}

static void test_forged_sender_is_dropped(void **state)
{
    struct sandbox *sandbox = *state;
    uint16_t port = 0;
    CLEANUP_CLOSE int receiver = peer_listen(world.outside_fd, SOCK_DGRAM, WORLD_OUTSIDE_ADDRESS, &port);
    CLEANUP_CLOSE int honest = peer_connect(sandbox->guest.namespace_fd, SOCK_DGRAM, WORLD_OUTSIDE_ADDRESS, port);
    assert_int_equal(peer_send(honest, "honest"), 0);
    assert_int_equal(peer_expect(receiver, "honest"), 0);
    /* The kernel's own check of senders would do, too; this is about the rule. */
    assert_int_equal(world_shell(sandbox->network->namespace_fd, "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter"),
                     0);
    /* Neither a stranger's address nor one that the namespace itself would send from. */
    const char *const forged[] = {"203.0.113.7", sandbox->inside_address};
    for (size_t i = 0; i < ARRAY_SIZE(forged); i++) {
        assert_int_equal(world_shell(sandbox->guest.namespace_fd,
                                     "ip addr add %s/32 dev eth0 && ip route replace " WORLD_OUTSIDE_ADDRESS
                                     " via " NET_GATEWAY " src %s",
                                     forged[i], forged[i]),
                         0);
        CLEANUP_CLOSE int forger =
            peer_connect(sandbox->guest.namespace_fd, SOCK_DGRAM, WORLD_OUTSIDE_ADDRESS, port);
        assert_int_equal(peer_send(forger, "forged"), 0);
        assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
        assert_true(peer_is_silent(receiver));
    }
}

static void test_connections_are_bounded(void **state)
{
    struct sandbox *sandbox = *state;
    assert_int_equal(guest_flood(&sandbox->guest, sandbox->network, 3 * FIREWALL_CONNECTIONS_MAX), 0);
    assert_int_equal(world_shell(sandbox->network->namespace_fd,
                                 "test $(cat /proc/sys/net/netfilter/nf_conntrack_count) -le %d",
                                 FIREWALL_CONNECTIONS_MAX + 256),
                     0);
}

static void test_denied_egress_cuts_and_refuses(void **state)
{
    struct sandbox *sandbox = *state;
    uint16_t port = 0;
    CLEANUP_CLOSE int listener = peer_listen(world.outside_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, &port);
    CLEANUP_CLOSE int client = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, port);
    assert_true(client >= 0);
    CLEANUP_CLOSE int server = peer_accept(listener);
    assert_int_equal(peer_exchange(client, server), 0);

    assert_int_equal(network_set_egress(sandbox->network, false, NULL), 0);
    assert_true(sandbox->network->egress_denied);
    /* First, since the kernel limits how often it tells. */
    CLEANUP_CLOSE int refused = peer_connect(sandbox->guest.namespace_fd, SOCK_STREAM, WORLD_OUTSIDE_ADDRESS, port);
    assert_int_equal(peer_wait_connected(refused), -EHOSTUNREACH);
    assert_int_equal(peer_send(client, "out"), 0);
    assert_int_equal(peer_send(server, "in"), 0);
    assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
    assert_true(peer_is_silent(server));
    assert_true(peer_is_silent(client));

    assert_int_equal(network_set_egress(sandbox->network, true, NULL), 0);
    assert_false(sandbox->network->egress_denied);
    assert_reaches(sandbox->guest.namespace_fd, listener, WORLD_OUTSIDE_ADDRESS, port);
}

static void test_idle_guest_is_not_disturbed(void **state)
{
    struct sandbox *sandbox = *state;
    assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
    test_guest_reaches_outside(state);
    assert_int_equal(network_set_egress(sandbox->network, false, NULL), 0);
    assert_int_equal(guest_barrier(&sandbox->guest, sandbox->network), 0);
    assert_int_equal(atomic_load(&sandbox->guest.disturbances), 0);
    assert_int_equal(world_shell(sandbox->network->namespace_fd, "test -z \"$(ip -6 addr)\""), 0);
    assert_int_equal(world_shell(world.host_fd, "test -z \"$(ip -6 addr show dev dmh%u)\"", sandbox->network->slot),
                     0);
}

/* The guest's ARP cache travels with its memory. */
static void test_gateway_is_the_same_everywhere(void **state)
{
    struct sandbox *sandbox = *state;
    struct network *other = take(sandbox->pool);
    const struct network *both[] = {sandbox->network, other};
    for (size_t i = 0; i < ARRAY_SIZE(both); i++)
        assert_int_equal(world_shell(both[i]->namespace_fd,
                                     "ip link show dev " NET_TAP_NAME " | grep -q 'ether " NET_GATEWAY_MAC "'"),
                         0);
    network_release(sandbox->pool, other);
}

static void test_flushed_firewall_comes_back(void **state)
{
    struct sandbox *sandbox = *state;
    CLEANUP_CLOSE int watch = firewall_watch_open(NULL);
    assert_true(watch >= 0);
    assert_int_equal(world_shell(world.host_fd, "nft flush ruleset"), 0);
    struct pollfd waited = {.fd = watch, .events = POLLIN};
    while (!firewall_host_present()) {
        assert_int_equal(poll(&waited, 1, WORLD_PATIENCE_MS), 1);
        firewall_watch_read(watch);
    }
    test_guest_reaches_outside(state);
    assert_blocked(&sandbox->guest, sandbox->network, world.host_fd, world.host_fd, WORLD_HOST_ADDRESS);
}

/* ---- the pool ---- */

static void test_release_removes_everything(void **state)
{
    (void)state;
    struct network_pool *pool = start_pool("one", DATA "/one", 2);
    struct network *networks[] = {take(pool), take(pool), take(pool)};
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

static void test_sandbox_survives_the_daemon(void **state)
{
    (void)state;
    struct network_pool *pool = start_pool("one", DATA "/one", 1);
    struct network *network = take(pool);
    unsigned slot = network->slot;
    struct guest guest;
    assert_int_equal(guest_attach(&guest, network), 0);
    assert_int_equal(network_set_egress(network, false, NULL), 0);
    CLEANUP_CLOSE int to_guest = network_socket(network, NULL);
    assert_true(to_guest >= 0);
    network_pool_close(pool);
    assert_all_there(slot);
    assert_true(firewall_host_present());

    pool = open_pool("one", DATA "/one", 1);
    network = NULL;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), 0);
    assert_true(network->egress_denied);
    struct network *twice;
    assert_int_equal(network_adopt(pool, slot, &twice, NULL), -EBUSY);
    assert_int_equal(network_adopt(pool, slot + 1, &twice, NULL), -ENOENT);
    assert_int_equal(network_adopt(pool, 4000000000u, &twice, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    struct network *another = take(pool);
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
    const struct network_pool_options options = {"one", DATA "/one", 2};
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
    assert_int_equal(io_make_directories(DATA "/one", 0700), 0);
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
    claim_of_others(100, "one", DATA "/one");
    claim_of_others(101, "one", DATA "/one");
    claim_of_others(102, "earlier", DATA "/one");
    assert_int_equal(world_shell(world.host_fd, "touch /run/netns/dormouse-101"), 0);
    assert_int_equal(world_shell(world.host_fd, "ip link add dmh102 type veth peer name other102"), 0);

    struct network_pool *pool = open_pool("one", DATA "/one", 0);
    struct network *network = NULL;
    assert_int_equal(network_adopt(pool, 101, &network, NULL), -ENOENT);
    assert_int_equal(network_adopt(pool, slots[1], &network, NULL), 0);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_pool_close(pool);
    assert_all_there(slots[1]);
    for (unsigned slot = 0; slot < 128; slot++)
        if (slot != slots[1])
            assert_all_gone(slot);
    network_pool_close(start_pool("one", DATA "/one", 0));
    assert_all_gone(slots[1]);
}

static void test_claims_of_others_are_left_alone(void **state)
{
    (void)state;
    struct network_pool *other = start_pool("two", DATA "/two", 1);
    struct network *theirs = take(other);
    unsigned slot = theirs->slot;
    struct network_pool *pool = open_pool("one", DATA "/one", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network = take(pool);
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
    struct network_pool *other = start_pool("two", DATA "/two", 0);
    unsigned slot = take(other)->slot;
    network_pool_close(other);
    network_pool_close(start_pool("one", DATA "/one", 0));
    assert_all_there(slot);
    assert_int_equal(io_remove_tree(DATA "/two"), 0);
    struct network_pool *pool = open_pool("one", DATA "/one", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), -ENOENT);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_pool_close(pool);
    assert_all_gone(slot);
}

static void test_moved_data_directory_keeps_its_sandboxes(void **state)
{
    (void)state;
    struct network_pool *pool = start_pool("two", DATA "/two", 0);
    unsigned slot = take(pool)->slot;
    network_pool_close(pool);
    assert_int_equal(rename(DATA "/two", DATA "/three"), 0);
    pool = open_pool("two", DATA "/three", 0);
    struct network *network;
    assert_int_equal(network_adopt(pool, slot, &network, NULL), 0);
    network_pool_close(start_pool("one", DATA "/one", 0));
    assert_all_there(slot);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    network_release(pool, network);
    network_pool_close(pool);
    assert_all_gone(slot);
}

static void test_no_slot_left(void **state)
{
    (void)state;
    struct network_pool *pool = start_pool("one", DATA "/one", 0);
    assert_int_equal(io_make_directories(DATA "/two", 0700), 0);
    for (unsigned slot = 0; slot < CLAIM_SLOTS; slot++)
        if (slot != 77)
            claim_of_others(slot, "two", DATA "/two");
    struct network *network = take(pool);
    assert_int_equal(network->slot, 77);
    struct network *none = NULL;
    assert_int_equal(network_take(pool, &none, NULL), -EAGAIN);
    network_release(pool, network);
    assert_int_equal(io_remove_tree(DATA "/two"), 0);
    network_pool_close(pool);
    network_pool_close(start_pool("one", DATA "/one", 0));
    assert_false(has_claim(0));
    assert_false(has_claim(CLAIM_SLOTS - 1));
}

/* ---- the range of addresses ---- */

static int try_open(const char *network, struct error *err)
{
    const struct network_pool_options options = {"three", DATA "/one", 0};
    struct network_pool *pool = NULL;
    assert_int_equal(io_make_directories(DATA "/one", 0700), 0);
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
    struct network_pool *pool = start_pool("one", DATA "/one", 0);
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
    struct network_pool *pool = start_pool("one", DATA "/one", 0);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(try_open("10.77.64.0/18", &err), -EBUSY);
    assert_non_null(err.hint);
    assert_int_equal(try_open("10.213.0.0/18", NULL), 0);
    assert_true(firewall_host_present());
    /* Neither while only sandboxes use it. */
    struct network *network = take(pool);
    unsigned slot = network->slot;
    network_pool_close(pool);
    assert_int_equal(try_open("10.77.64.0/18", NULL), -EBUSY);
    pool = start_pool("one", DATA "/one", 0);
    network_pool_close(pool);
    assert_all_gone(slot);
    assert_int_equal(try_open("10.77.64.0/18", NULL), 0);
}

int main(void)
{
    if (geteuid() != 0) {
        fprintf(stderr, "test_net: skipped: network namespaces need root\n");
        return EXIT_SKIPPED;
    }
    int r = world_enter(&world);
    if (r < 0) {
        fprintf(stderr, "test_net: cannot make its own namespaces: %s\n", strerror(-r));
        return EXIT_FAILURE;
    }
    const struct CMUnitTest with_guest[] = {
        cmocka_unit_test_setup_teardown(test_host_reaches_guest, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_reaches_outside, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_does_not_reach_host, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_does_not_reach_forwarded_port, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_does_not_reach_own_namespace, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_does_not_reach_metadata, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_host_rules_alone_block, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_guest_does_not_reach_other_guest, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_host_rules_alone_keep_guests_apart, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_outside_does_not_reach_slot, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_forged_sender_is_dropped, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_connections_are_bounded, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_denied_egress_cuts_and_refuses, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_idle_guest_is_not_disturbed, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_gateway_is_the_same_everywhere, setup_sandbox, teardown_sandbox),
        cmocka_unit_test_setup_teardown(test_flushed_firewall_comes_back, setup_sandbox, teardown_sandbox),
    };
    const struct CMUnitTest pool[] = {
        cmocka_unit_test(test_release_removes_everything),
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
    int failed = cmocka_run_group_tests(with_guest, NULL, NULL);
    failed += cmocka_run_group_tests(pool, NULL, NULL);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
