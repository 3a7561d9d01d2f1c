/*
 * What stands in a namespace, and why.
 *
 * - The TAP device has the same MAC in every namespace, since the guest's ARP cache travels with its memory.
 * - All neighbours (the guest, both ends of the veth pair) are permanent. So an idle guest gets no ARP, and the
 *   kernel's neighbour table, which has one limit for all namespaces, is not filled by sandboxes.
 * - IPv6 is off everywhere, also on the host's end of the pair: no router solicitation, no way around the rules.
 * - rp_filter is strict: a guest can't make neighbours of forged ARP senders, and once the default route prohibits
 *   (egress denied), packets from outside are dropped too. Source routing is off: it would get past the rules.
 */
#include "net/namespace.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/magic.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/io.h"
#include "net/firewall.h"
#include "net/net.h"

#define NAMESPACE_DIRECTORY "/run/netns"

static const unsigned char guest_mac[RTNL_MAC_BYTES] = {0x02, 0x00, 0x5e, 0x00, 0x00, 0x02};
static const unsigned char gateway_mac[RTNL_MAC_BYTES] = {0x02, 0x00, 0x5e, 0x00, 0x00, 0x01};

struct entry {
    int namespace_fd;
    int (*function)(void *context, struct error *err);
    void *context;
    struct error *err;
    int result;
};

static void *enter(void *argument)
{
    struct entry *entry = argument;
    if (entry->namespace_fd >= 0 && setns(entry->namespace_fd, CLONE_NEWNET) < 0)
        entry->result = error_errno(entry->err, "cannot enter the network namespace");
    else if (entry->namespace_fd < 0 && unshare(CLONE_NEWNET) < 0)
        entry->result = error_errno(entry->err, "cannot make a network namespace");
    else
        entry->result = entry->function(entry->context, entry->err);
    return NULL;
}

int namespace_run(int namespace_fd, int (*function)(void *context, struct error *err), void *context,
                  struct error *err)
{
    struct entry entry = {namespace_fd, function, context, err, 0};
    sigset_t all;
    sigset_t before;
    pthread_t thread;
    /* Signals are for the daemon's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread, NULL, enter, &entry);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return error_code(err, -code, "cannot start a thread");
    pthread_join(thread, NULL);
    return entry.result;
}

static void namespace_path(unsigned slot, char ret_path[static NAMESPACE_PATH_BYTES])
{
    snprintf(ret_path, NAMESPACE_PATH_BYTES, NAMESPACE_DIRECTORY "/" NAMESPACE_NAME_PREFIX "%u", slot);
}

static void veth_name(unsigned slot, char ret_name[static IFNAMSIZ])
{
    snprintf(ret_name, IFNAMSIZ, NAMESPACE_VETH_PREFIX "%u", slot);
}

/* Locally administered; `end` tells the pair's ends apart. */
static void veth_mac(unsigned slot, unsigned char end, unsigned char ret_mac[static RTNL_MAC_BYTES])
{
    const unsigned char mac[RTNL_MAC_BYTES] = {
        0x02, 0x00, 0x5e, end, (unsigned char)(slot >> 8), (unsigned char)slot};
    memcpy(ret_mac, mac, sizeof(mac));
}

int namespace_prepare_directory(struct error *err)
{
    int r = io_make_directories(NAMESPACE_DIRECTORY, 0755);
    if (r < 0)
        return error_code(err, r, "cannot make %s", NAMESPACE_DIRECTORY);
    /* Shared, so that a removal reaches the mount namespaces that have copies. EINVAL: not a mount point yet. */
    if (mount("", NAMESPACE_DIRECTORY, "none", MS_SHARED | MS_REC, NULL) == 0)
        return 0;
    if (errno != EINVAL || mount(NAMESPACE_DIRECTORY, NAMESPACE_DIRECTORY, "none", MS_BIND | MS_REC, NULL) < 0 ||
        mount("", NAMESPACE_DIRECTORY, "none", MS_SHARED | MS_REC, NULL) < 0)
        return error_errno(err, "cannot mount %s", NAMESPACE_DIRECTORY);
    return 0;
}

/* Under /proc/sys/net, where a thread sees its own namespace. */
static int write_setting(const char *name, const char *value, struct error *err)
{
    char path[128];
    snprintf(path, sizeof(path), "/proc/sys/net/%s", name);
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
    int r = fd < 0 ? -errno : io_write_full(fd, value, strlen(value));
    return r < 0 ? error_code(err, r, "cannot set %s", path) : 0;
}

/* As write_setting; a kernel without IPv6 needs none of it. */
static int disable_ipv6(const char *interface, struct error *err)
{
    char name[64];
    snprintf(name, sizeof(name), "ipv6/conf/%s/disable_ipv6", interface);
    CLEANUP_ERROR struct error failure = ERROR_INIT;
    int r = write_setting(name, "1", &failure);
    if (r == -ENOENT)
        return 0;
    if (r < 0 && err != NULL)
        error_move(err, &failure);
    return r;
}

static int apply_settings(struct error *err)
{
    static const char *const settings[][2] = {
        {"ipv4/ip_forward", "1"},
        {"ipv4/conf/all/rp_filter", "1"},
        {"ipv4/conf/all/accept_source_route", "0"},
        {"ipv4/conf/all/accept_redirects", "0"},
        {"ipv4/conf/all/arp_ignore", "1"}, /* the guest learns of no address but its gateway's */
    };
    for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
        int r = write_setting(settings[i][0], settings[i][1], err);
        if (r < 0)
            return r;
    }
    return disable_ipv6("all", err); /* also of what comes later */
}

