/*
 * format.h: what people read: the daemon's JSON as tables and lines.
 *
 * Text from the daemon may come from a guest: everything printed here has its control characters replaced, so
 * that it can't steer the terminal. Prints to standard output.
 */
#ifndef DORMOUSE_CLI_FORMAT_H
#define DORMOUSE_CLI_FORMAT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define FORMAT_SIZE 512

/* How a field is shown. What is absent, null or of another type is "-". */
enum format_kind {
    FORMAT_TEXT,         /* strings as they are, several joined by commas; numbers; yes/no */
    FORMAT_SHORT_ID,     /* a string's first 12 characters */
    FORMAT_MIB,          /* a number of MiB: "512 MiB", "2.0 GiB" */
    FORMAT_BYTES,        /* "12.3 MiB" */
    FORMAT_MICROSECONDS, /* "850 us", "12.3 ms", "4.56 s"; 0, not measured: "-" */
    FORMAT_NANOSECONDS,  /* likewise */
    FORMAT_AGE,          /* an RFC 3339 time: how long ago, "45s", "12m", "3h", "9d" */
    FORMAT_UNTIL,        /* an RFC 3339 time to come, "never" when there is none */
};

struct format_field {
    const char *heading;
    const char *name; /* in the JSON object */
    enum format_kind kind;
};

/* `now_ns` is CLOCK_REALTIME, for ages. The text is in `buffer`, cut if need be. */
const char *format_value(const json_t *object, const struct format_field *field, int64_t now_ns,
                         char buffer[FORMAT_SIZE]);

/* Objects as rows, fields as columns, under a line of headings. */
void format_table(const json_t *list, const struct format_field *fields, size_t count);

/* One object, a line for each field: "heading   value". */
void format_lines(const json_t *object, const struct format_field *fields, size_t count);

/* An object of strings, a line for each: "heading   key=value". */
void format_pairs(const json_t *object, const char *heading);

/* Replaces control characters, those of one byte and U+0080 … U+009F, by '?' in place; returns `text`, may be NULL.
 */
char *format_clean(char *text);

/* Pretty-printed, or on a line of its own for verbs that print one object after the other. */
void format_json(const json_t *value);
void format_json_line(const json_t *value);

#endif
