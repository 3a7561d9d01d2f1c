#include "imaged/stalls.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/server_internal.h"

#define VMMS_MAX 1024u

/* /proc/PID/wchan: the kernel function a sleeping thread is in. */
static bool is_stalled(int tasks_fd, const char *task)
{
    static const char function[] = "balance_dirty_pages";
    char path[64];
    char text[sizeof(function)] = "";
    if (snprintf(path, sizeof(path), "%s/wchan", task) >= (int)sizeof(path))
        return false;
    CLEANUP_CLOSE int fd = openat(tasks_fd, path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && io_read_full(fd, text, sizeof(function) - 1) == sizeof(function) - 1 &&
           memcmp(text, function, sizeof(function) - 1) == 0;
}

static uint64_t count_stalled(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    if (tasks == NULL)
        return 0;
    uint64_t stalled = 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        if (entry->d_name[0] != '.')
            stalled += is_stalled(dirfd(tasks), entry->d_name);
    closedir(tasks);
    return stalled;
}

static void *look(void *argument)
{
    struct server *server = argument;
    static pid_t pids[VMMS_MAX];
    for (;;) {
        uint64_t stalled = count_stalled(getpid());
        size_t count = server_list_vmms(server, pids, VMMS_MAX);
        for (size_t i = 0; i < count; i++)
            stalled += count_stalled(pids[i]);
        atomic_store(&server->metrics.stalled_threads, stalled);
        metric_add(&server->metrics.stalled_samples, stalled);
        struct timespec second = {.tv_sec = 1};
        nanosleep(&second, NULL);
    }
    return NULL;
}

int stalls_start(struct server *server, struct error *err)
{
    pthread_t thread;
    int code = pthread_create(&thread, NULL, look, server);
    if (code != 0)
        return error_code(err, -code, "cannot start a thread");
    pthread_detach(thread);
    return 0;
}
