#include <stdint.h>

#include "cli/api.h"

#define TIMEOUT_KEPT ((int64_t)-1)

static const struct verb_usage usage = {
    .verb = "resume",
    .arguments = "[OPTIONS] ID…",
    .summary = "Lets paused sandboxes go on where they were.",
    .details = "A sandbox that already runs is left alone; --timeout then only ever extends its time.\n"
               "With --json, one object a line for each sandbox.\n",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

static int resume_one(struct client *client, const char *id, void *context, json_t **ret, struct error *err)
{
    int64_t timeout_s = *(const int64_t *)context;
    json_t *body = json_object();
    if (timeout_s != TIMEOUT_KEPT)
        json_object_set_new(body, "timeout_s", json_integer(timeout_s));
    return api_object(client, "POST", "/sandboxes", id, "/resume", body, ret, err);
}

int verb_resume(struct cli *cli, int argc, char **argv, struct error *err)
{
    int64_t timeout_s = TIMEOUT_KEPT;
    const struct option_spec specs[] = {
        {0, "timeout", "TIME", "end after 90, 5m, 1h …, 0: never (default: as before)", option_duration,
         &timeout_s},
    };
    return api_each_verb(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, resume_one, &timeout_s, err);
}
