/* Create, pause, resume and kill. Each takes the sandbox's operation lock, so they never overlap on one sandbox. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/encode.h"
#include "base/io.h"
#include "sandbox/compatibility.h"
#include "sandbox/internal.h"
#include "vmm/cpu_model.h"

#define ACCESS_TOKEN_BYTES 20

/* What a new sandbox is made from. */
struct origin {
    struct snapshot snapshot;
    char *template_id;
    char *template_name;
    struct string_list environment; /* a checkpoint's */
};

static void origin_done(struct origin *origin)
{
    snapshot_done(&origin->snapshot);
    free(origin->template_id);
    free(origin->template_name);
    string_list_done(&origin->environment);
}

/* Resolves a template's name or id, a checkpoint's name, or a snapshot's id. */
static int find_origin(struct manager *manager, const char *name, struct origin *ret, struct error *err)
{
    CLEANUP_FREE char *snapshot_id = NULL;
    pthread_mutex_lock(&manager->lock);
    const struct template *template = template_find(manager, name);
    int r = 0;
    if (template != NULL) {
        r = replace_text(&snapshot_id, template->info.snapshot_id, err);
        if (r == 0)
            r = replace_text(&ret->template_id, template->info.id, err);
        if (r == 0)
            r = replace_text(&ret->template_name, template->info.name, err);
    } else {
        const struct checkpoint *checkpoint = checkpoint_find(manager, name);
        if (checkpoint != NULL)
            r = replace_text(&snapshot_id, checkpoint->snapshot_id, err);
    }
    pthread_mutex_unlock(&manager->lock);
    if (r < 0)
        return r;
    r = store_read(manager->store, snapshot_id != NULL ? snapshot_id : name, &ret->snapshot, err);
    if (r == -ENOENT && template == NULL) {
        error_set(err, ENOENT, "there is no template or snapshot %.64s", name);
        error_hint(err, "make it: dormouse template build %.64s; or see: dormouse template ls", name);
    }
    if (r < 0 || template != NULL)
        return r;
    r = replace_text(&ret->template_id, ret->snapshot.manifest.template_id, err);
    pthread_mutex_lock(&manager->lock);
    template = template_find(manager, ret->snapshot.manifest.template_id);
    if (r == 0)
        r = replace_text(&ret->template_name, template != NULL ? template->info.name : "", err);
    const struct checkpoint *checkpoint = checkpoint_of(manager, ret->snapshot.manifest.id);
    if (r == 0 && checkpoint != NULL && string_list_copy(&ret->environment, &checkpoint->environment) < 0)
        r = error_set(err, ENOMEM, "out of memory");
    pthread_mutex_unlock(&manager->lock);
    return r;
}

static int check_spec(const struct sandbox_spec *spec, struct error *err)
{
    if (spec->cpus > SANDBOX_CPUS_MAX)
        return error_set(err, EINVAL, "%u virtual CPUs are more than %d", spec->cpus, SANDBOX_CPUS_MAX);
    if (spec->memory_mib != 0 &&
        (spec->memory_mib < SANDBOX_MEMORY_MIN_MIB || spec->memory_mib > SANDBOX_MEMORY_MAX_MIB))
        return error_set(err, EINVAL, "memory must be from %d to %d MiB, not %u", SANDBOX_MEMORY_MIN_MIB,
                         SANDBOX_MEMORY_MAX_MIB, spec->memory_mib);
    if (spec->timeout_s < 0 || spec->timeout_s > SANDBOX_TIMEOUT_MAX_S)
        return error_set(err, EINVAL, "the timeout must be from 0 to %d seconds", SANDBOX_TIMEOUT_MAX_S);
    if (spec->auto_resume && spec->on_timeout == TIMEOUT_PAUSE_DISK)
        return error_set(err, EINVAL, "a sandbox whose memory is not kept can't be woken by requests");
    if (spec->environment.count > SANDBOX_ENV_MAX)
        return error_set(err, EINVAL, "more than %d environment variables", SANDBOX_ENV_MAX);
    for (size_t i = 0; i < spec->environment.count; i++) {
        const char *equals = strchr(spec->environment.items[i], '=');
        if (equals == NULL || equals == spec->environment.items[i])
            return error_set(err, EINVAL, "'%.64s' is no KEY=VALUE", spec->environment.items[i]);
    }
    return 0;
}

