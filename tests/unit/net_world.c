#include "net_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "net/namespace.h"

#define EXIT_SKIPPED      77 /* for meson */
#define VNET_HEADER_BYTES 10 /* struct virtio_net_hdr, what a TAP with IFF_VNET_HDR begins with */
#define FRAME_MAX         (VNET_HEADER_BYTES + 65536)

static int own_namespace(void *context, struct error *err)
{
    (void)context;
    (void)err;
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int shell_in(void *context, struct error *err)
{
    (void)err;
    int status = system(context);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

int world_shell(int namespace_fd, const char *format, ...)
{
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof(command), format, arguments);
    va_end(arguments);
    return namespace_run(namespace_fd, shell_in, command, NULL);
}

static int build_world(struct world *world)
{
    if (unshare(CLONE_NEWNET | CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) < 0 ||
        mount("test", "/run", "tmpfs", 0, "mode=755") < 0)
        return -errno;
    world->host_fd = own_namespace(NULL, NULL);
    world->outside_fd = namespace_run(-1, own_namespace, NULL, NULL);
    if (world->host_fd < 0 || world->outside_fd < 0)
        return -EIO;
    int r = world_shell(world->host_fd,
                        "set -e; echo 0 >/proc/sys/net/ipv4/ip_forward; ip link set lo up; "
                        "ip link add wan0 type veth peer name eth0 netns /proc/%d/fd/%d; "
                        "ip addr add " WORLD_HOST_ADDRESS "/24 dev wan0; ip link set wan0 up; "
                        "ip route add " WORLD_METADATA_ADDRESS " via " WORLD_OUTSIDE_ADDRESS " dev wan0 onlink",
                        (int)getpid(), world->outside_fd);
    /* A flood is not answered by ICMP, whose rate the kernel limits for all namespaces together. */
    if (r == 0)
        r = world_shell(world->outside_fd,
                        "set -e; ip link set lo up; ip addr add " WORLD_OUTSIDE_ADDRESS "/24 dev eth0; "
                        "ip link set eth0 up; ip addr add " WORLD_METADATA_ADDRESS "/32 dev lo; "
                        "nft 'table ip quiet { chain in { type filter hook input priority filter; "
                        "udp dport < 32768 drop; }; }'");
    return r == 0 ? 0 : -EIO;
}

int world_enter(struct world *world, const char *program)
{
    if (geteuid() != 0) {
        fprintf(stderr, "%s: skipped: network namespaces need root\n", program);
        return EXIT_SKIPPED;
    }
    int r = build_world(world);
    if (r < 0)
        fprintf(stderr, "%s: cannot make its own namespaces: %s\n", program, strerror(-r));
    return r < 0 ? EXIT_FAILURE : 0;
}

struct network_pool *world_open_pool(const char *instance, const char *data, unsigned ahead)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const struct network_pool_options options = {instance, data, ahead};
    struct network_pool *pool = NULL;
    assert_int_equal(io_make_directories(data, 0700), 0);
    if (network_pool_open(&options, &pool, &err) < 0)
        fail_msg("%s", error_message(&err));
    return pool;
}

struct network_pool *world_start_pool(const char *instance, const char *data, unsigned ahead)
{
    struct network_pool *pool = world_open_pool(instance, data, ahead);
    assert_int_equal(network_pool_start(pool, NULL), 0);
    return pool;
}

struct network *world_take(struct network_pool *pool)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct network *network = NULL;
    if (network_take(pool, &network, &err) < 0)
        fail_msg("%s", error_message(&err));
    return network;
}

/* ---- guests ---- */

static int open_own_tap(void *context, struct error *err)
{
    (void)err;
    struct guest *guest = context;
    guest->namespace_fd = own_namespace(NULL, NULL);
    guest->own_tap_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    struct ifreq interface = {.ifr_name = "eth0"};
    interface.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (guest->namespace_fd < 0 || guest->own_tap_fd < 0 || ioctl(guest->own_tap_fd, TUNSETIFF, &interface) < 0)
        return -errno;
    static char configure[] = "set -e; ip link set lo up; ip link set eth0 address " NET_GUEST_MAC
                              "; ip addr add " NET_GUEST_ADDRESS "/30 dev eth0; ip link set eth0 up; "
                              "ip route add default via " NET_GATEWAY;
    return shell_in(configure, NULL) == 0 ? 0 : -EIO;
}

