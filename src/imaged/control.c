#include "imaged/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/json.h"
#include "imaged/protocol.h"

struct control {
    struct server *server;
    int listen_fd;
    int stop_fd;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned connections;
};

struct connection {
    struct control *control;
    int fd;
};

/* A member that must be there. */
static int read_required(const json_t *request, const char *key, char **ret, struct error *err)
{
    if (json_object_get(request, key) == NULL)
        return error_set(err, EINVAL, "\"%s\" is missing", key);
    return json_read_text(request, key, ret, err);
}

static int do_attach(struct control *control, const char *vm, const json_t *request, json_t *reply,
                     struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int64_t uid;
    int64_t gid;
    int64_t empty_memory;
    int64_t disk_limit;
    int r;
    if ((r = read_required(request, "directory", &directory, err)) < 0 ||
        (r = json_read_integer(request, "uid", 0, UINT32_MAX - 1, 0, &uid, err)) < 0 ||
        (r = json_read_integer(request, "gid", 0, UINT32_MAX - 1, 0, &gid, err)) < 0 ||
        (r = json_read_integer(request, "empty_memory", 0, INT64_MAX, 0, &empty_memory, err)) < 0 ||
        (r = json_read_integer(request, "disk_limit", 0, INT64_MAX, 0, &disk_limit, err)) < 0)
        return r;
    struct server_attach attach = {
        .vm = vm,
        .directory = directory,
        .uid = (uid_t)uid,
        .gid = (gid_t)gid,
        .empty_memory = (uint64_t)empty_memory,
        .disk_limit = (uint64_t)disk_limit,
    };
    return server_attach(control->server, &attach, reply, err);
}

static int do_detach(struct control *control, const char *vm, const json_t *request, json_t *reply,
                     struct error *err)
{
    (void)request;
    (void)reply;
    return server_detach(control->server, vm, err);
}

static int do_freeze(struct control *control, const char *vm, const json_t *request, json_t *reply,
                     struct error *err)
{
    (void)request;
    uint64_t generation;
    int r = server_freeze(control->server, vm, &generation, err);
    if (r == 0 && json_object_set_new(reply, "generation", json_integer((json_int_t)generation)) < 0)
        r = error_set(err, ENOMEM, "out of memory");
    return r;
}

static int do_rebase(struct control *control, const char *vm, const json_t *request, json_t *reply,
                     struct error *err)
{
    (void)reply;
    int64_t generation;
    int r = json_read_integer(request, "generation", 0, INT64_MAX, -1, &generation, err);
    if (r == 0 && generation < 0)
        r = error_set(err, EINVAL, "\"generation\" is missing");
    return r < 0 ? r : server_rebase(control->server, vm, (uint64_t)generation, err);
}

static int do_set_vmm(struct control *control, const char *vm, const json_t *request, json_t *reply,
                      struct error *err)
{
    (void)reply;
    int64_t pid;
    int r = json_read_integer(request, "pid", 0, INT32_MAX, 0, &pid, err);
    return r < 0 ? r : server_set_vmm(control->server, vm, (pid_t)pid, err);
}

static int do_prefetch(struct control *control, const char *vm, const json_t *request, json_t *reply,
                       struct error *err)
{
    (void)request;
    (void)reply;
    return server_prefetch(control->server, vm, err);
}

static int do_save(struct control *control, const char *vm, const json_t *request, json_t *reply, struct error *err)
{
    (void)reply;
    CLEANUP_FREE char *path = NULL;
    int r = read_required(request, "path", &path, err);
    return r < 0 ? r : server_save_working_set(control->server, vm, path, err);
}

static int do_failure(struct control *control, const char *vm, const json_t *request, json_t *reply,
                      struct error *err)
{
    (void)request;
    return server_failure(control->server, vm, reply, err);
}

static int do_warm(struct control *control, const json_t *request, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int64_t gid;
    int r = read_required(request, "directory", &directory, err);
    if (r == 0)
        r = json_read_integer(request, "gid", 0, INT32_MAX, 0, &gid, err);
    return r < 0 ? r : server_warm(control->server, directory, (gid_t)gid, err);
}

static const struct {
    const char *op;
    int (*call)(struct control *control, const char *vm, const json_t *request, json_t *reply, struct error *err);
} vm_calls[] = {
    {"attach", do_attach},   {"detach", do_detach},   {"freeze", do_freeze},     {"rebase", do_rebase},
    {"set-vmm", do_set_vmm}, {"failure", do_failure}, {"prefetch", do_prefetch}, {"save-working-set", do_save},
};

static int do_vm_call(struct control *control, const char *op, const json_t *request, json_t *reply,
                      struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(vm_calls); i++) {
        if (strcmp(op, vm_calls[i].op) != 0)
            continue;
        CLEANUP_FREE char *vm = NULL;
        int r = read_required(request, "vm", &vm, err);
        return r < 0 ? r : vm_calls[i].call(control, vm, request, reply, err);
    }
    return error_set(err, EOPNOTSUPP, "\"%s\" is not an operation", op);
}

