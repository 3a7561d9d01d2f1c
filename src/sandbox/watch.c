/*
 * One thread that waits for what nobody asked for: VMMs that end, images that can't be served, an image server that
 * ends, timeouts that pass, consoles that grow.
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

#include "base/io.h"
#include "sandbox/internal.h"

#define HOUSEKEEPING_NS INT64_C(10000000000)

/* What could not be paused or killed in time runs on, and is tried again. */
#define RETRY_NS INT64_C(60000000000)

/* Of a console or VMM log that grew beyond the limit, the last part is kept. */
#define LOG_LIMIT (4 << 20)
#define LOG_KEPT  (1 << 20)

/* What a descriptor in the epoll set stands for. */
enum watch_kind { WATCH_WAKE, WATCH_VMM, WATCH_IMAGE_FAILURE, WATCH_IMAGE_SERVER };

struct watched {
    enum watch_kind kind;
    int fd;                         /* a duplicate, but for the wake-up */
    char id[SANDBOX_ID_LENGTH + 1]; /* of a VMM's sandbox */
};

static void handle_exit(struct manager *manager, void *argument)
{
    CLEANUP_FREE char *id = argument;
    struct sandbox *sandbox;
    if (sandbox_acquire(manager, id, &sandbox, NULL) < 0)
        return;
    struct pollfd ended = {.fd = sandbox->vmm != NULL ? vmm_pidfd(sandbox->vmm) : -1, .events = POLLIN};
    if (sandbox->info.state == SANDBOX_RUNNING && ended.fd >= 0 && poll(&ended, 1, 0) == 1) {
        CLEANUP_FREE char *reason = NULL;
        int r = imaged_failure(manager->images, id, &reason, NULL);
        sandbox_give_up(manager, sandbox,
                        r == 1            ? reason
                        : r == -EHOSTDOWN ? IMAGES_LOST
                        : limits_exceeded(manager, sandbox)
                            ? "its VMM was killed: it had used all the memory that it may use"
                            : "its VMM ended: the guest powered off or crashed, or the process was killed");
    }
    sandbox_release(manager, sandbox);
}

struct image_failure {
    char *id;
    char *reason;
};

/* A guest whose memory or disk can't be read any more ends here: it must not go on with what it has not got. */
static void handle_image_failure(struct manager *manager, void *argument)
{
    struct image_failure *failure = argument;
    struct sandbox *sandbox;
    if (sandbox_acquire(manager, failure->id, &sandbox, NULL) == 0) {
        CLEANUP_FREE char *present = NULL;
        /* 0: it has been resumed since, and this one is served. */
        if (sandbox->info.state == SANDBOX_RUNNING &&
            imaged_failure(manager->images, failure->id, &present, NULL) != 0) {
            sandbox_give_up(manager, sandbox, failure->reason);
        }
        sandbox_release(manager, sandbox);
    }
    free(failure->id);
    free(failure->reason);
    free(failure);
}

static void end_all_vmms(struct manager *manager)
{
    pthread_mutex_lock(&manager->lock);
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        sandbox_end_vmm(sandbox);
    pthread_mutex_unlock(&manager->lock);
}

/*
 * The image server has ended: every guest is lost, and a new server takes its place. What is under way is waited
 * for: a pause may have all it needs, and a resume or a pause that fails must not leave a guest behind that runs on
 * pages that nobody serves.
 */
