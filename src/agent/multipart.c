/*
 * The body is searched for the delimiter CR LF "--" boundary. A boundary has no CR, so after a partial match fails
 * the only place where another can begin is the byte that failed: the search needs no backing up, whatever the
 * pieces are. The CR LF in front of the very first delimiter may be missing, so the search begins as if it had
 * been seen.
 */
#include "agent/multipart.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/types.h>

#include "base/strbuf.h"

#define BOUNDARY_MAX 70 /* RFC 2046 */

enum state {
    STATE_PREAMBLE, /* before the first delimiter: dropped */
    STATE_CONTENT,  /* of a part */
    STATE_BOUNDARY, /* behind a delimiter, up to the end of its line */
    STATE_HEADERS,  /* of a part, up to the empty line */
    STATE_EPILOGUE, /* behind the closing delimiter: dropped */
};

struct multipart {
    const struct multipart_callbacks *callbacks;
    void *owner;
    enum state state;
    char delimiter[4 + BOUNDARY_MAX + 1]; /* "\r\n--boundary" */
    size_t delimiter_length;
    size_t matched;      /* of the delimiter */
    struct strbuf lines; /* the rest of a delimiter's line, or a part's headers */
};

/* ---- parameters: "form-data; name="a"; filename=b" ---- */

/* Takes one value, quoted or not, and returns where it ends. */
static const char *take_value(const char *at, struct strbuf *value)
{
    if (*at != '"') {
        size_t length = strcspn(at, "; \t\r\n");
        strbuf_append(value, at, length);
        return at + length;
    }
    for (at++; *at != '\0' && *at != '"' && *at != '\r' && *at != '\n'; at++) {
        if (*at == '\\' && (at[1] == '"' || at[1] == '\\'))
            at++;
        strbuf_append(value, at, 1);
    }
    return *at == '"' ? at + 1 : at;
}

/* The value of the parameter in a header's text; NULL if it is absent. The caller frees it. */
static char *parameter(const char *text, const char *name)
{
    const char *at = text + strcspn(text, ";\r\n");
    while (*at == ';') {
        at += 1 + strspn(at + 1, " \t");
        size_t length = strcspn(at, "=;\r\n");
        bool found = length == strlen(name) && strncasecmp(at, name, length) == 0;
        at += length;
        CLEANUP_STRBUF struct strbuf value = STRBUF_INIT;
        if (*at == '=')
            at = take_value(at + 1, &value);
        if (found)
            return strbuf_take(&value);
        at += strcspn(at, ";\r\n");
    }
    return NULL;
}

int multipart_new(const char *content_type, const struct multipart_callbacks *callbacks, void *owner,
                  struct multipart **ret, struct error *err)
{
    static const char type[] = "multipart/form-data";
    if (strncasecmp(content_type, type, strlen(type)) != 0)
        return error_set(err, EINVAL, "the body is not multipart/form-data");
    CLEANUP_FREE char *boundary = parameter(content_type, "boundary");
    size_t length = boundary != NULL ? strlen(boundary) : 0;
    if (length == 0 || length > BOUNDARY_MAX)
        return error_set(err, EINVAL, "the body's type has no valid boundary");
    struct multipart *parser = calloc(1, sizeof(*parser));
    if (parser == NULL)
        return error_set(err, ENOMEM, "no memory for an upload");
    snprintf(parser->delimiter, sizeof(parser->delimiter), "\r\n--%s", boundary);
    parser->delimiter_length = strlen(parser->delimiter);
    parser->matched = 2;
    parser->callbacks = callbacks;
    parser->owner = owner;
    *ret = parser;
    return 0;
}

/* ---- parts ---- */

static int begin_part(struct multipart *parser, struct error *err)
{
    static const char header[] = "Content-Disposition:";
    const char *line = strbuf_text(&parser->lines);
    while (*line != '\0' && strncasecmp(line, header, strlen(header)) != 0) {
        line += strcspn(line, "\n");
        line += *line == '\n';
    }
    if (*line == '\0')
        return error_set(err, EINVAL, "a part of the body has no Content-Disposition");
    CLEANUP_FREE char *name = parameter(line, "name");
    CLEANUP_FREE char *filename = parameter(line, "filename");
    int r = parser->callbacks->begin(parser->owner, name, filename, err);
    strbuf_done(&parser->lines);
    parser->state = STATE_CONTENT;
    return r;
}

static int content(struct multipart *parser, const char *bytes, size_t length, struct error *err)
{
    if (parser->state != STATE_CONTENT || length == 0)
        return 0;
    return parser->callbacks->content(parser->owner, bytes, length, err);
}

