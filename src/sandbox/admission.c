#include "sandbox/admission.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "base/io.h"

struct waiter {
    struct waiter *next;
};

struct admission {
    struct admission_limits limits;
    struct host_memory memory;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned sandboxes;
    uint64_t promised;
    unsigned starts;
    struct waiter *first; /* in line */
};

struct admission *admission_new(const struct admission_limits *limits, const struct host_memory *memory)
{
    struct admission *admission = calloc(1, sizeof(*admission));
    if (admission == NULL)
        return NULL;
    admission->limits = *limits;
    admission->memory = *memory;
    pthread_mutex_init(&admission->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&admission->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return admission;
}

void admission_free(struct admission *admission)
{
    if (admission == NULL)
        return;
    pthread_cond_destroy(&admission->changed);
    pthread_mutex_destroy(&admission->lock);
    free(admission);
}

/* ---- memory ---- */

static unsigned long long mib(uint64_t bytes)
{
    return bytes >> 20;
}

static uint64_t capacity_of(const struct admission_limits *limits, uint64_t available, uint64_t owned)
{
    uint64_t there = available + owned;
    uint64_t capacity = there > ADMISSION_RESERVE ? there - ADMISSION_RESERVE : 0;
    return limits->memory_bytes != 0 ? MIN(limits->memory_bytes, capacity) : capacity;
}

static int refuse_memory(struct error *err)
{
    error_reason(err, "out_of_memory");
    error_hint(err, "pause or kill sandboxes that are not needed; dormouse ls lists them");
    return -EAGAIN;
}

/* Under the lock. */
static int check_memory(const struct admission *admission, uint64_t bytes, uint64_t available, uint64_t owned,
                        struct error *err)
{
    const struct admission_limits *limits = &admission->limits;
    uint64_t capacity = capacity_of(limits, available, owned);
    if (owned + bytes > capacity) {
        error_set(err, EAGAIN, "no memory for another sandbox: it may need %llu MiB; of %llu MiB %llu are in use",
                  mib(bytes), mib(capacity), mib(owned));
        return refuse_memory(err);
    }
    /* In MiB: percents of bytes could overflow. */
    if (mib(admission->promised + bytes) * 100 > mib(capacity) * limits->overcommit_percent) {
        error_set(err, EAGAIN,
                  "no memory for another sandbox: it may need %llu MiB; those that run may come to need %llu, and "
                  "of %llu MiB %u %% may be promised",
                  mib(bytes), mib(admission->promised), mib(capacity), limits->overcommit_percent);
        return refuse_memory(err);
    }
    return 0;
}

/* Under the lock. */
static int check_count(const struct admission *admission, struct error *err)
{
    if (admission->limits.sandboxes == 0 || admission->sandboxes < admission->limits.sandboxes)
        return 0;
    error_set(err, EAGAIN, "%u sandboxes run, and no more are allowed", admission->sandboxes);
    error_reason(err, "too_many_sandboxes");
    error_hint(err, "pause or kill one, or start dormoused with a larger --max-sandboxes");
    return -EAGAIN;
}

static void promise(struct admission *admission, uint64_t bytes)
{
    admission->sandboxes++;
    admission->promised += bytes;
}

int admission_promise(struct admission *admission, uint64_t bytes, struct error *err)
{
    const struct host_memory *memory = &admission->memory;
    uint64_t available;
    int r = memory->available(memory->context, &available, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&admission->lock);
    r = check_count(admission, err);
    /* Where all promises fit into what is left, both rules hold, and nobody need look at every VMM. */
    bool fits = r == 0 && admission->promised + bytes <= capacity_of(&admission->limits, available, 0);
    if (fits)
        promise(admission, bytes);
    pthread_mutex_unlock(&admission->lock);
    if (r < 0 || fits)
        return r;
    uint64_t owned = memory->owned(memory->context);
    pthread_mutex_lock(&admission->lock);
    r = check_count(admission, err);
    if (r == 0)
        r = check_memory(admission, bytes, available, owned, err);
    if (r == 0)
        promise(admission, bytes);
    pthread_mutex_unlock(&admission->lock);
    return r;
}

void admission_note(struct admission *admission, uint64_t bytes)
{
    pthread_mutex_lock(&admission->lock);
    promise(admission, bytes);
    pthread_mutex_unlock(&admission->lock);
}

void admission_withdraw(struct admission *admission, uint64_t bytes)
{
    pthread_mutex_lock(&admission->lock);
    admission->sandboxes--;
    admission->promised -= bytes;
    pthread_mutex_unlock(&admission->lock);
}

/* ---- starts ---- */

static bool is_free(const struct admission *admission)
{
    return admission->limits.starts == 0 || admission->starts < admission->limits.starts;
}

static struct timespec deadline_after(int timeout_ms)
{
    int64_t ns = clock_monotonic_ns() + (int64_t)timeout_ms * 1000000;
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/* Under the lock, until it is this one's turn. */
static int wait_in_line(struct admission *admission, const atomic_bool *cancelled, struct error *err)
{
    struct waiter self = {0};
    struct waiter **link = &admission->first;
    while (*link != NULL)
        link = &(*link)->next;
    *link = &self;
    struct timespec deadline = deadline_after(admission->limits.start_wait_ms);
    int r = 0;
    while (r == 0 && !atomic_load(cancelled) && (admission->first != &self || !is_free(admission)))
        r = -pthread_cond_timedwait(&admission->changed, &admission->lock, &deadline);
    for (link = &admission->first; *link != &self; link = &(*link)->next)
        ;
    *link = self.next;
    pthread_cond_broadcast(&admission->changed); /* the next one is first now */
    if (atomic_load(cancelled))
        return error_set(err, ECANCELED, "the start was cancelled while it waited for others");
    if (r == -ETIMEDOUT) {
        error_set(err, EAGAIN, "%u sandboxes are being started, and the turn of this one did not come in %d s",
                  admission->starts, admission->limits.start_wait_ms / 1000);
        error_reason(err, "too_many_starts");
        return -EAGAIN;
    }
    return r;
}

int admission_begin_start(struct admission *admission, const atomic_bool *cancelled, struct error *err)
{
    pthread_mutex_lock(&admission->lock);
    int r = 0;
    if (admission->first != NULL || !is_free(admission))
        r = wait_in_line(admission, cancelled, err);
    if (r == 0)
        admission->starts++;
    pthread_mutex_unlock(&admission->lock);
    return r;
}

void admission_end_start(struct admission *admission)
{
    pthread_mutex_lock(&admission->lock);
    admission->starts--;
    pthread_cond_broadcast(&admission->changed);
    pthread_mutex_unlock(&admission->lock);
}

void admission_wake(struct admission *admission)
{
    pthread_mutex_lock(&admission->lock);
    pthread_cond_broadcast(&admission->changed);
    pthread_mutex_unlock(&admission->lock);
}
