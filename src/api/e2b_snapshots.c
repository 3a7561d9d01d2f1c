/*
 * E2B's API: snapshots that users take and keep, our checkpoints. What a pause leaves is none of them.
 *
 * A snapshot's id is its first name ("name:tag"), or our own id when it has none; both are templates' ids to E2B.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "api/body.h"
#include "api/e2b.h"
#include "api/reply.h"

#define PAGE_MAX 100

static json_t *snapshot_json(const struct snapshot_info *info)
{
    json_t *names = json_array();
    for (size_t i = 0; i < info->names.count; i++)
        json_array_append_new(names, json_string(info->names.items[i]));
    return json_pack("{s:s, s:o}", "snapshotID", info->names.count > 0 ? info->names.items[0] : info->id, "names",
                     names);
}

/* The name just given comes first: it is what the client goes on with. */
static void put_first(struct string_list *names, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 1; i < names->count; i++) {
        const char *one = names->items[i];
        bool same = strncmp(one, name, length) == 0 &&
                    (one[length] == '\0' || strcmp(one + length, ":" CHECKPOINT_TAG_DEFAULT) == 0);
        if (same) {
            char *first = names->items[i];
            names->items[i] = names->items[0];
            names->items[0] = first;
        }
    }
}

int e2b_create_snapshot(struct api_call *call, struct error *err)
{
    const char *name = NULL;
    int r = body_string(call->body, "name", &name, err);
    if (r < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    struct snapshot_info snapshot;
    r = manager_checkpoint(call->api->manager, info.id, name, &snapshot, err);
    sandbox_info_done(&info);
    if (r < 0)
        return r;
    if (name != NULL)
        put_first(&snapshot.names, name);
    reply_json(call->reply, 201, snapshot_json(&snapshot));
    snapshot_info_done(&snapshot);
    return 0;
}

struct snapshot_filter {
    const char *sandbox; /* full id; NULL: any */
    const char *name;    /* "name:tag", or "name" with any tag; NULL: any */
    int64_t limit;
    bool has_cursor;
    int64_t cursor_ns; /* of the last one of the page before */
    const char *cursor_id;
};

static int read_filter(struct api_call *call, struct snapshot_filter *ret, struct error *err)
{
    *ret = (struct snapshot_filter){
        .sandbox = uri_query_get(&call->query, "sandboxID"),
        .name = uri_query_get(&call->query, "name"),
        .limit = PAGE_MAX,
    };
    int r = api_query_integer(call, "limit", 1, PAGE_MAX, &ret->limit, err);
    const char *token = uri_query_get(&call->query, "nextToken");
    if (r < 0 || token == NULL)
        return r;
    char *end;
    errno = 0;
    ret->cursor_ns = strtoimax(token, &end, 10);
    if (end == token || errno != 0 || *end != '-')
        return error_set(err, EINVAL, "the query parameter \"nextToken\" is not a token from an earlier page");
    ret->cursor_id = end + 1;
    ret->has_cursor = true;
    return 0;
}

static bool has_name(const struct snapshot_info *info, const char *name)
{
    size_t length = strlen(name);
    bool any_tag = strchr(name, ':') == NULL;
    for (size_t i = 0; i < info->names.count; i++) {
        const char *one = info->names.items[i];
        if (strncmp(one, name, length) == 0 && (one[length] == '\0' || (any_tag && one[length] == ':')))
            return true;
    }
    return false;
}

static bool is_wanted(const struct snapshot_filter *filter, const struct snapshot_info *info)
{
    if (!info->checkpoint || (filter->sandbox != NULL && strcmp(info->sandbox_id, filter->sandbox) != 0) ||
        (filter->name != NULL && !has_name(info, filter->name)))
        return false;
    if (!filter->has_cursor)
        return true;
    if (info->created_ns != filter->cursor_ns)
        return info->created_ns < filter->cursor_ns;
    return strcmp(info->id, filter->cursor_id) < 0;
}

/* The newest first. */
static void reply_page(struct api_call *call, const struct snapshot_filter *filter,
                       const struct snapshot_list *list)
{
    json_t *array = json_array();
    const struct snapshot_info *last = NULL;
    bool more = false;
    for (size_t i = list->count; i-- > 0 && !more;) {
        const struct snapshot_info *info = &list->items[i];
        if (!is_wanted(filter, info))
            continue;
        more = json_array_size(array) == (size_t)filter->limit;
        if (more)
            break;
        json_array_append_new(array, snapshot_json(info));
        last = info;
    }
    reply_json(call->reply, 200, array);
    CLEANUP_FREE char *token = NULL;
    if (!more)
        return;
    if (asprintf(&token, "%" PRId64 "-%s", last->created_ns, last->id) < 0)
        token = NULL;
    else
        reply_header(call->reply, "X-Next-Token", token);
}

int e2b_list_snapshots(struct api_call *call, struct error *err)
{
    struct snapshot_filter filter;
    struct snapshot_list list;
    int r = read_filter(call, &filter, err);
    if (r == 0)
        r = manager_snapshot_list(call->api->manager, &list, err);
    if (r < 0)
        return r;
    reply_page(call, &filter, &list);
    snapshot_list_done(&list);
    return 0;
}