static int new_token(char **ret, struct error *err)
{
    char text[2 * ACCESS_TOKEN_BYTES + 1];
    int r = random_hex(text, ACCESS_TOKEN_BYTES);
    return r < 0 ? error_code(err, r, "no random numbers") : replace_text(ret, text, err);
}

static bool defines(const struct string_list *environment, const char *definition)
{
    size_t length = strcspn(definition, "=") + 1;
    for (size_t i = 0; i < environment->count; i++)
        if (strncmp(environment->items[i], definition, length) == 0)
            return true;
    return false;
}

/* What the origin has, where the spec says nothing else. */
static int merge_environment(const struct string_list *origin, const struct string_list *spec,
                             struct string_list *ret, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < origin->count; i++)
        if (!defines(spec, origin->items[i]))
            r = string_list_add(ret, origin->items[i]);
    if (r < 0 || string_list_copy(ret, spec) < 0)
        return error_set(err, ENOMEM, "out of memory");
    if (ret->count > SANDBOX_ENV_MAX)
        return error_set(err, EINVAL, "more than %d environment variables, with those of the checkpoint",
                         SANDBOX_ENV_MAX);
    return 0;
}

static int describe(const struct sandbox_spec *spec, const struct origin *origin, struct sandbox_info *info,
                    struct error *err)
{
    const struct snapshot_manifest *manifest = &origin->snapshot.manifest;
    info->id = new_id(err);
    int r = info->id == NULL ? -ENOMEM : new_token(&info->access_token, err);
    if (r == 0)
        r = replace_text(&info->template_id, origin->template_id, err);
    if (r == 0)
        r = replace_text(&info->template_name, origin->template_name, err);
    if (r == 0)
        r = replace_text(&info->snapshot_id, manifest->id, err);
    if (r == 0)
        r = replace_text(&info->parent_id, "", err);
    if (r == 0)
        r = merge_environment(&origin->environment, &spec->environment, &info->environment, err);
    if (r == 0 && string_list_copy(&info->metadata, &spec->metadata) < 0)
        r = error_set(err, ENOMEM, "out of memory");
    info->state = SANDBOX_CREATING;
    info->cpus = spec->cpus != 0 ? spec->cpus : manifest->cpus;
    info->memory_mib = spec->memory_mib != 0 ? spec->memory_mib : (unsigned)(manifest->memory_bytes >> 20);
    info->disk_bytes = manifest->disk_bytes;
    info->egress_denied = spec->egress_denied;
    info->on_timeout = spec->on_timeout;
    info->auto_resume = spec->auto_resume;
    info->durable = spec->durable;
    info->created_ns = clock_realtime_ns();
    return r;
}

/*
 * How the snapshot is started here. What could not be loaded is refused before any process is started; a boot
 * depends on nothing but the disk, and takes what is best here.
 */
static int choose_accelerator(struct manager *manager, const struct snapshot_manifest *manifest, bool boot,
                              enum vmm_accelerator *ret, struct error *err)
{
    enum vmm_accelerator recorded = VMM_ACCELERATOR_TCG;
    (void)vmm_accelerator_parse(manifest->accelerator, &recorded); /* unknown: found below */
    /* KVM is looked at only where it matters: to find out may mean to boot a guest. */
    bool kvm = (boot || recorded == VMM_ACCELERATOR_KVM) && accelerator_kvm_works(manager, manifest->id);
    *ret = boot ? (kvm ? VMM_ACCELERATOR_KVM : VMM_ACCELERATOR_TCG) : recorded;
    if (boot)
        return 0;
    CLEANUP_FREE char *version = NULL;
    int r = vmm_version(recorded, &version, err);
    if (r < 0)
        return r;
    const struct compatibility_host host = {
        .vmm = version, .machine_revision = VMM_MACHINE_REVISION, .kvm = kvm, .cpu_fits = cpu_model_fits_host};
    return compatibility_check(manifest, &host, err);
}

