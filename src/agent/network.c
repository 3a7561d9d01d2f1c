#include "agent/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/io.h"
#include "net/net.h"

#define DISABLE_IPV6 "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"

static struct sockaddr address_of(uint32_t host_order)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host_order)};
    struct sockaddr any;
    memcpy(&any, &in, sizeof(any));
    return any;
}

static int interface_up(int fd, const char *name, struct error *err)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return error_errno(err, "there is no network interface %s", name);
    request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        return error_errno(err, "cannot bring up %s", name);
    return 0;
}

static int set_address(int fd, const char *name, struct error *err)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
    request.ifr_addr = address_of(ntohl(inet_addr(NET_GUEST_ADDRESS)));
    if (ioctl(fd, SIOCSIFADDR, &request) < 0)
        return error_errno(err, "cannot give %s its address", name);
    request.ifr_netmask = address_of(~UINT32_C(0) << (32 - NET_PREFIX_LENGTH));
    if (ioctl(fd, SIOCSIFNETMASK, &request) < 0)
        return error_errno(err, "cannot give %s its netmask", name);
    return 0;
}

static int set_default_route(int fd, struct error *err)
{
    struct rtentry route = {
        .rt_dst = address_of(INADDR_ANY),
        .rt_genmask = address_of(INADDR_ANY),
        .rt_gateway = address_of(ntohl(inet_addr(NET_GATEWAY))),
        .rt_flags = RTF_UP | RTF_GATEWAY,
    };
    if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
        return error_errno(err, "cannot set the default route");
    return 0;
}

/* Only IPv4 is routed out of a sandbox; a link-local IPv6 address would cost idle traffic. ::1 stays on lo. */
static void disable_ipv6(void)
{
    CLEANUP_CLOSE int fd = open(DISABLE_IPV6, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        io_write_full(fd, "1", 1);
}

int network_configure(struct error *err)
{
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_errno(err, "cannot open a socket");
    int r = interface_up(fd, "lo", err);
    if (r < 0)
        return r;
    disable_ipv6();
    r = set_address(fd, "eth0", err);
    if (r < 0)
        return r;
    r = interface_up(fd, "eth0", err);
    if (r < 0)
        return r;
    return set_default_route(fd, err);
}