static int delimiter_found(struct multipart *parser, struct error *err)
{
    bool in_part = parser->state == STATE_CONTENT;
    parser->state = STATE_BOUNDARY;
    parser->matched = 0;
    return in_part ? parser->callbacks->end(parser->owner, err) : 0;
}

/* Takes bytes up to and including a delimiter, or all; returns their number. */
static ssize_t search(struct multipart *parser, const char *bytes, size_t length, struct error *err)
{
    size_t i = 0;
    while (i < length) {
        if (parser->matched == 0) {
            const char *candidate = memchr(bytes + i, '\r', length - i);
            size_t run = candidate != NULL ? (size_t)(candidate - (bytes + i)) : length - i;
            int r = content(parser, bytes + i, run, err);
            if (r < 0)
                return r;
            i += run;
            if (candidate == NULL)
                break;
        }
        if (bytes[i] == parser->delimiter[parser->matched]) {
            i++;
            if (++parser->matched == parser->delimiter_length) {
                int r = delimiter_found(parser, err);
                return r < 0 ? r : (ssize_t)i;
            }
            continue;
        }
        int r = content(parser, parser->delimiter, parser->matched, err);
        if (r < 0)
            return r;
        parser->matched = 0;
    }
    return (ssize_t)i;
}

/* ---- lines ---- */

/* What the line behind a delimiter says: another part, or the end. */
static int end_of_boundary(struct multipart *parser, struct error *err)
{
    const char *line = strbuf_text(&parser->lines);
    size_t blank = strspn(line, " \t");
    if (strncmp(line, "--", 2) == 0)
        parser->state = STATE_EPILOGUE;
    else if (strcmp(line + blank, "\r\n") == 0)
        parser->state = STATE_HEADERS;
    else
        return error_set(err, EINVAL, "a boundary is followed by something else than the end of its line");
    strbuf_done(&parser->lines);
    return 0;
}

static bool is_end_of_headers(const struct strbuf *lines)
{
    return (lines->length == 2 && memcmp(lines->data, "\r\n", 2) == 0) ||
           (lines->length >= 4 && memcmp(lines->data + lines->length - 4, "\r\n\r\n", 4) == 0);
}

/* Takes bytes up to the end of a line, or all; returns their number. */
static ssize_t collect_line(struct multipart *parser, const char *bytes, size_t length, struct error *err)
{
    struct strbuf *lines = &parser->lines;
    /* Two bytes tell whether it is the closing delimiter; what follows that is nobody's line. */
    if (parser->state == STATE_BOUNDARY && lines->length < 2)
        length = MIN(length, 2 - lines->length);
    const char *newline = memchr(bytes, '\n', length);
    size_t taken = newline != NULL ? (size_t)(newline - bytes) + 1 : length;
    if (taken > MULTIPART_HEADERS_MAX - lines->length)
        return error_set(err, EINVAL, "the headers of a part are larger than %d bytes", MULTIPART_HEADERS_MAX);
    if (memchr(bytes, '\0', taken) != NULL)
        return error_set(err, EINVAL, "the headers of a part hold a NUL");
    strbuf_append(lines, bytes, taken);
    if (lines->failed)
        return error_set(err, ENOMEM, "no memory for an upload");
    int r = 0;
    if (parser->state == STATE_BOUNDARY && (newline != NULL || strncmp(lines->data, "--", 2) == 0))
        r = end_of_boundary(parser, err);
    else if (parser->state == STATE_HEADERS && newline != NULL && is_end_of_headers(lines))
        r = begin_part(parser, err);
    return r < 0 ? r : (ssize_t)taken;
}

int multipart_feed(struct multipart *parser, const char *bytes, size_t length, struct error *err)
{
    while (length > 0 && parser->state != STATE_EPILOGUE) {
        ssize_t taken = parser->state == STATE_BOUNDARY || parser->state == STATE_HEADERS
                            ? collect_line(parser, bytes, length, err)
                            : search(parser, bytes, length, err);
        if (taken < 0)
            return (int)taken;
        bytes += taken;
        length -= (size_t)taken;
    }
    return 0;
}

int multipart_finish(const struct multipart *parser, struct error *err)
{
    if (parser->state != STATE_EPILOGUE)
        return error_set(err, EINVAL, "the body ends before its closing boundary");
    return 0;
}

void multipart_free(struct multipart *parser)
{
    if (parser == NULL)
        return;
    strbuf_done(&parser->lines);
    free(parser);
}
