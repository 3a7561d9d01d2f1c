/* dormouse snapshot inspect, verify, diff, mount. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/process.h"
#include "cli/api.h"
#include "cli/parse.h"

/* ---- inspect ---- */

static const struct verb_usage inspect_usage = {
    .verb = "snapshot inspect",
    .arguments = "[OPTIONS] ID",
    .summary = "Prints what a snapshot consists of: its manifest, its layers, how much of each it uses.",
    .minimum = 1,
    .maximum = 1,
};

static void print_sections(const json_t *manifest)
{
    static const struct format_field fields[] = {
        {"SECTION", "name", FORMAT_TEXT},
        {"KIND", "kind", FORMAT_TEXT},
        {"AT", "offset", FORMAT_TEXT},
        {"SIZE", "bytes", FORMAT_BYTES},
    };
    putchar('\n');
    format_table(json_object_get(manifest, "sections"), fields, ARRAY_SIZE(fields));
}

static void print_layers(const json_t *layers)
{
    static const struct format_field fields[] = {
        {"LAYER", "id", FORMAT_TEXT},
        {"SIZE", "bytes", FORMAT_BYTES},
        {"FRAMES", "frames", FORMAT_TEXT},
        {"PAGES/FRAME", "frame_pages", FORMAT_TEXT},
        {"PAGES", "pages", FORMAT_TEXT},
        {"MEMORY USES", "memory_pages", FORMAT_TEXT},
        {"DISK USES", "disk_pages", FORMAT_TEXT},
        {"PROBLEM", "problem", FORMAT_TEXT},
    };
    putchar('\n');
    format_table(layers, fields, ARRAY_SIZE(fields));
}

static void print_images(const json_t *inspection)
{
    static const struct format_field fields[] = {
        {"IMAGE", "image", FORMAT_TEXT},
        {"PAGES", "pages", FORMAT_TEXT},
        {"NOT ZERO", "mapped_pages", FORMAT_TEXT},
        {"EXTENTS", "extents", FORMAT_TEXT},
    };
    CLEANUP_JSON json_t *rows = json_pack("[{s:s}, {s:s}]", "image", "memory", "image", "disk");
    json_object_update_missing(json_array_get(rows, 0), json_object_get(inspection, "memory"));
    json_object_update_missing(json_array_get(rows, 1), json_object_get(inspection, "disk"));
    putchar('\n');
    format_table(rows, fields, ARRAY_SIZE(fields));
}

static void print_inspection(const json_t *inspection)
{
    static const struct format_field description[] = {
        {"id", "id", FORMAT_TEXT},
        {"parent", "parent", FORMAT_TEXT},
        {"sandbox", "sandbox", FORMAT_TEXT},
        {"template id", "template_id", FORMAT_TEXT},
        {"created", "created_at", FORMAT_TEXT},
        {"CPUs", "cpus", FORMAT_TEXT},
        {"memory", "memory_mib", FORMAT_MIB},
        {"stored", "stored_bytes", FORMAT_BYTES},
        {"only for it", "own_bytes", FORMAT_BYTES},
    };
    static const struct format_field machine[] = {
        {"VMM", "vmm", FORMAT_TEXT},
        {"accelerator", "accelerator", FORMAT_TEXT},
        {"CPU model", "cpu_model", FORMAT_TEXT},
        {"kernel", "kernel", FORMAT_TEXT},
        {"machine revision", "machine_revision", FORMAT_TEXT},
    };
    static const struct format_field manifest[] = {
        {"format", "format", FORMAT_TEXT},
        {"features", "compatible_features", FORMAT_TEXT},
        {"needed features", "incompatible_features", FORMAT_TEXT},
        {"manifest", "bytes", FORMAT_BYTES},
    };
    static const struct format_field working_set[] = {{"working set pages", "pages", FORMAT_TEXT},
                                                      {"working set runs", "runs", FORMAT_TEXT}};
    format_lines(json_object_get(inspection, "snapshot"), description, ARRAY_SIZE(description));
    format_lines(inspection, machine, ARRAY_SIZE(machine));
    format_lines(json_object_get(inspection, "manifest"), manifest, ARRAY_SIZE(manifest));
    format_lines(json_object_get(inspection, "working_set"), working_set, ARRAY_SIZE(working_set));
    print_sections(json_object_get(inspection, "manifest"));
    print_images(inspection);
    print_layers(json_object_get(inspection, "layers"));
}

