/* Dormouse's own API: /dormouse/v1/templates and /snapshots. The shapes are in docs/api.yaml. */
#include "api/api.h"
#include "api/native_build.h"
#include "api/native_json.h"
#include "api/reply.h"

static int list_templates(struct api_call *call, struct error *err)
{
    struct template_list list;
    int r = manager_template_list(call->api->manager, &list, err);
    if (r < 0)
        return r;
    json_t *array = json_array();
    for (size_t i = 0; i < list.count; i++)
        json_array_append_new(array, native_template_json(&list.items[i]));
    template_list_done(&list);
    reply_json(call->reply, 200, array);
    return 0;
}

static int delete_template(struct api_call *call, struct error *err)
{
    int r = manager_template_remove(call->api->manager, call->parameters[0], err);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

static int list_snapshots(struct api_call *call, struct error *err)
{
    struct snapshot_list list;
    int r = manager_snapshot_list(call->api->manager, &list, err);
    if (r < 0)
        return r;
    json_t *array = json_array();
    for (size_t i = 0; i < list.count; i++)
        json_array_append_new(array, native_snapshot_json(&list.items[i]));
    snapshot_list_done(&list);
    reply_json(call->reply, 200, array);
    return 0;
}

static int get_snapshot(struct api_call *call, struct error *err)
{
    struct snapshot_info info;
    int r = manager_snapshot_get(call->api->manager, call->parameters[0], &info, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200, native_snapshot_json(&info));
    snapshot_info_done(&info);
    return 0;
}

static int delete_snapshot(struct api_call *call, struct error *err)
{
    int r = manager_snapshot_remove(call->api->manager, call->parameters[0], err);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

const struct api_route native_template_routes[] = {
    {"GET", "/dormouse/v1/templates", list_templates},
    {"POST", "/dormouse/v1/templates", native_build_template},
    {"DELETE", "/dormouse/v1/templates/{}", delete_template},
    {"GET", "/dormouse/v1/snapshots", list_snapshots},
    {"GET", "/dormouse/v1/snapshots/{}", get_snapshot},
    {"DELETE", "/dormouse/v1/snapshots/{}", delete_snapshot},
    {0},
};
