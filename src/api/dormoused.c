/*
 * dormoused: the daemon's main: sockets, manager, server, signals.
 *
 * The sockets come first, so that a second daemon by mistake fails before it touches the data directory. Signals
 * are caught by handlers that write to an eventfd, not blocked or ignored: blocked and ignored signals would be
 * inherited by every VMM and tool that is started, handlers are not.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "api/api.h"
#include "api/guest.h"
#include "api/http.h"
#include "api/listen.h"
#include "api/log.h"
#include "api/notify.h"
#include "api/options.h"

#define STOP_SECONDS 20

static int stop_fd = -1;

static void request_stop(int signal)
{
    (void)signal;
    int saved = errno;
    (void)eventfd_write(stop_fd, 1);
    errno = saved;
}

static void ignore_signal(int signal)
{
    (void)signal; /* a handler, not SIG_IGN: see above */
}

static void give_up(int signal)
{
    (void)signal;
    static const char text[] = "dormoused: operations still under way; the next start rolls them back\n";
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(0);
}

static int install_handlers(struct error *err)
{
    stop_fd = eventfd(0, EFD_CLOEXEC);
    if (stop_fd < 0)
        return error_errno(err, "cannot create an eventfd");
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = ignore_signal;
    sigaction(SIGPIPE, &action, NULL);
    action.sa_handler = give_up;
    sigaction(SIGALRM, &action, NULL);
    return 0;
}

/* Each proxied connection takes several descriptors, and the usual soft limit is 1024. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void log_line(void *context, const char *line)
{
    (void)context;
    log_event("%s", line);
}

static void print_error(const struct error *err)
{
    fprintf(stderr, "dormoused: %s%s%s\n", error_message(err), err->hint != NULL ? "; " : "",
            err->hint != NULL ? err->hint : "");
}

static void wait_for_stop(void)
{
    struct pollfd stop = {.fd = stop_fd, .events = POLLIN};
    while (poll(&stop, 1, -1) != 1)
        ; /* interrupted by the signal's handler */
}

/* Serves until a signal; takes the sockets over. */
static int serve(const struct daemon_options *options, struct api *api, const int sockets[2], struct error *err)
{
    struct http_handlers handlers = api_handlers(api);
    struct http_server *server;
    int r = http_server_start(sockets, 2, 1, &handlers, &server, err);
    if (r < 0)
        return r;
    printf("dormoused ready: %s, socket %s, data %s\n", api->url, options->socket, options->data);
    fflush(stdout);
    notify_service_manager("READY=1");
    wait_for_stop();

    log_event("stopping");
    notify_service_manager("STOPPING=1");
    alarm(STOP_SECONDS);
    unlink(options->socket); /* while we still listen: nobody else can have taken its place */
    http_server_stop(server);
    return 0;
}

static int name_endpoints(struct api *api, const char *address, uint16_t port, struct error *err)
{
    CLEANUP_FREE char *host = listen_host(address);
    if (host == NULL || asprintf(&api->url, "http://%s:%u", host, port) < 0 ||
        asprintf(&api->domain, "localhost:%u", port) < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

static int open_sockets(const struct daemon_options *options, int sockets[2], uint16_t *ret_port, struct error *err)
{
    CLEANUP_CLOSE int tcp = listen_tcp(options->listen, ret_port, err);
    if (tcp < 0)
        return tcp;
    int local = listen_unix(options->socket, err);
    if (local < 0)
        return local;
    sockets[0] = TAKE_FD(tcp);
    sockets[1] = local;
    return 0;
}

static int run(const struct daemon_options *options, struct error *err)
{
    if (geteuid() != 0) {
        error_set(err, EPERM, "must run as root");
        error_hint(err, "it makes network namespaces and jails: try sudo dormoused");
        return -EPERM;
    }
    raise_descriptor_limit();
    int r;
    if ((r = install_handlers(err)) < 0 || (r = guest_global_init(err)) < 0)
        return r;
    int sockets[2];
    uint16_t port;
    r = open_sockets(options, sockets, &port, err);
    if (r < 0)
        return r;

    struct api api = {0};
    struct manager_options manager_options = {
        .data_directory = options->data,
        .network_ahead = (unsigned)options->network_ahead,
        .vmm_ahead = (unsigned)options->vmm_ahead,
        .sandboxes_max = (unsigned)options->sandboxes_max,
        .starts_max = (unsigned)options->starts_max,
        .memory_limit_bytes = (uint64_t)options->memory_limit_mib << 20,
        .memory_overcommit_percent = (unsigned)options->memory_overcommit,
        .disk_limit_bytes = (uint64_t)options->disk_limit_mib << 20,
        .log = log_line,
    };
    r = name_endpoints(&api, options->listen, port, err);
    if (r == 0)
        r = manager_open(&manager_options, &api.manager, err);
    if (r < 0) {
        unlink(options->socket);
        close(sockets[0]);
        close(sockets[1]);
    } else {
        r = serve(options, &api, sockets, err);
        manager_close(api.manager);
    }
    free(api.url);
    free(api.domain);
    return r;
}

int main(int argc, char **argv)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct daemon_options options;
    int r = daemon_options_parse(argc, argv, &options, &err);
    if (r < 0) {
        print_error(&err);
        return 2;
    }
    if (r == 0 || run(&options, &err) == 0)
        return 0;
    print_error(&err);
    return 1;
}
