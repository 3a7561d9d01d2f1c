/*
 * options.h: the options and operands of a verb, and its --help.
 *
 * A verb declares its options in a table, from which both the parser (getopt_long) and the help text come:
 *
 *     const char *template_name = "base";
 *     const struct option_spec specs[] = {
 *         {'t', "template", "NAME", "the template to start from (default base)", option_text, &template_name},
 *     };
 *     struct operands operands;
 *     int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
 *     if (r <= 0)
 *         return r;
 *
 * --socket, --json, --help and --version are understood by every verb. One thread (getopt has global state).
 */
#ifndef DORMOUSE_CLI_OPTIONS_H
#define DORMOUSE_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "cli/cli.h"

/* `value` is NULL for an option without one. A failure is reported with the option's name in front. */
typedef int (*option_setter)(void *target, const char *value, struct error *err);

struct option_spec {
    char letter; /* 0: only the long form */
    const char *name;
    const char *value; /* what the help calls its value; NULL: it takes none */
    const char *help;
    option_setter set;
    void *target;
};

int option_flag(void *bool_target, const char *value, struct error *err);
int option_text(void *text_target, const char *value, struct error *err); /* const char *, not copied */
int option_size_mib(void *uint32_target, const char *value, struct error *err);
int option_duration(void *int64_target, const char *value, struct error *err);
int option_pair(void *json_target, const char *value, struct error *err); /* json_t *: an object of strings */

/* A count with its limits. */
struct option_count {
    unsigned value;
    unsigned minimum;
    unsigned maximum;
};
int option_count(void *count_target, const char *value, struct error *err);

struct verb_usage {
    const char *verb;      /* "run", "template build"; "" for dormouse itself */
    const char *arguments; /* "[OPTIONS] ID…" */
    const char *summary;   /* one sentence */
    const char *details;   /* more lines of help, or NULL */
    size_t minimum;        /* operands */
    size_t maximum;
    bool in_order; /* options end at the first operand: what follows belongs to a command */
};

#define OPERANDS_ANY ((size_t)-1)

struct operands {
    size_t count;
    char **items; /* within argv */
};

/*
 * Returns 1: go on; 0: --help or --version has been answered, the verb is done; -EINVAL: wrong usage.
 */
int options_parse(struct cli *cli, const struct verb_usage *usage, const struct option_spec *specs, size_t count,
                  int argc, char **argv, struct operands *ret_operands, struct error *err);

/* A wrong use that only the verb can see: exit status 2 and a pointer to --help. Returns -EINVAL. */
int options_usage_error(struct cli *cli, const struct verb_usage *usage, struct error *err, const char *format, ...)
    PRINTF_LIKE(4, 5);

#endif