static unsigned disturbs(const unsigned char *frame, ssize_t length)
{
    const struct ether_header *header = (const struct ether_header *)(frame + VNET_HEADER_BYTES);
    const struct arphdr *arp = (const struct arphdr *)(header + 1);
    if (length < (ssize_t)(VNET_HEADER_BYTES + sizeof(*header)))
        return 1;
    if ((header->ether_dhost[0] & 1) != 0)
        return 1;
    return header->ether_type == htons(ETHERTYPE_ARP) &&
           (length < (ssize_t)(VNET_HEADER_BYTES + sizeof(*header) + sizeof(*arp)) ||
            arp->ar_op == htons(ARPOP_REQUEST));
}

/* Frames that the other side does not take are lost, as on any wire. */
static void *carry(void *argument)
{
    struct guest *guest = argument;
    static _Thread_local unsigned char frame[FRAME_MAX];
    struct pollfd fds[] = {{.fd = guest->own_tap_fd, .events = POLLIN},
                           {.fd = guest->sandbox_tap_fd, .events = POLLIN},
                           {.fd = guest->stop_fd, .events = POLLIN}};
    while (fds[2].revents == 0) {
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
            continue;
        if (fds[0].revents != 0) {
            ssize_t n = read(guest->own_tap_fd, frame, sizeof(frame));
            (void)!write(guest->sandbox_tap_fd, frame, n < 0 ? 0 : (size_t)n);
        }
        if (fds[1].revents != 0) {
            ssize_t n = read(guest->sandbox_tap_fd, frame, sizeof(frame));
            atomic_fetch_add(&guest->disturbances, disturbs(frame, n));
            (void)!write(guest->own_tap_fd, frame, n < 0 ? 0 : (size_t)n);
        }
    }
    return NULL;
}

int guest_attach(struct guest *guest, struct network *network)
{
    guest->disturbances = 0;
    int r = namespace_run(-1, open_own_tap, guest, NULL);
    if (r < 0)
        return r;
    guest->sandbox_tap_fd = network_open_tap(network, NULL);
    if (guest->sandbox_tap_fd < 0)
        return guest->sandbox_tap_fd;
    guest->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (guest->stop_fd < 0 || pthread_create(&guest->carrier, NULL, carry, guest) != 0)
        return -EAGAIN;
    guest->listener_fd = peer_listen(guest->namespace_fd, SOCK_STREAM, NET_GUEST_ADDRESS, &guest->listener_port);
    return guest->listener_fd < 0 ? guest->listener_fd : 0;
}

void guest_detach(struct guest *guest)
{
    (void)!eventfd_write(guest->stop_fd, 1);
    pthread_join(guest->carrier, NULL);
    close(guest->listener_fd);
    close(guest->stop_fd);
    close(guest->sandbox_tap_fd);
    close(guest->own_tap_fd);
    close(guest->namespace_fd);
}

static int connect_to(int fd, const char *address, uint16_t port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &name.sin_addr);
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    return connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0 && errno != EINPROGRESS ? -errno : 0;
}

int guest_barrier(struct guest *guest, const struct network *network)
{
    CLEANUP_CLOSE int fd = network_socket(network, NULL);
    int r = fd < 0 ? fd : connect_to(fd, NET_GUEST_ADDRESS, guest->listener_port);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int accepted = peer_accept(guest->listener_fd);
    if (accepted < 0)
        return accepted;
    r = peer_wait_connected(fd);
    return r < 0 ? r : peer_exchange(fd, accepted);
}

struct flood {
    struct guest *guest;
    const struct network *network;
    uint16_t count;
};

