#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "vmm/cgroup.h"
#include "vmm/driver.h"

/* How long a process may take to vanish after SIGKILL (its memory is freed in that time). */
#define KILL_TIMEOUT_MS 20000

/*
 * What a VMM needs beside its guest: its heap, stacks and buffers, and under TCG the translated code (tb-size in
 * qemu.c). And the kernel's page tables for it, on both sides of a mapping.
 */
#define OVERHEAD_KVM     (UINT64_C(64) << 20)
#define OVERHEAD_TCG     (UINT64_C(192) << 20)
#define PAGE_TABLES_PART 256

/* What of the VMM's own output goes into an error. */
#define LOG_TAIL 400

const char *vmm_accelerator_name(enum vmm_accelerator accelerator)
{
    return accelerator == VMM_ACCELERATOR_KVM ? "kvm" : "tcg";
}

int vmm_accelerator_parse(const char *name, enum vmm_accelerator *ret)
{
    if (strcmp(name, "kvm") == 0)
        *ret = VMM_ACCELERATOR_KVM;
    else if (strcmp(name, "tcg") == 0)
        *ret = VMM_ACCELERATOR_TCG;
    else
        return -EINVAL;
    return 0;
}

uint64_t vmm_memory_bytes(enum vmm_accelerator accelerator, uint64_t guest_bytes)
{
    uint64_t own = accelerator == VMM_ACCELERATOR_KVM ? OVERHEAD_KVM : OVERHEAD_TCG;
    return guest_bytes + guest_bytes / PAGE_TABLES_PART + own;
}

/* Appends the last line of the VMM's log: it usually is the reason. */
static int explain(const struct vmm *vmm, int result, struct error *err)
{
    CLEANUP_FREE char *path = io_path(vmm->directory, VMM_FILE_LOG, NULL);
    CLEANUP_CLOSE int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    char tail[LOG_TAIL + 1];
    off_t size = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
    ssize_t n = size > 0 ? pread(fd, tail, LOG_TAIL, MAX(size - LOG_TAIL, 0)) : 0;
    if (err == NULL || n <= 0)
        return result;
    while (n > 0 && tail[n - 1] == '\n')
        n--;
    tail[n] = '\0';
    char *newline = strrchr(tail, '\n');
    CLEANUP_FREE char *message = strdup(error_message(err));
    if (message == NULL)
        return result;
    error_set(err, -result, "%s (it said: %s)", message, newline != NULL ? newline + 1 : tail);
    return result;
}

static struct vmm *allocate(const char *directory)
{
    struct vmm *vmm = calloc(1, sizeof(*vmm));
    if (vmm == NULL)
        return NULL;
    vmm->driver = &vmm_driver_qemu;
    vmm->pidfd = -1;
    vmm->control_fd = -1;
    vmm->directory = strdup(directory);
    if (vmm->directory != NULL)
        return vmm;
    free(vmm);
    return NULL;
}

/* Where the jail binds a file of the image server. */
static int make_mount_point(const char *directory, const char *name, struct error *err)
{
    CLEANUP_FREE char *path = io_path(directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? error_errno(err, "cannot make %s", path) : 0;
}

/* Makes a file that the VMM may write. */
static int make_writable_file(const char *directory, const char *name, uid_t uid, struct error *err)
{
    CLEANUP_FREE char *path = io_path(directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fchown(fd, uid, VMM_GROUP_ID) < 0)
        return error_errno(err, "cannot make %s", path);
    return 0;
}

static int start(const struct vmm_config *config, enum vmm_start how, struct vmm **ret, struct error *err)
{
    struct vmm *vmm = allocate(config->directory);
    if (vmm == NULL)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP_FREE char *log_path = io_path(config->directory, VMM_FILE_LOG, NULL);
    CLEANUP_CLOSE int log_fd =
        log_path == NULL ? -1 : open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = log_fd < 0 ? error_errno(err, "cannot open the VMM's log in %s", config->directory) : 0;
    if (r == 0)
        r = make_writable_file(config->directory, VMM_FILE_CONSOLE, config->uid, err);
    if (r == 0)
        r = make_mount_point(config->directory, VMM_FILE_MEMORY, err);
    if (r == 0)
        r = make_mount_point(config->directory, VMM_FILE_ROOTFS, err);
    if (r == 0)
        r = vmm->driver->start(vmm, config, how, log_fd, err);
    if (r == 0) {
        r = process_start_time(vmm->pid, &vmm->start_time);
        if (r < 0)
            error_code(err, r, "the VMM ended at once");
    }
    if (r < 0) {
        explain(vmm, r, err);
        vmm_kill(vmm);
        vmm_free(vmm);
        return error_wrap(err, r, "starting %s", vmm_driver_qemu.name);
    }
    *ret = vmm;
    return 0;
}

int vmm_boot(const struct vmm_config *config, struct vmm **ret, struct error *err)
{
    return start(config, VMM_START_BOOT, ret, err);
}

int vmm_restore(const struct vmm_config *config, struct vmm **ret, struct error *err)
{
    return start(config, VMM_START_RESTORE, ret, err);
}

int vmm_prepare(const struct vmm_config *config, struct vmm **ret, struct error *err)
{
    return start(config, VMM_START_PREPARE, ret, err);
}

bool vmm_is_prepared(const struct vmm *vmm)
{
    struct pollfd ended = {.fd = vmm->pidfd, .events = POLLIN};
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)vmm->pid);
    struct stat program;
    return poll(&ended, 1, 0) == 0 && stat(path, &program) == 0 && program.st_nlink > 0;
}