int manager_create(struct manager *manager, const struct sandbox_spec *spec, struct sandbox_info *ret,
                   struct error *err)
{
    int64_t request_ns = clock_monotonic_ns();
    CLEANUP(origin_done) struct origin origin = {0};
    CLEANUP(sandbox_info_done) struct sandbox_info info = {0};
    struct start_request request = {.request_ns = request_ns};
    int r = check_spec(spec, err);
    if (r == 0)
        r = find_origin(manager, spec->template_name, &origin, err);
    if (r == 0)
        r = describe(spec, &origin, &info, err);
    struct sandbox *sandbox = NULL;
    request.boot =
        r == 0 && (snapshot_is_disk_only(&origin.snapshot) || info.cpus != origin.snapshot.manifest.cpus ||
                   (uint64_t)info.memory_mib << 20 != origin.snapshot.manifest.memory_bytes);
    if (r == 0)
        r = choose_accelerator(manager, &origin.snapshot.manifest, request.boot, &request.accelerator, err);
    if (r == -EBUSY && origin.template_name[0] != '\0')
        error_hint(err, "make the template again: dormouse template build %s", origin.template_name);
    if (r == 0)
        r = sandbox_add(manager, &info, &sandbox, err);
    if (r < 0)
        return r;
    request.snapshot_id = origin.snapshot.manifest.id;
    request.timeout_s = spec->timeout_s;
    r = sandbox_start(manager, sandbox, &request, err);
    if (r == 0)
        r = sandbox_report(manager, sandbox, ret, err);
    if (r < 0)
        sandbox_kill(manager, sandbox, NULL);
    sandbox_release(manager, sandbox);
    return r;
}

/* What a pause leaves to do, for which nobody waits. */
struct aftermath {
    char *superseded;
    char *snapshot_id;
};

static void clear_up(struct manager *manager, void *argument)
{
    struct aftermath *aftermath = argument;
    if (aftermath->snapshot_id != NULL)
        snapshot_warm(manager, aftermath->snapshot_id);
    snapshot_collect(manager, aftermath->superseded);
    if (aftermath->snapshot_id != NULL)
        snapshot_compact(manager, aftermath->snapshot_id);
    free(aftermath->superseded);
    free(aftermath->snapshot_id);
    free(aftermath);
}

void sandbox_finish_pause(struct manager *manager, struct sandbox *sandbox)
{
    CLEANUP_FREE char *superseded = sandbox->info.snapshot_id;
    pthread_mutex_lock(&manager->lock);
    sandbox->info.snapshot_id = TAKE_PTR(sandbox->pending_snapshot);
    sandbox->deadline_ns = 0;
    sandbox->info.expires_ns = 0;
    pthread_mutex_unlock(&manager->lock);
    sandbox_teardown(manager, sandbox);
    /* Until this is written the registry says "pausing" with this very snapshot: a crash before it ends the same
     * way. */
    sandbox_force_state(manager, sandbox, SANDBOX_PAUSED);
    struct aftermath *aftermath = malloc(sizeof(*aftermath));
    if (aftermath == NULL)
        return; /* the next start removes what nothing refers to */
    *aftermath = (struct aftermath){TAKE_PTR(superseded), strdup(sandbox->info.snapshot_id)};
    if (manager_spawn(manager, clear_up, aftermath) < 0)
        clear_up(manager, aftermath);
}

/*
 * Back to running after a failed capture. A VMM that doesn't answer now has the command to continue waiting in its
 * socket, behind whatever else it has not done yet; one that is gone is lost.
 */
static void undo_pause(struct manager *manager, struct sandbox *sandbox)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = vmm_continue(sandbox->vmm, &err);
    pthread_mutex_lock(&manager->lock);
    free(TAKE_PTR(sandbox->pending_snapshot));
    pthread_mutex_unlock(&manager->lock);
    if (r == 0 || r == -ETIMEDOUT) {
        sandbox_force_state(manager, sandbox, SANDBOX_RUNNING);
        return;
    }
    sandbox_give_up(manager, sandbox, error_message(&err));
}

void sandbox_give_up(struct manager *manager, struct sandbox *sandbox, const char *reason)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *snapshot_id = NULL;
    if (sandbox->vmm != NULL)
        vmm_kill(sandbox->vmm);
    int r = sandbox->info.durable ? sandbox_salvage(manager, sandbox, &snapshot_id, &err) : -ENODATA;
    if (r < 0) {
        if (sandbox->info.durable)
            manager_log(manager, "%s", error_message(&err));
        sandbox_teardown(manager, sandbox);
        sandbox_set_lost(manager, sandbox, reason);
        return;
    }
    manager_log(manager, "sandbox %s: %s; it is paused with its disk as it was last flushed", sandbox->info.id,
                reason);
    free(sandbox->pending_snapshot);
    sandbox->pending_snapshot = TAKE_PTR(snapshot_id);
    sandbox_finish_pause(manager, sandbox);
}

