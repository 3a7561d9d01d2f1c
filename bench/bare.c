#include "bare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"
#include "base/unix_socket.h"
#include "clone.h"

#define JAIL_DIRECTORY "/vm/"
#define ARGUMENTS_MAX  128

/* Inherited descriptors are parked above those that QEMU's arguments name. */
#define DESCRIPTOR_PARKING 64

enum descriptor { DESCRIPTOR_QMP, DESCRIPTOR_CONTROL, DESCRIPTOR_TAP, DESCRIPTOR_STATE, DESCRIPTOR_COUNT };

/* What stands in front of each descriptor's number in the arguments. */
static const char *const descriptor_options[DESCRIPTOR_COUNT] = {
    [DESCRIPTOR_QMP] = "socket,id=qmp,fd=",
    [DESCRIPTOR_CONTROL] = "socket,id=control,fd=",
    [DESCRIPTOR_TAP] = "tap,id=net,fd=",
    [DESCRIPTOR_STATE] = "fd:",
};

struct bare {
    char *directory;
    char *arguments[ARGUMENTS_MAX + 1];
    int numbers[DESCRIPTOR_COUNT];     /* in QEMU */
    int descriptors[DESCRIPTOR_COUNT]; /* here */
    int log_fd;
    int qmp_fd;
    int control_fd;
    FILE *qmp;
    pid_t pid;
    int64_t begun_ns;
    int64_t spawned_ns;
    int64_t running_ns;
};

int bare_isolate(struct error *err)
{
    return unshare(CLONE_NEWNET) < 0 ? error_errno(err, "cannot make a network namespace") : 0;
}

static char *join(const char *directory, const char *name, struct error *err)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) >= 0)
        return path;
    error_set(err, ENOMEM, "out of memory");
    return NULL;
}

/* A copy of `argument` in which /vm/ is the guest's directory. */
static char *relocate(const struct bare *bare, const char *argument)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    const char *found;
    for (; (found = strstr(argument, JAIL_DIRECTORY)) != NULL; argument = found + strlen(JAIL_DIRECTORY)) {
        strbuf_append(&text, argument, (size_t)(found - argument));
        strbuf_printf(&text, "%s/", bare->directory);
    }
    strbuf_printf(&text, "%s", argument);
    return text.failed ? NULL : strdup(text.data);
}

static void note_descriptor(struct bare *bare, const char *argument)
{
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        if (strncmp(argument, descriptor_options[i], strlen(descriptor_options[i])) == 0)
            bare->numbers[i] = atoi(argument + strlen(descriptor_options[i]));
}

static int read_arguments(struct bare *bare, const char *path, struct error *err)
{
    CLEANUP_FREE char *data = NULL;
    size_t length;
    int r = io_read_file(path, 64 << 10, &data, &length);
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    size_t count = 0;
    for (size_t at = 0; at < length; at += strlen(data + at) + 1) {
        if (count == ARGUMENTS_MAX)
            return error_set(err, E2BIG, "%s holds too many arguments", path);
        note_descriptor(bare, data + at);
        bare->arguments[count] = relocate(bare, data + at);
        if (bare->arguments[count++] == NULL)
            return error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        if (bare->numbers[i] <= STDERR_FILENO || bare->numbers[i] >= DESCRIPTOR_PARKING)
            return error_set(err, EINVAL, "no argument in %s begins with %s", path, descriptor_options[i]);
    return 0;
}

static int link_files(const struct bare *bare, const char *snapshot, struct error *err)
{
    static const char *const names[] = {"memory", "state"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *from = join(snapshot, names[i], err);
        CLEANUP_FREE char *to = join(bare->directory, names[i], err);
        if (from == NULL || to == NULL)
            return -ENOMEM;
        if (link(from, to) < 0)
            return error_errno(err, "cannot link %s to %s", from, to);
    }
    return 0;
}

static int copy_disk(const struct bare *bare, const char *snapshot, struct error *err)
{
    CLEANUP_FREE char *from = join(snapshot, "rootfs", err);
    CLEANUP_FREE char *to = join(bare->directory, "rootfs", err);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int from_fd = open(from, O_RDONLY | O_CLOEXEC);
    if (from_fd < 0)
        return error_errno(err, "cannot open %s", from);
    CLEANUP_CLOSE int to_fd = image_clone_to(from_fd, to, err);
    return to_fd < 0 ? to_fd : 0;
}

static int listen_and_connect(const struct bare *bare, const char *name, int *ret_listener, int *ret_client,
                              struct error *err)
{
    CLEANUP_FREE char *path = join(bare->directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int listener = unix_socket_listen(path, err);
    int client = listener < 0 ? listener : unix_socket_connect(path, err);
    if (client < 0)
        return client;
    *ret_listener = TAKE_FD(listener);
    *ret_client = client;
    return 0;
}

static int make_tap(int *ret, struct error *err)
{
    CLEANUP_CLOSE int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    CLEANUP_CLOSE int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (tap < 0 || any < 0)
        return error_errno(err, "cannot open /dev/net/tun");
    struct ifreq interface = {.ifr_name = "tap%d"};
    interface.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(tap, TUNSETIFF, &interface) < 0)
        return error_errno(err, "cannot make a TAP device");
    interface.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(any, SIOCSIFFLAGS, &interface) < 0)
        return error_errno(err, "cannot switch a TAP device on");
    *ret = TAKE_FD(tap);
    return 0;
}

