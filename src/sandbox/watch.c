/*
 * One thread that waits for what nobody asked for: VMMs that end, timeouts that pass, consoles that grow.
 *
 * It only notices; the work (which may wait for an operation lock) is done by workers. It sleeps until a pidfd, the
 * next deadline, or a wake-up; and while sandboxes run, every HOUSEKEEPING_NS, to bound what guests write to
 * consoles.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define HOUSEKEEPING_NS INT64_C(10000000000)

/* What could not be paused or killed in time runs on, and is tried again. */
#define RETRY_NS INT64_C(60000000000)

/* Of a console or VMM log that grew beyond the limit, the last part is kept. */
#define LOG_LIMIT (4 << 20)
#define LOG_KEPT  (1 << 20)

struct vmm_watch {
    int pidfd; /* a duplicate */
    char id[SANDBOX_ID_LENGTH + 1];
};

static void handle_exit(struct manager *manager, void *argument)
{
    CLEANUP_FREE char *id = argument;
    struct sandbox *sandbox;
    if (sandbox_acquire(manager, id, &sandbox, NULL) < 0)
        return;
    struct pollfd ended = {.fd = sandbox->vmm != NULL ? vmm_pidfd(sandbox->vmm) : -1, .events = POLLIN};
    if (sandbox->info.state == SANDBOX_RUNNING && ended.fd >= 0 && poll(&ended, 1, 0) == 1) {
        sandbox_teardown(manager, sandbox);
        sandbox_set_lost(manager, sandbox,
                         "its VMM ended: the guest powered off or crashed, or the process was killed");
    }
    sandbox_release(manager, sandbox);
}

static void handle_timeout(struct manager *manager, void *argument)
{
    CLEANUP_FREE char *id = argument;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct sandbox *sandbox;
    if (sandbox_acquire(manager, id, &sandbox, NULL) < 0)
        return;
    pthread_mutex_lock(&manager->lock);
    sandbox->expiring = false;
    bool due = sandbox->deadline_ns != 0 && sandbox->deadline_ns <= boottime_ns();
    pthread_mutex_unlock(&manager->lock);
    int r = 0;
    if (due && sandbox->info.state == SANDBOX_RUNNING) {
        bool pause = sandbox->info.on_timeout == TIMEOUT_PAUSE;
        manager_log(manager, "sandbox %s: its time is over: %s", id, pause ? "pausing" : "killing");
        r = pause ? sandbox_pause(manager, sandbox, &err) : sandbox_kill(manager, sandbox, &err);
    }
    if (r < 0) {
        manager_log(manager, "sandbox %s: %s", id, error_message(&err));
        sandbox_postpone(manager, sandbox, RETRY_NS);
    }
    sandbox_release(manager, sandbox);
}

static void spawn_for(struct manager *manager, void (*function)(struct manager *, void *), const char *id)
{
    char *copy = strdup(id);
    if (copy == NULL || manager_spawn(manager, function, copy) < 0)
        free(copy);
}

/* Frees the disk blocks of all but the last part; the length, at which the VMM appends, stays. */
static void trim_log(const char *directory, const char *name)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return;
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0 || (int64_t)status.st_blocks * 512 <= LOG_LIMIT)
        return;
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, status.st_size - LOG_KEPT);
}

/* Looks at all sandboxes: starts workers for the due ones, returns ms until the next look, -1 for none. */
static int look(struct manager *manager, int64_t *next_housekeeping_ns)
{
    int64_t now = boottime_ns();
    bool housekeeping = now >= *next_housekeeping_ns;
    int64_t next = INT64_MAX;
    pthread_mutex_lock(&manager->lock);
    for (struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next) {
        if (sandbox->info.vmm_pid != 0) {
            if (housekeeping) {
                trim_log(sandbox->vm_directory, VMM_FILE_CONSOLE);
                trim_log(sandbox->vm_directory, VMM_FILE_LOG);
            }
            next = MIN(next, now + HOUSEKEEPING_NS);
        }
        if (sandbox->deadline_ns == 0 || sandbox->expiring || sandbox->info.state != SANDBOX_RUNNING)
            continue;
        if (sandbox->deadline_ns <= now) {
            sandbox->expiring = true;
            pthread_mutex_unlock(&manager->lock);
            spawn_for(manager, handle_timeout, sandbox->info.id);
            return 0; /* the list may have changed: look again */
        }
        next = MIN(next, sandbox->deadline_ns);
    }
    pthread_mutex_unlock(&manager->lock);
    if (housekeeping)
        *next_housekeeping_ns = now + HOUSEKEEPING_NS;
    return next == INT64_MAX ? -1 : (int)MIN((next - now) / 1000000 + 1, INT64_C(3600000));
}

static void *watch(void *context)
{
    struct manager *manager = context;
    int64_t next_housekeeping_ns = 0;
    for (;;) {
        int timeout_ms = look(manager, &next_housekeeping_ns);
        struct epoll_event event;
        if (epoll_wait(manager->epoll_fd, &event, 1, timeout_ms) != 1)
            continue;
        struct vmm_watch *ended = event.data.ptr;
        if (ended != NULL) {
            epoll_ctl(manager->epoll_fd, EPOLL_CTL_DEL, ended->pidfd, NULL);
            spawn_for(manager, handle_exit, ended->id);
            close(ended->pidfd);
            free(ended);
            continue;
        }
        uint64_t count;
        (void)!read(manager->wake_fd, &count, sizeof(count));
        pthread_mutex_lock(&manager->lock);
        bool stopping = manager->stopping;
        pthread_mutex_unlock(&manager->lock);
        if (stopping)
            return NULL;
    }
}

int watch_open(struct manager *manager, struct error *err)
{
    manager->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    manager->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (manager->epoll_fd < 0 || manager->wake_fd < 0 ||
        epoll_ctl(manager->epoll_fd, EPOLL_CTL_ADD, manager->wake_fd, &event) < 0)
        return error_errno(err, "cannot watch sandboxes");
    return 0;
}

int watch_start(struct manager *manager, struct error *err)
{
    int code = pthread_create(&manager->watcher, NULL, watch, manager);
    if (code != 0)
        return error_code(err, -code, "cannot start the watcher");
    manager->watching = true;
    return 0;
}

void watch_wake(struct manager *manager)
{
    uint64_t one = 1;
    (void)!write(manager->wake_fd, &one, sizeof(one));
}

void watch_stop(struct manager *manager)
{
    if (!manager->watching)
        return;
    pthread_mutex_lock(&manager->lock);
    manager->stopping = true;
    pthread_mutex_unlock(&manager->lock);
    watch_wake(manager);
    pthread_join(manager->watcher, NULL);
    manager->watching = false;
}

int watch_vmm(struct manager *manager, const struct sandbox *sandbox, struct error *err)
{
    struct vmm_watch *watched = calloc(1, sizeof(*watched));
    if (watched == NULL)
        return error_set(err, ENOMEM, "out of memory");
    watched->pidfd = fcntl(vmm_pidfd(sandbox->vmm), F_DUPFD_CLOEXEC, 3);
    snprintf(watched->id, sizeof(watched->id), "%s", sandbox->info.id);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watched};
    if (watched->pidfd >= 0 && epoll_ctl(manager->epoll_fd, EPOLL_CTL_ADD, watched->pidfd, &event) == 0)
        return 0;
    int r = error_errno(err, "cannot watch the VMM");
    cleanup_close(&watched->pidfd);
    free(watched);
    return r;
}