int sandbox_pause(struct manager *manager, struct sandbox *sandbox, enum capture_extent extent, struct error *err)
{
    int r = sandbox_require(sandbox, SANDBOX_RUNNING, "paused", err);
    atomic_store(&sandbox->cancelled, false); /* before anybody can see that there is something to cancel */
    if (r == 0)
        r = sandbox_set_state(manager, sandbox, SANDBOX_PAUSING, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *snapshot_id = NULL;
    r = sandbox_capture(manager, sandbox, CAPTURE_AND_STOP, extent, &snapshot_id, err);
    if (r < 0) {
        undo_pause(manager, sandbox);
        if (r == -ECANCELED)
            error_set(err, ECANCELED,
                      "pausing sandbox %s was cancelled: it was to be resumed or killed before the "
                      "snapshot was done",
                      sandbox->info.id);
        if (r == -ECANCELED)
            error_reason(err, "pause_cancelled");
        return r;
    }
    sandbox_finish_pause(manager, sandbox);
    return 0;
}

int manager_pause(struct manager *manager, const char *id_or_prefix, bool disk_only, struct sandbox_info *ret,
                  struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id_or_prefix, &sandbox, err);
    if (r < 0)
        return r;
    r = sandbox_pause(manager, sandbox, disk_only ? CAPTURE_DISK : CAPTURE_ALL, err);
    if (r == 0)
        r = sandbox_report(manager, sandbox, ret, err);
    sandbox_release(manager, sandbox);
    return r;
}

/* A running sandbox's timeout is only ever extended by a resume. */
static void extend_deadline(struct manager *manager, struct sandbox *sandbox, int64_t timeout_s)
{
    pthread_mutex_lock(&manager->lock);
    int64_t present = sandbox->deadline_ns;
    pthread_mutex_unlock(&manager->lock);
    if (timeout_s >= 0 && present != 0 && (timeout_s == 0 || boottime_ns() + timeout_s * 1000000000 > present))
        sandbox_set_deadline(manager, sandbox, timeout_s);
}

static int resume(struct manager *manager, struct sandbox *sandbox, const struct resume_options *options,
                  int64_t request_ns, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct start_request request = {
        .snapshot_id = sandbox->info.snapshot_id,
        .request_ns = request_ns,
        .timeout_s = options->timeout_s >= 0 ? options->timeout_s : sandbox->timeout_s,
    };
    int r = sandbox_require(sandbox, SANDBOX_PAUSED, "resumed", err);
    if (r == 0)
        r = snapshot_refuse(sandbox->info.snapshot_id,
                            store_read(manager->store, sandbox->info.snapshot_id, &snapshot, err), err);
    /* Memory that was kept is given up for a fresh boot only when asked for. */
    request.boot = options->reboot || (r == 0 && snapshot_is_disk_only(&snapshot));
    if (r == 0) {
        r = choose_accelerator(manager, &snapshot.manifest, request.boot, &request.accelerator, err);
        if (r == -EBUSY)
            error_hint(err, "boot it from its disk, its memory given up: dormouse resume --reboot %.12s",
                       sandbox->info.id);
    }
    atomic_store(&sandbox->cancelled, false); /* before anybody can see that there is something to cancel */
    if (r == 0)
        r = sandbox_set_state(manager, sandbox, SANDBOX_RESUMING, err);
    if (r < 0)
        return r;
    r = sandbox_start(manager, sandbox, &request, err);
    if (r < 0)
        sandbox_force_state(manager, sandbox, SANDBOX_PAUSED);
    return r;
}

int manager_resume(struct manager *manager, const char *id_or_prefix, const struct resume_options *options,
                   bool *ret_was_running, struct sandbox_info *ret, struct error *err)
{
    int64_t request_ns = clock_monotonic_ns();
    if (options->timeout_s > SANDBOX_TIMEOUT_MAX_S)
        return error_set(err, EINVAL, "the timeout must be at most %d seconds", SANDBOX_TIMEOUT_MAX_S);
    struct sandbox *sandbox;
    int r = sandbox_preempt(manager, id_or_prefix, PREEMPT_PAUSE, &sandbox, err);
    if (r < 0)
        return r;
    bool was_running = sandbox->info.state == SANDBOX_RUNNING;
    if (was_running) {
        extend_deadline(manager, sandbox, options->timeout_s);
        r = sandbox_record(manager, sandbox, err);
    } else {
        r = resume(manager, sandbox, options, request_ns, err);
    }
    if (r == 0)
        r = sandbox_report(manager, sandbox, ret, err);
    if (r == 0 && ret_was_running != NULL)
        *ret_was_running = was_running;
    sandbox_release(manager, sandbox);
    return r;
}

