#include "imaged/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/json.h"
#include "base/unix_socket.h"
#include "imaged/protocol.h"

struct imaged {
    char *data_directory;
    char *program;
    char *socket;
    pthread_mutex_t lock; /* for what follows */
    pid_t pid;
    int pidfd;
};

extern char **environ;

static int connect_server(const char *socket, struct error *err)
{
    int fd = unix_socket_connect_packets(socket, err);
    if (fd == -ENOENT || fd == -ECONNREFUSED)
        return error_set(err, EHOSTDOWN, "the image server doesn't run");
    return fd;
}

/* Sends one request on a connection and takes its reply, or the error in it. Takes the request over. `ret` may be
 * NULL. */
static int exchange(int fd, json_t *request, json_t **ret, struct error *err)
{
    if (request == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = protocol_send(fd, IMAGED_TIMEOUT_MS, request, err);
    json_decref(request);
    if (r < 0)
        return r;
    json_t *reply;
    r = protocol_receive(fd, IMAGED_TIMEOUT_MS, &reply, err);
    if (r == 0)
        return error_set(err, EHOSTDOWN, "the image server has ended");
    if (r == -EAGAIN)
        return error_set(err, ETIMEDOUT, "the image server doesn't answer");
    if (r < 0)
        return r;
    if (json_is_true(json_object_get(reply, "ok"))) {
        if (ret != NULL)
            *ret = reply;
        else
            json_decref(reply);
        return 0;
    }
    const char *message = json_string_value(json_object_get(reply, "error"));
    json_int_t code = json_integer_value(json_object_get(reply, "code"));
    r = error_set(err, code > 0 && code < 4096 ? (int)code : EREMOTEIO, "%s",
                  message != NULL ? message : "the image server failed");
    json_decref(reply);
    return r;
}

/* The same, on a connection of its own. */
static int call(const struct imaged *imaged, json_t *request, json_t **ret, struct error *err)
{
    CLEANUP_CLOSE int fd = connect_server(imaged->socket, err);
    if (fd >= 0)
        return exchange(fd, request, ret, err);
    json_decref(request);
    return fd;
}

/* Who serves. The exchange after pidfd_open shows that the descriptor is this process's, not a later one's. */
static int find_server(const struct imaged *imaged, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
    CLEANUP_CLOSE int fd = connect_server(imaged->socket, err);
    if (fd < 0)
        return fd;
    struct ucred peer;
    socklen_t length = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return error_errno(err, "cannot tell who serves images");
    CLEANUP_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    if (pidfd < 0)
        return errno == ESRCH ? error_set(err, EHOSTDOWN, "the image server has ended")
                              : error_errno(err, "cannot watch the image server");
    int r = exchange(fd, json_pack("{s:s}", "op", "hello"), NULL, err);
    if (r < 0)
        return r;
    *ret_pid = peer.pid;
    *ret_pidfd = TAKE_FD(pidfd);
    return 0;
}

/* The server's own session, signals as they are by default, and no descriptors but these. */
static int spawn_server(const struct imaged *imaged, int log_fd, int ready_fd, pid_t *ret, struct error *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, log_fd, 1);
    posix_spawn_file_actions_adddup2(&actions, log_fd, 2);
    posix_spawn_file_actions_adddup2(&actions, ready_fd, 3);
    posix_spawn_file_actions_addclosefrom_np(&actions, 4);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    const char *const arguments[] = {imaged->program, "--data", imaged->data_directory, "--ready-fd", "3", NULL};
    int code = posix_spawn(ret, imaged->program, &actions, &attributes, (char *const *)arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return code == 0 ? 0 : error_code(err, -code, "cannot run %s", imaged->program);
}

/* Until the server says that it serves, or why it doesn't. */
static int await_ready(int fd, struct error *err)
{
    int64_t deadline_ns = clock_monotonic_ns() + IMAGED_TIMEOUT_MS * INT64_C(1000000);
    char text[1024];
    size_t length = 0;
    while (length < sizeof(text) - 1) {
        int64_t left_ns = MAX(deadline_ns - clock_monotonic_ns(), 0);
        struct pollfd waited = {.fd = fd, .events = POLLIN};
        int r = poll(&waited, 1, (int)(left_ns / 1000000));
        if (r == 0)
            return error_set(err, ETIMEDOUT, "the image server doesn't get ready");
        ssize_t n = r < 0 ? -1 : read(fd, text + length, sizeof(text) - 1 - length);
        if (n < 0 && errno != EINTR)
            return error_errno(err, "waiting for the image server");
        if (n == 0)
            break;
        length += n > 0 ? (size_t)n : 0;
    }
    text[length] = '\0';
    if (strcmp(text, PROTOCOL_READY) == 0)
        return 0;
    return error_set(err, EHOSTDOWN, "the image server doesn't start: %s", length > 0 ? text : "it ended");
}

static int start_server(const struct imaged *imaged, struct error *err)
{
    CLEANUP_FREE char *log_path = io_path(imaged->data_directory, PROTOCOL_LOG, err);
    if (log_path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int log_fd = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return error_errno(err, "cannot open %s", log_path);
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) < 0)
        return error_errno(err, "cannot make a pipe");
    CLEANUP_CLOSE int ready_read = ready[0];
    pid_t pid;
    int r = spawn_server(imaged, log_fd, ready[1], &pid, err);
    close(ready[1]);
    if (r < 0)
        return r;
    r = await_ready(ready_read, err);
    if (r < 0) {
        kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        error_hint(err, "see %s", log_path);
    }
    return r;
}

