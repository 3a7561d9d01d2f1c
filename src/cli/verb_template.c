#include "cli/api.h"

static const struct verb_usage ls_usage = {
    .verb = "template ls",
    .arguments = "[OPTIONS]",
    .summary = "Lists the templates.",
};

static int verb_template_ls(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"NAME", "name", FORMAT_TEXT},        {"ID", "id", FORMAT_TEXT},
        {"CPUS", "cpus", FORMAT_TEXT},        {"MEMORY", "memory_mib", FORMAT_MIB},
        {"DISK", "disk_bytes", FORMAT_BYTES}, {"AGE", "created_at", FORMAT_AGE},
    };
    return api_list_verb(cli, &ls_usage, argc, argv, "/templates", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage rm_usage = {
    .verb = "template rm",
    .arguments = "[OPTIONS] NAME…",
    .summary = "Removes templates; the sandboxes made from them live on.",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int verb_template_rm(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct api_removal removal = {"/templates", "name"};
    return api_each_verb(cli, &rm_usage, NULL, 0, argc, argv, api_remove, &removal, err);
}

int verb_template(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct verb verbs[] = {
        {"build", "make a template", verb_template_build},
        {"ls", "list the templates", verb_template_ls},
        {"rm", "remove templates", verb_template_rm},
    };
    return verb_dispatch(cli, "template", "Builds, lists and removes templates.", verbs, ARRAY_SIZE(verbs), argc,
                         argv, err);
}
