#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/utf8.h"
#include "cli/api.h"
#include "cli/format.h"
#include "cli/options.h"
#include "cli/parse.h"

#define LOGS_BYTES_MAX (16U << 20)

static const struct verb_usage usage = {
    .verb = "logs",
    .arguments = "[OPTIONS] ID",
    .summary = "Prints the guest's console, as the guest wrote it.",
    .minimum = 1,
    .maximum = 1,
};

int verb_logs(struct cli *cli, int argc, char **argv, struct error *err)
{
    struct option_count limit = {.value = LOGS_BYTES_MAX, .minimum = 1, .maximum = LOGS_BYTES_MAX};
    const struct option_spec specs[] = {
        {0, "limit", "BYTES", "only the last BYTES", option_count, &limit},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    r = parse_id(operands.items[0], err);
    if (r < 0)
        return r;
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, DORMOUSE_API "/sandboxes/%s/logs?limit=%u", operands.items[0], limit.value);
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_STREAM struct client_stream *stream = NULL;
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    r = api_open(cli, &client, err);
    if (r < 0)
        return r;
    const struct client_request request = {.method = "GET", .path = strbuf_text(&path)};
    r = client_stream_open(client, &request, &stream, err);
    if (r == 0)
        r = client_stream_read_all(stream, &text, err);
    if (r < 0)
        return r;
    if (!cli->json) {
        fwrite(strbuf_text(&text), 1, text.length, stdout);
        return EXIT_SUCCESS;
    }
    CLEANUP_JSON json_t *object =
        json_pack("{s:s, s:o}", "id", operands.items[0], "text", utf8_json(strbuf_text(&text), text.length));
    format_json(object);
    return EXIT_SUCCESS;
}
