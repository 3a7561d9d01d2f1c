/* E2B's API: the two lists of sandboxes. */
#include <errno.h>

#include "api/e2b.h"
#include "api/list_filter.h"
#include "api/reply.h"

static int reply_page(struct api_call *call, const struct list_filter *filter, struct sandbox_list *list,
                      struct error *err)
{
    const struct sandbox_info *page[LIST_PAGE_MAX];
    CLEANUP_FREE char *token = NULL;
    int count = list_filter_page(filter, list->items, list->count, page, &token);
    if (count < 0)
        return error_set(err, -count, "out of memory");
    json_t *array = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(array, e2b_listed_json(page[i]));
    reply_json(call->reply, 200, array);
    if (token != NULL)
        reply_header(call->reply, "X-Next-Token", token);
    return 0;
}

/* The older list knows no pages and no paused sandboxes. */
static int reply_running(struct api_call *call, struct list_filter *filter, const struct sandbox_list *list)
{
    filter->running = true;
    filter->paused = false;
    json_t *array = json_array();
    for (size_t i = 0; i < list->count; i++)
        if (list_filter_wants(filter, &list->items[i]))
            json_array_append_new(array, e2b_listed_json(&list->items[i]));
    reply_json(call->reply, 200, array);
    return 0;
}

static int list_sandboxes(struct api_call *call, bool paged, struct error *err)
{
    struct list_filter filter;
    struct sandbox_list list;
    int r = list_filter_parse(&call->query, &filter, err);
    if (r == 0)
        r = manager_list(call->api->manager, &list, err);
    if (r == 0) {
        r = paged ? reply_page(call, &filter, &list, err) : reply_running(call, &filter, &list);
        sandbox_list_done(&list);
    }
    list_filter_done(&filter);
    return r;
}

int e2b_list_running(struct api_call *call, struct error *err)
{
    return list_sandboxes(call, false, err);
}

int e2b_list_page(struct api_call *call, struct error *err)
{
    return list_sandboxes(call, true, err);
}
