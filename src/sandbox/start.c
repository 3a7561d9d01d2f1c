/*
 * From a snapshot to a running guest.
 *
 * Order: that something is being started is recorded before, the VMM's pid and its network slot as soon as there is
 * one (a VMM or a namespace that a dying daemon had not recorded yet is nobody's, and removed: recover.c); the
 * guest counts as running only when its agent has acknowledged clock, entropy and identity.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "control/client.h"
#include "sandbox/internal.h"

#define RESTORE_TIMEOUT_MS 30000
#define BOOT_TIMEOUT_MS    90000

#define ENTROPY_BYTES 64

/* How stale the time in a message may be when the agent acknowledges it; the promise to users is 100 ms. */
#define CLOCK_TOLERANCE_NS 40000000
#define CLOCK_ATTEMPTS     20

void sandbox_vmm_config(const struct manager *manager, const struct sandbox *sandbox, char marker[static 128],
                        enum vmm_accelerator accelerator, int tap_fd, struct vmm_config *ret)
{
    snprintf(marker, 128, "DORMOUSE_VMM=%s/%s", manager->instance, sandbox->info.id);
    *ret = (struct vmm_config){
        .directory = sandbox->vm_directory,
        .marker = marker,
        .accelerator = accelerator,
        .cpus = sandbox->info.cpus,
        .memory_bytes = (uint64_t)sandbox->info.memory_mib << 20,
        .cgroup = sandbox->cgroup,
        .uid = VMM_USER_ID_FIRST + (sandbox->network != NULL ? sandbox->network->slot : 0),
        .namespace_fd = sandbox->network != NULL ? sandbox->network->namespace_fd : -1,
        .tap_fd = tap_fd,
        .memory_path = sandbox->files.memory,
        .rootfs_path = sandbox->files.disk,
        .state_fd = -1,
    };
}

static int send_clock(struct sandbox *sandbox, int control_fd, int timeout_ms, struct error *err)
{
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    size_t start = control_begin(&message, CONTROL_CLOCK, 0);
    control_add_i64(&message, CONTROL_TIME, clock_realtime_ns());
    control_end(&message, start);
    struct control_reply reply;
    return control_request(control_fd, vmm_pidfd(sandbox->vmm), &message, timeout_ms, &reply, err);
}

static int build_identity(const struct sandbox_info *info, struct strbuf *message, struct error *err)
{
    uint8_t entropy[ENTROPY_BYTES];
    if (getrandom(entropy, sizeof(entropy), 0) != (ssize_t)sizeof(entropy))
        return error_errno(err, "no random numbers");
    char hostname[13];
    snprintf(hostname, sizeof(hostname), "%.12s", info->id);
    size_t start = control_begin(message, CONTROL_APPLY, 0);
    control_add(message, CONTROL_ENTROPY, entropy, sizeof(entropy));
    control_add_text(message, CONTROL_HOSTNAME, hostname);
    control_add_text(message, CONTROL_SANDBOX_ID, info->id);
    control_add_text(message, CONTROL_TEMPLATE_ID, info->template_id);
    control_add_text(message, CONTROL_ACCESS_TOKEN, info->access_token);
    for (size_t i = 0; i < info->environment.count; i++)
        control_add_text(message, CONTROL_ENV, info->environment.items[i]);
    control_end(message, start);
    return 0;
}

int sandbox_apply_identity(struct sandbox *sandbox, int timeout_ms, struct error *err)
{
    int control_fd = vmm_control_fd(sandbox->vmm, err);
    if (control_fd < 0)
        return control_fd;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    int r = build_identity(&sandbox->info, &message, err);
    if (r < 0)
        return r;
    struct control_reply reply;
    r = control_request(control_fd, vmm_pidfd(sandbox->vmm), &message, timeout_ms, &reply, err);
    /* The message above may have waited for the guest. A busy host may delay this one, too: until it is prompt. */
    for (int attempt = 0; r == 0 && attempt < CLOCK_ATTEMPTS; attempt++) {
        int64_t sent_ns = clock_monotonic_ns();
        r = send_clock(sandbox, control_fd, timeout_ms, err);
        if (clock_monotonic_ns() - sent_ns <= CLOCK_TOLERANCE_NS)
            break;
    }
    return r;
}

static void set_vmm(struct manager *manager, struct sandbox *sandbox, pid_t pid)
{
    pthread_mutex_lock(&manager->lock);
    sandbox->info.vmm_pid = pid;
    pthread_mutex_unlock(&manager->lock);
}

