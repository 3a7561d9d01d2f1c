#include "cli/api.h"

static const struct verb_usage ls_usage = {
    .verb = "snapshot ls",
    .arguments = "[OPTIONS]",
    .summary = "Lists the snapshots.",
};

static int verb_snapshot_ls(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"ID", "id", FORMAT_SHORT_ID},           {"NAMES", "names", FORMAT_TEXT},
        {"SANDBOX", "sandbox", FORMAT_SHORT_ID}, {"PARENT", "parent", FORMAT_SHORT_ID},
        {"IN USE", "in_use", FORMAT_TEXT},       {"CPUS", "cpus", FORMAT_TEXT},
        {"MEMORY", "memory_mib", FORMAT_MIB},    {"STORED", "stored_bytes", FORMAT_BYTES},
        {"OWN", "own_bytes", FORMAT_BYTES},      {"AGE", "created_at", FORMAT_AGE},
        {"PROBLEM", "problem", FORMAT_TEXT},
    };
    return api_list_verb(cli, &ls_usage, argc, argv, "/snapshots", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage info_usage = {
    .verb = "snapshot info",
    .arguments = "[OPTIONS] ID|NAME[:TAG]",
    .summary = "Prints everything about a snapshot.",
    .minimum = 1,
    .maximum = 1,
};

static int verb_snapshot_info(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"id", "id", FORMAT_TEXT},
        {"names", "names", FORMAT_TEXT},
        {"sandbox", "sandbox", FORMAT_TEXT},
        {"template id", "template_id", FORMAT_TEXT},
        {"parent", "parent", FORMAT_TEXT},
        {"in use", "in_use", FORMAT_TEXT},
        {"CPUs", "cpus", FORMAT_TEXT},
        {"memory", "memory_mib", FORMAT_MIB},
        {"created", "created_at", FORMAT_TEXT},
        {"memory image", "memory_bytes", FORMAT_BYTES},
        {"disk image", "disk_bytes", FORMAT_BYTES},
        {"device state", "state_bytes", FORMAT_BYTES},
        {"disk was", "disk_consistency", FORMAT_TEXT},
        {"layers", "layers", FORMAT_TEXT},
        {"stored", "stored_bytes", FORMAT_BYTES},
        {"only for it", "own_bytes", FORMAT_BYTES},
    };
    return api_show_verb(cli, &info_usage, argc, argv, "/snapshots", "", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage rm_usage = {
    .verb = "snapshot rm",
    .arguments = "[OPTIONS] ID|NAME[:TAG]…",
    .summary = "Removes snapshots that no paused sandbox or template needs.",
    .details = "By a checkpoint's name only that goes, and the snapshot when nothing else needs it.\n",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int verb_snapshot_rm(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct api_removal removal = {"/snapshots", "id"};
    return api_each_verb(cli, &rm_usage, NULL, 0, argc, argv, api_remove, &removal, err);
}

int verb_snapshot(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct verb verbs[] = {
        {"ls", "list the snapshots", verb_snapshot_ls},
        {"info", "everything about a snapshot", verb_snapshot_info},
        {"rm", "remove snapshots", verb_snapshot_rm},
        {"inspect", "what a snapshot consists of", verb_snapshot_inspect},
        {"verify", "check every frame of a snapshot", verb_snapshot_verify},
        {"diff", "the pages in which two snapshots differ", verb_snapshot_diff},
        {"mount", "show a snapshot's disk in a directory", verb_snapshot_mount},
    };
    return verb_dispatch(cli, "snapshot", "Lists, describes, checks, compares, shows and removes snapshots.", verbs,
                         ARRAY_SIZE(verbs), argc, argv, err);
}
