/*
 * dormouse-imaged: the image server's main: options, single instance, resources, signals.
 *
 * The lock is taken before anything else is opened: descriptors are closed in ascending order when a process dies,
 * so whoever finds the socket dead finds the lock free.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/unix_socket.h"
#include "imaged/control.h"
#include "imaged/guard.h"
#include "imaged/protocol.h"
#include "imaged/server.h"

#define STOP_SECONDS 20
#define LOCK_SECONDS 3

static const char usage[] = "Usage: dormouse-imaged --data DIR [--ready-fd N]\n"
                            "Serves the images of snapshots and the disks of sandboxes; started by dormoused.\n"
                            "\n"
                            "  --data DIR    where everything is kept\n"
                            "  --ready-fd N  written to when it serves\n"
                            "  --help, --version\n";

struct options {
    const char *data;
    int ready_fd; /* -1: none */
};

static void interrupt(int signal)
{
    (void)signal;
}

/* Waits a little: for the guard of a server that has just died. */
static int wait_for_lock(int fd)
{
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGALRM, &action, NULL);
    alarm(LOCK_SECONDS);
    int r = flock(fd, LOCK_EX);
    alarm(0);
    action.sa_handler = SIG_DFL;
    sigaction(SIGALRM, &action, NULL);
    return r;
}

/* Kept until the process ends. */
static int take_lock(const char *data, struct error *err)
{
    CLEANUP_FREE char *path = io_path(data, PROTOCOL_LOCK, err);
    if (path == NULL)
        return -ENOMEM;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    if (wait_for_lock(fd) < 0)
        return errno == EINTR ? error_set(err, EBUSY, "another image server has %s", data)
                              : error_errno(err, "cannot lock %s", path);
    return fd;
}

/* Guests stand still while we do: neither the OOM killer nor reclaim through our own mounts may come in between. */
static void secure_resources(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    (void)prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    CLEANUP_CLOSE int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)io_write_full(fd, "-900", 4);
}

/* In all threads, which are started later. */
static int block_signals(struct error *err)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    sigdelset(&signals, SIGHUP);
    sigdelset(&signals, SIGPIPE);
    int fd = signalfd(-1, &signals, SFD_CLOEXEC);
    return fd < 0 ? error_errno(err, "cannot receive signals") : fd;
}

static void wait_for_stop(int signal_fd, int stop_fd)
{
    struct pollfd waited[] = {{.fd = signal_fd, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
    while (poll(waited, ARRAY_SIZE(waited), -1) <= 0)
        ;
}

/* A dead server's socket is in the way; the lock says that it is dead. */
static int open_socket(const char *data, char **ret_path, struct error *err)
{
    CLEANUP_FREE char *path = io_path(data, PROTOCOL_SOCKET, err);
    if (path == NULL)
        return -ENOMEM;
    (void)unlink(path);
    mode_t mask = umask(0177);
    int fd = unix_socket_listen_packets(path, err);
    umask(mask);
    if (fd < 0)
        return fd;
    (void)listen(fd, CONTROL_CONNECTIONS_MAX);
    *ret_path = TAKE_PTR(path);
    return fd;
}

static void say_ready(int fd)
{
    if (fd < 0)
        return;
    (void)io_write_full(fd, PROTOCOL_READY, strlen(PROTOCOL_READY));
    close(fd);
}

static int run(const struct options *options, struct error *err)
{
    int lock_fd = take_lock(options->data, err);
    if (lock_fd < 0)
        return lock_fd;
    secure_resources();
    int r = guard_start(options->data, lock_fd, err);
    if (r < 0)
        return r;
    int signal_fd = block_signals(err);
    int stop_fd = eventfd(0, EFD_CLOEXEC);
    if (signal_fd < 0 || stop_fd < 0)
        return signal_fd < 0 ? signal_fd : error_errno(err, "cannot create an eventfd");
    struct server *server;
    r = server_start(options->data, &server, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *socket_path = NULL;
    int listen_fd = open_socket(options->data, &socket_path, err);
    r = listen_fd < 0 ? listen_fd : control_start(server, listen_fd, stop_fd, err);
    if (r < 0) {
        server_unmount(server);
        return r;
    }
    fprintf(stderr, "dormouse-imaged %s serves %s\n", DORMOUSE_VERSION, options->data);
    say_ready(options->ready_fd);
    wait_for_stop(signal_fd, stop_fd);

    fprintf(stderr, "dormouse-imaged ends\n");
    alarm(STOP_SECONDS); /* a disk that hangs doesn't keep us */
    unlink(socket_path);
    server_unmount(server);
    /* Connections may still be using the rest, which goes with the process. */
    _exit(0);
}

/* Returns -1 to go on, or the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
    enum { OPTION_DATA = 1, OPTION_READY, OPTION_HELP, OPTION_VERSION };
    static const struct option known[] = {
        {"data", required_argument, NULL, OPTION_DATA},
        {"ready-fd", required_argument, NULL, OPTION_READY},
        {"help", no_argument, NULL, OPTION_HELP},
        {"version", no_argument, NULL, OPTION_VERSION},
        {0},
    };
    char nothing[] = "";
    char *end = nothing;
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case OPTION_DATA:
            options->data = optarg;
            break;
        case OPTION_READY:
            options->ready_fd = (int)MIN(strtoul(optarg, &end, 10), 1024UL);
            break;
        case OPTION_HELP:
            fputs(usage, stdout);
            return 0;
        case OPTION_VERSION:
            puts("dormouse-imaged " DORMOUSE_VERSION);
            return 0;
        default:
            fputs("Try dormouse-imaged --help.\n", stderr);
            return 2;
        }
    }
    if (options->data == NULL || *end != '\0' || optind < argc ||
        (options->ready_fd >= 0 && fcntl(options->ready_fd, F_SETFD, FD_CLOEXEC) < 0)) {
        fputs("dormouse-imaged: --data is needed, and --ready-fd must be an open descriptor\n"
              "Try dormouse-imaged --help.\n",
              stderr);
        return 2;
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct options options = {.ready_fd = -1};
    int status = parse_options(argc, argv, &options);
    if (status >= 0)
        return status;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (run(&options, &err) == 0)
        return 0;
    fprintf(stderr, "dormouse-imaged: %s\n", error_message(&err));
    if (options.ready_fd >= 0)
        (void)io_write_full(options.ready_fd, error_message(&err), strlen(error_message(&err)));
    return 1;
}
