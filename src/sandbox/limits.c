/* What sandboxes may take of the host: admission before a start, a control group while it runs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/memory.h"
#include "sandbox/internal.h"

/* A VMM has a thread for each virtual CPU, and up to 64 for its I/O. */
#define VMM_THREADS 128

/* The kernel's default for one; a guest with more virtual CPUs gets its part for each. */
#define CPU_WEIGHT 100

static int look_available(void *context, uint64_t *ret, struct error *err)
{
    (void)context;
    int r = host_memory_available(ret);
    return r < 0 ? error_code(err, r, "cannot tell the host's memory") : 0;
}

/* What ends meanwhile owns nothing. */
static uint64_t look_owned(void *context)
{
    struct manager *manager = context;
    pthread_mutex_lock(&manager->lock);
    size_t count = 0;
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        count++;
    CLEANUP_FREE pid_t *pids = calloc(count + 1, sizeof(*pids));
    count = 0;
    for (const struct sandbox *sandbox = manager->sandboxes; pids != NULL && sandbox != NULL;
         sandbox = sandbox->next)
        if (sandbox->info.vmm_pid != 0)
            pids[count++] = sandbox->info.vmm_pid;
    pthread_mutex_unlock(&manager->lock);
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes;
        if (process_private_bytes(pids[i], &bytes) == 0)
            total += bytes;
    }
    return total;
}

void limits_announce(struct manager *manager)
{
    if (manager->cgroups == NULL)
        manager_log(manager, "no cgroup version 2 here: VMMs run without bounds of memory, processes and CPU");
    else if (cgroups_lacking(manager->cgroups)[0] != '\0')
        manager_log(manager, "cgroup version 2 lacks here: %s; VMMs run without these bounds",
                    cgroups_lacking(manager->cgroups));
}

int limits_open(struct manager *manager, struct error *err)
{
    const struct manager_options *options = &manager->options;
    const struct admission_limits limits = {
        .sandboxes = options->sandboxes_max,
        .starts = options->starts_max,
        .memory_bytes = options->memory_limit_bytes,
        .overcommit_percent = options->memory_overcommit_percent,
        .start_wait_ms = ADMISSION_START_WAIT_MS,
    };
    const struct host_memory memory = {.available = look_available, .owned = look_owned, .context = manager};
    manager->admission = admission_new(&limits, &memory);
    if (manager->admission == NULL)
        return error_set(err, ENOMEM, "out of memory");
    const char *hierarchy = cgroup_hierarchy();
    return hierarchy != NULL ? cgroups_open(hierarchy, manager->instance, &manager->cgroups, err) : 0;
}

void limits_close(struct manager *manager)
{
    admission_free(manager->admission);
    cgroups_close(manager->cgroups);
}

static uint64_t guest_bytes(const struct sandbox *sandbox)
{
    return (uint64_t)sandbox->info.memory_mib << 20;
}

static int make_cgroup(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    if (manager->cgroups == NULL)
        return 0;
    const struct cgroup_limits limits = {
        .memory_bytes = sandbox->promised_bytes,
        .processes = VMM_THREADS + sandbox->info.cpus,
        .cpu_weight = CPU_WEIGHT * sandbox->info.cpus,
    };
    return cgroup_make(manager->cgroups, sandbox->info.id, &limits, &sandbox->cgroup, err);
}

int limits_enter(struct manager *manager, struct sandbox *sandbox, enum vmm_accelerator accelerator,
                 struct error *err)
{
    uint64_t bytes = vmm_memory_bytes(accelerator, guest_bytes(sandbox));
    int r = admission_promise(manager->admission, bytes, err);
    if (r < 0)
        return r;
    sandbox->promised_bytes = bytes;
    r = admission_begin_start(manager->admission, &sandbox->cancelled, err);
    if (r < 0)
        return r;
    r = make_cgroup(manager, sandbox, err);
    if (r < 0)
        limits_started(manager);
    return r;
}

void limits_started(struct manager *manager)
{
    admission_end_start(manager->admission);
}

void limits_adopt(struct manager *manager, struct sandbox *sandbox)
{
    sandbox->promised_bytes = vmm_memory_bytes(sandbox->machine.accelerator, guest_bytes(sandbox));
    admission_note(manager->admission, sandbox->promised_bytes);
}

void limits_leave(struct manager *manager, struct sandbox *sandbox)
{
    if (sandbox->promised_bytes != 0)
        admission_withdraw(manager->admission, sandbox->promised_bytes);
    sandbox->promised_bytes = 0;
    free(TAKE_PTR(sandbox->cgroup));
    if (manager->cgroups != NULL)
        cgroup_remove(manager->cgroups, sandbox->info.id);
}

bool limits_exceeded(const struct manager *manager, const struct sandbox *sandbox)
{
    return manager->cgroups != NULL && cgroup_ran_out_of_memory(manager->cgroups, sandbox->info.id);
}
