#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/suggest.h"

#define VERB_NAME_COLUMN 14

void cli_report(const struct error *err)
{
    if (err->hint != NULL)
        fprintf(stderr, "dormouse: %s (%s)\n", error_message(err), err->hint);
    else
        fprintf(stderr, "dormouse: %s\n", error_message(err));
}

static void list_verbs(struct strbuf *text, const struct verb *verbs, size_t count)
{
    strbuf_puts(text, "Verbs (each has its own --help):\n");
    for (size_t i = 0; i < count; i++)
        strbuf_printf(text, "  %-*s%s\n", VERB_NAME_COLUMN, verbs[i].name, verbs[i].summary);
}

static int unknown_verb(struct cli *cli, const struct verb_usage *usage, const struct verb *verbs, size_t count,
                        const char *name, struct error *err)
{
    const char *nearest = NULL;
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < count; i++) {
        size_t distance = suggest_distance(name, verbs[i].name);
        if (distance < best) {
            best = distance;
            nearest = verbs[i].name;
        }
    }
    const char *space = *usage->verb != '\0' ? " " : "";
    int r = options_usage_error(cli, usage, err, "there is no verb '%s%s%s'", usage->verb, space, name);
    if (nearest == NULL || best > SUGGEST_DISTANCE_MAX)
        return r;
    error_set(err, EINVAL, "there is no verb '%s%s%s'", usage->verb, space, name);
    error_hint(err, "did you mean '%s'? see dormouse%s%s --help", nearest, space, usage->verb);
    return r;
}

int verb_dispatch(struct cli *cli, const char *prefix, const char *summary, const struct verb *verbs, size_t count,
                  int argc, char **argv, struct error *err)
{
    CLEANUP_STRBUF struct strbuf details = STRBUF_INIT;
    list_verbs(&details, verbs, count);
    const struct verb_usage usage = {
        .verb = prefix,
        .arguments = "[OPTIONS] VERB …",
        .summary = summary,
        .details = strbuf_text(&details),
        .minimum = 1,
        .maximum = OPERANDS_ANY,
        .in_order = true,
    };
    struct operands operands;
    int r = options_parse(cli, &usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    for (size_t i = 0; i < count; i++)
        if (strcmp(operands.items[0], verbs[i].name) == 0)
            return verbs[i].run(cli, (int)operands.count, operands.items, err);
    return unknown_verb(cli, &usage, verbs, count, operands.items[0], err);
}