size_t vmm_binds(const struct vmm_config *config, struct jail_bind binds[static VMM_BINDS])
{
    size_t count = 0;
    if (config->memory_path != NULL)
        binds[count++] = (struct jail_bind){config->memory_path, VMM_FILE_MEMORY};
    if (config->rootfs_path != NULL)
        binds[count++] = (struct jail_bind){config->rootfs_path, VMM_FILE_ROOTFS};
    return count;
}

int vmm_restore_prepared(struct vmm *vmm, const struct vmm_config *config, struct error *err)
{
    char *moved = strdup(config->directory);
    if (moved == NULL)
        return error_set(err, ENOMEM, "out of memory");
    free(vmm->directory);
    vmm->directory = moved;
    struct jail_bind binds[VMM_BINDS];
    size_t count = vmm_binds(config, binds);
    int r = config->cgroup != NULL ? cgroup_enter(config->cgroup, vmm->pid, err) : 0;
    if (r == 0)
        r = jail_bind(vmm->pidfd, binds, count, err);
    if (r == 0)
        r = vmm->driver->restore_prepared(vmm, config->state_fd, config->memory_bytes, err);
    return r < 0 ? explain(vmm, r, err) : 0;
}

int vmm_adopt(const char *directory, pid_t pid, uint64_t start_time, struct vmm **ret, struct error *err)
{
    CLEANUP_CLOSE int pidfd = process_open(pid, start_time);
    if (pidfd < 0)
        return error_code(err, pidfd, "the VMM (process %d) is gone", (int)pid);
    struct vmm *vmm = allocate(directory);
    if (vmm == NULL)
        return error_set(err, ENOMEM, "out of memory");
    vmm->pid = pid;
    vmm->start_time = start_time;
    vmm->pidfd = TAKE_FD(pidfd);
    int r = vmm->driver->attach(vmm, err);
    if (r < 0) {
        vmm_free(vmm);
        return error_wrap(err, r, "taking over the VMM (process %d)", (int)pid);
    }
    *ret = vmm;
    return 0;
}

int vmm_wait_running(struct vmm *vmm, int timeout_ms, int64_t *ret_since_ns, struct error *err)
{
    int r = vmm->driver->wait_running(vmm, timeout_ms, ret_since_ns, err);
    return r < 0 ? explain(vmm, r, err) : 0;
}

int vmm_pause(struct vmm *vmm, struct error *err)
{
    return vmm->driver->pause(vmm, err);
}

int vmm_continue(struct vmm *vmm, struct error *err)
{
    return vmm->driver->resume(vmm, err);
}

static uid_t owner_of(const struct vmm *vmm)
{
    CLEANUP_FREE char *path = io_path(vmm->directory, VMM_FILE_CONSOLE, NULL);
    struct stat status;
    return path != NULL && stat(path, &status) == 0 ? status.st_uid : VMM_USER_ID_FIRST;
}

int vmm_save_device_state(struct vmm *vmm, uint64_t *ret_size, struct error *err)
{
    CLEANUP_FREE char *path = io_path(vmm->directory, VMM_FILE_STATE, err);
    if (path == NULL)
        return -ENOMEM;
    /* Of an earlier capture; a shorter state must not end in the rest of a longer one. */
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, "cannot remove %s", path);
    int r = make_writable_file(vmm->directory, VMM_FILE_STATE, owner_of(vmm), err);
    if (r < 0)
        return r;
    r = vmm->driver->save_device_state(vmm, err);
    if (r < 0)
        return explain(vmm, r, err);
    struct stat status;
    if (stat(path, &status) < 0)
        return error_errno(err, "cannot read %s", path);
    if (status.st_size == 0 || status.st_size > VMM_STATE_MAX)
        return error_set(err, EBADMSG, "the VMM wrote %lld bytes of device state", (long long)status.st_size);
    *ret_size = (uint64_t)status.st_size;
    return 0;
}

