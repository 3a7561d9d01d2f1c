#include "net/firewall.h"

#include <errno.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/process.h"
#include "base/strbuf.h"
#include "net/namespace.h"
#include "net/net.h"

/*
 * Destinations no guest may reach through eth0: "this" network, loopback, link-local (cloud metadata services, and
 * the gateways of all guests), the slots of this host, multicast and everything above.
 */
#define BLOCKED "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, %s, 224.0.0.0/3 }"

#define TAP  "\"" NET_TAP_NAME "\""
#define VETH "\"" NAMESPACE_INSIDE_VETH "\""
#define HOST "\"" NAMESPACE_VETH_PREFIX "*\""

/*
 * The first chain stands before connection tracking, so that what a guest forges costs no entry. `input` lets pass
 * only answers to connections opened from inside the namespace: a guest reaches no listening socket there.
 */
static const char inside_rules[] = "table inet dormouse {\n"
                                   " chain raw {\n"
                                   "  type filter hook prerouting priority raw; policy accept;\n"
                                   "  iifname " TAP " meta nfproto != ipv4 drop\n"
                                   "  iifname " TAP " ip saddr != " NET_GUEST_ADDRESS " drop\n"
                                   " }\n"
                                   " chain input {\n"
                                   "  type filter hook input priority filter; policy drop;\n"
                                   "  iifname " TAP " ct state established,related accept\n"
                                   " }\n"
                                   " chain forward {\n"
                                   "  type filter hook forward priority filter; policy drop;\n"
                                   "  ct state established,related accept\n"
                                   "  iifname != " TAP " drop\n"
                                   "  ip daddr " BLOCKED " reject with icmp admin-prohibited\n"
                                   "  limit rate over %d/second burst %d packets drop\n"
                                   "  ct count over %d drop\n"
                                   "  oifname " VETH " accept\n"
                                   " }\n"
                                   " chain output {\n"
                                   "  type filter hook output priority filter; policy drop;\n"
                                   "  oifname " TAP " ip daddr " NET_GUEST_ADDRESS " accept\n"
                                   " }\n"
                                   " chain postrouting {\n"
                                   "  type nat hook postrouting priority srcnat; policy accept;\n"
                                   "  oifname " VETH " masquerade\n"
                                   " }\n"
                                   "}\n";

/*
 * `raw` stands before the host's own DNAT, which would otherwise lead a guest to a service behind one of the host's
 * addresses without ever passing `input`.
 */
static const char host_rules[] = "table inet dormouse\n"
                                 "delete table inet dormouse\n"
                                 "table inet dormouse {\n"
                                 " chain raw {\n"
                                 "  type filter hook prerouting priority raw; policy accept;\n"
                                 "  iifname " HOST " meta nfproto != ipv4 drop\n"
                                 "  iifname " HOST " ip saddr != %s drop\n"
                                 "  iifname " HOST " ip daddr " BLOCKED " drop\n"
                                 "  iifname " HOST " fib daddr type != unicast drop\n"
                                 " }\n"
                                 " chain input {\n"
                                 "  type filter hook input priority filter; policy accept;\n"
                                 "  iifname " HOST " drop\n"
                                 " }\n"
                                 " chain forward {\n"
                                 "  type filter hook forward priority filter; policy accept;\n"
                                 "  oifname " HOST " ct state established,related accept\n"
                                 "  oifname " HOST " drop\n"
                                 " }\n"
                                 " chain postrouting {\n"
                                 "  type nat hook postrouting priority srcnat; policy accept;\n"
                                 "  ip saddr %s oifname != " HOST " masquerade\n"
                                 " }\n"
                                 "}\n";

static int run_nft(const char *rules, struct error *err)
{
    const char *arguments[] = {"nft", rules, NULL};
    int r = process_run(arguments, err);
    if (r == -ENOENT)
        error_hint(err, "apt-get install nftables");
    if (r == -EREMOTEIO)
        error_hint(err, "the kernel must have nf_tables with conntrack, connlimit, fib, reject and masquerade "
                        "(modprobe nf_tables nft_ct nft_connlimit nft_fib_inet nft_reject_inet nft_masq)");
    return r;
}

int firewall_install_inside(const struct range *range, struct error *err)
{
    char network[RANGE_TEXT_BYTES];
    range_format(range, network);
    CLEANUP_STRBUF struct strbuf rules = STRBUF_INIT;
    strbuf_printf(&rules, inside_rules, network, FIREWALL_NEW_PER_SECOND, FIREWALL_NEW_PER_SECOND,
                  FIREWALL_CONNECTIONS_MAX);
    if (rules.failed)
        return error_set(err, ENOMEM, "out of memory");
    int r = run_nft(rules.data, err);
    return r < 0 ? error_wrap(err, r, "setting the sandbox's firewall") : 0;
}

int firewall_install_host(const struct range *range, struct error *err)
{
    char network[RANGE_TEXT_BYTES];
    range_format(range, network);
    CLEANUP_STRBUF struct strbuf rules = STRBUF_INIT;
    strbuf_printf(&rules, host_rules, network, network, network);
    if (rules.failed)
        return error_set(err, ENOMEM, "out of memory");
    int r = run_nft(rules.data, err);
    return r < 0 ? error_wrap(err, r, "setting the host's firewall") : 0;
}

int firewall_remove_host(struct error *err)
{
    return run_nft("table inet dormouse; delete table inet dormouse", err);
}

bool firewall_host_present(void)
{
    return run_nft("list table inet dormouse", NULL) == 0;
}

int firewall_watch_open(struct error *err)
{
    CLEANUP_CLOSE int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1u << (NFNLGRP_NFTABLES - 1)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_errno(err, "cannot watch the firewall");
    return TAKE_FD(fd);
}

static bool tells_removal(const struct nlmsghdr *message, size_t length)
{
    for (; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length))
        if (message->nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE))
            return true;
    return false;
}

bool firewall_watch_read(int fd)
{
    bool removal = false;
    union {
        struct nlmsghdr header;
        char bytes[16384];
    } buffer;
    for (;;) {
        ssize_t n = recv(fd, &buffer, sizeof(buffer), MSG_DONTWAIT);
        if (n > 0)
            removal |= tells_removal(&buffer.header, (size_t)n);
        else if (n < 0 && errno == ENOBUFS) /* some were lost */
            removal = true;
        else if (n == 0 || errno != EINTR)
            return removal;
    }
}