/* Fails for servers that another process started, whose exit status is not ours to take. */
static void reap(int pidfd)
{
    siginfo_t info;
    (void)waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG);
}

static int find_or_start(struct imaged *imaged, bool *ret_restarted, struct error *err)
{
    bool restarted = false;
    pid_t pid;
    int pidfd;
    int r = find_server(imaged, &pid, &pidfd, err);
    if (r == -EHOSTDOWN) {
        restarted = true;
        r = start_server(imaged, err);
        if (r == 0)
            r = find_server(imaged, &pid, &pidfd, err);
    }
    if (r < 0)
        return r;
    pthread_mutex_lock(&imaged->lock);
    int old = imaged->pidfd;
    imaged->pid = pid;
    imaged->pidfd = pidfd;
    pthread_mutex_unlock(&imaged->lock);
    if (old >= 0) {
        reap(old);
        close(old);
    }
    *ret_restarted = restarted;
    return 0;
}

int imaged_start(const char *data_directory, const char *program, struct imaged **ret, bool *ret_restarted,
                 struct error *err)
{
    struct imaged *imaged = calloc(1, sizeof(*imaged));
    if (imaged == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&imaged->lock, NULL);
    imaged->pidfd = -1;
    imaged->program = strdup(program);
    imaged->data_directory = realpath(data_directory, NULL);
    int r = 0;
    if (imaged->data_directory == NULL)
        r = error_errno(err, "cannot use %s", data_directory);
    else if (imaged->program == NULL ||
             asprintf(&imaged->socket, "%s/%s", imaged->data_directory, PROTOCOL_SOCKET) < 0)
        r = error_set(err, ENOMEM, "out of memory");
    if (r == 0)
        r = find_or_start(imaged, ret_restarted, err);
    if (r < 0)
        imaged_close(imaged);
    else
        *ret = imaged;
    return r;
}

int imaged_restart(struct imaged *imaged, struct error *err)
{
    bool restarted;
    return find_or_start(imaged, &restarted, err);
}

void imaged_close(struct imaged *imaged)
{
    if (imaged == NULL)
        return;
    if (imaged->pidfd >= 0) {
        reap(imaged->pidfd);
        close(imaged->pidfd);
    }
    pthread_mutex_destroy(&imaged->lock);
    free(imaged->data_directory);
    free(imaged->program);
    free(imaged->socket);
    free(imaged);
}

pid_t imaged_pid(const struct imaged *imaged)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&imaged->lock;
    pthread_mutex_lock(lock);
    pid_t pid = imaged->pid;
    pthread_mutex_unlock(lock);
    return pid;
}

int imaged_pidfd(const struct imaged *imaged)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&imaged->lock;
    pthread_mutex_lock(lock);
    int pidfd = imaged->pidfd;
    pthread_mutex_unlock(lock);
    return pidfd;
}

int imaged_stop(struct imaged *imaged, struct error *err)
{
    int r = call(imaged, json_pack("{s:s}", "op", "stop"), NULL, err);
    if (r < 0 && r != -EHOSTDOWN)
        return r;
    struct pollfd ended = {.fd = imaged_pidfd(imaged), .events = POLLIN};
    do
        r = poll(&ended, 1, IMAGED_TIMEOUT_MS);
    while (r < 0 && errno == EINTR);
    if (r != 1)
        return error_set(err, ETIMEDOUT, "the image server doesn't end");
    reap(ended.fd);
    return 0;
}

void imaged_files_done(struct imaged_files *files)
{
    free(files->memory);
    free(files->memory_parent);
    free(files->disk);
    free(files->disk_parent);
    *files = (struct imaged_files){0};
}

/* Absent: NULL. */
static int read_path(const json_t *reply, const char *key, char **ret, struct error *err)
{
    if (json_object_get(reply, key) == NULL)
        return 0;
    return json_read_text(reply, key, ret, err);
}

