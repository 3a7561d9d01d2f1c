#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "checkpoint",
    .arguments = "[OPTIONS] ID [NAME[:TAG]]",
    .summary =
        "Snapshots a sandbox, which goes on as before, and prints the snapshot's name, or id if it has none.",
    .details =
        "The snapshot is kept until dormouse snapshot rm removes it; run -t starts sandboxes from it. A name\n"
        "that is taken moves to the new snapshot.\n",
    .minimum = 1,
    .maximum = 2,
};

int verb_checkpoint(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *snapshot = NULL;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    const char *name = operands.count > 1 ? operands.items[1] : NULL;
    json_t *body = name != NULL ? json_pack("{s:s}", "name", name) : json_object();
    r = api_object(client, "POST", "/sandboxes", operands.items[0], "/checkpoint", body, &snapshot, err);
    if (r < 0)
        return r;
    if (cli->json) {
        format_json(snapshot);
        return EXIT_SUCCESS;
    }
    const char *id = json_string_value(json_object_get(snapshot, "id"));
    if (id == NULL)
        return error_set(err, EPROTO, "the daemon's answer has no id");
    puts(name != NULL ? name : id);
    return EXIT_SUCCESS;
}
