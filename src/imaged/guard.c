#include "imaged/guard.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "imaged/protocol.h"

/* Never returns. */
static void guard(const char *data_directory, int lock_fd, pid_t server)
{
    sigset_t signals;
    sigfillset(&signals);
    sigprocmask(SIG_SETMASK, &signals, NULL);
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    (void)prctl(PR_SET_NAME, "imaged-guard");
    (void)dup2(lock_fd, STDIN_FILENO);
    (void)close_range(STDERR_FILENO + 1, ~0U, 0);
    /* The signal comes when the thread that forked us ends, even if others of its process don't. */
    int signal = 0;
    if (prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0 && getppid() == server)
        (void)sigwait(&signals, &signal);
    static const char *const mounts[] = {PROTOCOL_MOUNT_OVERLAYS, PROTOCOL_MOUNT_DISK, PROTOCOL_MOUNT_MEMORY};
    for (size_t i = 0; i < ARRAY_SIZE(mounts); i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", data_directory, mounts[i]);
        (void)umount2(path, MNT_FORCE | MNT_DETACH);
    }
    _exit(0);
}

int guard_start(const char *data_directory, int lock_fd, struct error *err)
{
    pid_t server = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, "cannot start the guard");
    if (pid == 0)
        guard(data_directory, lock_fd, server);
    return 0;
}
