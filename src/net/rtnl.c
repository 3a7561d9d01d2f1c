#include "net/rtnl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Every request here is shorter, and the kernel's answers fit too: it splits a dump by the reader's buffer. */
#define MESSAGE_BYTES 32768

struct rtnl {
    struct mnl_socket *socket;
    uint32_t sequence;
    union {
        struct nlmsghdr header; /* for its alignment */
        char bytes[MESSAGE_BYTES];
    } buffer;
};

int rtnl_open(struct rtnl **ret, struct error *err)
{
    CLEANUP_RTNL struct rtnl *rtnl = calloc(1, sizeof(*rtnl));
    if (rtnl == NULL)
        return error_set(err, ENOMEM, "out of memory");
    rtnl->socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
    if (rtnl->socket == NULL || mnl_socket_bind(rtnl->socket, 0, MNL_SOCKET_AUTOPID) < 0)
        return error_errno(err, "cannot open a netlink socket");
    *ret = TAKE_PTR(rtnl);
    return 0;
}

void rtnl_close(struct rtnl *rtnl)
{
    if (rtnl == NULL)
        return;
    if (rtnl->socket != NULL)
        mnl_socket_close(rtnl->socket);
    free(rtnl);
}

void rtnl_cleanup(struct rtnl **rtnl)
{
    rtnl_close(*rtnl);
}

/* Begins a request in the buffer. */
static struct nlmsghdr *request(struct rtnl *rtnl, uint16_t type, uint16_t flags)
{
    struct nlmsghdr *message = mnl_nlmsg_put_header(&rtnl->buffer);
    message->nlmsg_type = type;
    message->nlmsg_flags = NLM_F_REQUEST | flags;
    message->nlmsg_seq = ++rtnl->sequence;
    return message;
}

/* Sends the request and hands what the kernel answers to `each` until its end or acknowledgement. */
static int exchange(struct rtnl *rtnl, const struct nlmsghdr *message, mnl_cb_t each, void *context)
{
    unsigned port = mnl_socket_get_portid(rtnl->socket);
    uint32_t sequence = message->nlmsg_seq;
    if (mnl_socket_sendto(rtnl->socket, message, message->nlmsg_len) < 0)
        return -errno;
    for (;;) {
        ssize_t n = mnl_socket_recvfrom(rtnl->socket, &rtnl->buffer, sizeof(rtnl->buffer));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (rtnl->buffer.header.nlmsg_seq != sequence) /* left unread by an exchange that failed */
            continue;
        int r = mnl_cb_run(&rtnl->buffer, (size_t)n, sequence, port, each, context);
        if (r < 0)
            return -errno;
        if (r == MNL_CB_STOP)
            return 0;
    }
}

static int acknowledge(struct rtnl *rtnl, struct nlmsghdr *message)
{
    message->nlmsg_flags |= NLM_F_ACK;
    return exchange(rtnl, message, NULL, NULL);
}

static void put_link_end(struct nlmsghdr *message, const struct rtnl_veth_end *end)
{
    mnl_attr_put_strz(message, IFLA_IFNAME, end->name);
    mnl_attr_put(message, IFLA_ADDRESS, RTNL_MAC_BYTES, end->mac);
}

