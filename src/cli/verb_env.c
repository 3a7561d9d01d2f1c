#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"

static const struct verb_usage usage = {
    .verb = "env",
    .arguments = "[OPTIONS]",
    .summary = "Prints the environment that E2B clients need to reach this daemon.",
    .details = "Use it so:  eval \"$(dormouse env)\"\n",
};

/* A value in single quotes is safe in any POSIX shell. */
static void print_export(const char *name, const char *value)
{
    printf("export %s='", name);
    for (; *value != '\0'; value++)
        if (*value == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*value);
    puts("'");
}

int verb_env(struct cli *cli, int argc, char **argv, struct error *err)
{
    static const struct {
        const char *field;
        const char *variable;
    } exports[] = {
        {"api_url", "E2B_API_URL"},
        {"sandbox_url", "E2B_SANDBOX_URL"},
        {"api_key", "E2B_API_KEY"},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *env = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = client_call(client, "GET", DORMOUSE_API "/env", NULL, &env, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(exports); i++)
        if (!json_is_string(json_object_get(env, exports[i].field)))
            return error_set(err, EPROTO, "the daemon's answer has no %s", exports[i].field);
    if (cli->json) {
        format_json(env);
        return EXIT_SUCCESS;
    }
    for (size_t i = 0; i < ARRAY_SIZE(exports); i++)
        print_export(exports[i].variable, json_string_value(json_object_get(env, exports[i].field)));
    return EXIT_SUCCESS;
}
