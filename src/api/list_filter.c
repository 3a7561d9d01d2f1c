#include "api/list_filter.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/e2b.h"
#include "api/string_map.h"
#include "base/timestamp.h"

int list_filter_metadata(const char *text, struct string_list *list)
{
    CLEANUP_FREE char *pairs = NULL;
    int r = uri_decode(text, strlen(text), true, &pairs);
    if (r < 0)
        return r;
    struct uri_query query;
    r = uri_query_parse(pairs, &query);
    if (r < 0)
        return r == -ENOMEM ? r : -EINVAL;
    for (size_t i = 0; i < query.count && r == 0; i++) {
        r = string_list_add(list, query.parameters[i].name);
        if (r == 0)
            r = string_list_add(list, query.parameters[i].value);
    }
    uri_query_done(&query);
    return r;
}

/* "running,paused", or one of them. */
static int parse_states(const char *text, struct list_filter *filter)
{
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        if (length == strlen("running") && strncmp(text, "running", length) == 0)
            filter->running = true;
        else if (length == strlen("paused") && strncmp(text, "paused", length) == 0)
            filter->paused = true;
        else
            return -EINVAL;
        text += length + (text[length] == ',');
    }
    return 0;
}

static int parse_limit(const char *text, size_t *ret)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || number < 1 || number > LIST_PAGE_MAX)
        return -EINVAL;
    *ret = number;
    return 0;
}

static int parse_order(const char *text, bool *ret_ascending)
{
    *ret_ascending = strcmp(text, "asc") == 0;
    return *ret_ascending || strcmp(text, "desc") == 0 ? 0 : -EINVAL;
}

static int parse_parameter(const struct uri_parameter *parameter, struct list_filter *filter)
{
    const char *name = parameter->name;
    const char *value = parameter->value;
    if (strcmp(name, "state") == 0)
        return parse_states(value, filter);
    if (strcmp(name, "metadata") == 0)
        return list_filter_metadata(value, &filter->metadata);
    if (strcmp(name, "startedAfter") == 0)
        return timestamp_parse(value, &filter->started_after_ns);
    if (strcmp(name, "order") == 0)
        return parse_order(value, &filter->ascending);
    if (strcmp(name, "limit") == 0)
        return parse_limit(value, &filter->limit);
    if (strcmp(name, "template") == 0)
        filter->template = value;
    else if (strcmp(name, "nextToken") == 0)
        filter->cursor = value;
    return 0;
}

/* A token is the last entry's place in the order: when it started, and its id. */
static int parse_token(const char *token, int64_t *ret_started_ns, const char **ret_id)
{
    char *end;
    errno = 0;
    *ret_started_ns = strtoimax(token, &end, 10);
    if (end == token || errno != 0 || *end != '-')
        return -EINVAL;
    *ret_id = end + 1;
    return 0;
}

int list_filter_parse(const struct uri_query *query, struct list_filter *ret, struct error *err)
{
    *ret = (struct list_filter){.limit = LIST_PAGE_MAX, .started_after_ns = INT64_MIN};
    for (size_t i = 0; i < query->count; i++) {
        const struct uri_parameter *parameter = &query->parameters[i];
        int r = parse_parameter(parameter, ret);
        if (r == -EINVAL)
            return error_set(err, EINVAL, "the query parameter \"%s\" is malformed", parameter->name);
        if (r < 0)
            return error_set(err, -r, "out of memory");
    }
    int64_t started_ns;
    const char *id;
    if (ret->cursor != NULL && parse_token(ret->cursor, &started_ns, &id) < 0)
        return error_set(err, EINVAL, "the query parameter \"nextToken\" is not a token from an earlier page");
    if (!ret->running && !ret->paused)
        ret->running = ret->paused = true;
    return 0;
}

void list_filter_done(struct list_filter *filter)
{
    string_list_done(&filter->metadata);
}

static int compare_places(int64_t started_a, const char *id_a, int64_t started_b, const char *id_b)
{
    if (started_a != started_b)
        return started_a < started_b ? -1 : 1;
    return strcmp(id_a, id_b);
}

static int compare_infos(const void *a, const void *b)
{
    const struct sandbox_info *left = a;
    const struct sandbox_info *right = b;
    return compare_places(left->started_ns, left->id, right->started_ns, right->id);
}

bool list_filter_wants(const struct list_filter *filter, const struct sandbox_info *info)
{
    if (!e2b_is_visible(info) || !(e2b_is_running(info) ? filter->running : filter->paused))
        return false;
    if (info->started_ns <= filter->started_after_ns)
        return false;
    if (filter->template != NULL && strcmp(filter->template, info->template_id) != 0 &&
        strcmp(filter->template, info->template_name) != 0)
        return false;
    for (size_t i = 0; i + 1 < filter->metadata.count; i += 2) {
        const char *value = string_map_metadata_get(&info->metadata, filter->metadata.items[i]);
        if (value == NULL || strcmp(value, filter->metadata.items[i + 1]) != 0)
            return false;
    }
    return true;
}

static bool is_behind_cursor(const struct list_filter *filter, const struct sandbox_info *info)
{
    int64_t started_ns;
    const char *id;
    if (filter->cursor == NULL || parse_token(filter->cursor, &started_ns, &id) < 0)
        return true;
    int order = compare_places(info->started_ns, info->id, started_ns, id);
    return filter->ascending ? order > 0 : order < 0;
}

int list_filter_page(const struct list_filter *filter, struct sandbox_info *items, size_t count,
                     const struct sandbox_info **ret_page, char **ret_token)
{
    if (count > 0)
        qsort(items, count, sizeof(*items), compare_infos);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const struct sandbox_info *info = &items[filter->ascending ? i : count - 1 - i];
        if (!list_filter_wants(filter, info) || !is_behind_cursor(filter, info))
            continue;
        if (used == filter->limit) {
            const struct sandbox_info *last = ret_page[used - 1];
            if (asprintf(ret_token, "%" PRId64 "-%s", last->started_ns, last->id) < 0)
                return -ENOMEM;
            return (int)used;
        }
        ret_page[used++] = info;
    }
    *ret_token = NULL;
    return (int)used;
}
