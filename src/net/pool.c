/*
 * The pool: which slots this daemon holds, and the worker that makes and removes namespaces in the background.
 *
 * Every slot is in one state, changed under the pool's lock:
 *
 *     FREE      not ours, as far as this pool knows
 *     BUSY      being made or removed by the thread that set it so
 *     READY     made, nobody's: in the list `ready`
 *     HELD      a sandbox's: in the list `held`
 *     DOOMED    waits for the worker to remove it
 *
 * Invariant: a slot that is not FREE is claimed on the host by us, so that whatever a crash leaves is found by
 * network_pool_start. A claim is released only after its namespace is gone; if that fails, the claim stays and the
 * next start tries again.
 */
#include "net/net.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/io.h"
#include "net/claim.h"
#include "net/firewall.h"
#include "net/namespace.h"
#include "net/range.h"

enum slot_state { SLOT_FREE, SLOT_BUSY, SLOT_READY, SLOT_HELD, SLOT_DOOMED };

/* The pool fills itself when nothing was taken for so long. */
#define CALM_NS INT64_C(200000000)

/* A struct network with what the pool knows of it. */
struct member {
    struct network network; /* first: the one is cast to the other */
    struct network_pool *pool;
    struct member *next;
    /* Open since it was made, until a VMM gets it; then -1. Closed and opened again it might be busy: for as long
     * as a child of another thread, that has yet to execute its program, has the first descriptor, too. */
    int tap_fd;
};

struct network_pool {
    char *instance;
    char *data_directory;
    struct claim_owner owner; /* points to the two above */
    unsigned ahead;
    int host_fd; /* the host's network namespace */
    struct range range;
    int range_fd;
    int watch_fd;
    int wake_fd; /* eventfd: the worker has something to do */

    pthread_mutex_t lock; /* guards what follows */
    unsigned char slots[CLAIM_SLOTS];
    unsigned next_slot; /* goes round, so that an address is not reused at once */
    struct member *ready;
    unsigned ready_count;
    struct member *held;
    int64_t last_take_ns; /* CLOCK_MONOTONIC */
    bool stopping;

    bool started;
    pthread_t worker;
};

static void wake(struct network_pool *pool)
{
    (void)!eventfd_write(pool->wake_fd, 1);
}

static void set_slot(struct network_pool *pool, unsigned slot, enum slot_state state)
{
    pthread_mutex_lock(&pool->lock);
    pool->slots[slot] = (unsigned char)state;
    pthread_mutex_unlock(&pool->lock);
}

static enum slot_state get_slot(struct network_pool *pool, unsigned slot)
{
    pthread_mutex_lock(&pool->lock);
    enum slot_state state = pool->slots[slot];
    pthread_mutex_unlock(&pool->lock);
    return state;
}

static struct member *member_new(struct network_pool *pool, unsigned slot)
{
    struct member *member = calloc(1, sizeof(*member));
    if (member == NULL)
        return NULL;
    member->network.slot = slot;
    member->network.namespace_fd = -1;
    member->tap_fd = -1;
    member->pool = pool;
    return member;
}

static void member_free(struct member *member)
{
    if (member == NULL)
        return;
    cleanup_close(&member->network.namespace_fd);
    cleanup_close(&member->tap_fd);
    free(member);
}

static void member_cleanup(struct member **member)
{
    member_free(*member);
}

static void free_list(struct member *list)
{
    while (list != NULL) {
        struct member *next = list->next;
        member_free(list);
        list = next;
    }
}

/* Removes a slot that is BUSY by the caller. */
static int remove_slot(struct network_pool *pool, unsigned slot, struct error *err)
{
    int r = namespace_remove(slot, err);
    if (r == 0)
        r = claim_release(&pool->owner, slot, err);
    set_slot(pool, slot, SLOT_FREE);
    return r;
}

/* Claims a slot, BUSY by the caller afterwards. */
static int claim_slot(struct network_pool *pool, unsigned *ret_slot, struct error *err)
{
    pthread_mutex_lock(&pool->lock);
    unsigned start = pool->next_slot;
    pthread_mutex_unlock(&pool->lock);
    unsigned slot;
    int r = claim_take(&pool->owner, start, &slot, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&pool->lock);
    pool->slots[slot] = SLOT_BUSY;
    pool->next_slot = (slot + 1) % CLAIM_SLOTS;
    pthread_mutex_unlock(&pool->lock);
    *ret_slot = slot;
    return 0;
}

