/*
 * Some hosts have a /dev/kvm that opens, makes a VM and a vCPU, and still cannot run an ordinary kernel. So a guest
 * is booted once, and it counts if its kernel or agent printed anything; the verdict is kept, with what it depends
 * on: the host's kernel and QEMU.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/io.h"
#include "sandbox/internal.h"

#define VERDICT_FILE     "kvm-verdict"
#define PROBE_MEMORY_MIB 128
#define PROBE_TIMEOUT_MS 10000

/* Waits until the console holds something or the VMM has ended. */
static bool wait_for_output(const struct sandbox *probe, const char *console)
{
    CLEANUP_CLOSE int inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (inotify_fd < 0 || inotify_add_watch(inotify_fd, console, IN_MODIFY) < 0)
        return false;
    int64_t deadline_ns = clock_monotonic_ns() + (int64_t)PROBE_TIMEOUT_MS * 1000000;
    for (;;) {
        struct stat status;
        if (stat(console, &status) == 0 && status.st_size > 0)
            return true;
        int64_t left_ms = (deadline_ns - clock_monotonic_ns()) / 1000000;
        struct pollfd fds[2] = {{inotify_fd, POLLIN, 0}, {vmm_pidfd(probe->vmm), POLLIN, 0}};
        if (left_ms <= 0 || poll(fds, 2, (int)left_ms) < 0 || fds[1].revents != 0)
            return false;
        char events[4096];
        (void)!read(inotify_fd, events, sizeof(events));
    }
}

static int fill_probe(const struct sandbox *probe, const char *kernel, const char *initrd)
{
    const char *const files[][2] = {{kernel, VMM_FILE_KERNEL}, {initrd, VMM_FILE_INITRD}, {NULL, VMM_FILE_MEMORY}};
    if (mkdir(probe->vm_directory, 0755) < 0)
        return -errno;
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        CLEANUP_FREE char *path = io_path(probe->vm_directory, files[i][1], NULL);
        if (path == NULL)
            return -ENOMEM;
        if (files[i][0] != NULL) {
            if (link(files[i][0], path) < 0)
                return -errno;
            continue;
        }
        CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0660);
        if (fd < 0 || ftruncate(fd, (off_t)PROBE_MEMORY_MIB << 20) < 0 || fchown(fd, 0, VMM_GROUP_ID) < 0)
            return -errno;
    }
    return 0;
}

static bool boots_with_kvm(struct manager *manager, struct sandbox *probe, const char *kernel, const char *initrd)
{
    if (fill_probe(probe, kernel, initrd) < 0)
        return false;
    char marker[128];
    struct vmm_config config;
    sandbox_vmm_config(manager, probe, marker, VMM_ACCELERATOR_KVM, -1, &config);
    if (vmm_boot(&config, &probe->vmm, NULL) < 0)
        return false;
    CLEANUP_FREE char *console = io_path(probe->vm_directory, VMM_FILE_CONSOLE, NULL);
    return console != NULL && wait_for_output(probe, console);
}

static int run_probe(struct manager *manager, const char *kernel, const char *initrd, bool *ret, struct error *err)
{
    struct sandbox_info info = {.cpus = 1, .memory_mib = PROBE_MEMORY_MIB};
    info.id = new_id(err);
    struct sandbox *probe = info.id != NULL ? sandbox_new(manager, &info, err) : NULL;
    if (probe == NULL)
        return -ENOMEM;
    *ret = boots_with_kvm(manager, probe, kernel, initrd);
    sandbox_teardown(manager, probe);
    sandbox_free(probe);
    return 0;
}

/* What a verdict holds for. */
static int describe_host(char key[static 256], struct error *err)
{
    struct utsname host;
    CLEANUP_FREE char *version = NULL;
    int r = vmm_version(VMM_ACCELERATOR_TCG, &version, err);
    if (r < 0)
        return r;
    if (uname(&host) < 0)
        return error_errno(err, "uname");
    snprintf(key, 256, "linux %s %s", host.release, version);
    return 0;
}

bool accelerator_kvm_works(struct manager *manager, const char *snapshot_id)
{
    int known = atomic_load(&manager->kvm);
    if (known != 0)
        return known > 0;
    CLEANUP_FREE char *directory = manager_path(manager, "snapshots", snapshot_id, NULL);
    if (directory == NULL)
        return false;
    CLEANUP_FREE char *kernel = io_path(directory, VMM_FILE_KERNEL, NULL);
    CLEANUP_FREE char *initrd = io_path(directory, VMM_FILE_INITRD, NULL);
    if (kernel == NULL || initrd == NULL)
        return false;
    enum vmm_accelerator best = VMM_ACCELERATOR_TCG;
    if (accelerator_choose(manager, kernel, initrd, &best, NULL) == 0)
        atomic_store(&manager->kvm, best == VMM_ACCELERATOR_KVM ? 1 : -1);
    return best == VMM_ACCELERATOR_KVM;
}

int accelerator_choose(struct manager *manager, const char *kernel, const char *initrd, enum vmm_accelerator *ret,
                       struct error *err)
{
    *ret = VMM_ACCELERATOR_TCG;
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        return 0;
    char key[256];
    int r = describe_host(key, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path = manager_path(manager, ".", VERDICT_FILE, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_FREE char *kept = NULL;
    bool works = false;
    char *newline = NULL;
    if (io_read_file(path, 512, &kept, NULL) == 0 && (newline = strchr(kept, '\n')) != NULL &&
        strncmp(newline + 1, key, strlen(key)) == 0) {
        works = strncmp(kept, "works\n", 6) == 0;
    } else {
        r = run_probe(manager, kernel, initrd, &works, err);
        if (r < 0)
            return r;
        char verdict[512];
        snprintf(verdict, sizeof(verdict), "%s\n%s\n", works ? "works" : "does not run a guest", key);
        r = io_write_file_atomic(path, verdict, strlen(verdict), 0600);
        if (r < 0)
            return error_code(err, r, "cannot write %s", path);
    }
    manager_log(manager, "%s",
                works ? "KVM runs guests here: it is used"
                      : "KVM is there but does not run a guest here: guests are emulated (TCG)");
    if (works)
        *ret = VMM_ACCELERATOR_KVM;
    return 0;
}
