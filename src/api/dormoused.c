/*
 * dormoused: the daemon's main: options, sockets, manager, server, signals.
 *
 * The sockets come first, so that a second daemon by mistake fails before it touches the data directory. Signals
 * are caught by handlers that write to an eventfd, not blocked or ignored: blocked and ignored signals would be
 * inherited by every VMM and tool that is started, handlers are not.
 */
#include <errno.h>
#include <getopt.h>
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

#define DEFAULT_DATA          "/var/lib/dormouse"
#define DEFAULT_SOCKET        "/run/dormouse.sock"
#define DEFAULT_LISTEN        "127.0.0.1:7878"
#define DEFAULT_NETWORK_AHEAD 8
#define DEFAULT_VMM_AHEAD     4
#define AHEAD_MAX             1024
#define STOP_SECONDS          20

#define TEXT_OF(macro)         TEXT_OF_EXPANDED(macro)
#define TEXT_OF_EXPANDED(text) #text

struct options {
    const char *data;
    const char *socket;
    const char *listen;
    unsigned network_ahead;
    unsigned vmm_ahead;
};

static const char usage[] =
    "Usage: dormoused [OPTION]...\n"
    "Runs microVM sandboxes and serves their API, in the foreground, until SIGTERM or SIGINT.\n"
    "Sandboxes go on running when it stops and are found again when it starts.\n"
    "\n"
    "  --data DIR             where everything is kept (" DEFAULT_DATA ")\n"
    "  --socket PATH          unix socket for the dormouse command (" DEFAULT_SOCKET ")\n"
    "  --listen ADDRESS:PORT  loopback address for E2B clients (" DEFAULT_LISTEN "); port 0 takes a free one\n"
    "  --network-ahead N      network namespaces kept ready (" TEXT_OF(
        DEFAULT_NETWORK_AHEAD) ")\n"
                               "  --vmm-ahead N          VMM processes kept ready, about 11 MiB each (" TEXT_OF(
                                   DEFAULT_VMM_AHEAD) ")\n"
                                                      "  --help, --version\n";

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
static int serve(const struct options *options, struct api *api, const int sockets[2], struct error *err)
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

static int open_sockets(const struct options *options, int sockets[2], uint16_t *ret_port, struct error *err)
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

static int run(const struct options *options, struct error *err)
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
        .network_ahead = options->network_ahead,
        .vmm_ahead = options->vmm_ahead,
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

static bool parse_ahead(const char *option, const char *text, unsigned *ret)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || value > AHEAD_MAX) {
        fprintf(stderr, "dormoused: %s must be a number from 0 to %d\n", option, AHEAD_MAX);
        return false;
    }
    *ret = (unsigned)value;
    return true;
}

/* Returns -1 to go on, or the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
    enum {
        OPTION_DATA = 1,
        OPTION_SOCKET,
        OPTION_LISTEN,
        OPTION_NETWORKS,
        OPTION_VMMS,
        OPTION_HELP,
        OPTION_VERSION
    };
    static const struct option known[] = {
        {"data", required_argument, NULL, OPTION_DATA},
        {"socket", required_argument, NULL, OPTION_SOCKET},
        {"listen", required_argument, NULL, OPTION_LISTEN},
        {"network-ahead", required_argument, NULL, OPTION_NETWORKS},
        {"vmm-ahead", required_argument, NULL, OPTION_VMMS},
        {"help", no_argument, NULL, OPTION_HELP},
        {"version", no_argument, NULL, OPTION_VERSION},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case OPTION_DATA:
            options->data = optarg;
            break;
        case OPTION_SOCKET:
            options->socket = optarg;
            break;
        case OPTION_LISTEN:
            options->listen = optarg;
            break;
        case OPTION_NETWORKS:
            if (!parse_ahead("--network-ahead", optarg, &options->network_ahead))
                return 2;
            break;
        case OPTION_VMMS:
            if (!parse_ahead("--vmm-ahead", optarg, &options->vmm_ahead))
                return 2;
            break;
        case OPTION_HELP:
            fputs(usage, stdout);
            return 0;
        case OPTION_VERSION:
            puts("dormoused " DORMOUSE_VERSION);
            return 0;
        default:
            fputs("Try dormoused --help.\n", stderr);
            return 2;
        }
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (listen_check(options->listen, &err) < 0) {
        print_error(&err);
        return 2;
    }
    if (optind < argc) {
        fprintf(stderr, "dormoused: unexpected argument \"%s\"\nTry dormoused --help.\n", argv[optind]);
        return 2;
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct options options = {DEFAULT_DATA, DEFAULT_SOCKET, DEFAULT_LISTEN, DEFAULT_NETWORK_AHEAD,
                              DEFAULT_VMM_AHEAD};
    int status = parse_options(argc, argv, &options);
    if (status >= 0)
        return status;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (run(&options, &err) == 0)
        return 0;
    print_error(&err);
    return 1;
}
