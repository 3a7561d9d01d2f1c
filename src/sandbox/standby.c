#include "sandbox/standby.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/io.h"

/*
 * The pool fills itself when nothing was asked for so long: a start of QEMU costs more than a resume, and must not
 * be paid by resumes that come in a row. Longer than the network pool waits, whose namespaces are needed first.
 */
#define CALM_NS INT64_C(300000000)

#define NAME_LENGTH 12

struct shape {
    enum vmm_accelerator accelerator;
    unsigned cpus; /* 0: none known */
};

struct standby {
    struct standby *next;
    struct shape shape;
    char *directory;
    struct network *network;
    struct vmm *vmm;
};

struct standby_pool {
    char *instance;
    char *directory;
    struct network_pool *networks;
    unsigned ahead;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct standby *ready; /* oldest first */
    unsigned ready_count;
    struct standby *doomed; /* to be ended by the worker */
    struct shape wanted;
    int64_t last_ask_ns; /* CLOCK_MONOTONIC */
    bool failed;         /* the last attempt to make one, and nobody has asked since */
    bool stopping;

    bool started;
    pthread_t worker;
};

static bool same_shape(const struct shape *a, const struct shape *b)
{
    return a->accelerator == b->accelerator && a->cpus == b->cpus;
}

/* ---- one standby ---- */

/* Removes whatever there is of it. */
static void standby_end(struct standby_pool *pool, struct standby *standby)
{
    if (standby->vmm != NULL)
        vmm_kill(standby->vmm);
    vmm_free(standby->vmm);
    network_release(pool->networks, standby->network);
    if (standby->directory != NULL)
        io_remove_tree(standby->directory);
    free(standby->directory);
    free(standby);
}

static int make_directory(const struct standby_pool *pool, struct standby *standby)
{
    char name[NAME_LENGTH + 1];
    int r = random_name(name, NAME_LENGTH);
    if (r < 0)
        return r;
    if (asprintf(&standby->directory, "%s/" STANDBY_PREFIX "%s", pool->directory, name) < 0) {
        standby->directory = NULL;
        return -ENOMEM;
    }
    return mkdir(standby->directory, 0755) < 0 ? -errno : 0;
}

static int start_vmm(const struct standby_pool *pool, struct standby *standby)
{
    CLEANUP_CLOSE int tap_fd = network_open_tap(standby->network, NULL);
    if (tap_fd < 0)
        return tap_fd;
    char marker[128];
    snprintf(marker, sizeof(marker), "DORMOUSE_VMM=%s/%s", pool->instance, strrchr(standby->directory, '/') + 1);
    const struct vmm_config config = {
        .directory = standby->directory,
        .marker = marker,
        .accelerator = standby->shape.accelerator,
        .cpus = standby->shape.cpus,
        .uid = VMM_USER_ID_FIRST + standby->network->slot,
        .namespace_fd = standby->network->namespace_fd,
        .tap_fd = tap_fd,
    };
    return vmm_prepare(&config, &standby->vmm, NULL);
}

/* NULL when it can't be made; whoever starts an ordinary VMM then learns why. */
static struct standby *standby_make(struct standby_pool *pool, const struct shape *shape)
{
    struct standby *standby = calloc(1, sizeof(*standby));
    if (standby == NULL)
        return NULL;
    standby->shape = *shape;
    int r = network_take(pool->networks, &standby->network, NULL);
    if (r == 0)
        r = make_directory(pool, standby);
    if (r == 0)
        r = start_vmm(pool, standby);
    if (r == 0)
        return standby;
    standby_end(pool, standby);
    return NULL;
}

/* ---- the lists, under the lock ---- */

static void append(struct standby_pool *pool, struct standby *standby)
{
    struct standby **end = &pool->ready;
    while (*end != NULL)
        end = &(*end)->next;
    standby->next = NULL;
    *end = standby;
    pool->ready_count++;
}

static struct standby *detach(struct standby_pool *pool, struct standby **position)
{
    struct standby *standby = *position;
    *position = standby->next;
    pool->ready_count--;
    return standby;
}

static void doom(struct standby_pool *pool, struct standby *standby)
{
    standby->next = pool->doomed;
    pool->doomed = standby;
}

/* The oldest of that shape that is still good; those that are not are doomed. */
static struct standby *find(struct standby_pool *pool, const struct shape *shape)
{
    for (struct standby **position = &pool->ready; *position != NULL;) {
        if (!same_shape(&(*position)->shape, shape)) {
            position = &(*position)->next;
            continue;
        }
        struct standby *standby = detach(pool, position);
        if (vmm_is_prepared(standby->vmm))
            return standby;
        doom(pool, standby);
    }
    return NULL;
}

