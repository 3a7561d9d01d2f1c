#include "cli/api.h"
#include "cli/options.h"

static const struct verb_usage ls_usage = {
    .verb = "template ls",
    .arguments = "[OPTIONS]",
    .summary = "Lists the templates.",
};

static int verb_template_ls(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &ls_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    static const struct format_field fields[] = {
        {"NAME", "name", FORMAT_TEXT},        {"ID", "id", FORMAT_TEXT},
        {"CPUS", "cpus", FORMAT_TEXT},        {"MEMORY", "memory_mib", FORMAT_MIB},
        {"DISK", "disk_bytes", FORMAT_BYTES}, {"AGE", "created_at", FORMAT_AGE},
    };
    return api_show_list(cli, "/templates", fields, ARRAY_SIZE(fields), err);
}

static const struct verb_usage rm_usage = {
    .verb = "template rm",
    .arguments = "[OPTIONS] NAME…",
    .summary = "Removes templates; the sandboxes made from them live on.",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int remove_one(struct client *client, const char *name, void *context, json_t **ret, struct error *err)
{
    (void)context;
    int r = api_object(client, "DELETE", "/templates", name, "", NULL, NULL, err);
    if (r == 0)
        *ret = json_pack("{s:s}", "name", name);
    return r;
}

static int verb_template_rm(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &rm_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    r = api_open(cli, &client, err);
    return r < 0 ? r : api_each(cli, client, operands.items, operands.count, remove_one, NULL);
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
