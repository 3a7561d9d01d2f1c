#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"

#define STDERR_KEPT 1024

extern char **environ;

/* The fields of /proc/PID/stat from the third on; the second, the name, may hold anything but ends at the last ')'.
 */
static int read_stat(pid_t pid, char buffer[static 1024], const char **ret_fields)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    ssize_t n = io_read_full(fd, buffer, 1023);
    if (n < 0)
        return (int)n;
    buffer[n] = '\0';
    char *name_end = strrchr(buffer, ')');
    if (name_end == NULL)
        return -EBADMSG;
    *ret_fields = name_end + 1;
    return 0;
}

int process_start_time(pid_t pid, uint64_t *ret)
{
    char buffer[1024];
    const char *fields;
    int r = read_stat(pid, buffer, &fields);
    if (r < 0)
        return r;
    unsigned long long start;
    int n =
        sscanf(fields, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start);
    if (n != 1)
        return -EBADMSG;
    *ret = start;
    return 0;
}

int process_cpu_time(pid_t pid, int64_t *ret_ns)
{
    char buffer[1024];
    const char *fields;
    int r = read_stat(pid, buffer, &fields);
    if (r < 0)
        return r;
    unsigned long long user;
    unsigned long long system;
    if (sscanf(fields, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        return -EBADMSG;
    *ret_ns = (int64_t)(user + system) * (1000000000 / sysconf(_SC_CLK_TCK));
    return 0;
}

int process_open(pid_t pid, uint64_t start_time)
{
    CLEANUP_CLOSE int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return -errno;
    /* Read after the pidfd exists, so that both speak of the same process. */
    uint64_t actual;
    int r = process_start_time(pid, &actual);
    if (r < 0)
        return r;
    return actual == start_time ? TAKE_FD(fd) : -ESRCH;
}

/* Reads to the end and keeps the last STDERR_KEPT bytes. */
static void read_tail(int fd, char tail[static STDERR_KEPT + 1])
{
    size_t length = 0;
    char chunk[512];
    ssize_t n;
    while ((n = io_read_full(fd, chunk, sizeof(chunk))) > 0) {
        size_t excess = length + (size_t)n > STDERR_KEPT ? length + (size_t)n - STDERR_KEPT : 0;
        memmove(tail, tail + excess, length - excess);
        memcpy(tail + length - excess, chunk, (size_t)n);
        length += (size_t)n - excess;
    }
    while (length > 0 && tail[length - 1] == '\n')
        length--;
    tail[length] = '\0';
    for (char *newline = tail; (newline = strchr(newline, '\n')) != NULL;)
        *newline = ' ';
}

int process_run(const char *const *arguments, struct error *err)
{
    int output[2];
    if (pipe2(output, O_CLOEXEC) < 0)
        return error_errno(err, "cannot make a pipe");
    CLEANUP_CLOSE int output_read = output[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output[1], 2);
    pid_t pid;
    int code = posix_spawnp(&pid, arguments[0], &actions, NULL, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(output[1]);
    if (code != 0)
        return error_code(err, -code, "cannot run %s", arguments[0]);
    char tail[STDERR_KEPT + 1];
    read_tail(output_read, tail);
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return error_errno(err, "waiting for %s", arguments[0]);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return error_set(err, EREMOTEIO, "%s failed: %s", arguments[0], tail);
}