/* Makes a namespace; its slot is BUSY by the caller afterwards. */
static int make_member(struct network_pool *pool, struct member **ret, struct error *err)
{
    unsigned slot;
    int r = claim_slot(pool, &slot, err);
    if (r < 0)
        return r;
    CLEANUP(member_cleanup) struct member *member = member_new(pool, slot);
    int fd = member == NULL ? error_set(err, ENOMEM, "out of memory")
                            : namespace_make(&pool->range, slot, pool->host_fd, &member->tap_fd, err);
    if (fd < 0) {
        remove_slot(pool, slot, NULL);
        return fd;
    }
    member->network.namespace_fd = fd;
    *ret = TAKE_PTR(member);
    return 0;
}

/* ---- the worker ---- */

/* Takes the next doomed slot for removal; false when there is none. */
static bool next_doomed(struct network_pool *pool, unsigned *ret_slot)
{
    pthread_mutex_lock(&pool->lock);
    const unsigned char *found = memchr(pool->slots, SLOT_DOOMED, sizeof(pool->slots));
    if (found != NULL) {
        *ret_slot = (unsigned)(found - pool->slots);
        pool->slots[*ret_slot] = SLOT_BUSY;
    }
    pthread_mutex_unlock(&pool->lock);
    return found != NULL;
}

static bool wants_more(struct network_pool *pool, bool *ret_stopping)
{
    pthread_mutex_lock(&pool->lock);
    bool more = pool->ready_count < pool->ahead && !pool->stopping;
    *ret_stopping = pool->stopping;
    pthread_mutex_unlock(&pool->lock);
    return more;
}

static int make_ready(struct network_pool *pool)
{
    struct member *member;
    int r = make_member(pool, &member, NULL);
    if (r < 0)
        return r;
    pthread_mutex_lock(&pool->lock);
    pool->slots[member->network.slot] = SLOT_READY;
    member->next = pool->ready;
    pool->ready = member;
    pool->ready_count++;
    pthread_mutex_unlock(&pool->lock);
    return 0;
}

static void restore_firewall(struct network_pool *pool)
{
    if (!firewall_watch_read(pool->watch_fd))
        return;
    /* Under the lock of all daemons, so that only one of them puts it back. */
    CLEANUP_CLOSE int lock = claim_lock(NULL);
    if (lock >= 0 && !firewall_host_present())
        firewall_install_host(&pool->range, NULL);
}

/* Waits for a wake-up or, unless `timeout_ms` is -1, so long; and in between puts the firewall back. */
static void wait_for_work(struct network_pool *pool, int timeout_ms)
{
    struct pollfd fds[] = {{.fd = pool->wake_fd, .events = POLLIN}, {.fd = pool->watch_fd, .events = POLLIN}};
    while (fds[0].revents == 0) {
        int n = poll(fds, ARRAY_SIZE(fds), timeout_ms);
        if (n == 0)
            return;
        if (n > 0 && fds[1].revents != 0)
            restore_firewall(pool);
    }
    eventfd_t count;
    (void)!eventfd_read(pool->wake_fd, &count);
}

/*
 * How long the pool may wait before it fills itself, ms: a namespace costs as much as a good part of a resume, so
 * while sandboxes are being started and namespaces are left, the starts have the CPU to themselves.
 */
static int calm_ms(struct network_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    int64_t left_ns = pool->last_take_ns + CALM_NS - clock_monotonic_ns();
    bool may_wait = pool->ready_count > 0 && !pool->stopping;
    pthread_mutex_unlock(&pool->lock);
    return may_wait && left_ns > 0 ? (int)(left_ns / 1000000) + 1 : 0;
}

static void *work(void *argument)
{
    struct network_pool *pool = argument;
    bool stopping = false;
    while (!stopping) {
        int calm = calm_ms(pool);
        if (calm > 0) {
            wait_for_work(pool, calm);
            continue;
        }
        /* Making comes first, since somebody may wait for it. If it fails it is tried again at the next wake-up,
         * and who needs a namespace makes one himself and learns why. */
        int r = 0;
        unsigned slot;
        while (r == 0 && wants_more(pool, &stopping) && calm_ms(pool) == 0)
            r = make_ready(pool);
        if (r == 0 && !stopping && calm_ms(pool) > 0)
            continue;
        if (next_doomed(pool, &slot))
            remove_slot(pool, slot, NULL);
        else if (!stopping)
            wait_for_work(pool, -1);
    }
    return NULL;
}