void sandbox_teardown(struct manager *manager, struct sandbox *sandbox)
{
    if (sandbox->vmm != NULL) {
        vmm_kill(sandbox->vmm);
        vmm_free(sandbox->vmm);
        sandbox->vmm = NULL;
    }
    set_vmm(manager, sandbox, 0);
    pthread_mutex_lock(&manager->lock);
    struct network *network = TAKE_PTR(sandbox->network);
    pthread_mutex_unlock(&manager->lock);
    network_release(manager->networks, network);
    sandbox->network_slot = -1;
    sandbox_detach_images(manager, sandbox);
    sandbox_forget_digests(sandbox);
    limits_leave(manager, sandbox);
    int r = io_remove_tree(sandbox->vm_directory);
    if (r < 0)
        manager_log(manager, "cannot remove %s: %s", sandbox->vm_directory, strerror(-r));
}

/* Takes a VMM that waits, if there is one and it can be of use, and in any case a network namespace. */
static int take_place(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                      struct error *err)
{
    struct network *network = NULL;
    bool prepared = !request->boot && standby_take(manager->standbys, request->accelerator, sandbox->info.cpus,
                                                   sandbox->vm_directory, &sandbox->vmm, &network);
    int r = prepared ? 0 : network_take(manager->networks, &network, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&manager->lock);
    sandbox->network = network;
    pthread_mutex_unlock(&manager->lock);
    sandbox->network_slot = network->slot;
    return sandbox->info.egress_denied ? network_set_egress(network, false, err) : 0;
}

/* What a crash of the host must not take: from what the VM was made, and where its overlay will be. */
static int sync_directory(struct manager *manager, const struct sandbox *sandbox, struct error *err)
{
    CLEANUP_FREE char *all = manager_path(manager, "vms", "", err);
    if (all == NULL)
        return -ENOMEM;
    int r = io_fsync_path(sandbox->vm_directory);
    if (r == 0)
        r = io_fsync_path(all);
    return r < 0 ? error_code(err, r, "cannot make %s durable", sandbox->vm_directory) : 0;
}

/* Fills the VM directory and has its images served. */
static int prepare_directory(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                             struct error *err)
{
    if (sandbox->vmm == NULL && mkdir(sandbox->vm_directory, 0755) < 0)
        return error_errno(err, "cannot make %s", sandbox->vm_directory);
    int r = store_materialize(manager->store, request->snapshot_id, sandbox->vm_directory, err);
    sandbox->fresh_memory = request->boot;
    if (r == 0 && sandbox->info.durable)
        r = sync_directory(manager, sandbox, err);
    if (r == 0)
        r = sandbox_attach_images(manager, sandbox, err);
    return snapshot_refuse(request->snapshot_id, r, err);
}

static int64_t elapsed_us(const struct start_request *request)
{
    return (clock_monotonic_ns() - request->request_ns) / 1000;
}

static bool is_doomed(struct manager *manager, const struct sandbox *sandbox)
{
    pthread_mutex_lock(&manager->lock);
    bool doomed = sandbox->doomed;
    pthread_mutex_unlock(&manager->lock);
    return doomed;
}

static int record_vmm(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    sandbox->vmm_start_time = vmm_start_time(sandbox->vmm);
    set_vmm(manager, sandbox, vmm_pid(sandbox->vmm));
    /* A kill that comes from now on ends this process. */
    if (is_doomed(manager, sandbox))
        return error_set(err, ECANCELED, "it was killed meanwhile");
    return sandbox_record(manager, sandbox, err);
}

/* In the VMM that was waiting. It is recorded first, so that nothing comes between its start and the message to it.
 */
static int start_prepared(struct manager *manager, struct sandbox *sandbox, const struct vmm_config *config,
                          const struct start_request *request, struct sandbox_timings *timings, struct error *err)
{
    int r = record_vmm(manager, sandbox, err);
    timings->spawned_us = elapsed_us(request);
    return r == 0 ? vmm_restore_prepared(sandbox->vmm, config, err) : r;
}

static int start_new(struct manager *manager, struct sandbox *sandbox, struct vmm_config *config,
                     const struct start_request *request, struct sandbox_timings *timings, struct error *err)
{
    CLEANUP_CLOSE int tap_fd = network_open_tap(sandbox->network, err);
    if (tap_fd < 0)
        return tap_fd;
    config->tap_fd = tap_fd;
    int r = request->boot ? vmm_boot(config, &sandbox->vmm, err) : vmm_restore(config, &sandbox->vmm, err);
    if (r < 0)
        return r;
    timings->spawned_us = elapsed_us(request);
    return record_vmm(manager, sandbox, err);
}

