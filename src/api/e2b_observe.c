/* E2B's API: metrics and logs of a sandbox. */
#include <stdlib.h>
#include <string.h>

#include "api/e2b.h"
#include "api/guest.h"
#include "api/reply.h"
#include "base/io.h"
#include "base/timestamp.h"
#include "base/utf8.h"

#define LOG_BYTES     (256 * 1024UL)
#define LINES_MAX     1000
#define SECOND_NS     INT64_C(1000000000)
#define UNIX_TIME_MAX INT64_C(9000000000)

static json_t *number(json_t *answer, const char *key)
{
    json_t *value = json_object_get(answer, key);
    return json_is_number(value) ? json_incref(value) : json_integer(0);
}

/* One SandboxMetric from what the agent says; only numbers are taken over. */
static json_t *metric_json(json_t *answer, int64_t now_ns)
{
    char text[TIMESTAMP_LENGTH + 1];
    timestamp_format(now_ns, text);
    return json_pack("{s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "timestamp", text, "timestampUnix",
                     (json_int_t)(now_ns / SECOND_NS), "cpuCount", number(answer, "cpu_count"), "cpuUsedPct",
                     number(answer, "cpu_used_pct"), "memUsed", number(answer, "mem_used"), "memTotal",
                     number(answer, "mem_total"), "memCache", number(answer, "mem_cache"), "diskUsed",
                     number(answer, "disk_used"), "diskTotal", number(answer, "disk_total"));
}

/* No history is kept: the array holds the present figures, if the range asked for includes them. */
int e2b_get_metrics(struct api_call *call, struct error *err)
{
    int64_t start = 0;
    int64_t end = UNIX_TIME_MAX;
    int r;
    if ((r = api_query_integer(call, "start", 0, UNIX_TIME_MAX, &start, err)) < 0 ||
        (r = api_query_integer(call, "end", 0, UNIX_TIME_MAX, &end, err)) < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    json_t *array = json_array();
    int64_t now_ns = clock_realtime_ns();
    if (info.state == SANDBOX_RUNNING && now_ns / SECOND_NS >= start && now_ns / SECOND_NS <= end) {
        json_t *answer;
        r = guest_agent_json(call->api->manager, &info, "/metrics", &answer, err);
        if (r == 0) {
            json_array_append_new(array, metric_json(answer, now_ns));
            json_decref(answer);
        }
    }
    sandbox_info_done(&info);
    if (r == 0)
        reply_json(call->reply, 200, array);
    else
        json_decref(array);
    return r;
}

typedef json_t *(*entry_function)(json_t *message, const char *timestamp);

/* A line as E2B's older clients expect it: JSON within the JSON. */
static json_t *line_entry(json_t *message, const char *timestamp)
{
    json_t *line = json_pack("{s:O, s:s, s:s}", "message", message, "level", "info", "logger", "console");
    CLEANUP_FREE char *text = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    return json_pack("{s:s, s:s}", "timestamp", timestamp, "line", text != NULL ? text : "");
}

static json_t *structured_entry(json_t *message, const char *timestamp)
{
    return json_pack("{s:s, s:O, s:s, s:{s:s}}", "timestamp", timestamp, "message", message, "level", "info",
                     "fields", "logger", "console");
}

/* The last `limit` lines. The console has no times: all carry the one at which the guest was started. */
static json_t *entries_json(const char *text, size_t length, int64_t limit, const char *timestamp,
                            entry_function make)
{
    json_t *array = json_array();
    int64_t lines = 0;
    size_t start = length;
    while (start > 0 && lines < limit) {
        start--;
        lines += start == 0 || text[start - 1] == '\n';
    }
    while (start < length) {
        const char *newline = memchr(text + start, '\n', length - start);
        size_t end = newline != NULL ? (size_t)(newline - text) : length;
        size_t shown = end > start && text[end - 1] == '\r' ? end - 1 : end;
        json_t *message = utf8_json(text + start, shown - start);
        json_array_append_new(array, make(message, timestamp));
        json_decref(message);
        start = end + 1;
    }
    return array;
}

static int get_entries(struct api_call *call, entry_function make, json_t **ret, struct error *err)
{
    int64_t limit = LINES_MAX;
    int r = api_query_integer(call, "limit", 0, LINES_MAX, &limit, err);
    if (r < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    r = manager_logs(call->api->manager, info.id, LOG_BYTES, &text, &length, err);
    if (r == 0) {
        char timestamp[TIMESTAMP_LENGTH + 1];
        timestamp_format(info.started_ns, timestamp);
        *ret = entries_json(text, length, limit, timestamp, make);
    }
    sandbox_info_done(&info);
    return r;
}

int e2b_get_logs(struct api_call *call, struct error *err)
{
    json_t *entries;
    int r = get_entries(call, line_entry, &entries, err);
    if (r == 0)
        reply_json(call->reply, 200, json_pack("{s:o, s:[]}", "logs", entries, "logEntries"));
    return r;
}

int e2b_get_logs_v2(struct api_call *call, struct error *err)
{
    json_t *entries;
    int r = get_entries(call, structured_entry, &entries, err);
    if (r == 0)
        reply_json(call->reply, 200, json_pack("{s:o}", "logs", entries));
    return r;
}