/* ---- opening ---- */

static void pool_free(struct network_pool *pool)
{
    free_list(pool->ready);
    free_list(pool->held);
    cleanup_close(&pool->host_fd);
    cleanup_close(&pool->range_fd);
    cleanup_close(&pool->watch_fd);
    cleanup_close(&pool->wake_fd);
    pthread_mutex_destroy(&pool->lock);
    free(pool->instance);
    free(pool->data_directory);
    free(pool);
}

static void pool_cleanup(struct network_pool **pool)
{
    if (*pool != NULL)
        pool_free(*pool);
}

static struct network_pool *pool_new(const struct network_pool_options *options)
{
    CLEANUP(pool_cleanup) struct network_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL)
        return NULL;
    pool->host_fd = pool->range_fd = pool->watch_fd = pool->wake_fd = -1;
    pthread_mutex_init(&pool->lock, NULL);
    pool->ahead = MIN(options->ahead, (unsigned)CLAIM_SLOTS);
    pool->instance = strdup(options->instance);
    pool->data_directory = realpath(options->data_directory, NULL);
    if (pool->instance == NULL || pool->data_directory == NULL)
        return NULL;
    pool->owner = (struct claim_owner){pool->instance, pool->data_directory};
    return TAKE_PTR(pool);
}

static int do_nothing(void *context, struct error *err)
{
    (void)context;
    (void)err;
    return 0;
}

/* Finds out early what would make every namespace fail. */
static int check_host(struct error *err)
{
    int r = namespace_run(-1, do_nothing, NULL, err);
    if (r == -EPERM)
        error_hint(err, "run the daemon as root");
    if (r < 0)
        return r;
    if (access("/dev/net/tun", R_OK | W_OK) < 0) {
        r = error_errno(err, "cannot use /dev/net/tun");
        error_hint(err, "modprobe tun");
    }
    return r;
}

static int forward_packets(struct error *err)
{
    CLEANUP_CLOSE int fd = open("/proc/sys/net/ipv4/ip_forward", O_WRONLY | O_CLOEXEC);
    int r = fd < 0 ? -errno : io_write_full(fd, "1", 1);
    return r < 0 ? error_code(err, r, "cannot turn on net.ipv4.ip_forward") : 0;
}

/* What is shared by all daemons of the host; under their lock. */
static int settle_host(struct network_pool *pool, struct error *err)
{
    CLEANUP_CLOSE int lock = claim_lock(err);
    if (lock < 0)
        return lock;
    CLEANUP_RTNL struct rtnl *host = NULL;
    bool claimed;
    int r = claim_any(&claimed, err);
    if (r == 0)
        r = rtnl_open(&host, err);
    if (r == 0)
        r = range_settle(host, claimed, &pool->range, &pool->range_fd, err);
    if (r == 0)
        r = firewall_install_host(&pool->range, err);
    if (r == 0)
        r = forward_packets(err);
    return r;
}

int network_pool_open(const struct network_pool_options *options, struct network_pool **ret, struct error *err)
{
    CLEANUP(pool_cleanup) struct network_pool *pool = pool_new(options);
    if (pool == NULL)
        return error_errno(err, "cannot use the data directory %s", options->data_directory);
    int r = check_host(err);
    if (r == 0)
        r = namespace_prepare_directory(err);
    if (r < 0)
        return r;
    pool->host_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    pool->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pool->host_fd < 0 || pool->wake_fd < 0)
        return error_errno(err, "cannot open the network pool");
    r = settle_host(pool, err);
    if (r < 0)
        return r;
    pool->watch_fd = firewall_watch_open(err);
    if (pool->watch_fd < 0)
        return pool->watch_fd;
    *ret = TAKE_PTR(pool);
    return 0;
}

/* ---- from taking to releasing ---- */

static struct network *hold(struct network_pool *pool, struct member *member)
{
    pthread_mutex_lock(&pool->lock);
    pool->slots[member->network.slot] = SLOT_HELD;
    member->next = pool->held;
    pool->held = member;
    pthread_mutex_unlock(&pool->lock);
    return &member->network;
}