/* Members of `reply` are set also on failure; they aren't sent then. */
static int carry_out(struct control *control, const json_t *request, json_t *reply, struct error *err)
{
    CLEANUP_FREE char *op = NULL;
    int r = read_required(request, "op", &op, err);
    if (r < 0)
        return r;
    if (strcmp(op, "hello") == 0)
        return 0;
    if (strcmp(op, "statistics") == 0)
        return server_statistics(control->server, reply, err);
    if (strcmp(op, "warm") == 0)
        return do_warm(control, request, err);
    if (strcmp(op, "stop") == 0)
        return eventfd_write(control->stop_fd, 1) < 0 ? error_errno(err, "cannot stop") : 0;
    return do_vm_call(control, op, request, reply, err);
}

static bool is_watch(const json_t *request)
{
    const char *op = json_string_value(json_object_get(request, "op"));
    return op != NULL && strcmp(op, "watch") == 0;
}

static int send_error(int fd, const struct error *err)
{
    json_t *reply = json_pack("{s:b, s:i, s:s}", "ok", 0, "code", err->code, "error", error_message(err));
    if (reply == NULL) /* a message that isn't UTF-8 */
        reply = json_pack("{s:b, s:i, s:s}", "ok", 0, "code", err->code, "error", "the request failed");
    int r = reply != NULL ? protocol_send(fd, CONTROL_IDLE_MS, reply, NULL) : -ENOMEM;
    json_decref(reply);
    return r;
}

/* Until the peer closes. */
static int watch(struct connection *connection, struct error *err)
{
    json_t *reply = json_pack("{s:b}", "ok", 1);
    int r = reply != NULL ? server_watch(connection->control->server, connection->fd, reply, err)
                          : error_set(err, ENOMEM, "out of memory");
    json_decref(reply);
    if (r < 0)
        return r;
    char byte;
    while (recv(connection->fd, &byte, 1, 0) < 0 && errno == EINTR)
        ;
    server_unwatch(connection->control->server, connection->fd);
    return 0;
}

/* Takes the request over. Negative: the connection is of no more use. */
static int answer(struct connection *connection, json_t *request)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (is_watch(request)) {
        json_decref(request);
        if (watch(connection, &err) < 0)
            send_error(connection->fd, &err);
        return -EPIPE;
    }
    json_t *reply = json_pack("{s:b}", "ok", 1);
    int r = reply != NULL ? carry_out(connection->control, request, reply, &err)
                          : error_set(&err, ENOMEM, "out of memory");
    json_decref(request);
    r = r < 0 ? send_error(connection->fd, &err) : protocol_send(connection->fd, CONTROL_IDLE_MS, reply, NULL);
    json_decref(reply);
    return r;
}

static void *serve_connection(void *argument)
{
    struct connection *connection = argument;
    struct control *control = connection->control;
    int r;
    do {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        json_t *request;
        r = protocol_receive(connection->fd, CONTROL_IDLE_MS, &request, &err);
        if (r == 1)
            r = answer(connection, request) < 0 ? 0 : 1;
        else if (r == -EBADMSG || r == -EMSGSIZE)
            r = send_error(connection->fd, &err) < 0 ? 0 : 1;
    } while (r > 0);
    close(connection->fd);
    free(connection);
    pthread_mutex_lock(&control->lock);
    control->connections--;
    pthread_cond_signal(&control->ended);
    pthread_mutex_unlock(&control->lock);
    return NULL;
}

/* Takes the descriptor over. */
static void start_connection(struct control *control, int fd)
{
    struct connection *connection = malloc(sizeof(*connection));
    pthread_t thread;
    if (connection != NULL) {
        *connection = (struct connection){.control = control, .fd = fd};
        if (pthread_create(&thread, NULL, serve_connection, connection) == 0) {
            pthread_detach(thread);
            return;
        }
    }
    free(connection);
    close(fd);
    pthread_mutex_lock(&control->lock);
    control->connections--;
    pthread_mutex_unlock(&control->lock);
}

static void *accept_connections(void *argument)
{
    struct control *control = argument;
    for (;;) {
        pthread_mutex_lock(&control->lock);
        while (control->connections == CONTROL_CONNECTIONS_MAX)
            pthread_cond_wait(&control->ended, &control->lock);
        control->connections++;
        pthread_mutex_unlock(&control->lock);
        int fd;
        do {
            fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd < 0 && errno != EINTR && errno != ECONNABORTED)
                (void)poll(NULL, 0, 100); /* no descriptors or memory left: connections that end give some back */
        } while (fd < 0);
        start_connection(control, fd);
    }
    return NULL;
}

int control_start(struct server *server, int listen_fd, int stop_fd, struct error *err)
{
    struct control *control = calloc(1, sizeof(*control));
    if (control == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *control = (struct control){.server = server, .listen_fd = listen_fd, .stop_fd = stop_fd};
    pthread_mutex_init(&control->lock, NULL);
    pthread_cond_init(&control->ended, NULL);
    pthread_t thread;
    int code = pthread_create(&thread, NULL, accept_connections, control);
    if (code != 0) {
        free(control);
        return error_code(err, -code, "cannot start a thread");
    }
    pthread_detach(thread);
    return 0;
}
