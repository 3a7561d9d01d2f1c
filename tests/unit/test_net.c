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
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "net/claim.h"
#include "net/firewall.h"
#include "net/net.h"
#include "net/range.h"
#include "net_world.h"

static struct world world;

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
    sandbox->pool = world_start_pool("one", WORLD_DATA "/one", 0);
    sandbox->network = world_take(sandbox->pool);
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
    struct sandbox other = {.pool = sandbox->pool, .network = world_take(sandbox->pool)};
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
    /* A datagram may get lost on a busy machine; one of a few arrives. */
    int delivered = -ETIMEDOUT;
    for (int attempt = 0; attempt < 5 && delivered == -ETIMEDOUT; attempt++) {
        assert_int_equal(peer_send(honest, "honest"), 0);
        delivered = peer_expect(receiver, "honest");
    }
    assert_int_equal(delivered, 0);
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
    struct network *other = world_take(sandbox->pool);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
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
    int r = world_enter(&world, "test_net");
    return r != 0 ? r : cmocka_run_group_tests(tests, NULL, NULL);
}
