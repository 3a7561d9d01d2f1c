#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"

static const struct verb_usage usage = {
    .verb = "ls",
    .arguments = "[OPTIONS]",
    .summary = "Lists the sandboxes, oldest first.",
};

/* A table, or with `quiet` the ids alone. */
static int print_list(const json_t *list, bool quiet, struct error *err)
{
    static const struct format_field fields[] = {
        {"ID", "id", FORMAT_SHORT_ID},           {"TEMPLATE", "template", FORMAT_TEXT},
        {"STATE", "state", FORMAT_TEXT},         {"CPUS", "cpus", FORMAT_TEXT},
        {"MEMORY", "memory_mib", FORMAT_MIB},    {"AGE", "created_at", FORMAT_AGE},
        {"EXPIRES", "expires_at", FORMAT_UNTIL},
    };
    if (!quiet) {
        format_table(list, fields, ARRAY_SIZE(fields));
        return EXIT_SUCCESS;
    }
    size_t i;
    json_t *info;
    json_array_foreach (list, i, info) {
        const char *id = json_string_value(json_object_get(info, "id"));
        if (id == NULL)
            return error_set(err, EPROTO, "the daemon's list has a sandbox without an id");
        puts(id);
    }
    return EXIT_SUCCESS;
}

int verb_ls(struct cli *cli, int argc, char **argv, struct error *err)
{
    bool quiet = false;
    const struct option_spec specs[] = {
        {'q', "quiet", NULL, "print the ids only", option_flag, &quiet},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *list = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_list(client, "/sandboxes", &list, err);
    if (r < 0)
        return r;
    if (!cli->json)
        return print_list(list, quiet, err);
    format_json(list);
    return EXIT_SUCCESS;
}
