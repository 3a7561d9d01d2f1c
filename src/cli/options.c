#include "cli/options.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "base/strbuf.h"
#include "cli/parse.h"

#define OPTIONS_MAX     24
#define LONG_FIRST      256 /* above every letter */
#define HELP_TEXT_INDEX 30

int option_flag(void *bool_target, const char *value, struct error *err)
{
    (void)value;
    (void)err;
    *(bool *)bool_target = true;
    return 0;
}

int option_text(void *text_target, const char *value, struct error *err)
{
    if (*value == '\0')
        return error_set(err, EINVAL, "the value is empty");
    *(const char **)text_target = value;
    return 0;
}

int option_size_mib(void *uint32_target, const char *value, struct error *err)
{
    return number_parse_mib(value, uint32_target, err);
}

int option_duration(void *int64_target, const char *value, struct error *err)
{
    return parse_duration(value, int64_target, err);
}

int option_pair(void *json_target, const char *value, struct error *err)
{
    CLEANUP_FREE char *key = NULL;
    const char *text;
    int r = parse_pair(value, &key, &text, err);
    if (r < 0)
        return r;
    if (json_object_set_new(json_target, key, json_string(text)) < 0)
        return error_set(err, EINVAL, "'%s' is not UTF-8", value);
    return 0;
}

int option_count(void *count_target, const char *value, struct error *err)
{
    struct option_count *target = count_target;
    uint64_t number;
    int r = number_parse(value, target->minimum, target->maximum, &number, err);
    if (r == 0)
        target->value = (unsigned)number;
    return r;
}

static void point_to_help(const struct verb_usage *usage, struct error *err)
{
    error_hint(err, "see dormouse%s%s --help", *usage->verb != '\0' ? " " : "", usage->verb);
}

int options_usage_error(struct cli *cli, const struct verb_usage *usage, struct error *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    CLEANUP_FREE char *message = NULL;
    if (vasprintf(&message, format, args) < 0)
        message = NULL;
    va_end(args);
    cli->usage_failed = true;
    error_set(err, EINVAL, "%s", message != NULL ? message : "out of memory");
    point_to_help(usage, err);
    return -EINVAL;
}

static void print_option(const struct option_spec *spec)
{
    CLEANUP_STRBUF struct strbuf left = STRBUF_INIT;
    if (spec->letter != '\0')
        strbuf_printf(&left, "  -%c, --%s", spec->letter, spec->name);
    else
        strbuf_printf(&left, "      --%s", spec->name);
    if (spec->value != NULL)
        strbuf_printf(&left, " %s", spec->value);
    printf("%-*s  %s\n", HELP_TEXT_INDEX, strbuf_text(&left), spec->help);
}

static void print_help(const struct verb_usage *usage, const struct option_spec *specs, size_t count)
{
    printf("Usage: dormouse%s%s %s\n\n%s\n", *usage->verb != '\0' ? " " : "", usage->verb, usage->arguments,
           usage->summary);
    if (usage->details != NULL)
        printf("\n%s", usage->details);
    printf("\nOptions:\n");
    for (size_t i = 0; i < count; i++)
        print_option(&specs[i]);
}

/* The tables getopt_long wants, made from ours. */
struct getopt_tables {
    struct option longs[OPTIONS_MAX + 1];
    char shorts[2 * OPTIONS_MAX + 3];
};

static void make_tables(const struct option_spec *specs, size_t count, bool in_order, struct getopt_tables *tables)
{
    char *at = tables->shorts;
    if (in_order)
        *at++ = '+';
    *at++ = ':';
    for (size_t i = 0; i < count; i++) {
        tables->longs[i] = (struct option){specs[i].name, specs[i].value != NULL ? required_argument : no_argument,
                                           NULL, LONG_FIRST + (int)i};
        if (specs[i].letter == '\0')
            continue;
        *at++ = specs[i].letter;
        if (specs[i].value != NULL)
            *at++ = ':';
    }
    *at = '\0';
    tables->longs[count] = (struct option){0};
}

static const struct option_spec *find_spec(const struct option_spec *specs, size_t count, int key)
{
    for (size_t i = 0; i < count; i++)
        if (key == LONG_FIRST + (int)i || (key < LONG_FIRST && key == specs[i].letter))
            return &specs[i];
    return NULL;
}

/* getopt's own complaint: `key` is '?' (no such option) or ':' (its value is missing). */
static int refuse_option(struct cli *cli, const struct verb_usage *usage, int key, char **argv, struct error *err)
{
    const char *what = key == ':' ? "needs a value" : "is not an option here";
    if (optopt > 0 && optopt < LONG_FIRST)
        return options_usage_error(cli, usage, err, "-%c %s", optopt, what);
    const char *given = argv[optind - 1];
    if (key == '?' && optopt >= LONG_FIRST)
        what = "takes no value";
    return options_usage_error(cli, usage, err, "%.*s %s", (int)strcspn(given, "="), given, what);
}

static int apply_options(struct cli *cli, const struct verb_usage *usage, const struct option_spec *specs,
                         size_t count, int argc, char **argv, struct error *err)
{
    struct getopt_tables tables;
    make_tables(specs, count, usage->in_order, &tables);
    optind = 0;
    opterr = 0;
    for (;;) {
        int key = getopt_long(argc, argv, tables.shorts, tables.longs, NULL);
        if (key < 0)
            return 0;
        const struct option_spec *spec = find_spec(specs, count, key);
        if (key == '?' || key == ':' || spec == NULL)
            return refuse_option(cli, usage, key, argv, err);
        int r = spec->set(spec->target, optarg, err);
        if (r < 0) {
            cli->usage_failed = true;
            point_to_help(usage, err);
            return error_wrap(err, -EINVAL, "--%s", spec->name);
        }
    }
}

int options_parse(struct cli *cli, const struct verb_usage *usage, const struct option_spec *specs, size_t count,
                  int argc, char **argv, struct operands *ret_operands, struct error *err)
{
    bool help = false;
    bool version = false;
    const struct option_spec common[] = {
        {0, "json", NULL, "print JSON", option_flag, &cli->json},
        {0, "socket", "PATH", "the daemon's socket (DORMOUSE_SOCKET, " DORMOUSE_SOCKET_DEFAULT ")", option_text,
         &cli->socket_path},
        {'h', "help", NULL, "print this", option_flag, &help},
        {0, "version", NULL, "print the version", option_flag, &version},
    };
    struct option_spec all[OPTIONS_MAX];
    if (count + ARRAY_SIZE(common) > OPTIONS_MAX)
        return error_set(err, EOVERFLOW, "%s has more options than OPTIONS_MAX", usage->verb);
    if (count > 0)
        memcpy(all, specs, count * sizeof(*all));
    memcpy(all + count, common, sizeof(common));
    count += ARRAY_SIZE(common);

    int r = apply_options(cli, usage, all, count, argc, argv, err);
    if (help) {
        print_help(usage, all, count);
        return 0;
    }
    if (r < 0)
        return r;
    if (version) {
        printf("dormouse %s\n", DORMOUSE_VERSION);
        return 0;
    }
    struct operands operands = {(size_t)(argc - optind), argv + optind};
    if (operands.count < usage->minimum)
        return options_usage_error(cli, usage, err, "%s%san argument is missing: %s", usage->verb,
                                   *usage->verb != '\0' ? ": " : "", usage->arguments);
    if (operands.count > usage->maximum)
        return options_usage_error(cli, usage, err, "%s: '%s' is one argument too many", usage->verb,
                                   operands.items[usage->maximum]);
    *ret_operands = operands;
    return 1;
}
