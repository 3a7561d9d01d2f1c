/*
 * After a restart: every recorded sandbox is brought to a state that is true.
 *
 *   record says   VMM lives                         VMM is gone
 *   running       taken over (continued if stopped)  lost; if durable, paused with its disk alone
 *   pausing       snapshot committed: paused;        snapshot committed: paused; else lost
 *                 else continued: running
 *   creating      removed                            removed
 *   resuming      ended: paused                      paused
 *   killed        ended and removed                  removed
 *
 * Then whatever nobody claims is removed: VMMs with this data directory's marker in their environment, VM
 * directories, half-made snapshots (store_open did), snapshots that nothing refers to and their layers, namespaces
 * (the network pool). When the image server didn't outlive the daemon, no VMM did: their pages are gone.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/io.h"
#include "base/process.h"
#include "sandbox/internal.h"

#define END_TIMEOUT_MS 5000

static int load_sandbox(void *context, const char *id, const json_t *document, struct error *err)
{
    return sandbox_load(context, id, document, err);
}

static int load_template(void *context, const char *id, const json_t *document, struct error *err)
{
    return template_load(context, id, document, err);
}

static int load_checkpoint(void *context, const char *id, const json_t *document, struct error *err)
{
    return checkpoint_load(context, id, document, err);
}

static bool snapshot_exists(struct manager *manager, const char *id)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    return id != NULL && store_read(manager->store, id, &snapshot, NULL) == 0;
}

/* Takes over VMM and network of a sandbox that was running; the guest then runs. */
static int adopt(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    int r = manager->images_lost ? error_set(err, EHOSTDOWN, "%s", IMAGES_LOST) : 0;
    if (r == 0)
        r = sandbox_attach_images(manager, sandbox, err);
    if (r == 0)
        r = vmm_adopt(sandbox->vm_directory, sandbox->info.vmm_pid, sandbox->vmm_start_time, &sandbox->vmm, err);
    if (r == 0)
        r = network_adopt(manager->networks, (unsigned)sandbox->network_slot, &sandbox->network, err);
    if (r == 0)
        sandbox->network->egress_denied = sandbox->info.egress_denied;
    /* It may have been stopped in the middle of a capture; one that doesn't answer now does as told when it wakes.
     */
    if (r == 0) {
        r = vmm_continue(sandbox->vmm, err);
        if (r == -ETIMEDOUT)
            r = 0;
    }
    if (r == 0)
        r = watch_vmm(manager, sandbox, err);
    if (r == 0)
        limits_adopt(manager, sandbox);
    return r;
}

/* Of a recorded VMM that is not to go on. */
static void end_process(const struct sandbox *sandbox)
{
    CLEANUP_CLOSE int pidfd = process_open(sandbox->info.vmm_pid, sandbox->vmm_start_time);
    if (pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    poll(&ended, 1, END_TIMEOUT_MS);
}

static void end_vmm(struct manager *manager, struct sandbox *sandbox)
{
    end_process(sandbox);
    sandbox_teardown(manager, sandbox);
}

static void recover_running(struct manager *manager, struct sandbox *sandbox)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = adopt(manager, sandbox, &err);
    if (r == 0)
        r = sandbox_record(manager, sandbox, &err);
    if (r == 0) {
        manager_log(manager, "sandbox %s: taken over, VMM process %d", sandbox->info.id,
                    (int)sandbox->info.vmm_pid);
        return;
    }
    end_process(sandbox);
    sandbox_give_up(manager, sandbox, error_message(&err));
}

static int recover_one(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    switch (sandbox->info.state) {
    case SANDBOX_RUNNING:
        free(TAKE_PTR(sandbox->pending_snapshot));
        recover_running(manager, sandbox);
        return 0;
    case SANDBOX_PAUSING:
        if (snapshot_exists(manager, sandbox->pending_snapshot)) {
            end_vmm(manager, sandbox);
            sandbox_finish_pause(manager, sandbox);
            return 0;
        }
        free(TAKE_PTR(sandbox->pending_snapshot));
        sandbox->info.state = SANDBOX_RUNNING;
        recover_running(manager, sandbox);
        if (sandbox->vmm != NULL)
            sandbox_thaw(sandbox); /* it may have been about to be paused without its memory */
        return 0;
    case SANDBOX_RESUMING:
        end_vmm(manager, sandbox);
        sandbox_force_state(manager, sandbox, SANDBOX_PAUSED);
        return 0;
    case SANDBOX_CREATING:
    case SANDBOX_KILLED:
        end_vmm(manager, sandbox);
        return sandbox_remove(manager, sandbox, err);
    default:
        return 0;
    }
}

