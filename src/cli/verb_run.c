#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"
#include "cli/parse.h"

#define CPUS_MAX 32

static const struct verb_usage usage = {
    .verb = "run",
    .arguments = "[OPTIONS]",
    .summary = "Starts a sandbox from a template or a snapshot and prints its id.",
    .details = "The sandbox lives until it is killed, unless --timeout says otherwise.\n",
};

struct run_options {
    const char *template_name;
    uint32_t memory_mib;
    struct option_count cpus;
    int64_t timeout_s;
    const char *on_timeout;
    bool auto_resume;
    bool durable;
    bool no_internet;
    json_t *environment;
    json_t *metadata;
};

static int parse_arguments(struct cli *cli, int argc, char **argv, struct run_options *o, struct error *err)
{
    const struct option_spec specs[] = {
        {'t', "template", "NAME", "a template, a checkpoint or a snapshot's id (default: base)", option_text,
         &o->template_name},
        {0, "memory", "SIZE", "512, 512M, 2G (default: as the template)", option_size_mib, &o->memory_mib},
        {0, "cpus", "N", "virtual CPUs (default: as the template)", option_count, &o->cpus},
        {0, "timeout", "TIME", "end after 90, 5m, 1h … (default: 0, never)", option_duration, &o->timeout_s},
        {0, "on-timeout", "ACTION", "kill, pause or pause-disk (default: kill)", option_text, &o->on_timeout},
        {0, "durable", NULL, "after a crash, even of the host, it can be booted from its disk", option_flag,
         &o->durable},
        {0, "auto-resume", NULL, "when paused, requests for it wake it", option_flag, &o->auto_resume},
        {'e', "env", "KEY=VALUE", "environment of every command; repeatable", option_pair, o->environment},
        {0, "metadata", "KEY=VALUE", "a label; repeatable", option_pair, o->metadata},
        {0, "no-internet", NULL, "the guest reaches nothing outside", option_flag, &o->no_internet},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    if (strcmp(o->on_timeout, "kill") != 0 && strcmp(o->on_timeout, "pause") != 0 &&
        strcmp(o->on_timeout, "pause-disk") != 0)
        return options_usage_error(cli, &usage, err, "--on-timeout: '%s' is neither kill, pause nor pause-disk",
                                   o->on_timeout);
    if (o->auto_resume && strcmp(o->on_timeout, "pause-disk") == 0)
        return options_usage_error(cli, &usage, err, "--auto-resume needs memory, which pause-disk does not keep");
    if (parse_id(o->template_name, NULL) < 0)
        return options_usage_error(cli, &usage, err, "--template: '%s' is not a name", o->template_name);
    return r;
}

/* What is not given is left out: the template's own values hold. */
static json_t *make_request(struct run_options *o)
{
    json_t *body =
        json_pack("{s:s, s:I, s:s, s:b, s:b, s:b, s:O, s:O}", "template", o->template_name, "timeout_s",
                  (json_int_t)o->timeout_s, "on_timeout", o->on_timeout, "auto_resume", o->auto_resume, "durable",
                  o->durable, "egress", !o->no_internet, "env", o->environment, "metadata", o->metadata);
    if (o->memory_mib != 0)
        json_object_set_new(body, "memory_mib", json_integer(o->memory_mib));
    if (o->cpus.value != 0)
        json_object_set_new(body, "cpus", json_integer(o->cpus.value));
    return body;
}

int verb_run(struct cli *cli, int argc, char **argv, struct error *err)
{
    CLEANUP_JSON json_t *environment = json_object();
    CLEANUP_JSON json_t *metadata = json_object();
    struct run_options options = {
        .template_name = "base",
        .cpus = {.minimum = 1, .maximum = CPUS_MAX},
        .on_timeout = "kill",
        .environment = environment,
        .metadata = metadata,
    };
    int r = parse_arguments(cli, argc, argv, &options, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *info = NULL;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    r = client_call(client, "POST", DORMOUSE_API "/sandboxes", make_request(&options), &info, err);
    if (r < 0)
        return r;
    const char *id = json_string_value(json_object_get(info, "id"));
    if (id == NULL)
        return error_set(err, EPROTO, "the daemon's answer has no id");
    if (cli->json)
        format_json(info);
    else
        puts(id);
    return EXIT_SUCCESS;
}
