/* What the API takes apart before or after a key was checked; the first byte of the input chooses the parser. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "api/body.h"
#include "api/list_filter.h"
#include "api/proxy_target.h"
#include "api/signature.h"
#include "api/string_map.h"
#include "api/uri.h"
#include "base/timestamp.h"
#include "base/utf8.h"

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void parse_list(const char *text)
{
    struct uri_query query;
    struct list_filter filter;
    if (uri_query_parse(text, &query) < 0)
        return;
    struct sandbox_info info = {.id = (char *)"a", .template_id = (char *)"t", .template_name = (char *)"base"};
    const struct sandbox_info *page[LIST_PAGE_MAX];
    char *token = NULL;
    if (list_filter_parse(&query, &filter, NULL) == 0)
        check(list_filter_page(&filter, &info, 1, page, &token) <= 1);
    free(token);
    list_filter_done(&filter);
    (void)signature_fits(&query, "GET", "token");
    uri_query_done(&query);
}

static void parse_path(const char *text)
{
    char *captures[2] = {NULL, NULL};
    (void)uri_match("/sandboxes/{}/{}", text, captures, 2);
    free(captures[0]);
    free(captures[1]);
    (void)proxy_target_host_only(text);
    char *normal;
    if (uri_normalize_path(text, &normal) < 0)
        return;
    check(normal[0] == '/' && strlen(normal) <= strlen(text) + 1 && strstr(normal, "//") == NULL);
    free(normal);
}

/* Three lines: Host, E2b-Sandbox-Id and E2b-Sandbox-Port; an empty one stands for none. */
static void parse_target(char *text)
{
    const char *parts[3] = {NULL, NULL, NULL};
    for (size_t i = 0; i < 3 && text != NULL; i++) {
        const char *part = strsep(&text, "\n");
        parts[i] = part[0] != '\0' ? part : NULL;
    }
    struct proxy_target target;
    if (proxy_target_parse(parts[0], parts[1], parts[2], &target) == 1)
        check(target.sandbox_id[0] != '\0' && target.port > 0 && target.port <= 65535);
    if (parts[0] != NULL && parts[1] != NULL)
        (void)proxy_header_stays(parts[0], parts[1]);
}

static void parse_time(const char *text)
{
    int64_t ns;
    char again[TIMESTAMP_LENGTH + 1];
    int64_t rounded;
    if (timestamp_parse(text, &ns) < 0)
        return;
    timestamp_format(ns, again);
    check(timestamp_parse(again, &rounded) == 0 && rounded <= ns && ns - rounded < 1000000);
}

static void parse_body(const char *text, size_t length)
{
    CLEANUP_JSON json_t *body = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (body_parse(text, length, &body, &err) < 0)
        return;
    struct string_list list = {0};
    int64_t number = 5;
    check(body_integer(body, "n", 0, 10, &number, &err) < 0 || (number >= 0 && number <= 10));
    (void)string_map_environment(body, "env", &list, &err);
    (void)string_map_metadata(body, "metadata", &list, &err);
    string_list_done(&list);
}

static void repair(const char *text, size_t length)
{
    json_t *json = utf8_json(text, length);
    json_t *strict = json_stringn(json_string_value(json), json_string_length(json));
    check(strict != NULL); /* jansson's own check finds nothing left */
    json_decref(strict);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t length = size - 1;
    char *text = malloc(length + 1);
    if (text == NULL)
        return 0;
    memcpy(text, data + 1, length);
    text[length] = '\0';
    switch (data[0]) {
    case 'l':
        parse_list(text);
        break;
    case 'p':
        parse_path(text);
        break;
    case 't':
        parse_target(text);
        break;
    case 'd':
        parse_time(text);
        break;
    case 'b':
        parse_body(text, length);
        break;
    case 'u':
        repair(text, length);
        break;
    default:
        break;
    }
    free(text);
    return 0;
}
