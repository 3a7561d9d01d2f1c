#include "net/range.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/io.h"
#include "net/claim.h"
#include "net/namespace.h"

#define RANGE_FILE        CLAIM_DIRECTORY "/range"
#define RANGE_ENVIRONMENT "DORMOUSE_NETWORK"
#define RANGE_MASK        (~0u << (32 - RANGE_PREFIX_LENGTH))

/* Little used parts of the private blocks, then of the shared (RFC 6598) and the benchmarking (RFC 2544) ones. */
static const char *const candidates[] = {"10.213.0.0/18",    "10.213.64.0/18", "172.29.128.0/18",
                                         "192.168.192.0/18", "100.127.0.0/18", "198.18.0.0/18"};

/* "This" network, loopback, link-local, multicast and above: blocked for guests anyway. */
static bool is_special(uint32_t base)
{
    return base >> 24 == 0 || base >> 24 == 127 || base >> 16 == (169 << 8 | 254) || base >= 224u << 24;
}

int range_parse(const char *text, struct range *ret, struct error *err)
{
    char address[INET_ADDRSTRLEN];
    struct in_addr parsed;
    const char *slash = strchr(text, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - text);
    if (slash == NULL || length >= sizeof(address) || strcmp(slash, "/18") != 0)
        return error_set(err, EINVAL, "'%.40s' is not an IPv4 network of 18 bits, such as %s", text, candidates[0]);
    memcpy(address, text, length);
    address[length] = '\0';
    if (inet_pton(AF_INET, address, &parsed) != 1 || (ntohl(parsed.s_addr) & ~RANGE_MASK) != 0)
        return error_set(err, EINVAL, "'%.40s' is not the first address of an IPv4 network of 18 bits, such as %s",
                         text, candidates[0]);
    if (is_special(ntohl(parsed.s_addr)))
        return error_set(err, EINVAL, "'%s' has a meaning of its own", text);
    ret->base = ntohl(parsed.s_addr);
    return 0;
}

void range_format(const struct range *range, char ret_text[static RANGE_TEXT_BYTES])
{
    snprintf(ret_text, RANGE_TEXT_BYTES, "%u.%u.%u.%u/18", range->base >> 24, (range->base >> 16) & 255,
             (range->base >> 8) & 255, range->base & 255);
}

in_addr_t range_host_address(const struct range *range, unsigned slot)
{
    return htonl(range->base + slot * 4 + 1);
}

in_addr_t range_inside_address(const struct range *range, unsigned slot)
{
    return htonl(range->base + slot * 4 + 2);
}

struct overlap {
    uint32_t base;
    bool found;
};

static void check_route(const struct rtnl_route *route, void *context)
{
    struct overlap *overlap = context;
    char name[IF_NAMESIZE] = "";
    if (route->interface_index > 0)
        if_indextoname((unsigned)route->interface_index, name);
    /* A default route is no claim to an address; our own devices are in the range by design. */
    if (route->prefix_length == 0 || strncmp(name, NAMESPACE_VETH_PREFIX, strlen(NAMESPACE_VETH_PREFIX)) == 0)
        return;
    uint32_t mask = RANGE_MASK & (~0u << (32 - route->prefix_length));
    if ((ntohl(route->destination) & mask) == (overlap->base & mask))
        overlap->found = true;
}

/* -EADDRINUSE when the host has an address or a route in the range, or one around it. */
static int check_free(struct rtnl *host, const struct range *range, struct error *err)
{
    struct overlap overlap = {range->base, false};
    int r = rtnl_list_routes(host, check_route, &overlap, err);
    if (r < 0 || !overlap.found)
        return r;
    char text[RANGE_TEXT_BYTES];
    range_format(range, text);
    return error_set(err, EADDRINUSE, "the network %s overlaps an address or a route of this host", text);
}

static int choose(struct rtnl *host, struct range *ret, struct error *err)
{
    const char *wanted = getenv(RANGE_ENVIRONMENT);
    size_t count = wanted == NULL ? ARRAY_SIZE(candidates) : 1;
    int r = -EADDRINUSE;
    for (size_t i = 0; i < count && r == -EADDRINUSE; i++) {
        struct range range;
        r = range_parse(wanted == NULL ? candidates[i] : wanted, &range, err);
        if (r == 0)
            r = check_free(host, &range, err);
        if (r == 0)
            *ret = range;
    }
    if (r == -EADDRINUSE || r == -EINVAL)
        error_hint(
            err,
            "set %s to 18 bits of private IPv4 addresses that nothing here uses ('ip route show table all'), "
            "e.g. %s=10.77.64.0/18",
            RANGE_ENVIRONMENT, RANGE_ENVIRONMENT);
    return r;
}

static int read_record(struct range *ret, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file(RANGE_FILE, 64, &text, NULL);
    if (r < 0)
        return error_code(err, r, "cannot read %s", RANGE_FILE);
    r = range_parse(text, ret, err);
    if (r < 0)
        error_hint(err, "write into it the network of the addresses that 'ip addr' shows on the interfaces %s*",
                   NAMESPACE_VETH_PREFIX);
    return r < 0 ? error_wrap(err, r, "in %s", RANGE_FILE) : 0;
}

/* The range is in use: what the environment asks for has to agree. */
static int follow_record(struct range *ret, struct error *err)
{
    struct range recorded;
    int r = read_record(&recorded, err);
    const char *wanted = getenv(RANGE_ENVIRONMENT);
    if (r < 0 || wanted == NULL) {
        if (r == 0)
            *ret = recorded;
        return r;
    }
    struct range asked;
    r = range_parse(wanted, &asked, err);
    if (r < 0)
        return error_wrap(err, r, "in the environment, %s", RANGE_ENVIRONMENT);
    if (asked.base != recorded.base) {
        char text[RANGE_TEXT_BYTES];
        range_format(&recorded, text);
        error_set(err, EBUSY, "%s asks for %s, but sandboxes of this host use %s", RANGE_ENVIRONMENT, wanted, text);
        error_hint(err, "unset %s, or end all sandboxes and daemons of this host first", RANGE_ENVIRONMENT);
        return -EBUSY;
    }
    *ret = recorded;
    return 0;
}

int range_settle(struct rtnl *host, bool claimed, struct range *ret, int *ret_fd, struct error *err)
{
    CLEANUP_CLOSE int fd = open(RANGE_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_errno(err, "cannot open %s", RANGE_FILE);
    bool alone = flock(fd, LOCK_EX | LOCK_NB) == 0;
    bool in_use = claimed || !alone;
    struct range range;
    int r = in_use ? follow_record(&range, err) : choose(host, &range, err);
    if (r < 0)
        return r;
    char text[RANGE_TEXT_BYTES];
    range_format(&range, text);
    /* In place, since the lock belongs to this very file; nobody reads it without the claims' lock. */
    if (!in_use && (ftruncate(fd, 0) < 0 || pwrite(fd, text, strlen(text), 0) != (ssize_t)strlen(text)))
        return error_errno(err, "cannot write %s", RANGE_FILE);
    if (flock(fd, LOCK_SH) < 0)
        return error_errno(err, "cannot lock %s", RANGE_FILE);
    *ret = range;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

bool range_abandon(int fd)
{
    bool alone = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (alone)
        unlink(RANGE_FILE);
    close(fd);
    return alone;
}
