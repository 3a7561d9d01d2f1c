/* dormouse store: what holds for all snapshots together. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"

/* A call that takes no id. */
static int call_store(struct cli *cli, const char *method, const char *action, json_t **ret, struct error *err)
{
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, DORMOUSE_API "/store%s", action);
    CLEANUP_JSON json_t *answer = NULL;
    int r = api_open(cli, &client, err);
    if (r == 0)
        r = client_call(client, method, strbuf_text(&path), NULL, &answer, err);
    if (r < 0)
        return r;
    if (!json_is_object(answer))
        return error_set(err, EPROTO, "the daemon answered with something else than an object");
    *ret = TAKE_PTR(answer);
    return 0;
}

/* ---- stats ---- */

static const struct verb_usage stats_usage = {
    .verb = "store stats",
    .arguments = "[OPTIONS]",
    .summary = "Prints what the store holds, and what the image server has done since it started.",
    .details = "docs/operations.md says what the image server's numbers mean.\n",
};

static void print_image_server(const json_t *metrics)
{
    const char *name;
    json_t *value;
    if (!json_is_object(metrics))
        return;
    putchar('\n');
    json_object_foreach ((json_t *)(uintptr_t)metrics, name, value)
        if (json_is_integer(value))
            printf("%-24s %" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
}

static int verb_store_stats(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"snapshots", "snapshots", FORMAT_TEXT},
        {"their pages", "image_bytes", FORMAT_BYTES},
        {"layers", "layers", FORMAT_TEXT},
        {"their files", "layer_bytes", FORMAT_BYTES},
        {"unneeded", "unreachable_bytes", FORMAT_BYTES},
    };
    struct operands operands;
    int r = options_parse(cli, &stats_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_JSON json_t *stats = NULL;
    r = call_store(cli, "GET", "", &stats, err);
    if (r < 0)
        return r;
    if (cli->json) {
        format_json(stats);
        return EXIT_SUCCESS;
    }
    format_lines(stats, fields, ARRAY_SIZE(fields));
    print_image_server(json_object_get(stats, "image_server"));
    return EXIT_SUCCESS;
}

/* ---- gc ---- */

static const struct verb_usage gc_usage = {
    .verb = "store gc",
    .arguments = "[OPTIONS]",
    .summary = "Removes layers that no snapshot and no running sandbox needs.",
    .details = "The daemon does so itself after every removal; what is left after a crash goes here, too.\n",
};

