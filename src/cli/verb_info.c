#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"

static const struct verb_usage usage = {
    .verb = "info",
    .arguments = "[OPTIONS] ID",
    .summary = "Prints everything about a sandbox.",
    .minimum = 1,
    .maximum = 1,
};

static void print_info(const json_t *info)
{
    static const struct format_field fields[] = {
        {"id", "id", FORMAT_TEXT},
        {"state", "state", FORMAT_TEXT},
        {"reason", "lost_reason", FORMAT_TEXT},
        {"VMM pid", "vmm_pid", FORMAT_TEXT},
        {"template", "template", FORMAT_TEXT},
        {"snapshot", "snapshot", FORMAT_TEXT},
        {"parent", "parent", FORMAT_TEXT},
        {"CPUs", "cpus", FORMAT_TEXT},
        {"memory", "memory_mib", FORMAT_MIB},
        {"disk", "disk_bytes", FORMAT_BYTES},
        {"internet", "egress", FORMAT_TEXT},
        {"created", "created_at", FORMAT_TEXT},
        {"started", "started_at", FORMAT_TEXT},
        {"expires", "expires_at", FORMAT_TEXT},
        {"on timeout", "on_timeout", FORMAT_TEXT},
        {"auto-resume", "auto_resume", FORMAT_TEXT},
        {"durable", "durable", FORMAT_TEXT},
    };
    static const struct format_field timings[] = {
        {"VMM started in", "spawned_us", FORMAT_MICROSECONDS},
        {"guest ran in", "running_us", FORMAT_MICROSECONDS},
        {"agent ready in", "agent_us", FORMAT_MICROSECONDS},
    };
    static const struct format_field capture[] = {
        {"last stop", "stopped_us", FORMAT_MICROSECONDS},
        {"last capture", "total_us", FORMAT_MICROSECONDS},
        {"captured", "bytes_written", FORMAT_BYTES},
    };
    format_lines(info, fields, ARRAY_SIZE(fields));
    format_lines(json_object_get(info, "timings"), timings, ARRAY_SIZE(timings));
    format_lines(json_object_get(info, "capture"), capture, ARRAY_SIZE(capture));
    format_pairs(json_object_get(info, "env"), "env");
    format_pairs(json_object_get(info, "metadata"), "metadata");
}

int verb_info(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *info = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_object(client, "GET", "/sandboxes", operands.items[0], "", NULL, &info, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(info);
    else
        print_info(info);
    return EXIT_SUCCESS;
}