int rtnl_add_veth(struct rtnl *rtnl, const struct rtnl_veth_end *own, const struct rtnl_veth_end *peer,
                  int peer_namespace_fd, struct error *err)
{
    struct nlmsghdr *message = request(rtnl, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    mnl_nlmsg_put_extra_header(message, sizeof(struct ifinfomsg));
    put_link_end(message, own);
    struct nlattr *info = mnl_attr_nest_start(message, IFLA_LINKINFO);
    mnl_attr_put_strz(message, IFLA_INFO_KIND, "veth");
    struct nlattr *data = mnl_attr_nest_start(message, IFLA_INFO_DATA);
    struct nlattr *peer_info = mnl_attr_nest_start(message, VETH_INFO_PEER);
    mnl_nlmsg_put_extra_header(message, sizeof(struct ifinfomsg));
    put_link_end(message, peer);
    mnl_attr_put_u32(message, IFLA_NET_NS_FD, (uint32_t)peer_namespace_fd);
    mnl_attr_nest_end(message, peer_info);
    mnl_attr_nest_end(message, data);
    mnl_attr_nest_end(message, info);
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot make the veth pair %s, %s", own->name, peer->name) : 0;
}

int rtnl_delete_link(struct rtnl *rtnl, const char *name, struct error *err)
{
    struct nlmsghdr *message = request(rtnl, RTM_DELLINK, 0);
    mnl_nlmsg_put_extra_header(message, sizeof(struct ifinfomsg));
    mnl_attr_put_strz(message, IFLA_IFNAME, name);
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot remove the interface %s", name) : 0;
}

int rtnl_set_link_up(struct rtnl *rtnl, const char *name, const unsigned char *mac, struct error *err)
{
    struct nlmsghdr *message = request(rtnl, RTM_NEWLINK, 0);
    struct ifinfomsg *link = mnl_nlmsg_put_extra_header(message, sizeof(*link));
    link->ifi_change = IFF_UP | IFF_MULTICAST;
    link->ifi_flags = IFF_UP;
    mnl_attr_put_strz(message, IFLA_IFNAME, name);
    if (mac != NULL)
        mnl_attr_put(message, IFLA_ADDRESS, RTNL_MAC_BYTES, mac);
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot set the interface %s up", name) : 0;
}

static int keep_index(const struct nlmsghdr *message, void *context)
{
    if (message->nlmsg_type == RTM_NEWLINK)
        *(int *)context = ((const struct ifinfomsg *)mnl_nlmsg_get_payload(message))->ifi_index;
    return MNL_CB_OK;
}

/* Asks by the socket, since if_nametoindex would look in the calling thread's namespace. */
static int find_index(struct rtnl *rtnl, const char *name, struct error *err)
{
    struct nlmsghdr *message = request(rtnl, RTM_GETLINK, NLM_F_ACK);
    mnl_nlmsg_put_extra_header(message, sizeof(struct ifinfomsg));
    mnl_attr_put_strz(message, IFLA_IFNAME, name);
    int index = 0;
    int r = exchange(rtnl, message, keep_index, &index);
    if (r == 0 && index <= 0)
        r = -ENODEV;
    return r < 0 ? error_code(err, r, "cannot find the interface %s", name) : index;
}

int rtnl_add_address(struct rtnl *rtnl, const char *name, in_addr_t address, unsigned prefix_length,
                     struct error *err)
{
    int index = find_index(rtnl, name, err);
    if (index < 0)
        return index;
    struct nlmsghdr *message = request(rtnl, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
    struct ifaddrmsg *header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
    header->ifa_family = AF_INET;
    header->ifa_prefixlen = (unsigned char)prefix_length;
    header->ifa_scope = RT_SCOPE_UNIVERSE;
    header->ifa_index = (unsigned)index;
    mnl_attr_put_u32(message, IFA_LOCAL, address);
    mnl_attr_put_u32(message, IFA_ADDRESS, address);
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot give %s its address", name) : 0;
}

int rtnl_add_neighbour(struct rtnl *rtnl, const char *name, in_addr_t address, const unsigned char *mac,
                       struct error *err)
{
    int index = find_index(rtnl, name, err);
    if (index < 0)
        return index;
    struct nlmsghdr *message = request(rtnl, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
    struct ndmsg *header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
    header->ndm_family = AF_INET;
    header->ndm_ifindex = index;
    header->ndm_state = NUD_PERMANENT;
    mnl_attr_put_u32(message, NDA_DST, address);
    mnl_attr_put(message, NDA_LLADDR, RTNL_MAC_BYTES, mac);
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot set the neighbour on %s", name) : 0;
}

int rtnl_replace_default_route(struct rtnl *rtnl, const char *name, in_addr_t gateway, struct error *err)
{
    int index = name == NULL ? 0 : find_index(rtnl, name, err);
    if (index < 0)
        return index;
    struct nlmsghdr *message = request(rtnl, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
    struct rtmsg *header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
    header->rtm_family = AF_INET;
    header->rtm_table = RT_TABLE_MAIN;
    header->rtm_protocol = RTPROT_STATIC;
    header->rtm_scope = RT_SCOPE_UNIVERSE;
    header->rtm_type = name == NULL ? RTN_PROHIBIT : RTN_UNICAST;
    if (name != NULL) {
        mnl_attr_put_u32(message, RTA_GATEWAY, gateway);
        mnl_attr_put_u32(message, RTA_OIF, (uint32_t)index);
    }
    int r = acknowledge(rtnl, message);
    return r < 0 ? error_code(err, r, "cannot set the default route") : 0;
}

struct route_listing {
    void (*each)(const struct rtnl_route *route, void *context);
    void *context;
};

static int list_route(const struct nlmsghdr *message, void *context)
{
    const struct route_listing *listing = context;
    const struct rtmsg *header = mnl_nlmsg_get_payload(message);
    if (message->nlmsg_type != RTM_NEWROUTE || header->rtm_family != AF_INET)
        return MNL_CB_OK;
    struct rtnl_route route = {
        .prefix_length = header->rtm_dst_len, .type = header->rtm_type, .table = header->rtm_table};
    const struct nlattr *attribute;
    mnl_attr_for_each(attribute, message, sizeof(*header))
    {
        if (mnl_attr_get_type(attribute) == RTA_DST)
            route.destination = mnl_attr_get_u32(attribute);
        else if (mnl_attr_get_type(attribute) == RTA_OIF)
            route.interface_index = (int)mnl_attr_get_u32(attribute);
    }
    listing->each(&route, listing->context);
    return MNL_CB_OK;
}

int rtnl_list_routes(struct rtnl *rtnl, void (*each)(const struct rtnl_route *route, void *context), void *context,
                     struct error *err)
{
    struct nlmsghdr *message = request(rtnl, RTM_GETROUTE, NLM_F_DUMP);
    struct rtmsg *header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
    header->rtm_family = AF_INET;
    struct route_listing listing = {each, context};
    int r = exchange(rtnl, message, list_route, &listing);
    return r < 0 ? error_code(err, r, "cannot list the routes") : 0;
}