static int verb_store_gc(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"layers removed", "layers_removed", FORMAT_TEXT},
        {"space freed", "bytes_removed", FORMAT_BYTES},
    };
    struct operands operands;
    int r = options_parse(cli, &gc_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_JSON json_t *result = NULL;
    r = call_store(cli, "POST", "/gc", &result, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(result);
    else
        format_lines(result, fields, ARRAY_SIZE(fields));
    return EXIT_SUCCESS;
}

/* ---- compact ---- */

static const struct verb_usage compact_usage = {
    .verb = "store compact",
    .arguments = "[OPTIONS] [ID…]",
    .summary = "Rewrites layers of snapshots whose images are spread over too many; without ID, of all such.",
    .details = "What is read stays the same, and sandboxes run, pause and resume meanwhile. The daemon does so\n"
               "itself after a pause. With --json, one object a line for each snapshot looked at.\n",
    .maximum = OPERANDS_ANY,
};

static json_int_t pair_item(const json_t *result, const char *name, size_t index)
{
    return json_integer_value(json_array_get(json_object_get(result, name), index));
}

static void print_compaction(const struct cli *cli, const char *id, const json_t *result)
{
    if (cli->json)
        format_json_line(result);
    else if (json_is_true(json_object_get(result, "compacted")))
        printf("%s: layers %" JSON_INTEGER_FORMAT " -> %" JSON_INTEGER_FORMAT ", extents %" JSON_INTEGER_FORMAT
               " -> %" JSON_INTEGER_FORMAT "\n",
               id, pair_item(result, "layers", 0), pair_item(result, "layers", 1), pair_item(result, "extents", 0),
               pair_item(result, "extents", 1));
    else
        printf("%s: nothing to do\n", id);
    fflush(stdout);
}

/* `listed`: the id isn't the user's, so one that is gone meanwhile is nobody's concern. */
static int compact_each(const struct cli *cli, struct client *client, char *const *ids, size_t count, bool listed)
{
    int status = EXIT_SUCCESS;
    for (size_t i = 0; i < count; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        CLEANUP_JSON json_t *result = NULL;
        int r = api_object(client, "POST", "/snapshots", ids[i], "/compact", NULL, &result, &err);
        if (r == 0) {
            print_compaction(cli, ids[i], result);
        } else if (r != -ENOENT || !listed) {
            error_wrap(&err, r, "%s", ids[i]);
            cli_report(&err);
            status = EXIT_FAILURE;
        }
    }
    return status;
}

static int compact_all(const struct cli *cli, struct client *client, struct error *err)
{
    CLEANUP_JSON json_t *list = NULL;
    int r = api_list(client, "/snapshots", &list, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char **ids = NULL;
    r = api_ids(list, &ids, err);
    return r < 0 ? r : compact_each(cli, client, ids, json_array_size(list), true);
}

static int verb_store_compact(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &compact_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    return operands.count == 0 ? compact_all(cli, client, err)
                               : compact_each(cli, client, operands.items, operands.count, false);
}

/* ---- verify ---- */

static const struct verb_usage verify_usage = {
    .verb = "store verify",
    .arguments = "[OPTIONS]",
    .summary = "Reads and checks every frame of every snapshot, and prints a line for each one damaged.",
    .details = "Nothing waits for it; Ctrl-C ends it. The exit status is 1 if a snapshot is damaged.\n",
};

static void print_damage(const json_t *damage)
{
    static const struct format_field fields[] = {
        {"", "id", FORMAT_TEXT}, {"", "reason", FORMAT_TEXT}, {"", "remedy", FORMAT_TEXT}};
    char id[FORMAT_SIZE];
    char reason[FORMAT_SIZE];
    char remedy[FORMAT_SIZE];
    printf("%s: %s (%s)\n", format_value(damage, &fields[0], 0, id), format_value(damage, &fields[1], 0, reason),
           format_value(damage, &fields[2], 0, remedy));
}

static int verb_store_verify(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct format_field fields[] = {
        {"snapshots", "snapshots", FORMAT_TEXT},
        {"layers", "layers", FORMAT_TEXT},
        {"checked", "layer_bytes", FORMAT_BYTES},
    };
    struct operands operands;
    int r = options_parse(cli, &verify_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_JSON json_t *found = NULL;
    r = call_store(cli, "POST", "/verify", &found, err);
    if (r < 0)
        return r;
    size_t i;
    json_t *damage;
    const json_t *damaged = json_object_get(found, "damaged");
    if (cli->json)
        format_json(found);
    else if (json_array_size(damaged) == 0)
        format_lines(found, fields, ARRAY_SIZE(fields));
    else
        json_array_foreach (damaged, i, damage)
            print_damage(damage);
    if (json_array_size(damaged) == 0)
        return EXIT_SUCCESS;
    return error_set(err, EBADMSG, "%zu of %" JSON_INTEGER_FORMAT " snapshots are damaged",
                     json_array_size(damaged), json_integer_value(json_object_get(found, "snapshots")));
}

int verb_store(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct verb verbs[] = {
        {"stats", "what the store holds, and the image server's numbers", verb_store_stats},
        {"gc", "remove layers that nothing needs", verb_store_gc},
        {"compact", "bound what reading snapshots costs", verb_store_compact},
        {"verify", "check every frame of every snapshot", verb_store_verify},
    };
    return verb_dispatch(cli, "store", "Looks after the store.", verbs, ARRAY_SIZE(verbs), argc, argv, err);
}