static int open_tap(void *context, struct error *err)
{
    (void)context;
    CLEANUP_CLOSE int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, "cannot open /dev/net/tun");
    struct ifreq interface = {.ifr_name = NET_TAP_NAME};
    interface.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &interface) < 0)
        return error_errno(err, "cannot open the TAP device");
    return TAKE_FD(fd);
}

int namespace_open_tap(int namespace_fd, struct error *err)
{
    return namespace_run(namespace_fd, open_tap, NULL, err);
}

/* Returns its descriptor. */
static int make_tap(struct rtnl *inside, struct error *err)
{
    CLEANUP_CLOSE int fd = open_tap(NULL, err);
    if (fd < 0)
        return fd;
    if (ioctl(fd, TUNSETPERSIST, 1) < 0)
        return error_errno(err, "cannot keep the TAP device");
    struct in_addr gateway;
    struct in_addr guest;
    inet_pton(AF_INET, NET_GATEWAY, &gateway);
    inet_pton(AF_INET, NET_GUEST_ADDRESS, &guest);
    int r = rtnl_set_link_up(inside, NET_TAP_NAME, gateway_mac, err);
    if (r == 0)
        r = rtnl_add_address(inside, NET_TAP_NAME, gateway.s_addr, NET_PREFIX_LENGTH, err);
    if (r == 0)
        r = rtnl_add_neighbour(inside, NET_TAP_NAME, guest.s_addr, guest_mac, err);
    return r < 0 ? r : TAKE_FD(fd);
}

struct making {
    const struct range *range;
    unsigned slot;
    int host_fd;
    const char *path;
    int tap_fd; /* -1 until it is made */
};

/* One end of the veth pair, once it exists. */
static int configure_veth(struct rtnl *rtnl, const char *name, in_addr_t own, in_addr_t peer,
                          const unsigned char *peer_mac, struct error *err)
{
    int r = rtnl_set_link_up(rtnl, name, NULL, err);
    if (r == 0)
        r = rtnl_add_address(rtnl, name, own, RANGE_SLOT_PREFIX_LENGTH, err);
    if (r == 0)
        r = rtnl_add_neighbour(rtnl, name, peer, peer_mac, err);
    return r;
}

static int make_veth(const struct making *making, struct rtnl *inside, struct error *err)
{
    char host_name[IFNAMSIZ];
    unsigned char host_mac[RTNL_MAC_BYTES];
    unsigned char inside_mac[RTNL_MAC_BYTES];
    veth_name(making->slot, host_name);
    veth_mac(making->slot, 1, host_mac);
    veth_mac(making->slot, 2, inside_mac);
    const struct rtnl_veth_end own = {NAMESPACE_INSIDE_VETH, inside_mac};
    const struct rtnl_veth_end peer = {host_name, host_mac};
    in_addr_t host = range_host_address(making->range, making->slot);
    int r = rtnl_add_veth(inside, &own, &peer, making->host_fd, err);
    if (r == 0)
        r = configure_veth(inside, NAMESPACE_INSIDE_VETH, range_inside_address(making->range, making->slot), host,
                           host_mac, err);
    if (r == 0)
        r = rtnl_replace_default_route(inside, NAMESPACE_INSIDE_VETH, host, err);
    return r;
}

