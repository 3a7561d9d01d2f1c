#include "api/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <unistd.h>

#include "api/listen.h"
#include "base/number.h"

#define DEFAULT_DATA          "/var/lib/dormouse"
#define DEFAULT_SOCKET        "/run/dormouse.sock"
#define DEFAULT_LISTEN        "127.0.0.1:7878"
#define DEFAULT_NETWORK_AHEAD 8
#define DEFAULT_VMM_AHEAD     4
#define DEFAULT_OVERCOMMIT    800
#define AHEAD_MAX             1024
#define LIMIT_MAX             1000000
#define OVERCOMMIT_MAX        100000

/* Each start keeps a processor busy; a few more than there are, so that none waits for a disk. */
#define STARTS_PER_CPU 2
#define STARTS_LEAST   4

static const char usage[] =
    "Usage: dormoused [OPTION]...\n"
    "Runs microVM sandboxes and serves their API, in the foreground, until SIGTERM or SIGINT.\n"
    "Sandboxes go on running when it stops and are found again when it starts.\n"
    "\n"
    "  --data DIR             where everything is kept (" DEFAULT_DATA ")\n"
    "  --socket PATH          unix socket for the dormouse command (" DEFAULT_SOCKET ")\n"
    "  --listen ADDRESS:PORT  loopback address for E2B clients (" DEFAULT_LISTEN "); port 0 takes a free one\n"
    "  --network-ahead N      network namespaces kept ready (%d)\n"
    "  --vmm-ahead N          VMM processes kept ready, about 11 MiB each (%d)\n"
    "  --max-sandboxes N      that run at once; 0: any number (0)\n"
    "  --max-starts N         that are started or resumed at once, others wait; 0: any number (%d)\n"
    "  --memory-limit SIZE    for all that run together, 64G, 512M … (what the host has available)\n"
    "  --memory-overcommit P  how much of that may be promised to them, in percent (%d)\n"
    "  --disk-limit SIZE      what each may write to its disk until its next snapshot (no limit)\n"
    "  --help, --version\n";

static unsigned default_starts(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return (unsigned)MAX(cpus * STARTS_PER_CPU, (long)STARTS_LEAST);
}

enum kind { TEXT, NUMBER, SIZE };

struct value {
    const char *name;
    enum kind kind;
    void *target; /* const char **, uint64_t *, uint32_t * */
    uint64_t minimum;
    uint64_t maximum;
};

static int take(const struct value *value, const char *text, struct error *err)
{
    int r = 0;
    if (value->kind == TEXT)
        *(const char **)value->target = text;
    else if (value->kind == NUMBER)
        r = number_parse(text, value->minimum, value->maximum, value->target, err);
    else
        r = number_parse_mib(text, value->target, err);
    return r < 0 ? error_wrap(err, r, "--%s", value->name) : 0;
}

/* Takes all options; 0 when one has been answered at once. */
static int take_all(int argc, char **argv, const struct value *values, size_t count, struct error *err)
{
    enum { OPTION_HELP = 1000, OPTION_VERSION };
    struct option known[16] = {0};
    for (size_t i = 0; i < count; i++)
        known[i] = (struct option){values[i].name, required_argument, NULL, (int)i + 1};
    known[count] = (struct option){"help", no_argument, NULL, OPTION_HELP};
    known[count + 1] = (struct option){"version", no_argument, NULL, OPTION_VERSION};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == OPTION_HELP)
            printf(usage, DEFAULT_NETWORK_AHEAD, DEFAULT_VMM_AHEAD, (int)default_starts(), DEFAULT_OVERCOMMIT);
        else if (option == OPTION_VERSION)
            puts("dormoused " DORMOUSE_VERSION);
        else if (option == '?')
            return error_set(err, EINVAL, "try dormoused --help"); /* getopt has said what is wrong */
        else if (take(&values[option - 1], optarg, err) < 0)
            return -EINVAL;
        if (option >= OPTION_HELP)
            return 0;
    }
    return optind < argc ? error_set(err, EINVAL, "unexpected argument \"%s\"; try dormoused --help", argv[optind])
                         : 1;
}

int daemon_options_parse(int argc, char **argv, struct daemon_options *ret, struct error *err)
{
    struct daemon_options options = {
        .data = DEFAULT_DATA,
        .socket = DEFAULT_SOCKET,
        .listen = DEFAULT_LISTEN,
        .network_ahead = DEFAULT_NETWORK_AHEAD,
        .vmm_ahead = DEFAULT_VMM_AHEAD,
        .starts_max = default_starts(),
        .memory_overcommit = DEFAULT_OVERCOMMIT,
    };
    const struct value values[] = {
        {"data", TEXT, &options.data, 0, 0},
        {"socket", TEXT, &options.socket, 0, 0},
        {"listen", TEXT, &options.listen, 0, 0},
        {"network-ahead", NUMBER, &options.network_ahead, 0, AHEAD_MAX},
        {"vmm-ahead", NUMBER, &options.vmm_ahead, 0, AHEAD_MAX},
        {"max-sandboxes", NUMBER, &options.sandboxes_max, 0, LIMIT_MAX},
        {"max-starts", NUMBER, &options.starts_max, 0, LIMIT_MAX},
        {"memory-limit", SIZE, &options.memory_limit_mib, 0, 0},
        {"memory-overcommit", NUMBER, &options.memory_overcommit, 100, OVERCOMMIT_MAX},
        {"disk-limit", SIZE, &options.disk_limit_mib, 0, 0},
    };
    int r = take_all(argc, argv, values, ARRAY_SIZE(values), err);
    if (r > 0 && listen_check(options.listen, err) < 0)
        return -EINVAL;
    if (r > 0)
        *ret = options;
    return r;
}
