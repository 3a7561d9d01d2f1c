#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "pause",
    .arguments = "[OPTIONS] ID…",
    .summary = "Snapshots running sandboxes, memory included, and ends their processes.",
    .details = "With --disk-only their file systems are frozen and only the disks are kept: resumed, they boot.\n"
               "With --json, one object a line for each sandbox.\n",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int pause_one(struct client *client, const char *id, void *context, json_t **ret, struct error *err)
{
    const bool *disk_only = context;
    return api_object(client, "POST", "/sandboxes", id, "/pause", json_pack("{s:b}", "disk_only", (int)*disk_only),
                      ret, err);
}

int verb_pause(struct cli *cli, int argc, char **argv, struct error *err)
{
    bool disk_only = false;
    const struct option_spec specs[] = {
        {0, "disk-only", NULL, "keep no memory: resumed, they boot from their disks", option_flag, &disk_only},
    };
    return api_each_verb(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, pause_one, &disk_only, err);
}