static bool has_wanted(const struct standby_pool *pool)
{
    const struct standby *standby = pool->ready;
    while (standby != NULL && !same_shape(&standby->shape, &pool->wanted))
        standby = standby->next;
    return standby != NULL;
}

static void ask(struct standby_pool *pool, const struct shape *shape)
{
    pool->wanted = *shape;
    pool->last_ask_ns = clock_monotonic_ns();
    pool->failed = false;
    pthread_cond_signal(&pool->changed);
}

/* ---- the worker ---- */

/* Waits for a change until the given time, CLOCK_MONOTONIC. */
static void wait_until(struct standby_pool *pool, int64_t time_ns)
{
    struct timespec deadline = {.tv_sec = time_ns / 1000000000, .tv_nsec = time_ns % 1000000000};
    pthread_cond_timedwait(&pool->changed, &pool->lock, &deadline);
}

/* Makes one, without holding the lock meanwhile. */
static void fill(struct standby_pool *pool)
{
    struct shape shape = pool->wanted;
    pthread_mutex_unlock(&pool->lock);
    struct standby *standby = standby_make(pool, &shape);
    pthread_mutex_lock(&pool->lock);
    pool->failed = standby == NULL;
    if (standby != NULL && pool->stopping)
        doom(pool, standby);
    else if (standby != NULL)
        append(pool, standby);
}

static void end_doomed(struct standby_pool *pool)
{
    struct standby *standby = pool->doomed;
    pool->doomed = standby->next;
    pthread_mutex_unlock(&pool->lock);
    standby_end(pool, standby);
    pthread_mutex_lock(&pool->lock);
}

static void *work(void *argument)
{
    struct standby_pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    while (!pool->stopping || pool->doomed != NULL) {
        int64_t calm_ns = pool->last_ask_ns + CALM_NS;
        bool wanting = pool->wanted.cpus > 0 && !pool->failed && pool->ahead > 0 &&
                       (pool->ready_count < pool->ahead || !has_wanted(pool));
        if (pool->doomed != NULL)
            end_doomed(pool);
        else if (!wanting)
            pthread_cond_wait(&pool->changed, &pool->lock);
        else if (clock_monotonic_ns() < calm_ns)
            wait_until(pool, calm_ns);
        else if (pool->ready_count < pool->ahead)
            fill(pool);
        else
            doom(pool, detach(pool, &pool->ready));
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* ---- the interface ---- */

int standby_pool_open(const struct standby_options *options, struct standby_pool **ret, struct error *err)
{
    struct standby_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&pool->lock, NULL);
    pool->networks = options->networks;
    pool->ahead = options->ahead;
    pool->instance = strdup(options->instance);
    pool->directory = strdup(options->directory);
    int code = pool->instance == NULL || pool->directory == NULL ? ENOMEM : 0;
    if (code == 0)
        code = pthread_create(&pool->worker, NULL, work, pool);
    if (code != 0) {
        standby_pool_close(pool);
        return error_set(err, code, "cannot keep VMMs ready");
    }
    pool->started = true;
    *ret = pool;
    return 0;
}

void standby_want(struct standby_pool *pool, enum vmm_accelerator accelerator, unsigned cpus)
{
    const struct shape shape = {accelerator, cpus};
    pthread_mutex_lock(&pool->lock);
    ask(pool, &shape);
    pthread_mutex_unlock(&pool->lock);
}

bool standby_take(struct standby_pool *pool, enum vmm_accelerator accelerator, unsigned cpus, const char *directory,
                  struct vmm **ret_vmm, struct network **ret_network)
{
    const struct shape shape = {accelerator, cpus};
    pthread_mutex_lock(&pool->lock);
    ask(pool, &shape);
    struct standby *standby = find(pool, &shape);
    /* The directory keeps its inode, which is what the jail has mounted. */
    if (standby != NULL && rename(standby->directory, directory) < 0) {
        doom(pool, standby);
        standby = NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    if (standby == NULL)
        return false;
    *ret_vmm = standby->vmm;
    *ret_network = standby->network;
    free(standby->directory);
    free(standby);
    return true;
}

void standby_pool_close(struct standby_pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    while (pool->ready != NULL)
        doom(pool, detach(pool, &pool->ready));
    pthread_cond_signal(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    if (pool->started)
        pthread_join(pool->worker, NULL);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    free(pool->instance);
    free(pool->directory);
    free(pool);
}
