#include "api/uri.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macro.h"

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int uri_decode(const char *text, size_t length, bool form, char **ret)
{
    CLEANUP_FREE char *decoded = malloc(length + 1);
    if (decoded == NULL)
        return -ENOMEM;
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '+' && form)
            c = ' ';
        if (c == '%') {
            if (length - i < 3)
                return -EINVAL;
            int high = hex_value(text[i + 1]);
            int low = hex_value(text[i + 2]);
            if (high < 0 || low < 0 || (high == 0 && low == 0))
                return -EINVAL;
            c = (char)(high << 4 | low);
            i += 2;
        }
        decoded[used++] = c;
    }
    decoded[used] = '\0';
    *ret = TAKE_PTR(decoded);
    return 0;
}

static int add_parameter(struct uri_query *query, const char *part, size_t length)
{
    if (query->count == URI_PARAMETERS_MAX)
        return -E2BIG;
    const char *equals = memchr(part, '=', length);
    size_t name_length = equals != NULL ? (size_t)(equals - part) : length;
    const char *value = equals != NULL ? equals + 1 : part + length;
    CLEANUP_FREE char *name = NULL;
    int r = uri_decode(part, name_length, true, &name);
    if (r < 0)
        return r;
    struct uri_parameter *parameter = &query->parameters[query->count];
    r = uri_decode(value, (size_t)(part + length - value), true, &parameter->value);
    if (r < 0)
        return r;
    parameter->name = TAKE_PTR(name);
    query->count++;
    return 0;
}

int uri_query_parse(const char *text, struct uri_query *ret)
{
    ret->count = 0;
    while (*text != '\0') {
        size_t length = strcspn(text, "&");
        int r = length > 0 ? add_parameter(ret, text, length) : 0;
        if (r < 0) {
            uri_query_done(ret);
            return r;
        }
        text += length + (text[length] == '&');
    }
    return 0;
}

void uri_query_done(struct uri_query *query)
{
    for (size_t i = 0; i < query->count; i++) {
        free(query->parameters[i].name);
        free(query->parameters[i].value);
    }
    query->count = 0;
}

const char *uri_query_get(const struct uri_query *query, const char *name)
{
    for (size_t i = 0; i < query->count; i++)
        if (strcmp(query->parameters[i].name, name) == 0)
            return query->parameters[i].value;
    return NULL;
}

int uri_match(const char *pattern, const char *path, char **captures, size_t captures_max)
{
    size_t count = 0;
    int r = 1;
    while (r == 1 && (*pattern != '\0' || *path != '\0')) {
        if (*pattern != '/' || *path != '/') {
            r = 0;
            break;
        }
        pattern++;
        path++;
        size_t pattern_length = strcspn(pattern, "/");
        size_t path_length = strcspn(path, "/");
        if (pattern_length == 2 && memcmp(pattern, "{}", 2) == 0) {
            r = path_length > 0 && count < captures_max;
            if (r == 1) {
                int failure = uri_decode(path, path_length, false, &captures[count]);
                r = failure < 0 ? failure : 1;
                count += failure == 0;
            }
        } else {
            r = pattern_length == path_length && memcmp(pattern, path, path_length) == 0;
        }
        pattern += pattern_length;
        path += path_length;
    }
    while (r != 1 && count > 0) {
        free(captures[--count]);
        captures[count] = NULL;
    }
    return r;
}

int uri_normalize_path(const char *path, char **ret)
{
    if (path[0] != '/')
        return -EINVAL;
    char *decoded;
    int r = uri_decode(path, strlen(path), false, &decoded);
    if (r < 0)
        return r;
    /* Each segment is written behind the slash it was read behind, or further left: in place is safe. */
    char *out = decoded;
    const char *in = decoded;
    while (*in != '\0') {
        in += strspn(in, "/");
        size_t length = strcspn(in, "/");
        if (length == 2 && memcmp(in, "..", 2) == 0) {
            while (out > decoded && *--out != '/')
                ;
        } else if (length > 0 && !(length == 1 && in[0] == '.')) {
            *out++ = '/';
            memmove(out, in, length);
            out += length;
        }
        in += length;
    }
    if (out == decoded)
        *out++ = '/';
    *out = '\0';
    *ret = decoded;
    return 0;
}