/* Parses a line of /proc/PID/maps; true when it maps that file privately. */
static bool parse_mapping(const char *line, const struct stat *image, struct vmm_ram_range *ret)
{
    uint64_t from;
    uint64_t to;
    uint64_t offset;
    unsigned device_major;
    unsigned device_minor;
    uint64_t inode;
    char permissions[5];
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &from, &to, permissions, &offset,
               &device_major, &device_minor, &inode) != 7)
        return false;
    if (inode != image->st_ino || device_major != major(image->st_dev) || device_minor != minor(image->st_dev) ||
        permissions[3] != 'p')
        return false;
    *ret = (struct vmm_ram_range){.address = from, .length = to - from, .offset = offset};
    return true;
}

static int compare_ranges(const void *a, const void *b)
{
    const struct vmm_ram_range *left = a;
    const struct vmm_ram_range *right = b;
    return left->offset < right->offset ? -1 : left->offset > right->offset;
}

int vmm_ram_ranges_of(pid_t pid, struct vmm_ram_range **ret, size_t *ret_count, struct error *err)
{
    char path[64];
    struct stat status;
    /* As the VMM sees it: inside its jail the image is bound there. */
    snprintf(path, sizeof(path), "/proc/%d/root/vm/" VMM_FILE_MEMORY, (int)pid);
    if (stat(path, &status) < 0)
        return error_errno(err, "cannot read the memory image");
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    CLEANUP_FREE char *maps = NULL;
    int r = io_read_file(path, 4 << 20, &maps, NULL);
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    CLEANUP_FREE struct vmm_ram_range *ranges = NULL;
    size_t count = 0;
    uint64_t total = 0;
    char *rest = maps;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        struct vmm_ram_range range;
        if (!parse_mapping(line, &status, &range))
            continue;
        struct vmm_ram_range *larger = realloc(ranges, (count + 1) * sizeof(*ranges));
        if (larger == NULL)
            return error_set(err, ENOMEM, "out of memory");
        ranges = larger;
        ranges[count++] = range;
        total += range.length;
    }
    /* Every byte of the image once: anything else would make a snapshot with holes in it. */
    if (count > 0)
        qsort(ranges, count, sizeof(*ranges), compare_ranges);
    for (size_t i = 0, next = 0; i < count; next += ranges[i].length, i++)
        if (ranges[i].offset != next)
            return error_set(err, EBADMSG, "the VMM maps its memory image in a way that is not understood");
    if (total != (uint64_t)status.st_size)
        return error_set(err, EBADMSG, "the VMM maps %" PRIu64 " of %lld bytes of its memory image", total,
                         (long long)status.st_size);
    *ret = TAKE_PTR(ranges);
    *ret_count = count;
    return 0;
}

int vmm_ram_ranges(struct vmm *vmm, struct vmm_ram_range **ret, size_t *ret_count, struct error *err)
{
    return vmm_ram_ranges_of(vmm->pid, ret, ret_count, err);
}

int vmm_control_fd(struct vmm *vmm, struct error *err)
{
    if (vmm->control_fd >= 0)
        return vmm->control_fd;
    CLEANUP_FREE char *path = io_path(vmm->directory, VMM_FILE_CONTROL, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = unix_socket_connect(path, err);
    if (fd < 0)
        return fd;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return error_errno(err, "cannot set up the control channel");
    vmm->control_fd = TAKE_FD(fd);
    return vmm->control_fd;
}

pid_t vmm_pid(const struct vmm *vmm)
{
    return vmm->pid;
}

uint64_t vmm_start_time(const struct vmm *vmm)
{
    return vmm->start_time;
}

int vmm_pidfd(const struct vmm *vmm)
{
    return vmm->pidfd;
}

void vmm_kill(struct vmm *vmm)
{
    if (vmm->pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, vmm->pidfd, SIGKILL, NULL, 0);
    struct pollfd ended = {.fd = vmm->pidfd, .events = POLLIN};
    while (poll(&ended, 1, KILL_TIMEOUT_MS) < 0 && errno == EINTR)
        ;
    /* Fails harmlessly for an adopted one, whose parent we are not. */
    waitpid(vmm->pid, NULL, WNOHANG);
}

void vmm_free(struct vmm *vmm)
{
    if (vmm == NULL)
        return;
    vmm->driver->detach(vmm);
    cleanup_close(&vmm->control_fd);
    cleanup_close(&vmm->pidfd);
    free(vmm->directory);
    free(vmm);
}

int vmm_version(enum vmm_accelerator accelerator, char **ret, struct error *err)
{
    return vmm_driver_qemu.version(accelerator, ret, err);
}