int imaged_attach(struct imaged *imaged, const struct imaged_attach *attach, struct imaged_files *ret,
                  struct error *err)
{
    json_t *reply;
    int r = call(imaged,
                 json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "op", "attach", "vm", attach->vm, "directory",
                           attach->vm_directory, "uid", (json_int_t)attach->uid, "gid", (json_int_t)attach->gid,
                           "empty_memory", (json_int_t)attach->empty_memory, "disk_limit",
                           (json_int_t)attach->disk_limit),
                 &reply, err);
    if (r < 0)
        return r;
    struct imaged_files files = {0};
    if ((r = read_path(reply, "memory", &files.memory, err)) == 0 &&
        (r = read_path(reply, "memory", &files.memory_parent, err)) == 0 &&
        (r = read_path(reply, "disk", &files.disk, err)) == 0)
        r = read_path(reply, "disk_parent", &files.disk_parent, err);
    json_decref(reply);
    if (r < 0)
        imaged_files_done(&files);
    else
        *ret = files;
    return r;
}

static int call_for_vm(const struct imaged *imaged, const char *op, const char *vm, json_t **ret, struct error *err)
{
    return call(imaged, json_pack("{s:s, s:s}", "op", op, "vm", vm), ret, err);
}

int imaged_detach(struct imaged *imaged, const char *vm, struct error *err)
{
    return call_for_vm(imaged, "detach", vm, NULL, err);
}

int imaged_set_vmm(struct imaged *imaged, const char *vm, pid_t pid, struct error *err)
{
    return call(imaged, json_pack("{s:s, s:s, s:I}", "op", "set-vmm", "vm", vm, "pid", (json_int_t)pid), NULL, err);
}

int imaged_prefetch(struct imaged *imaged, const char *vm, struct error *err)
{
    return call_for_vm(imaged, "prefetch", vm, NULL, err);
}

int imaged_warm(struct imaged *imaged, const char *directory, gid_t gid, struct error *err)
{
    return call(imaged, json_pack("{s:s, s:s, s:I}", "op", "warm", "directory", directory, "gid", (json_int_t)gid),
                NULL, err);
}

int imaged_save_working_set(struct imaged *imaged, const char *vm, const char *path, struct error *err)
{
    return call(imaged, json_pack("{s:s, s:s, s:s}", "op", "save-working-set", "vm", vm, "path", path), NULL, err);
}

int imaged_freeze(struct imaged *imaged, const char *vm, uint64_t *ret_generation, struct error *err)
{
    json_t *reply;
    int r = call_for_vm(imaged, "freeze", vm, &reply, err);
    if (r < 0)
        return r;
    int64_t generation;
    r = json_read_integer(reply, "generation", 0, INT64_MAX, 0, &generation, err);
    json_decref(reply);
    if (r == 0)
        *ret_generation = (uint64_t)generation;
    return r;
}

int imaged_rebase(struct imaged *imaged, const char *vm, uint64_t generation, struct error *err)
{
    return call(imaged,
                json_pack("{s:s, s:s, s:I}", "op", "rebase", "vm", vm, "generation", (json_int_t)generation), NULL,
                err);
}

int imaged_failure(struct imaged *imaged, const char *vm, char **ret, struct error *err)
{
    json_t *reply;
    int r = call_for_vm(imaged, "failure", vm, &reply, err);
    if (r < 0)
        return r;
    if (json_object_get(reply, "reason") != NULL) {
        r = json_read_text(reply, "reason", ret, err);
        r = r < 0 ? r : 1;
    }
    json_decref(reply);
    return r;
}

int imaged_watch(struct imaged *imaged, struct error *err)
{
    CLEANUP_CLOSE int fd = connect_server(imaged->socket, err);
    if (fd < 0)
        return fd;
    int r = exchange(fd, json_pack("{s:s}", "op", "watch"), NULL, err);
    return r < 0 ? r : TAKE_FD(fd);
}

int imaged_next_failure(int watch_fd, char **ret_vm, char **ret_reason, struct error *err)
{
    json_t *packet;
    int r = protocol_receive(watch_fd, 0, &packet, err);
    if (r == -EAGAIN)
        return 0;
    if (r == 0)
        return error_set(err, EHOSTDOWN, "the image server has ended");
    if (r < 0)
        return r;
    CLEANUP_FREE char *vm = NULL;
    CLEANUP_FREE char *reason = NULL;
    if ((r = json_read_text(packet, "vm", &vm, err)) == 0 &&
        (r = json_read_text(packet, "reason", &reason, err)) == 0) {
        *ret_vm = TAKE_PTR(vm);
        *ret_reason = TAKE_PTR(reason);
        r = 1;
    }
    json_decref(packet);
    return r;
}

int imaged_statistics(struct imaged *imaged, json_t **ret, struct error *err)
{
    json_t *reply;
    int r = call(imaged, json_pack("{s:s}", "op", "statistics"), &reply, err);
    if (r < 0)
        return r;
    json_object_del(reply, "ok");
    *ret = reply;
    return 0;
}
