#include "cli/format.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/strbuf.h"
#include "base/timestamp.h"

#define COLUMN_GAP      3
#define HEADING_COLUMN  18
#define SHORT_ID_LENGTH 12
#define NS_PER_S        1000000000
#define BYTES_PER_MIB   1048576

char *format_clean(char *text)
{
    for (unsigned char *at = (unsigned char *)text; at != NULL && *at != '\0'; at++) {
        bool is_c1 = at[0] == 0xc2 && at[1] >= 0x80 && at[1] <= 0x9f;
        if (is_c1 || *at < 0x20 || *at == 0x7f)
            *at = '?';
        if (is_c1)
            *++at = '?';
    }
    return text;
}

static void format_bytes(double bytes, char buffer[FORMAT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
        bytes /= 1024;
        unit++;
    }
    snprintf(buffer, FORMAT_SIZE, "%.*f %s", unit == 0 || bytes >= 100 ? 0 : 1, bytes, units[unit]);
}

static void format_microseconds(int64_t us, char buffer[FORMAT_SIZE])
{
    if (us == 0) /* not measured */
        snprintf(buffer, FORMAT_SIZE, "-");
    else if (us < 1000)
        snprintf(buffer, FORMAT_SIZE, "%" PRId64 " us", us);
    else if (us < 1000000)
        snprintf(buffer, FORMAT_SIZE, "%.1f ms", (double)us / 1e3);
    else
        snprintf(buffer, FORMAT_SIZE, "%.2f s", (double)us / 1e6);
}

/* Clocks of daemon and client may differ a little: never negative. */
static void format_seconds(int64_t seconds, char buffer[FORMAT_SIZE])
{
    seconds = MAX(seconds, 0);
    if (seconds < 120)
        snprintf(buffer, FORMAT_SIZE, "%" PRId64 "s", seconds);
    else if (seconds < 120 * 60)
        snprintf(buffer, FORMAT_SIZE, "%" PRId64 "m", seconds / 60);
    else if (seconds < 48 * 3600)
        snprintf(buffer, FORMAT_SIZE, "%" PRId64 "h", seconds / 3600);
    else
        snprintf(buffer, FORMAT_SIZE, "%" PRId64 "d", seconds / (24 * 3600));
}

static void format_number(const json_t *value, enum format_kind kind, char buffer[FORMAT_SIZE])
{
    json_int_t number = json_integer_value(value);
    if (kind == FORMAT_MIB)
        format_bytes((double)number * BYTES_PER_MIB, buffer);
    else if (kind == FORMAT_BYTES)
        format_bytes((double)number, buffer);
    else if (kind == FORMAT_MICROSECONDS)
        format_microseconds(number, buffer);
    else if (kind == FORMAT_NANOSECONDS)
        format_microseconds(number / 1000, buffer);
    else
        snprintf(buffer, FORMAT_SIZE, "%" JSON_INTEGER_FORMAT, number);
}

static void format_text(const char *text, enum format_kind kind, int64_t now_ns, char buffer[FORMAT_SIZE])
{
    int64_t time_ns;
    if (kind == FORMAT_AGE && timestamp_parse(text, &time_ns) == 0)
        format_seconds((now_ns - time_ns) / NS_PER_S, buffer);
    else if (kind == FORMAT_UNTIL && timestamp_parse(text, &time_ns) == 0)
        format_seconds((time_ns - now_ns) / NS_PER_S, buffer);
    else
        snprintf(buffer, FORMAT_SIZE, "%.*s", kind == FORMAT_SHORT_ID ? SHORT_ID_LENGTH : FORMAT_SIZE - 1, text);
}

static void format_texts(const json_t *array, char buffer[FORMAT_SIZE])
{
    size_t length = 0;
    size_t i;
    json_t *item;
    strcpy(buffer, "-");
    json_array_foreach (array, i, item) {
        int n = snprintf(buffer + length, FORMAT_SIZE - length, "%s%s", length > 0 ? "," : "",
                         json_is_string(item) ? json_string_value(item) : "?");
        length = MIN(length + (size_t)n, (size_t)FORMAT_SIZE - 1);
    }
}

const char *format_value(const json_t *object, const struct format_field *field, int64_t now_ns,
                         char buffer[FORMAT_SIZE])
{
    const json_t *value = json_object_get(object, field->name);
    if (json_is_string(value) && json_string_length(value) > 0)
        format_text(json_string_value(value), field->kind, now_ns, buffer);
    else if (json_is_integer(value))
        format_number(value, field->kind, buffer);
    else if (json_is_array(value))
        format_texts(value, buffer);
    else if (json_is_boolean(value))
        snprintf(buffer, FORMAT_SIZE, "%s", json_is_true(value) ? "yes" : "no");
    else
        snprintf(buffer, FORMAT_SIZE, "%s", field->kind == FORMAT_UNTIL ? "never" : "-");
    return format_clean(buffer);
}

static void print_padded(const char *text, size_t width)
{
    printf("%-*s", (int)width, text);
}

static size_t column_width(const json_t *list, const struct format_field *field, int64_t now_ns)
{
    size_t width = strlen(field->heading);
    size_t i;
    json_t *object;
    json_array_foreach (list, i, object) {
        char buffer[FORMAT_SIZE];
        width = MAX(width, strlen(format_value(object, field, now_ns, buffer)));
    }
    return width + COLUMN_GAP;
}

void format_table(const json_t *list, const struct format_field *fields, size_t count)
{
    int64_t now_ns = clock_realtime_ns();
    CLEANUP_FREE size_t *widths = calloc(count, sizeof(*widths));
    if (widths == NULL)
        return;
    for (size_t column = 0; column < count; column++) {
        bool last = column + 1 == count;
        widths[column] = last ? 0 : column_width(list, &fields[column], now_ns);
        print_padded(fields[column].heading, widths[column]);
    }
    putchar('\n');
    size_t i;
    json_t *object;
    json_array_foreach (list, i, object) {
        char buffer[FORMAT_SIZE];
        for (size_t column = 0; column < count; column++)
            print_padded(format_value(object, &fields[column], now_ns, buffer), widths[column]);
        putchar('\n');
    }
}

static void print_line(const char *heading, const char *value)
{
    print_padded(heading, HEADING_COLUMN);
    puts(value);
}

void format_lines(const json_t *object, const struct format_field *fields, size_t count)
{
    int64_t now_ns = clock_realtime_ns();
    char buffer[FORMAT_SIZE];
    for (size_t i = 0; i < count; i++)
        print_line(fields[i].heading, format_value(object, &fields[i], now_ns, buffer));
}

void format_pairs(const json_t *object, const char *heading)
{
    const char *key;
    json_t *value;
    json_object_foreach ((json_t *)(uintptr_t)object, key, value) {
        CLEANUP_STRBUF struct strbuf line = STRBUF_INIT;
        strbuf_printf(&line, "%s=%s", key, json_is_string(value) ? json_string_value(value) : "");
        print_line(heading, line.data != NULL ? format_clean(line.data) : "");
    }
}

void format_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

void format_json_line(const json_t *value)
{
    json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    putchar('\n');
    fflush(stdout);
}
