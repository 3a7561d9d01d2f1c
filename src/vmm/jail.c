/*
 * The child runs a fixed list of steps; each is one function over data that the parent prepared, so that a failure
 * can be named ("mounting /usr") without formatting text in the child: it sends the step's number and errno through
 * a pipe that exec closes.
 *
 * Invariants: nothing in the child allocates, takes a lock or returns; every mount happens in the child's own mount
 * namespace, made private first, so nothing shows on the host and nothing is left when it ends.
 */
#include "vmm/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "vmm/syscall_filter.h"

/* Mount point of the new root while it is put together; it exists on every system. */
#define NEW_ROOT "/tmp"

/* Inherited descriptors are first moved above this, so that no move overwrites one still to be moved. */
#define DESCRIPTOR_PARKING 64
#define DESCRIPTOR_MAX     16

enum step {
    STEP_NETWORK,
    STEP_PRIVATE_MOUNTS,
    STEP_ROOT,
    STEP_USR,
    STEP_LINKER_CACHE,
    STEP_DEVICES,
    STEP_PIVOT,
    STEP_DESCRIPTORS,
    STEP_PRIVILEGES,
    STEP_FILTER,
    STEP_EXEC,
};

static const char *const step_names[] = {
    [STEP_NETWORK] = "entering the network namespace",
    [STEP_PRIVATE_MOUNTS] = "making mounts private",
    [STEP_ROOT] = "mounting the jail's root and /vm",
    [STEP_USR] = "mounting /usr",
    [STEP_LINKER_CACHE] = "mounting the linker's cache",
    [STEP_DEVICES] = "mounting devices",
    [STEP_PIVOT] = "changing the root",
    [STEP_DESCRIPTORS] = "handing over descriptors",
    [STEP_PRIVILEGES] = "dropping privileges",
    [STEP_FILTER] = "installing a system call filter",
    [STEP_EXEC] = "executing the program",
};

struct failure {
    int step;
    int code;
};

static int enter_network(const struct jail_options *options)
{
    if (options->namespace_fd >= 0)
        return setns(options->namespace_fd, CLONE_NEWNET);
    return unshare(CLONE_NEWNET);
}