static int start_vmm(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                     struct sandbox_timings *timings, struct error *err)
{
    int r = prepare_directory(manager, sandbox, request, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int state_fd = request->boot ? -1 : sandbox_open_device_state(sandbox, err);
    if (!request->boot && state_fd < 0)
        return state_fd;
    char marker[128];
    struct vmm_config config;
    sandbox_vmm_config(manager, sandbox, marker, request->accelerator, -1, &config);
    config.state_fd = state_fd;
    if (!request->boot)
        sandbox_prefetch(manager, sandbox);
    return sandbox->vmm != NULL ? start_prepared(manager, sandbox, &config, request, timings, err)
                                : start_new(manager, sandbox, &config, request, timings, err);
}

/* Since when the guest runs; that it does is known. */
static int wait_running(struct sandbox *sandbox, const struct start_request *request,
                        struct sandbox_timings *timings, int timeout_ms, struct error *err)
{
    int64_t since_ns = 0;
    int r = vmm_wait_running(sandbox->vmm, timeout_ms, &since_ns, err);
    if (r < 0)
        return r;
    int64_t ago_us = since_ns != 0 ? (clock_realtime_ns() - since_ns) / 1000 : 0;
    int64_t running_us = elapsed_us(request) - ago_us;
    timings->running_us =
        running_us > timings->spawned_us && running_us < timings->agent_us ? running_us : timings->agent_us;
    return 0;
}

static int start(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                 struct error *err)
{
    int timeout_ms = request->boot ? BOOT_TIMEOUT_MS : RESTORE_TIMEOUT_MS;
    struct sandbox_timings timings = {0};
    int r = take_place(manager, sandbox, request, err);
    if (r == 0)
        r = start_vmm(manager, sandbox, request, &timings, err);
    if (r < 0)
        return r;
    /* Sent before the guest runs: it is the first thing it finds. */
    r = sandbox_apply_identity(sandbox, timeout_ms, err);
    timings.agent_us = elapsed_us(request);
    if (r == -EPIPE)
        wait_running(sandbox, request, &timings, timeout_ms, err); /* fails, too, and knows what the VMM printed */
    else if (r == 0)
        r = wait_running(sandbox, request, &timings, timeout_ms, err);
    if (r < 0)
        return r;
    r = watch_vmm(manager, sandbox, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&manager->lock);
    sandbox->info.timings = timings;
    sandbox->info.started_ns = clock_realtime_ns();
    pthread_mutex_unlock(&manager->lock);
    if (!request->boot)
        sandbox_record_working_set(manager, sandbox);
    sandbox_set_deadline(manager, sandbox, request->timeout_s);
    return sandbox_set_state(manager, sandbox, SANDBOX_RUNNING, err);
}

int sandbox_try_start(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                      struct error *err)
{
    int r = machine_set(&sandbox->machine, request->accelerator, err);
    if (r == 0)
        r = limits_enter(manager, sandbox, request->accelerator, err);
    if (r < 0)
        return r;
    r = start(manager, sandbox, request, err);
    limits_started(manager);
    return r;
}

/*
 * A VMM that is to be killed ends, and whoever started it fails to talk to it. So does one whose memory or disk
 * can't be read: the image server knows why.
 */
static int explain_failure(struct manager *manager, const struct sandbox *sandbox,
                           const struct start_request *request, int r, struct error *err)
{
    CLEANUP_FREE char *reason = NULL;
    if (is_doomed(manager, sandbox)) {
        r = error_set(err, ECANCELED, "it was killed meanwhile");
        error_reason(err, "killed");
        return r;
    }
    if (imaged_failure(manager->images, sandbox->info.id, &reason, NULL) <= 0)
        return r;
    return snapshot_refuse(request->snapshot_id, error_set(err, EBADMSG, "%s", reason), err);
}

int sandbox_start(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                  struct error *err)
{
    int r = sandbox_try_start(manager, sandbox, request, err);
    if (r < 0) {
        r = explain_failure(manager, sandbox, request, r, err);
        sandbox_teardown(manager, sandbox);
        return error_wrap(err, r, "starting sandbox %s", sandbox->info.id);
    }
    return 0;
}