int network_adopt(struct network_pool *pool, unsigned slot, struct network **ret, struct error *err)
{
    int r = claim_confirm(&pool->owner, slot, err);
    if (r < 0)
        return r;
    if (get_slot(pool, slot) != SLOT_FREE)
        return error_set(err, EBUSY, "network slot %u is held already", slot);
    CLEANUP(member_cleanup) struct member *member = member_new(pool, slot);
    if (member == NULL)
        return error_set(err, ENOMEM, "out of memory");
    member->network.namespace_fd = namespace_open(slot, err);
    if (member->network.namespace_fd < 0)
        return member->network.namespace_fd;
    bool allowed;
    r = namespace_get_egress(member->network.namespace_fd, &allowed, err);
    if (r < 0)
        return r;
    member->network.egress_denied = !allowed;
    *ret = hold(pool, TAKE_PTR(member));
    return 0;
}

static int doom_leftovers(struct network_pool *pool, struct error *err)
{
    bool owned[CLAIM_SLOTS] = {false};
    int r = claim_list(&pool->owner, owned, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&pool->lock);
    for (unsigned slot = 0; slot < CLAIM_SLOTS; slot++)
        if (owned[slot] && pool->slots[slot] == SLOT_FREE)
            pool->slots[slot] = SLOT_DOOMED;
    pthread_mutex_unlock(&pool->lock);
    return 0;
}

int network_pool_start(struct network_pool *pool, struct error *err)
{
    int r = doom_leftovers(pool, err);
    if (r < 0)
        return r;
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&pool->worker, NULL, work, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return error_code(err, -code, "cannot start a thread");
    pool->started = true;
    return 0;
}

int network_take(struct network_pool *pool, struct network **ret, struct error *err)
{
    pthread_mutex_lock(&pool->lock);
    struct member *member = pool->ready;
    if (member != NULL) {
        pool->ready = member->next;
        pool->ready_count--;
    }
    pool->last_take_ns = clock_monotonic_ns();
    pthread_mutex_unlock(&pool->lock);
    if (member == NULL) {
        int r = make_member(pool, &member, err);
        if (r < 0)
            return r;
    }
    *ret = hold(pool, member);
    wake(pool);
    return 0;
}

int network_open_tap(struct network *network, struct error *err)
{
    struct member *member = (struct member *)network;
    return member->tap_fd >= 0 ? TAKE_FD(member->tap_fd) : namespace_open_tap(network->namespace_fd, err);
}

int network_set_egress(struct network *network, bool allowed, struct error *err)
{
    const struct member *member = (const struct member *)network;
    int r = namespace_set_egress(network->namespace_fd, &member->pool->range, network->slot, allowed, err);
    if (r == 0)
        network->egress_denied = !allowed;
    return r;
}

static int make_socket(void *context, struct error *err)
{
    (void)context;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 ? error_errno(err, "cannot make a socket") : fd;
}

int network_socket(const struct network *network, struct error *err)
{
    return namespace_run(network->namespace_fd, make_socket, NULL, err);
}

static void unlink_held(struct network_pool *pool, const struct member *member)
{
    for (struct member **link = &pool->held; *link != NULL; link = &(*link)->next) {
        if (*link == member) {
            *link = member->next;
            return;
        }
    }
}

void network_release(struct network_pool *pool, struct network *network)
{
    if (network == NULL)
        return;
    struct member *member = (struct member *)network;
    pthread_mutex_lock(&pool->lock);
    unlink_held(pool, member);
    pool->slots[network->slot] = SLOT_DOOMED;
    pthread_mutex_unlock(&pool->lock);
    member_free(member);
    wake(pool);
}

/* ---- closing ---- */

/* The last user of the host's firewall table takes it along. */
static void leave_host(struct network_pool *pool)
{
    CLEANUP_CLOSE int lock = claim_lock(NULL);
    bool claimed;
    if (lock < 0 || claim_any(&claimed, NULL) < 0 || claimed)
        return;
    if (range_abandon(TAKE_FD(pool->range_fd)))
        firewall_remove_host(NULL);
}

void network_pool_close(struct network_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_mutex_unlock(&pool->lock);
    if (pool->started) {
        wake(pool);
        pthread_join(pool->worker, NULL);
    }
    struct member *ready = TAKE_PTR(pool->ready);
    for (const struct member *member = ready; member != NULL; member = member->next)
        pool->slots[member->network.slot] = SLOT_DOOMED;
    free_list(ready);
    unsigned slot;
    while (next_doomed(pool, &slot))
        remove_slot(pool, slot, NULL);
    leave_host(pool);
    pool_free(pool);
}