static int refuse_to_wake(const struct sandbox *sandbox, struct error *err)
{
    return error_set(err, EBUSY, "sandbox %s is %s and is not woken by requests", sandbox->info.id,
                     sandbox_state_name(sandbox->info.state));
}

static int wake(struct manager *manager, struct sandbox *sandbox, int64_t request_ns, struct error *err)
{
    if (sandbox->info.state == SANDBOX_RUNNING)
        return 0;
    if (sandbox->info.state != SANDBOX_PAUSED || !sandbox->info.auto_resume)
        return refuse_to_wake(sandbox, err);
    /* What failed for the request before would fail for each that waited for it, one after the other. */
    if (sandbox->wake_failed_ns > request_ns)
        return error_set(err, EAGAIN, "sandbox %s could not be woken", sandbox->info.id);
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    if (store_read(manager->store, sandbox->info.snapshot_id, &snapshot, NULL) == 0 &&
        snapshot_is_disk_only(&snapshot))
        return refuse_to_wake(sandbox, err);
    const struct resume_options options = {.timeout_s = -1};
    int r = resume(manager, sandbox, &options, request_ns, err);
    if (r < 0)
        sandbox->wake_failed_ns = clock_monotonic_ns();
    else
        manager_log(manager, "sandbox %s: woken by a request", sandbox->info.id);
    return r;
}

int manager_wake(struct manager *manager, const char *id, struct sandbox_info *ret, struct error *err)
{
    int64_t request_ns = clock_monotonic_ns();
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id, &sandbox, err);
    if (r < 0)
        return r;
    r = wake(manager, sandbox, request_ns, err);
    if (r == 0)
        r = sandbox_report(manager, sandbox, ret, err);
    sandbox_release(manager, sandbox);
    return r;
}

int sandbox_kill(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    /* Recorded or not: on a full disk, killing must be what makes space. */
    sandbox_force_state(manager, sandbox, SANDBOX_KILLED);
    sandbox_teardown(manager, sandbox);
    snapshot_collect(manager, sandbox->info.snapshot_id);
    return sandbox_remove(manager, sandbox, err);
}

int manager_kill(struct manager *manager, const char *id_or_prefix, struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_preempt(manager, id_or_prefix, PREEMPT_ALL, &sandbox, err);
    if (r == -EALREADY) {
        if (err != NULL)
            error_done(err);
        return 0;
    }
    if (r < 0)
        return r;
    r = sandbox_kill(manager, sandbox, err);
    sandbox_release(manager, sandbox);
    return r;
}

int manager_set_timeout(struct manager *manager, const char *id_or_prefix, int64_t timeout_s, struct error *err)
{
    if (timeout_s < 0 || timeout_s > SANDBOX_TIMEOUT_MAX_S)
        return error_set(err, EINVAL, "the timeout must be from 0 to %d seconds", SANDBOX_TIMEOUT_MAX_S);
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id_or_prefix, &sandbox, err);
    if (r < 0)
        return r;
    r = sandbox_require(sandbox, SANDBOX_RUNNING, "given a timeout", err);
    if (r == 0) {
        sandbox_set_deadline(manager, sandbox, timeout_s);
        r = sandbox_record(manager, sandbox, err);
    }
    sandbox_release(manager, sandbox);
    return r;
}

int manager_set_egress(struct manager *manager, const char *id_or_prefix, bool allowed, struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id_or_prefix, &sandbox, err);
    if (r < 0)
        return r;
    r = sandbox_require(sandbox, SANDBOX_RUNNING, "given other network rules", err);
    if (r == 0)
        r = network_set_egress(sandbox->network, allowed, err);
    if (r == 0) {
        pthread_mutex_lock(&manager->lock);
        sandbox->info.egress_denied = !allowed;
        pthread_mutex_unlock(&manager->lock);
        r = sandbox_record(manager, sandbox, err);
    }
    sandbox_release(manager, sandbox);
    return r;
}