static int open_in(const struct bare *bare, const char *name, int flags, int *ret, struct error *err)
{
    CLEANUP_FREE char *path = join(bare->directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    *ret = fd;
    return 0;
}

static int make_descriptors(struct bare *bare, struct error *err)
{
    int *descriptors = bare->descriptors;
    int r = listen_and_connect(bare, "qmp.sock", &descriptors[DESCRIPTOR_QMP], &bare->qmp_fd, err);
    if (r == 0)
        r = listen_and_connect(bare, "control.sock", &descriptors[DESCRIPTOR_CONTROL], &bare->control_fd, err);
    if (r == 0)
        r = make_tap(&descriptors[DESCRIPTOR_TAP], err);
    if (r == 0)
        r = open_in(bare, "state", O_RDONLY, &descriptors[DESCRIPTOR_STATE], err);
    if (r == 0)
        r = open_in(bare, "vmm.log", O_WRONLY | O_CREAT | O_APPEND, &bare->log_fd, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++) {
        int parked = fcntl(descriptors[i], F_DUPFD_CLOEXEC, DESCRIPTOR_PARKING);
        if (parked < 0)
            return error_errno(err, "cannot move a descriptor");
        close(descriptors[i]);
        descriptors[i] = parked;
    }
    bare->qmp = fdopen(bare->qmp_fd, "r");
    return bare->qmp == NULL ? error_errno(err, "cannot read from QEMU") : 0;
}

/* What is sent before QEMU exists is the first thing that it reads. */
static int queue_questions(struct bare *bare, struct error *err)
{
    int r = bare_command(bare, "{\"execute\": \"qmp_capabilities\"}", -1, err);
    return r < 0 ? r : bare_command(bare, "{\"execute\": \"query-status\"}", -1, err);
}

int bare_prepare(const struct bare_source *source, unsigned index, struct bare **ret, struct error *err)
{
    struct bare *bare = calloc(1, sizeof(*bare));
    if (bare == NULL)
        return error_set(err, ENOMEM, "out of memory");
    bare->log_fd = bare->qmp_fd = bare->control_fd = -1;
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        bare->descriptors[i] = -1;
    int r = 0;
    if (asprintf(&bare->directory, "%s/guest-%u", source->work, index) < 0) {
        bare->directory = NULL;
        r = error_set(err, ENOMEM, "out of memory");
    }
    if (r == 0 && mkdir(bare->directory, 0700) < 0)
        r = error_errno(err, "cannot make %s", bare->directory);
    if (r == 0)
        r = read_arguments(bare, source->arguments, err);
    if (r == 0)
        r = link_files(bare, source->snapshot, err);
    if (r == 0)
        r = copy_disk(bare, source->snapshot, err);
    if (r == 0)
        r = make_descriptors(bare, err);
    if (r == 0)
        r = queue_questions(bare, err);
    if (r < 0) {
        bare_free(bare);
        return r;
    }
    *ret = bare;
    return 0;
}

static int spawn(struct bare *bare, struct error *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, bare->log_fd, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, bare->log_fd, STDERR_FILENO);
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        posix_spawn_file_actions_adddup2(&actions, bare->descriptors[i], bare->numbers[i]);
    int code = posix_spawn(&bare->pid, bare->arguments[0], &actions, NULL, bare->arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code == 0)
        return 0;
    bare->pid = 0;
    return error_set(err, code, "cannot start %s: %s", bare->arguments[0], strerror(code));
}

int bare_start(struct bare *bare, struct error *err)
{
    bare->begun_ns = clock_monotonic_ns();
    int r = spawn(bare, err);
    if (r < 0)
        return r;
    bare->spawned_ns = clock_monotonic_ns();
    /* Only QEMU's own copies keep the sockets open, so that its end is seen. */
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        cleanup_close(&bare->descriptors[i]);
    r = bare_wait(bare, "\"status\": \"running\"", "\"event\": \"RESUME\"", err);
    if (r < 0)
        return r;
    bare->running_ns = clock_monotonic_ns();
    return 0;
}

pid_t bare_pid(const struct bare *bare)
{
    return bare->pid;
}

int64_t bare_begun_ns(const struct bare *bare)
{
    return bare->begun_ns;
}

int64_t bare_spawned_ns(const struct bare *bare)
{
    return bare->spawned_ns;
}

int64_t bare_running_ns(const struct bare *bare)
{
    return bare->running_ns;
}

int bare_command(struct bare *bare, const char *text, int fd, struct error *err)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr alignment;
    } control = {0};
    struct iovec body = {(char *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header =
            (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(fd))};
        memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    }
    return sendmsg(bare->qmp_fd, &message, MSG_NOSIGNAL) < 0 ? error_errno(err, "writing to QEMU") : 0;
}

int bare_wait(struct bare *bare, const char *text, const char *other, struct error *err)
{
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, bare->qmp) > 0) {
        if (strstr(line, text) != NULL || (other != NULL && strstr(line, other) != NULL))
            return 0;
        if (strncmp(line, "{\"error\"", strlen("{\"error\"")) == 0 ||
            strstr(line, "\"status\": \"failed\"") != NULL)
            return error_set(err, EREMOTEIO, "QEMU failed: %s", line);
    }
    return error_set(err, EPIPE, "QEMU ended; see %s/vmm.log", bare->directory);
}

void bare_free(struct bare *bare)
{
    if (bare == NULL)
        return;
    if (bare->pid > 0) {
        kill(bare->pid, SIGKILL);
        waitpid(bare->pid, NULL, 0);
    }
    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++)
        cleanup_close(&bare->descriptors[i]);
    cleanup_close(&bare->log_fd);
    cleanup_close(&bare->control_fd);
    if (bare->qmp != NULL)
        fclose(bare->qmp);
    else
        cleanup_close(&bare->qmp_fd);
    if (bare->directory != NULL)
        io_remove_tree(bare->directory);
    for (size_t i = 0; bare->arguments[i] != NULL; i++)
        free(bare->arguments[i]);
    free(bare->directory);
    free(bare);
}
