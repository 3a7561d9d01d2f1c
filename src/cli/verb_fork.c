#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"

#define FORK_MAX 100

static const struct verb_usage usage = {
    .verb = "fork",
    .arguments = "[OPTIONS] ID",
    .summary = "Makes running copies of a sandbox, memory included, and prints their ids.",
    .details = "The sandbox itself stays as it is: running or paused.\n",
    .minimum = 1,
    .maximum = 1,
};

/* One child a line; failures go to standard error. */
static int print_results(const json_t *results)
{
    int status = EXIT_SUCCESS;
    size_t i;
    json_t *result;
    json_array_foreach (results, i, result) {
        const char *id = json_string_value(json_object_get(json_object_get(result, "sandbox"), "id"));
        if (id != NULL) {
            puts(id);
            continue;
        }
        CLEANUP_ERROR struct error err = ERROR_INIT;
        client_peer_error(json_object_get(result, "error"), &err);
        error_wrap(&err, -err.code, "fork %zu of %zu", i + 1, json_array_size(results));
        cli_report(&err);
        status = EXIT_FAILURE;
    }
    return status;
}

static int status_of_results(const json_t *results)
{
    size_t i;
    json_t *result;
    json_array_foreach (results, i, result)
        if (!json_is_object(json_object_get(result, "sandbox")))
            return EXIT_FAILURE;
    return EXIT_SUCCESS;
}

int verb_fork(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct option_count count = {.value = 1, .minimum = 1, .maximum = FORK_MAX};
    int64_t timeout_s = 0;
    const struct option_spec specs[] = {
        {'n', "count", "N", "how many (default: 1)", option_count, &count},
        {0, "timeout", "TIME", "end the copies after 90, 5m, 1h … (default: 0, never)", option_duration,
         &timeout_s},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *answer = NULL;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    json_t *body = json_pack("{s:i, s:I}", "count", (int)count.value, "timeout_s", (json_int_t)timeout_s);
    r = api_object(client, "POST", "/sandboxes", operands.items[0], "/fork", body, &answer, err);
    if (r < 0)
        return r;
    const json_t *results = json_object_get(answer, "results");
    if (!json_is_array(results))
        return error_set(err, EPROTO, "the daemon's answer has no results");
    if (!cli->json)
        return print_results(results);
    format_json(answer);
    return status_of_results(results);
}