/* Kills processes whose environment carries this data directory's marker and that no sandbox has taken over. */
static bool is_stray(struct manager *manager, pid_t pid, const char *marker)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
    CLEANUP_FREE char *environment = NULL;
    /* A VMM's environment is the marker alone. */
    if (io_read_file(path, 4096, &environment, NULL) < 0 || strncmp(environment, marker, strlen(marker)) != 0)
        return false;
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        if (sandbox->info.vmm_pid == pid)
            return false;
    return true;
}

static int end_strays(struct manager *manager, struct error *err)
{
    char marker[128];
    snprintf(marker, sizeof(marker), "DORMOUSE_VMM=%s/", manager->instance);
    DIR *processes = opendir("/proc");
    if (processes == NULL)
        return error_errno(err, "cannot read /proc");
    for (struct dirent *entry; (entry = readdir(processes)) != NULL;) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        uint64_t start_time;
        if (process_start_time(pid, &start_time) < 0)
            continue;
        CLEANUP_CLOSE int pidfd = process_open(pid, start_time);
        if (pidfd < 0 || !is_stray(manager, pid, marker))
            continue;
        manager_log(manager, "ending VMM process %d, which nobody knows any more", (int)pid);
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    }
    closedir(processes);
    return 0;
}

static bool has_vm(struct manager *manager, const char *id)
{
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        if (strcmp(sandbox->info.id, id) == 0)
            return sandbox->vmm != NULL;
    return false;
}

/* Removes the entries of a part of the data directory; of "vms", those without a VMM. */
static int clear_part(struct manager *manager, const char *part, struct error *err)
{
    CLEANUP_FREE char *directory = manager_path(manager, part, "", err);
    DIR *entries = directory != NULL ? opendir(directory) : NULL;
    if (entries == NULL)
        return error_errno(err, "cannot read the data directory's %s", part);
    int r = 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(entries)) != NULL;) {
        if (entry->d_name[0] == '.' || (strcmp(part, "vms") == 0 && has_vm(manager, entry->d_name)))
            continue;
        CLEANUP_FREE char *path = manager_path(manager, part, entry->d_name, err);
        r = path != NULL ? io_remove_tree(path) : -ENOMEM;
        if (r < 0)
            error_code(err, r, "cannot remove %s", entry->d_name);
    }
    closedir(entries);
    return r;
}

static bool keep_cgroup(void *context, const char *name)
{
    return has_vm(context, name);
}

static int collect_snapshots(struct manager *manager, struct error *err)
{
    char **ids = NULL;
    int r = store_list(manager->store, &ids, err);
    if (r < 0)
        return r;
    for (size_t i = 0; ids[i] != NULL; i++)
        snapshot_collect(manager, ids[i]);
    store_list_done(ids);
    snapshot_gc_soon(manager);
    return 0;
}

int manager_recover(struct manager *manager, struct error *err)
{
    int r = registry_visit(manager->registry, REGISTRY_SANDBOX, load_sandbox, manager, err);
    if (r == 0)
        r = registry_visit(manager->registry, REGISTRY_TEMPLATE, load_template, manager, err);
    if (r == 0)
        r = registry_visit(manager->registry, REGISTRY_CHECKPOINT, load_checkpoint, manager, err);
    if (r < 0)
        return r;
    struct sandbox_list list;
    r = manager_list(manager, &list, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < list.count; i++) {
        struct sandbox *sandbox;
        r = sandbox_acquire(manager, list.items[i].id, &sandbox, err);
        if (r < 0)
            break;
        r = recover_one(manager, sandbox, err);
        sandbox_release(manager, sandbox);
    }
    sandbox_list_done(&list);
    if (r == 0)
        r = end_strays(manager, err);
    if (r == 0 && manager->cgroups != NULL)
        cgroups_sweep(manager->cgroups, keep_cgroup, manager);
    if (r == 0)
        r = clear_part(manager, "vms", err);
    if (r == 0)
        r = clear_part(manager, "tmp", err);
    if (r == 0)
        r = collect_snapshots(manager, err);
    if (r == 0)
        r = network_pool_start(manager->networks, err);
    return r < 0 ? error_wrap(err, r, "recovering after the last run") : 0;
}