/* A mount of the host, detached from it and without devices, set-uid and programs. */
static int pick_up(const char *path)
{
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    int tree = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0 || mount_setattr(tree, "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) < 0)
        return -1;
    return tree;
}

/* Puts it where it belongs, below the directory of the new root. */
static int set_down(int tree, const char *directory, const char *name)
{
    char path[64];
    size_t length = strlen(directory);
    if (length + strlen(name) >= sizeof(path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(path, directory, length);
    strcpy(path + length, name);
    if (move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return -1;
    return close(tree);
}

static int make_root(const struct jail_options *options)
{
    static const char *const links[][2] = {
        {"usr/lib", NEW_ROOT "/lib"},
        {"usr/lib64", NEW_ROOT "/lib64"},
        {"usr/bin", NEW_ROOT "/bin"},
    };
    static const char *const directories[] = {NEW_ROOT "/usr", NEW_ROOT "/etc", NEW_ROOT "/dev", NEW_ROOT "/vm"};
    int binds[JAIL_BINDS_MAX];
    /* Before the new root is mounted, which may hide them. */
    int vm = pick_up(options->directory);
    for (size_t i = 0; i < options->bind_count; i++)
        if ((binds[i] = pick_up(options->binds[i].from)) < 0)
            return -1;
    if (vm < 0 || mount("jail", NEW_ROOT, "tmpfs", MS_NOSUID, "size=64k,mode=755") < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_SIZE(directories); i++)
        if (mkdir(directories[i], 0755) < 0)
            return -1;
    for (size_t i = 0; i < ARRAY_SIZE(links); i++)
        if (symlink(links[i][0], links[i][1]) < 0)
            return -1;
    if (set_down(vm, NEW_ROOT, "/vm") < 0)
        return -1;
    for (size_t i = 0; i < options->bind_count; i++)
        if (set_down(binds[i], NEW_ROOT "/vm/", options->binds[i].name) < 0)
            return -1;
    return 0;
}

/* A bind mount only takes its flags when mounted again. */
static int bind(const char *from, const char *to, unsigned long flags)
{
    if (mount(from, to, NULL, MS_BIND, NULL) < 0)
        return -1;
    return mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | flags, NULL);
}

static int bind_file(const char *from, const char *to, unsigned long flags)
{
    int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return -1;
    close(fd);
    return bind(from, to, flags);
}

static int bind_devices(const struct jail_options *options)
{
    const unsigned long flags = MS_NOSUID | MS_NOEXEC;
    if (bind_file("/dev/null", NEW_ROOT "/dev/null", flags) < 0 ||
        bind_file("/dev/zero", NEW_ROOT "/dev/zero", flags) < 0 ||
        bind_file("/dev/urandom", NEW_ROOT "/dev/urandom", flags) < 0)
        return -1;
    if (options->device == NULL)
        return 0;
    char path[64];
    size_t length = strlen(options->device);
    if (length >= sizeof(path) - sizeof(NEW_ROOT)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(path, NEW_ROOT, sizeof(NEW_ROOT) - 1);
    memcpy(path + sizeof(NEW_ROOT) - 1, options->device, length + 1);
    return bind_file(options->device, path, flags);
}

static int change_root(void)
{
    if (chdir(NEW_ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
        return -1;
    return umount2(".", MNT_DETACH);
}

static int hand_over_descriptors(const struct jail_options *options, int report_fd)
{
    int parked[DESCRIPTOR_MAX];
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(options->log_fd, 1) < 0 || dup2(options->log_fd, 2) < 0)
        return -1;
    for (size_t i = 0; i < options->descriptor_count; i++) {
        parked[i] = fcntl(options->descriptors[i].from, F_DUPFD_CLOEXEC, DESCRIPTOR_PARKING);
        if (parked[i] < 0)
            return -1;
    }
    for (size_t i = 0; i < options->descriptor_count; i++)
        if (options->descriptors[i].to >= DESCRIPTOR_PARKING || options->descriptors[i].to == report_fd ||
            dup2(parked[i], options->descriptors[i].to) < 0)
            return -1;
    return 0;
}

static int drop_privileges(const struct jail_options *options)
{
    struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    /* The system calls, not glibc's wrappers: those signal the (absent) other threads. */
    if (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, options->gid, options->gid, options->gid) < 0)
        return -1;
    return (int)syscall(SYS_setresuid, options->uid, options->uid, options->uid);
}

static bool run_step(enum step step, const struct jail_options *options, int report_fd)
{
    switch (step) {
    case STEP_NETWORK:
        return enter_network(options) == 0;
    case STEP_PRIVATE_MOUNTS:
        return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    case STEP_ROOT:
        return make_root(options) == 0;
    case STEP_USR:
        return bind("/usr", NEW_ROOT "/usr", MS_RDONLY | MS_NOSUID | MS_NODEV) == 0;
    case STEP_LINKER_CACHE:
        return bind_file("/etc/ld.so.cache", NEW_ROOT "/etc/ld.so.cache", MS_RDONLY | MS_NOSUID | MS_NODEV) == 0;
    case STEP_DEVICES:
        return bind_devices(options) == 0;
    case STEP_PIVOT:
        return change_root() == 0;
    case STEP_DESCRIPTORS:
        return hand_over_descriptors(options, report_fd) == 0;
    case STEP_PRIVILEGES:
        return drop_privileges(options) == 0;
    case STEP_FILTER:
        return syscall_filter_install(options->device != NULL && strcmp(options->device, "/dev/kvm") == 0) == 0;
    case STEP_EXEC:
        execve(options->arguments[0], options->arguments, options->environment);
        return false;
    }
    return false;
}

static _Noreturn void run_child(const struct jail_options *options, int report_fd)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    for (enum step step = STEP_NETWORK; step <= STEP_EXEC; step++) {
        if (!run_step(step, options, report_fd)) {
            struct failure failure = {.step = (int)step, .code = errno};
            (void)!write(report_fd, &failure, sizeof(failure));
            _exit(127);
        }
    }
    _exit(127);
}

/* `cgroup_fd` -1: the caller's own. */
static pid_t clone_into_namespaces(int cgroup_fd, int *ret_pidfd)
{
    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_PIDFD | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
    };
    if (cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup_fd;
    }
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
    if (pid > 0)
        *ret_pidfd = pidfd;
    return pid;
}

int jail_spawn(const struct jail_options *options, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
    if (options->descriptor_count > DESCRIPTOR_MAX || options->bind_count > JAIL_BINDS_MAX)
        return error_set(err, EINVAL, "too many descriptors or files for a jail");
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0)
        return error_errno(err, "cannot make a pipe");
    CLEANUP_CLOSE int report_read = report[0];
    CLEANUP_CLOSE int report_write = fcntl(report[1], F_DUPFD_CLOEXEC, DESCRIPTOR_PARKING);
    close(report[1]);
    if (report_write < 0)
        return error_errno(err, "cannot move a descriptor");

    CLEANUP_CLOSE int cgroup_fd =
        options->cgroup != NULL ? open(options->cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (options->cgroup != NULL && cgroup_fd < 0)
        return error_errno(err, "cannot open the cgroup %s", options->cgroup);
    CLEANUP_CLOSE int pidfd = -1;
    pid_t pid = clone_into_namespaces(cgroup_fd, &pidfd);
    if (pid < 0)
        return error_errno(err, "cannot make the namespaces of a jail");
    if (pid == 0)
        run_child(options, report_write);

    close(TAKE_FD(report_write));
    struct failure failure;
    ssize_t n = io_read_full(report_read, &failure, sizeof(failure));
    if (n != 0) {
        waitpid(pid, NULL, 0);
        if (n != (ssize_t)sizeof(failure) || failure.step < 0 || failure.step > STEP_EXEC)
            return error_set(err, EIO, "the jail's child failed");
        return error_code(err, -failure.code, "starting %s: %s", options->arguments[0], step_names[failure.step]);
    }
    *ret_pid = pid;
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}

struct bind_job {
    int pidfd;
    const struct jail_bind *binds;
    int trees[JAIL_BINDS_MAX];
    size_t count;
    int code; /* errno, 0: done */
};

/* A thread of its own, since entering a mount namespace takes root and working directory along. */
static void *bind_inside(void *context)
{
    struct bind_job *job = context;
    bool failed = unshare(CLONE_FS) < 0 || setns(job->pidfd, CLONE_NEWNS) < 0;
    for (size_t i = 0; !failed && i < job->count; i++) {
        failed = set_down(job->trees[i], "/vm/", job->binds[i].name) < 0;
        if (!failed)
            job->trees[i] = -1;
    }
    job->code = failed ? errno : 0;
    return NULL;
}

int jail_bind(int pidfd, const struct jail_bind *binds, size_t count, struct error *err)
{
    if (count > JAIL_BINDS_MAX)
        return error_set(err, EINVAL, "too many files for a jail");
    struct bind_job job = {.pidfd = pidfd, .binds = binds};
    int code = 0;
    for (; code == 0 && job.count < count; job.count += code == 0) {
        job.trees[job.count] = pick_up(binds[job.count].from);
        code = job.trees[job.count] < 0 ? errno : 0;
    }
    pthread_t thread;
    if (code == 0)
        code = pthread_create(&thread, NULL, bind_inside, &job);
    if (code == 0) {
        pthread_join(thread, NULL);
        code = job.code;
    }
    for (size_t i = 0; i < job.count; i++)
        cleanup_close(&job.trees[i]);
    return code != 0 ? error_code(err, -code, "cannot hand memory and disk to a running jail") : 0;
}
