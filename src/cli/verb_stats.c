#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "stats",
    .arguments = "[OPTIONS] ID",
    .summary = "Prints what a sandbox uses now.",
    .minimum = 1,
    .maximum = 1,
};

int verb_stats(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"private memory", "private_bytes", FORMAT_BYTES}, {"shared memory", "shared_bytes", FORMAT_BYTES},
        {"VMM resident", "vmm_rss_bytes", FORMAT_BYTES},   {"CPU time", "cpu_ns", FORMAT_NANOSECONDS},
        {"disk written", "overlay_bytes", FORMAT_BYTES},
    };
    return api_show_verb(cli, &usage, argc, argv, "/sandboxes", "/stats", fields, ARRAY_SIZE(fields), err);
}