static void handle_image_server(struct manager *manager, void *unused)
{
    (void)unused;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    manager_log(manager, "the image server ended; starting another");
    end_all_vmms(manager);
    struct sandbox_list list;
    if (manager_list(manager, &list, NULL) == 0) {
        for (size_t i = 0; i < list.count; i++) {
            struct image_failure *failure = calloc(1, sizeof(*failure));
            if (failure == NULL)
                continue;
            failure->id = strdup(list.items[i].id);
            failure->reason = strdup(IMAGES_LOST);
            handle_image_failure(manager, failure);
        }
        sandbox_list_done(&list);
    }
    int r = imaged_restart(manager->images, &err);
    if (r == 0)
        r = watch_images(manager, &err);
    if (r < 0)
        manager_log(manager, "the image server does not start: %s", error_message(&err));
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
        enum timeout_action action = sandbox->info.on_timeout;
        bool pause = action != TIMEOUT_KILL;
        manager_log(manager, "sandbox %s: its time is over: %s", id, pause ? "pausing" : "killing");
        enum capture_extent extent = action == TIMEOUT_PAUSE_DISK ? CAPTURE_DISK : CAPTURE_ALL;
        r = pause ? sandbox_pause(manager, sandbox, extent, &err) : sandbox_kill(manager, sandbox, &err);
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
    CLEANUP_FREE char *path = io_path(directory, name, NULL);
    if (path == NULL)
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

static void unwatch(struct manager *manager, struct watched *watched)
{
    epoll_ctl(manager->epoll_fd, EPOLL_CTL_DEL, watched->fd, NULL);
    close(watched->fd);
    free(watched);
}

/* At once, so that whoever has the operation lock, and waits for this guest, need not wait until the time is over.
 */
static void end_unserved(struct manager *manager, const char *id)
{
    pthread_mutex_lock(&manager->lock);
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        if (strcmp(sandbox->info.id, id) == 0 &&
            (sandbox->info.state == SANDBOX_CREATING || sandbox->info.state == SANDBOX_RESUMING))
            sandbox_end_vmm(sandbox);
    pthread_mutex_unlock(&manager->lock);
}

static void spawn_image_failures(struct manager *manager, struct watched *watched)
{
    for (;;) {
        struct image_failure failure = {0};
        int r = imaged_next_failure(watched->fd, &failure.id, &failure.reason, NULL);
        if (r < 0)
            unwatch(manager, watched); /* the server has ended, which is seen, too */
        if (r <= 0)
            return;
        struct image_failure *copy = malloc(sizeof(*copy));
        if (copy != NULL)
            *copy = failure;
        end_unserved(manager, failure.id);
        if (copy == NULL || manager_spawn(manager, handle_image_failure, copy) < 0) {
            free(failure.id);
            free(failure.reason);
            free(copy);
        }
    }
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
        struct watched *watched = event.data.ptr;
        uint64_t count;
        switch (watched->kind) {
        case WATCH_VMM:
            spawn_for(manager, handle_exit, watched->id);
            unwatch(manager, watched);
            continue;
        case WATCH_IMAGE_SERVER:
            manager_spawn(manager, handle_image_server, NULL);
            unwatch(manager, watched);
            continue;
        case WATCH_IMAGE_FAILURE:
            spawn_image_failures(manager, watched);
            continue;
        case WATCH_WAKE:
            (void)!read(watched->fd, &count, sizeof(count));
            break;
        }
        pthread_mutex_lock(&manager->lock);
        bool stopping = manager->stopping;
        pthread_mutex_unlock(&manager->lock);
        if (stopping) {
            free(watched);
            return NULL;
        }
    }
}

/* Takes the descriptor over, also on failure. */
static int add_watch(struct manager *manager, enum watch_kind kind, int taken_fd, const char *id, struct error *err)
{
    CLEANUP_CLOSE int fd = taken_fd;
    struct watched *watched = calloc(1, sizeof(*watched));
    if (watched == NULL)
        return error_set(err, ENOMEM, "out of memory");
    watched->kind = kind;
    watched->fd = fd;
    snprintf(watched->id, sizeof(watched->id), "%s", id);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watched};
    if (fd < 0 || epoll_ctl(manager->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        free(watched);
        return error_errno(err, "cannot watch sandboxes");
    }
    (void)TAKE_FD(fd);
    return 0;
}

int watch_open(struct manager *manager, struct error *err)
{
    manager->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    manager->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (manager->epoll_fd < 0 || manager->wake_fd < 0)
        return error_errno(err, "cannot watch sandboxes");
    int r = add_watch(manager, WATCH_WAKE, fcntl(manager->wake_fd, F_DUPFD_CLOEXEC, 3), "", err);
    return r == 0 ? watch_images(manager, err) : r;
}

int watch_images(struct manager *manager, struct error *err)
{
    int failures_fd = imaged_watch(manager->images, err);
    if (failures_fd < 0)
        return failures_fd;
    int r = add_watch(manager, WATCH_IMAGE_FAILURE, failures_fd, "", err);
    if (r == 0)
        r = add_watch(manager, WATCH_IMAGE_SERVER, fcntl(imaged_pidfd(manager->images), F_DUPFD_CLOEXEC, 3), "",
                      err);
    return r;
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
    return add_watch(manager, WATCH_VMM, fcntl(vmm_pidfd(sandbox->vmm), F_DUPFD_CLOEXEC, 3), sandbox->info.id, err);
}
