#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"
#include "cli/parse.h"
#include "cli/terminal.h"

#define CPUS_MAX          32
#define PROGRESS_LINE_MAX ((size_t)1 << 20)

static const struct verb_usage usage = {
    .verb = "template build",
    .arguments = "[OPTIONS] NAME",
    .summary = "Makes a root file system, boots it once and snapshots it; prints the template's id.",
    .details = "Progress goes to standard error. A template of that name is replaced at the end.\n",
    .minimum = 1,
    .maximum = 1,
};

struct build_options {
    const char *recipe;
    const char *rootfs;
    uint32_t disk_mib;
    uint32_t memory_mib;
    struct option_count cpus;
};

/* A progress line; on a terminal the next one takes its place. */
static void show_progress(const char *line, bool on_terminal)
{
    CLEANUP_FREE char *clean = format_clean(strdup(line));
    if (clean == NULL)
        return;
    struct winsize size;
    if (on_terminal && terminal_size(STDERR_FILENO, &size))
        fprintf(stderr, "\r\033[K%.*s", MAX(size.ws_col - 1, 0), clean);
    else
        fprintf(stderr, "%s\n", clean);
    fflush(stderr);
}

static void end_progress(bool on_terminal)
{
    if (on_terminal)
        fputs("\r\033[K", stderr);
}

/* One line of the stream. Returns 1 when it was the last, with *ret set. */
static int handle_line(const char *text, size_t length, bool on_terminal, json_t **ret, struct error *err)
{
    CLEANUP_JSON json_t *line = json_loadb(text, length, 0, NULL);
    if (!json_is_object(line))
        return error_set(err, EPROTO, "the daemon's progress is not JSON");
    const json_t *failure = json_object_get(line, "error");
    if (failure != NULL)
        return client_peer_error(failure, err);
    const char *progress = json_string_value(json_object_get(line, "progress"));
    if (progress != NULL)
        show_progress(progress, on_terminal);
    json_t *made = json_object_get(line, "template");
    if (made == NULL)
        return 0;
    if (!json_is_string(json_object_get(made, "id")))
        return error_set(err, EPROTO, "the daemon's answer has no id");
    *ret = json_incref(made);
    return 1;
}

/* Takes whole lines from the front of `pending`. Returns 1 after the last line of the stream. */
static int handle_lines(struct strbuf *pending, bool on_terminal, json_t **ret, struct error *err)
{
    int r = 0;
    size_t done = 0;
    while (r == 0) {
        const char *start = pending->data + done;
        const char *end = memchr(start, '\n', pending->length - done);
        if (end == NULL)
            break;
        r = handle_line(start, (size_t)(end - start), on_terminal, ret, err);
        done += (size_t)(end - start) + 1;
    }
    strbuf_consume(pending, done);
    if (r == 0 && pending->length > PROGRESS_LINE_MAX)
        return error_set(err, EPROTO, "a line of the daemon's progress is longer than %zu bytes",
                         PROGRESS_LINE_MAX);
    return r;
}

static int follow_build(struct client_stream *stream, bool on_terminal, json_t **ret, struct error *err)
{
    CLEANUP_STRBUF struct strbuf pending = STRBUF_INIT;
    for (;;) {
        char block[8192];
        ssize_t n = client_stream_read(stream, block, sizeof(block), err);
        if (n < 0)
            return (int)n;
        if (n == 0)
            return error_set(err, ECONNRESET, "the daemon ended the build without a result");
        strbuf_append(&pending, block, (size_t)n);
        if (pending.failed)
            return error_set(err, ENOMEM, "out of memory");
        int r = handle_lines(&pending, on_terminal, ret, err);
        if (r != 0)
            return r < 0 ? r : 0;
    }
}

static int build(const struct cli *cli, json_t *body, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *text = json_dumps(body, JSON_COMPACT);
    if (text == NULL)
        return error_set(err, EINVAL, "the request is not UTF-8");
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_STREAM struct client_stream *stream = NULL;
    const struct client_request request = {
        .method = "POST", .path = DORMOUSE_API "/templates", .content_type = "application/json", .body = text};
    int r = api_open(cli, &client, err);
    if (r == 0)
        r = client_stream_open(client, &request, &stream, err);
    if (r < 0)
        return r;
    bool on_terminal = isatty(STDERR_FILENO);
    r = follow_build(stream, on_terminal, ret, err);
    end_progress(on_terminal);
    return r;
}

/* What is not given is left out: the recipe's own values hold. */
static int make_request(const char *name, const struct build_options *o, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *rootfs = NULL;
    if (o->rootfs != NULL) {
        rootfs = realpath(o->rootfs, NULL);
        if (rootfs == NULL)
            return error_errno(err, "--rootfs %s", o->rootfs);
    }
    json_t *body = json_pack("{s:s, s:s*, s:s*}", "name", name, "recipe", o->recipe, "rootfs", rootfs);
    if (body == NULL)
        return error_set(err, EINVAL, "the name of the recipe or the root file system is not UTF-8");
    if (o->disk_mib != 0)
        json_object_set_new(body, "disk_mib", json_integer(o->disk_mib));
    if (o->memory_mib != 0)
        json_object_set_new(body, "memory_mib", json_integer(o->memory_mib));
    if (o->cpus.value != 0)
        json_object_set_new(body, "cpus", json_integer(o->cpus.value));
    *ret = body;
    return 0;
}

int verb_template_build(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct build_options o = {.cpus = {.minimum = 1, .maximum = CPUS_MAX}};
    const struct option_spec specs[] = {
        {0, "recipe", "NAME", "which recipe (default: the one called NAME, or base)", option_text, &o.recipe},
        {0, "rootfs", "PATH", "instead: a directory, a tar archive or an ext4 image", option_text, &o.rootfs},
        {0, "size", "SIZE", "of the disk, e.g. 4G (default: as the recipe)", option_size_mib, &o.disk_mib},
        {0, "memory", "SIZE", "512, 512M, 2G (default: 512M)", option_size_mib, &o.memory_mib},
        {0, "cpus", "N", "virtual CPUs (default: 1)", option_count, &o.cpus},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    if (o.recipe != NULL && o.rootfs != NULL)
        return options_usage_error(cli, &usage, err, "--recipe and --rootfs exclude each other");
    if (parse_id(operands.items[0], NULL) < 0)
        return options_usage_error(cli, &usage, err, "'%s' is not a name for a template", operands.items[0]);
    CLEANUP_JSON json_t *body = NULL;
    CLEANUP_JSON json_t *made = NULL;
    r = make_request(operands.items[0], &o, &body, err);
    if (r == 0)
        r = build(cli, body, &made, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(made);
    else
        puts(json_string_value(json_object_get(made, "id")));
    return EXIT_SUCCESS;
}
