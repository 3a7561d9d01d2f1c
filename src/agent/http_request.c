#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/http_connection.h"

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Undoes percent-encoding; `plus`: '+' is a blank, as in a query. */
static int decode(const char *text, size_t length, bool plus, char **ret)
{
    CLEANUP_FREE char *decoded = malloc(length + 1);
    if (decoded == NULL)
        return -ENOMEM;
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '+' && plus)
            c = ' ';
        else if (c == '%') {
            int high = i + 2 < length ? hex_value(text[i + 1]) : -1;
            int low = i + 2 < length ? hex_value(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return -EINVAL;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0')
            return -EINVAL;
        decoded[used++] = c;
    }
    decoded[used] = '\0';
    *ret = TAKE_PTR(decoded);
    return 0;
}

int http_request_parse_url(struct http_connection *connection)
{
    const char *url = strbuf_text(&connection->url);
    struct http_parser_url parts;
    http_parser_url_init(&parts);
    if (http_parser_parse_url(url, connection->url.length, 0, &parts) != 0 || !(parts.field_set & 1 << UF_PATH))
        return -EINVAL;
    int r = decode(url + parts.field_data[UF_PATH].off, parts.field_data[UF_PATH].len, false, &connection->path);
    if (r < 0)
        return r;
    connection->query = "";
    if (parts.field_set & 1 << UF_QUERY) {
        connection->query = url + parts.field_data[UF_QUERY].off;
        connection->url.data[parts.field_data[UF_QUERY].off + parts.field_data[UF_QUERY].len] = '\0';
    }
    return 0;
}

void http_request_reset(struct http_connection *connection)
{
    connection->server->collected -= connection->body.length;
    strbuf_done(&connection->url);
    strbuf_done(&connection->headers);
    strbuf_done(&connection->body);
    free(TAKE_PTR(connection->path));
    connection->query = "";
    connection->in_value = false;
    connection->dropped = 0;
}

enum http_method http_method(const struct http_connection *connection)
{
    return (enum http_method)connection->parser.method;
}

const char *http_path(const struct http_connection *connection)
{
    return connection->path;
}

/* Steps through "name\0value\0…"; false at the end. */
static bool next_header(const struct http_connection *connection, size_t *position, const char **ret_name,
                        const char **ret_value)
{
    const char *text = strbuf_text(&connection->headers);
    if (*position >= connection->headers.length)
        return false;
    *ret_name = text + *position;
    *ret_value = *ret_name + strlen(*ret_name) + 1;
    *position = (size_t)(*ret_value - text) + strlen(*ret_value) + 1;
    return true;
}

const char *http_header(const struct http_connection *connection, const char *name)
{
    size_t position = 0;
    const char *found;
    const char *value;
    while (next_header(connection, &position, &found, &value))
        if (strcasecmp(found, name) == 0)
            return value;
    return NULL;
}

void http_each_header(const struct http_connection *connection, const char *prefix,
                      void (*visit)(void *context, const char *rest_of_name, const char *value), void *context)
{
    size_t position = 0;
    const char *found;
    const char *value;
    while (next_header(connection, &position, &found, &value))
        if (strncasecmp(found, prefix, strlen(prefix)) == 0)
            visit(context, found + strlen(prefix), value);
}

int http_query(const struct http_connection *connection, const char *name, char **ret_value)
{
    const char *at = connection->query;
    while (*at != '\0') {
        size_t length = strcspn(at, "&");
        size_t name_length = strcspn(at, "=&");
        if (name_length == strlen(name) && strncmp(at, name, name_length) == 0) {
            const char *value = at + name_length + (at[name_length] == '=');
            int r = decode(value, (size_t)(at + length - value), true, ret_value);
            return r < 0 ? r : 1;
        }
        at += length + (at[length] == '&');
    }
    return 0;
}

const struct strbuf *http_body(const struct http_connection *connection)
{
    return &connection->body;
}

void http_handle(struct http_connection *connection, const struct http_handler *handler, void *owner)
{
    connection->handler = handler;
    connection->owner = owner;
}

void *http_owner(const struct http_connection *connection)
{
    return connection->owner;
}

void *http_context(const struct http_connection *connection)
{
    return connection->server->context;
}
