/* E2B's API: templates, as far as they are not built through it. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "api/e2b.h"
#include "api/reply.h"
#include "base/timestamp.h"

#define MIB (1024 * 1024UL)

static json_t *template_json(const struct template_info *info)
{
    char created[TIMESTAMP_LENGTH + 1];
    timestamp_format(info->created_ns, created);
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:I, s:b, s:[s], s:[s], s:s, s:s, s:n, s:n, s:i, s:i, s:s}",
                     "templateID", info->id, "buildID", info->snapshot_id, "buildStatus", "ready", "cpuCount",
                     (int)info->cpus, "memoryMB", (int)info->memory_mib, "diskSizeMB",
                     (json_int_t)(info->disk_bytes / MIB), "public", 0, "aliases", info->name, "names", info->name,
                     "createdAt", created, "updatedAt", created, "lastSpawnedAt", "createdBy", "spawnCount", 0,
                     "buildCount", 1, "envdVersion", E2B_ENVD_VERSION);
}

static int list_templates(struct api_call *call, struct error *err)
{
    struct template_list list;
    int r = manager_template_list(call->api->manager, &list, err);
    if (r < 0)
        return r;
    json_t *array = json_array();
    for (size_t i = 0; i < list.count; i++)
        json_array_append_new(array, template_json(&list.items[i]));
    template_list_done(&list);
    reply_json(call->reply, 200, array);
    return 0;
}

static int delete_template(struct api_call *call, struct error *err)
{
    const char *id = call->parameters[0];
    struct snapshot_info snapshot;
    int r = manager_template_remove(call->api->manager, id, err);
    /* To E2B, snapshots that users keep are templates; others are not even there. */
    if (r == -ENOENT && manager_snapshot_get(call->api->manager, id, &snapshot, NULL) == 0) {
        bool exact = strcmp(snapshot.id, id) == 0 || strchr(id, ':') != NULL;
        if (snapshot.checkpoint && exact)
            r = manager_snapshot_remove(call->api->manager, id, err);
        if (r == 0)
            error_done(err);
        snapshot_info_done(&snapshot);
    }
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

const struct api_route e2b_template_routes[] = {
    {"GET", "/templates", list_templates},
    {"DELETE", "/templates/{}", delete_template},
    {0},
};