int verb_snapshot_inspect(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &inspect_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *inspection = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_object(client, "GET", "/snapshots", operands.items[0], "/inspect", NULL, &inspection, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(inspection);
    else
        print_inspection(inspection);
    return EXIT_SUCCESS;
}

/* ---- verify ---- */

static const struct verb_usage verify_usage = {
    .verb = "snapshot verify",
    .arguments = "[OPTIONS] ID",
    .summary = "Reads every frame of a snapshot and checks it. The exit status is 1 if it is damaged.",
    .details = "Nothing waits for it: sandboxes run, pause and resume meanwhile. Ctrl-C ends it.\n",
    .minimum = 1,
    .maximum = 1,
};

int verb_snapshot_verify(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &verify_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *found = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_object(client, "POST", "/snapshots", operands.items[0], "/verify", NULL, &found, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(found);
    const json_t *damage = json_array_get(json_object_get(found, "damaged"), 0);
    if (damage == NULL) {
        const struct format_field size = {"", "layer_bytes", FORMAT_BYTES};
        char buffer[FORMAT_SIZE];
        if (!cli->json)
            printf("sound: %" JSON_INTEGER_FORMAT " layers, %s\n",
                   json_integer_value(json_object_get(found, "layers")), format_value(found, &size, 0, buffer));
        return EXIT_SUCCESS;
    }
    const char *reason = json_string_value(json_object_get(damage, "reason"));
    const char *remedy = json_string_value(json_object_get(damage, "remedy"));
    error_set(err, EBADMSG, "snapshot %s is damaged: %s", operands.items[0], reason != NULL ? reason : "?");
    if (remedy != NULL)
        error_hint(err, "%s", remedy);
    format_clean(err->message);
    format_clean(err->hint);
    return -EBADMSG;
}

/* ---- diff ---- */

#define DIFF_RANGES "65536"

static const struct verb_usage diff_usage = {
    .verb = "snapshot diff",
    .arguments = "[OPTIONS] ID ID",
    .summary = "Says in how many pages of 4 KiB two snapshots differ, in memory and on disk.",
    .details = "Pages that both have from the same place of a layer are the same and aren't read.\n"
               "What one image lacks because it is smaller counts as zero.\n",
    .minimum = 2,
    .maximum = 2,
};

static json_t *diff_row(const char *name, const json_t *difference)
{
    const json_t *pages = json_object_get(difference, "pages");
    json_t *row = json_pack("{s:s, s:O?, s:O?}", "image", name, "left", json_array_get(pages, 0), "right",
                            json_array_get(pages, 1));
    json_object_update_missing(row, (json_t *)(uintptr_t)difference);
    return row;
}

static void add_ranges(json_t *rows, const char *name, const json_t *difference)
{
    size_t i;
    json_t *range;
    json_array_foreach (json_object_get(difference, "ranges"), i, range) {
        json_object_set_new(range, "image", json_string(name));
        json_array_append(rows, range);
    }
}

static void print_difference(const json_t *answer, bool ranges)
{
    static const struct format_field fields[] = {
        {"IMAGE", "image", FORMAT_TEXT},
        {"PAGES", "left", FORMAT_TEXT},
        {"AND", "right", FORMAT_TEXT},
        {"COMPARED", "read_pages", FORMAT_TEXT},
        {"DIFFERENT", "different_pages", FORMAT_TEXT},
        {"BYTES", "different_bytes", FORMAT_BYTES},
    };
    static const struct format_field range_fields[] = {
        {"IMAGE", "image", FORMAT_TEXT},
        {"PAGE", "page", FORMAT_TEXT},
        {"PAGES", "count", FORMAT_TEXT},
    };
    const json_t *memory = json_object_get(answer, "memory");
    const json_t *disk = json_object_get(answer, "disk");
    CLEANUP_JSON json_t *rows = json_pack("[o, o]", diff_row("memory", memory), diff_row("disk", disk));
    format_table(rows, fields, ARRAY_SIZE(fields));
    if (!ranges)
        return;
    CLEANUP_JSON json_t *listed = json_array();
    add_ranges(listed, "memory", memory);
    add_ranges(listed, "disk", disk);
    putchar('\n');
    format_table(listed, range_fields, ARRAY_SIZE(range_fields));
    if (json_is_true(json_object_get(memory, "ranges_cut")) || json_is_true(json_object_get(disk, "ranges_cut")))
        puts("… and more");
}

int verb_snapshot_diff(struct cli *cli, int argc, char **argv, struct error *err)
{
    bool ranges = false;
    const struct option_spec specs[] = {
        {0, "ranges", NULL, "list the ranges of different pages, at most " DIFF_RANGES " of each image",
         option_flag, &ranges},
    };
    struct operands operands;
    int r = options_parse(cli, &diff_usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    r = parse_id(operands.items[1], err);
    if (r < 0)
        return r;
    CLEANUP_STRBUF struct strbuf action = STRBUF_INIT;
    strbuf_printf(&action, "/diff/%s%s", operands.items[1], ranges ? "?ranges=" DIFF_RANGES : "");
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *answer = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_object(client, "GET", "/snapshots", operands.items[0], strbuf_text(&action), NULL, &answer, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(answer);
    else
        print_difference(answer, ranges);
    return EXIT_SUCCESS;
}

/* ---- mount ---- */

/*
 * A guest made this file system: its mount must not honour what it asks for in case of errors (panic), nor run or
 * open what is in it. The journal isn't replayed, which would be a write.
 */
#define MOUNT_OPTIONS "ro,noload,loop,errors=continue,nosuid,nodev,noexec"

static const struct verb_usage mount_usage = {
    .verb = "snapshot mount",
    .arguments = "[OPTIONS] ID DIR",
    .summary = "Shows a snapshot's disk at DIR, read-only, until 'umount DIR'.",
    .details = "The disk is as the guest left it, like that of a machine whose power failed: what was\n"
               "only in its journal or its memory isn't there. Run as root on the daemon's host.\n",
    .minimum = 2,
    .maximum = 2,
};

static int check_directory(const char *path, struct error *err)
{
    struct stat status;
    if (stat(path, &status) < 0)
        return error_errno(err, "cannot mount at %s", path);
    return S_ISDIR(status.st_mode) ? 0 : error_set(err, ENOTDIR, "%s is not a directory", path);
}

static int mount_disk(const char *file, const char *directory, struct error *err)
{
    const char *const arguments[] = {"mount", "-t", "ext4", "-o", MOUNT_OPTIONS, "--", file, directory, NULL};
    int r = process_run(arguments, err);
    if (r == -ENOENT)
        error_hint(err, "apt-get install mount");
    return r < 0 ? error_wrap(err, r, "cannot mount the disk at %s", directory) : 0;
}

int verb_snapshot_mount(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, &mount_usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    const char *directory = operands.items[1];
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *disk = NULL;
    if ((r = check_directory(directory, err)) < 0 || (r = api_open(cli, &client, err)) < 0 ||
        (r = api_object(client, "GET", "/snapshots", operands.items[0], "/disk", NULL, &disk, err)) < 0)
        return r;
    const char *id = json_string_value(json_object_get(disk, "id"));
    const char *file = json_string_value(json_object_get(disk, "path"));
    if (id == NULL || file == NULL)
        return error_set(err, EPROTO, "the daemon's answer has no path");
    r = mount_disk(file, directory, err);
    if (r < 0)
        return r;
    CLEANUP_JSON json_t *result = json_pack("{s:s, s:s}", "snapshot", id, "directory", directory);
    if (cli->json)
        format_json(result);
    else
        printf("%s shows the disk of snapshot %s, read-only; 'umount %s' ends it\n", directory, id, directory);
    return EXIT_SUCCESS;
}
