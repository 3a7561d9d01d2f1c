#include "cli/api.h"
#include "cli/options.h"

static const struct verb_usage ls_usage = {
    .verb = "snapshot ls",
    .arguments = "[OPTIONS]",
    .summary = "Lists the snapshots.",
};

static int verb_snapshot_ls(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"ID", "id", FORMAT_SHORT_ID},           {"SANDBOX", "sandbox", FORMAT_SHORT_ID},
        {"PARENT", "parent", FORMAT_SHORT_ID},   {"IN USE", "in_use", FORMAT_TEXT},
        {"CPUS", "cpus", FORMAT_TEXT},           {"MEMORY", "memory_mib", FORMAT_MIB},
        {"IMAGE", "memory_bytes", FORMAT_BYTES}, {"DISK", "disk_bytes", FORMAT_BYTES},
        {"AGE", "created_at", FORMAT_AGE},
    };
    struct operands operands;
    int r = options_parse(cli, &ls_usage, NULL, 0, argc, argv, &operands, err);
    return r <= 0 ? r : api_show_list(cli, "/snapshots", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage info_usage = {
    .verb = "snapshot info",
    .arguments = "[OPTIONS] ID",
    .summary = "Prints everything about a snapshot.",
    .minimum = 1,
    .maximum = 1,
};

static int verb_snapshot_info(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"id", "id", FORMAT_TEXT},
        {"sandbox", "sandbox", FORMAT_TEXT},
        {"template id", "template_id", FORMAT_TEXT},
        {"parent", "parent", FORMAT_TEXT},
        {"in use", "in_use", FORMAT_TEXT},
        {"CPUs", "cpus", FORMAT_TEXT},
        {"memory", "memory_mib", FORMAT_MIB},
        {"created", "created_at", FORMAT_TEXT},
        {"memory image", "memory_bytes", FORMAT_BYTES},
        {"disk overlay", "disk_bytes", FORMAT_BYTES},
        {"device state", "state_bytes", FORMAT_BYTES},
    };
    struct operands operands;
    int r = options_parse(cli, &info_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    return api_show_object(cli, "/snapshots", operands.items[0], "", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage rm_usage = {
    .verb = "snapshot rm",
    .arguments = "[OPTIONS] ID…",
    .summary = "Removes snapshots that no paused sandbox or template needs.",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int remove_one(struct client *client, const char *id, void *context, json_t **ret, struct error *err)
{
    (void)context;
    int r = api_object(client, "DELETE", "/snapshots", id, "", NULL, NULL, err);
    if (r == 0)
        *ret = json_pack("{s:s}", "id", id);
    return r;
}

static int verb_snapshot_rm(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &rm_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    r = api_open(cli, &client, err);
    return r < 0 ? r : api_each(cli, client, operands.items, operands.count, remove_one, NULL);
}

int verb_snapshot(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct verb verbs[] = {
        {"ls", "list the snapshots", verb_snapshot_ls},
        {"info", "everything about a snapshot", verb_snapshot_info},
        {"rm", "remove snapshots", verb_snapshot_rm},
    };
    return verb_dispatch(cli, "snapshot", "Lists, describes and removes snapshots.", verbs, ARRAY_SIZE(verbs), argc,
                         argv, err);
}