static int flood(void *context, struct error *err)
{
    (void)err;
    const struct flood *plan = context;
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in name = {.sin_family = AF_INET};
    inet_pton(AF_INET, WORLD_OUTSIDE_ADDRESS, &name.sin_addr);
    for (unsigned port = 1; port <= plan->count; port++) {
        name.sin_port = htons((uint16_t)port);
        if (sendto(fd, "flood", 5, 0, (const struct sockaddr *)&name, sizeof(name)) < 0)
            return -errno;
        /* So that no queue on the way overflows. */
        int r = port % 256 == 0 ? guest_barrier(plan->guest, plan->network) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

int guest_flood(struct guest *guest, const struct network *network, uint16_t count)
{
    struct flood plan = {guest, network, count};
    return namespace_run(guest->namespace_fd, flood, &plan, NULL);
}

/* ---- sockets ---- */

struct peer {
    int type;
    struct sockaddr_in name;
    int listen;
};

static int make_peer(void *context, struct error *err)
{
    (void)err;
    const struct peer *peer = context;
    CLEANUP_CLOSE int fd = socket(AF_INET, peer->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int r = peer->listen ? bind(fd, (const struct sockaddr *)&peer->name, sizeof(peer->name))
                         : connect(fd, (const struct sockaddr *)&peer->name, sizeof(peer->name));
    if (r < 0 && errno != EINPROGRESS)
        return -errno;
    if (peer->listen && peer->type == SOCK_STREAM && listen(fd, 16) < 0)
        return -errno;
    return TAKE_FD(fd);
}

int peer_listen(int namespace_fd, int type, const char *address, uint16_t *ret_port)
{
    struct peer peer = {.type = type, .name = {.sin_family = AF_INET}, .listen = 1};
    inet_pton(AF_INET, address, &peer.name.sin_addr);
    int fd = namespace_run(namespace_fd, make_peer, &peer, NULL);
    socklen_t length = sizeof(peer.name);
    if (fd >= 0 && getsockname(fd, (struct sockaddr *)&peer.name, &length) == 0)
        *ret_port = ntohs(peer.name.sin_port);
    return fd;
}

int peer_connect(int namespace_fd, int type, const char *address, uint16_t port)
{
    struct peer peer = {.type = type, .name = {.sin_family = AF_INET, .sin_port = htons(port)}};
    inet_pton(AF_INET, address, &peer.name.sin_addr);
    return namespace_run(namespace_fd, make_peer, &peer, NULL);
}

static int wait_for(int fd, short events)
{
    struct pollfd waited = {.fd = fd, .events = events};
    int n;
    do
        n = poll(&waited, 1, WORLD_PATIENCE_MS);
    while (n < 0 && errno == EINTR);
    return n == 1 ? 0 : -ETIMEDOUT;
}

int peer_wait_connected(int fd)
{
    int code = 0;
    socklen_t length = sizeof(code);
    int r = wait_for(fd, POLLOUT);
    if (r == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length) < 0)
        r = -errno;
    return r < 0 ? r : -code;
}

int peer_accept(int listener_fd)
{
    int r = wait_for(listener_fd, POLLIN);
    if (r < 0)
        return r;
    int fd = accept4(listener_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int peer_send(int fd, const char *text)
{
    return send(fd, text, strlen(text), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int peer_expect(int fd, const char *text)
{
    char buffer[64] = "";
    int r = wait_for(fd, POLLIN);
    if (r < 0)
        return r;
    if (recv(fd, buffer, sizeof(buffer) - 1, 0) < 0)
        return -errno;
    return strcmp(buffer, text) == 0 ? 0 : -EBADMSG;
}

int peer_exchange(int one_fd, int other_fd)
{
    int r = peer_send(one_fd, "there");
    if (r == 0)
        r = peer_expect(other_fd, "there");
    if (r == 0)
        r = peer_send(other_fd, "back");
    return r < 0 ? r : peer_expect(one_fd, "back");
}

int peer_is_silent(int fd)
{
    char byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}
