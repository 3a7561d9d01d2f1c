#include <stdint.h>

#include "cli/api.h"

#define TIMEOUT_KEPT ((int64_t)-1)

static const struct verb_usage usage = {
    .verb = "resume",
    .arguments = "[OPTIONS] ID…",
    .summary = "Lets paused sandboxes go on where they were.",
    .details = "One that was paused with --disk-only boots.\n"
               "A sandbox that already runs is left alone; --timeout then only ever extends its time.\n"
               "With --json, one object a line for each sandbox.\n",
    .minimum = 1,
    .maximum = OPERANDS_ANY,
};

struct resume {
    int64_t timeout_s;
    bool reboot;
};

static int resume_one(struct client *client, const char *id, void *context, json_t **ret, struct error *err)
{
    const struct resume *resume = context;
    json_t *body = json_pack("{s:b}", "reboot", (int)resume->reboot);
    if (resume->timeout_s != TIMEOUT_KEPT)
        json_object_set_new(body, "timeout_s", json_integer(resume->timeout_s));
    return api_object(client, "POST", "/sandboxes", id, "/resume", body, ret, err);
}

int verb_resume(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct resume resume = {.timeout_s = TIMEOUT_KEPT};
    const struct option_spec specs[] = {
        {0, "timeout", "TIME", "end after 90, 5m, 1h …, 0: never (default: as before)", option_duration,
         &resume.timeout_s},
        {0, "reboot", NULL, "boot from the disk; the memory that was kept is given up", option_flag,
         &resume.reboot},
    };
    return api_each_verb(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, resume_one, &resume, err);
}
