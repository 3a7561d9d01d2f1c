/*
 * Fork: the parent is captured once (if it runs) and N children are started from that snapshot, some at a time. The
 * children own what they need as links in their VM directories, so nothing ties them to parent or snapshot.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "sandbox/internal.h"

#define FORK_THREADS_MAX 16

struct fork_job {
    struct manager *manager;
    const struct sandbox_spec *spec;
    const char *parent_id;
    unsigned count;
    struct fork_result *results;
    pthread_mutex_t lock;
    unsigned next;
};

static int name_parent(struct manager *manager, const char *id, const char *parent_id, struct sandbox_info *ret,
                       struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id, &sandbox, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&manager->lock);
    r = replace_text(&sandbox->info.parent_id, parent_id, err);
    pthread_mutex_unlock(&manager->lock);
    if (r == 0)
        r = sandbox_record(manager, sandbox, err);
    if (r == 0) {
        sandbox_info_done(ret);
        r = sandbox_report(manager, sandbox, ret, err);
    }
    sandbox_release(manager, sandbox);
    return r;
}

static void *fork_worker(void *context)
{
    struct fork_job *job = context;
    for (;;) {
        pthread_mutex_lock(&job->lock);
        unsigned i = job->next++;
        pthread_mutex_unlock(&job->lock);
        if (i >= job->count)
            return NULL;
        struct fork_result *result = &job->results[i];
        int r = manager_create(job->manager, job->spec, &result->info, &result->error);
        if (r == 0)
            r = name_parent(job->manager, result->info.id, job->parent_id, &result->info, &result->error);
        if (r < 0 && result->error.code == 0)
            error_set(&result->error, -r, "the child could not be started");
    }
}

static void start_children(struct fork_job *job)
{
    pthread_t threads[FORK_THREADS_MAX];
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned parallel = MIN((unsigned)(cpus > 0 ? cpus : 1) * 2, (unsigned)FORK_THREADS_MAX);
    unsigned wanted = MIN(job->count, parallel);
    unsigned started = 0;
    /* This thread is one of them, so there is always one. */
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, fork_worker, job) == 0)
        started++;
    fork_worker(job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}

/* The snapshot that the children start from; a running parent is captured. */
static int parent_snapshot(struct manager *manager, struct sandbox *parent, const char *what, char **ret,
                           struct error *err)
{
    if (parent->info.state == SANDBOX_PAUSED)
        return replace_text(ret, parent->info.snapshot_id, err);
    int r = sandbox_require(parent, SANDBOX_RUNNING, what, err);
    if (r == 0)
        r = sandbox_capture(manager, parent, CAPTURE_AND_CONTINUE, CAPTURE_ALL, ret, err);
    /* Also when it never stopped: a "stop" that was not answered in time may still be waiting for it. */
    if (r < 0 && parent->vmm != NULL)
        vmm_continue(parent->vmm, NULL);
    return r;
}

/*
 * From here on the parent may do what it likes, or be killed: the children need nothing but the snapshot, which is
 * pinned until they have it.
 */
int sandbox_snapshot(struct manager *manager, const char *id_or_prefix, const char *what, struct snapshot_pin *pin,
                     char **ret_snapshot_id, struct sandbox_info *ret_info, struct error *err)
{
    struct sandbox *parent;
    int r = sandbox_acquire(manager, id_or_prefix, &parent, err);
    if (r < 0)
        return r;
    atomic_store(&parent->cancelled, false);
    r = parent_snapshot(manager, parent, what, ret_snapshot_id, err);
    if (r == 0)
        r = sandbox_report(manager, parent, ret_info, err);
    if (r == 0)
        snapshot_pin(manager, pin, *ret_snapshot_id);
    sandbox_release(manager, parent);
    return r;
}

int manager_fork(struct manager *manager, const char *id_or_prefix, unsigned count, int64_t timeout_s,
                 struct fork_result *results, struct error *err)
{
    if (count < 1 || count > SANDBOX_FORK_MAX)
        return error_set(err, EINVAL, "a fork makes from 1 to %d children, not %u", SANDBOX_FORK_MAX, count);
    if (timeout_s < 0 || timeout_s > SANDBOX_TIMEOUT_MAX_S)
        return error_set(err, EINVAL, "the timeout must be from 0 to %d seconds", SANDBOX_TIMEOUT_MAX_S);
    CLEANUP_FREE char *snapshot_id = NULL;
    CLEANUP(sandbox_info_done) struct sandbox_info info = {0};
    struct snapshot_pin pin;
    int r = sandbox_snapshot(manager, id_or_prefix, "forked", &pin, &snapshot_id, &info, err);
    if (r < 0)
        return r;
    struct sandbox_spec spec = {
        .template_name = snapshot_id,
        .timeout_s = timeout_s,
        .on_timeout = info.on_timeout,
        .auto_resume = info.auto_resume,
        .durable = info.durable,
        .egress_denied = info.egress_denied,
        .environment = info.environment,
        .metadata = info.metadata,
    };
    struct fork_job job = {
        .manager = manager,
        .spec = &spec,
        .parent_id = info.id,
        .count = count,
        .results = results,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    memset(results, 0, sizeof(*results) * count);
    start_children(&job);
    snapshot_unpin(manager, &pin);
    snapshot_collect(manager, snapshot_id);
    return 0;
}
