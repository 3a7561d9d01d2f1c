#include <stdio.h>
#include <stdlib.h>

#include "cli/api.h"
#include "cli/dedup.h"
#include "cli/parse.h"

#define MEMORY_DEFAULT_MIB 256

static const struct verb_usage usage = {
    .verb = "dedup-report",
    .arguments = "[OPTIONS] [SNAPSHOT…]",
    .summary = "Says what storing equal blocks once would gain, for the snapshots of a data directory.",
    .details = "Reads the data directory itself and changes nothing; a daemon isn't needed and may run.\n"
               "Without SNAPSHOT, all of them. For each size of block the table shows what isn't zero and\n"
               "not the parent's already (FRESH), the distinct blocks of it within each parent chain\n"
               "(CHAIN), and among all snapshots (ALL), as it is and compressed block by block (ZSTD).\n"
               "GAIN compares with FRESH ZSTD.\n",
    .maximum = OPERANDS_ANY,
};

static json_t *blocks_json(const struct dedup_blocks *blocks)
{
    return json_pack("{s:I, s:I, s:I}", "blocks", (json_int_t)blocks->count, "bytes", (json_int_t)blocks->bytes,
                     "compressed_bytes", (json_int_t)blocks->compressed_bytes);
}

static json_t *row_json(uint32_t block_bytes, const struct dedup_row *row)
{
    return json_pack("{s:I, s:I, s:I, s:o, s:o, s:o}", "block_bytes", (json_int_t)block_bytes, "zero_blocks",
                     (json_int_t)row->zero_blocks, "inherited_blocks", (json_int_t)row->inherited_blocks, "fresh",
                     blocks_json(&row->fresh), "chain", blocks_json(&row->chain), "all", blocks_json(&row->all));
}

static json_t *image_json(const struct dedup_image *image)
{
    json_t *rows = json_array();
    for (size_t size = 0; size < DEDUP_SIZES; size++)
        json_array_append_new(rows, row_json(dedup_block_bytes[size], &image->rows[size]));
    return json_pack("{s:I, s:I, s:I, s:o}", "bytes", (json_int_t)image->bytes, "stored_pages",
                     (json_int_t)image->stored_pages, "stored_bytes", (json_int_t)image->stored_bytes, "sizes",
                     rows);
}

static json_t *report_json(const struct dedup_report *report)
{
    json_t *ids = json_array();
    for (size_t i = 0; i < report->count; i++)
        json_array_append_new(ids, json_string(report->ids[i]));
    return json_pack("{s:o, s:i, s:o, s:o}", "snapshots", ids, "passes", (int)report->passes, "memory",
                     image_json(&report->images[IMAGE_MEMORY]), "disk", image_json(&report->images[IMAGE_DISK]));
}

/* "12.3 %" less than `from`. */
static json_t *gain(const struct dedup_blocks *from, const struct dedup_blocks *to)
{
    char text[32];
    if (from->compressed_bytes == 0)
        return json_string("-");
    snprintf(text, sizeof(text), "%.1f %%",
             100.0 - 100.0 * (double)to->compressed_bytes / (double)from->compressed_bytes);
    return json_string(text);
}

static json_t *table_row(uint32_t block_bytes, const struct dedup_row *row)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "block", (json_int_t)block_bytes, "zero",
                     (json_int_t)(row->zero_blocks * block_bytes), "fresh", (json_int_t)row->fresh.bytes, "chain",
                     (json_int_t)row->chain.bytes, "all", (json_int_t)row->all.bytes, "fresh_zstd",
                     (json_int_t)row->fresh.compressed_bytes, "chain_zstd", (json_int_t)row->chain.compressed_bytes,
                     "all_zstd", (json_int_t)row->all.compressed_bytes, "chain_gain",
                     gain(&row->fresh, &row->chain), "all_gain", gain(&row->fresh, &row->all));
}

static void print_image(const char *name, const struct dedup_image *image)
{
    static const struct format_field fields[] = {
        {"BLOCK", "block", FORMAT_BYTES},
        {"ZERO", "zero", FORMAT_BYTES},
        {"FRESH", "fresh", FORMAT_BYTES},
        {"CHAIN", "chain", FORMAT_BYTES},
        {"ALL", "all", FORMAT_BYTES},
        {"FRESH ZSTD", "fresh_zstd", FORMAT_BYTES},
        {"CHAIN ZSTD", "chain_zstd", FORMAT_BYTES},
        {"ALL ZSTD", "all_zstd", FORMAT_BYTES},
        {"CHAIN GAIN", "chain_gain", FORMAT_TEXT},
        {"ALL GAIN", "all_gain", FORMAT_TEXT},
    };
    static const struct format_field size = {"", "bytes", FORMAT_BYTES};
    static const struct format_field stored = {"", "stored", FORMAT_BYTES};
    char size_text[FORMAT_SIZE];
    char stored_text[FORMAT_SIZE];
    CLEANUP_JSON json_t *sums =
        json_pack("{s:I, s:I}", "bytes", (json_int_t)image->bytes, "stored", (json_int_t)image->stored_bytes);
    printf("\n%s: %s as the guests see it, now stored in %s\n", name, format_value(sums, &size, 0, size_text),
           format_value(sums, &stored, 0, stored_text));
    CLEANUP_JSON json_t *rows = json_array();
    for (size_t i = 0; i < DEDUP_SIZES; i++)
        json_array_append_new(rows, table_row(dedup_block_bytes[i], &image->rows[i]));
    format_table(rows, fields, ARRAY_SIZE(fields));
}

int verb_dedup_report(struct cli *cli, int argc, char **argv, struct error *err)
{
    const char *data_directory = "/var/lib/dormouse";
    uint32_t memory_mib = MEMORY_DEFAULT_MIB;
    const struct option_spec specs[] = {
        {0, "data", "DIR", "the daemon's --data (default: /var/lib/dormouse)", option_text, &data_directory},
        {0, "memory", "SIZE", "what it may use itself to tell blocks apart (default: 256M)", option_size_mib,
         &memory_mib},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    for (size_t i = 0; i < operands.count; i++)
        if ((r = parse_id(operands.items[i], err)) < 0)
            return r;
    struct dedup_report report;
    r = dedup_examine(data_directory, operands.items, operands.count, (uint64_t)memory_mib << 20, &report, err);
    if (r < 0)
        return r;
    if (cli->json) {
        CLEANUP_JSON json_t *json = report_json(&report);
        format_json(json);
    } else {
        printf("%zu snapshots\n", report.count);
        print_image("memory", &report.images[IMAGE_MEMORY]);
        print_image("disk", &report.images[IMAGE_DISK]);
    }
    dedup_report_done(&report);
    return EXIT_SUCCESS;
}
