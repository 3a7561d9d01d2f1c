#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "kill",
    .arguments = "[OPTIONS] ID… | --all",
    .summary = "Ends and removes sandboxes, running or paused.",
    .details = "With --json, one object a line for each sandbox.\n",
    .maximum = OPERANDS_ANY,
};

static int kill_all(const struct cli *cli, struct client *client, struct api_removal *removal, struct error *err)
{
    CLEANUP_JSON json_t *list = NULL;
    int r = api_list(client, "/sandboxes", &list, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char **ids = NULL;
    r = api_ids(list, &ids, err);
    return r < 0 ? r : api_each(cli, client, ids, json_array_size(list), api_remove, removal);
}

int verb_kill(struct cli *cli, int argc, char **argv, struct error *err)
{
    bool all = false;
    const struct option_spec specs[] = {
        {'a', "all", NULL, "every sandbox", option_flag, &all},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    if (all == (operands.count > 0))
        return options_usage_error(cli, &usage, err, "kill: name the sandboxes, or --all");
    CLEANUP_CLIENT struct client *client = NULL;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    struct api_removal removal = {"/sandboxes", "id"};
    if (all)
        return kill_all(cli, client, &removal, err);
    return api_each(cli, client, operands.items, operands.count, api_remove, &removal);
}