/* Runs in the new namespace. The rules come before any device that carries packets. */
static int furnish(void *context, struct error *err)
{
    struct making *making = context;
    CLEANUP_CLOSE int file = open(making->path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (file < 0 || mount("/proc/thread-self/ns/net", making->path, "none", MS_BIND, NULL) < 0)
        return error_errno(err, "cannot bind the namespace to %s", making->path);
    CLEANUP_RTNL struct rtnl *inside = NULL;
    int r = rtnl_open(&inside, err);
    if (r == 0)
        r = apply_settings(err);
    if (r == 0)
        r = firewall_install_inside(making->range, err);
    if (r == 0)
        r = rtnl_set_link_up(inside, "lo", NULL, err);
    if (r == 0)
        r = making->tap_fd = make_tap(inside, err);
    if (r >= 0)
        r = make_veth(making, inside, err);
    return r;
}

static int furnish_host(const struct range *range, unsigned slot, struct error *err)
{
    char name[IFNAMSIZ];
    unsigned char inside_mac[RTNL_MAC_BYTES];
    veth_name(slot, name);
    veth_mac(slot, 2, inside_mac);
    CLEANUP_RTNL struct rtnl *host = NULL;
    int r = rtnl_open(&host, err);
    if (r == 0)
        r = disable_ipv6(name, err);
    if (r == 0)
        r = configure_veth(host, name, range_host_address(range, slot), range_inside_address(range, slot),
                           inside_mac, err);
    return r;
}

int namespace_make(const struct range *range, unsigned slot, int host_fd, int *ret_tap_fd, struct error *err)
{
    char path[NAMESPACE_PATH_BYTES];
    namespace_path(slot, path);
    struct making making = {range, slot, host_fd, path, -1};
    int r = namespace_remove(slot, err);
    if (r == 0)
        r = namespace_run(-1, furnish, &making, err);
    if (r == 0)
        r = furnish_host(range, slot, err);
    if (r == 0)
        r = namespace_open(slot, err);
    if (r < 0) {
        cleanup_close(&making.tap_fd);
        namespace_remove(slot, NULL);
        return error_wrap(err, r, "making the network of slot %u", slot);
    }
    *ret_tap_fd = making.tap_fd;
    return r;
}

int namespace_open(unsigned slot, struct error *err)
{
    char path[NAMESPACE_PATH_BYTES];
    namespace_path(slot, path);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct statfs status;
    if (fd < 0 || fstatfs(fd, &status) < 0)
        return error_errno(err, "cannot open %s", path);
    /* An empty file is what an interrupted removal or making leaves. */
    if (status.f_type != NSFS_MAGIC)
        return error_set(err, ENOENT, "%s is not a namespace", path);
    return TAKE_FD(fd);
}

int namespace_remove(unsigned slot, struct error *err)
{
    char name[IFNAMSIZ];
    veth_name(slot, name);
    CLEANUP_RTNL struct rtnl *host = NULL;
    int r = rtnl_open(&host, err);
    if (r < 0)
        return r;
    CLEANUP_ERROR struct error failure = ERROR_INIT;
    r = rtnl_delete_link(host, name, &failure);
    if (r < 0 && r != -ENODEV) {
        if (err != NULL)
            error_move(err, &failure);
        return r;
    }
    char path[NAMESPACE_PATH_BYTES];
    namespace_path(slot, path);
    while (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        ;
    if (errno != EINVAL && errno != ENOENT)
        return error_errno(err, "cannot unmount %s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, "cannot remove %s", path);
    return 0;
}

struct egress {
    in_addr_t gateway;
    bool allowed;
};

static int set_egress(void *context, struct error *err)
{
    const struct egress *egress = context;
    CLEANUP_RTNL struct rtnl *inside = NULL;
    int r = rtnl_open(&inside, err);
    if (r < 0)
        return r;
    return rtnl_replace_default_route(inside, egress->allowed ? NAMESPACE_INSIDE_VETH : NULL, egress->gateway, err);
}

int namespace_set_egress(int namespace_fd, const struct range *range, unsigned slot, bool allowed,
                         struct error *err)
{
    struct egress egress = {range_host_address(range, slot), allowed};
    int r = namespace_run(namespace_fd, set_egress, &egress, err);
    return r < 0 ? error_wrap(err, r, "%s egress", allowed ? "allowing" : "denying") : 0;
}

static void note_default_route(const struct rtnl_route *route, void *context)
{
    struct egress *egress = context;
    if (route->prefix_length == 0 && route->table == RT_TABLE_MAIN && route->type == RTN_UNICAST)
        egress->allowed = true;
}

static int get_egress(void *context, struct error *err)
{
    CLEANUP_RTNL struct rtnl *inside = NULL;
    int r = rtnl_open(&inside, err);
    return r < 0 ? r : rtnl_list_routes(inside, note_default_route, context, err);
}

int namespace_get_egress(int namespace_fd, bool *ret_allowed, struct error *err)
{
    struct egress egress = {0, false};
    int r = namespace_run(namespace_fd, get_egress, &egress, err);
    if (r == 0)
        *ret_allowed = egress.allowed;
    return r;
}
