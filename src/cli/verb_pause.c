#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "pause",
    .arguments = "[OPTIONS] ID…",
    .summary = "Snapshots running sandboxes, memory included, and ends their processes.",
    .details = "With --json, one object a line for each sandbox.\n",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int pause_one(struct client *client, const char *id, void *context, json_t **ret, struct error *err)
{
    (void)context;
    return api_object(client, "POST", "/sandboxes", id, "/pause", NULL, ret, err);
}

int verb_pause(struct cli *cli, int argc, char **argv, struct error *err)
{
    return api_each_verb(cli, &usage, NULL, 0, argc, argv, pause_one, NULL, err);
}
