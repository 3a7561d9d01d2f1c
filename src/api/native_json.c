#include "api/native_json.h"

#include <string.h>

#include "api/string_map.h"
#include "base/timestamp.h"
#include "base/utf8.h"

/* 0 stands for "no such time". */
static json_t *time_json(int64_t ns)
{
    if (ns == 0)
        return json_null();
    char text[TIMESTAMP_LENGTH + 1];
    timestamp_format(ns, text);
    return json_string(text);
}

static json_t *text_json(const char *text)
{
    return utf8_json(text, strlen(text));
}

/* "" stands for "none". */
static json_t *id_json(const char *id)
{
    return id == NULL || id[0] == '\0' ? json_null() : text_json(id);
}

static json_t *timings_json(const struct sandbox_timings *timings)
{
    return json_pack("{s:I, s:I, s:I}", "spawned_us", (json_int_t)timings->spawned_us, "running_us",
                     (json_int_t)timings->running_us, "agent_us", (json_int_t)timings->agent_us);
}

static json_t *capture_json(const struct capture_figures *capture)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "stopped_us", (json_int_t)capture->stopped_us, "total_us",
                     (json_int_t)capture->total_us, "bytes_private", (json_int_t)capture->bytes_private,
                     "bytes_written", (json_int_t)capture->bytes_written);
}

json_t *native_sandbox_json(const struct sandbox_info *info, bool with_token)
{
    json_t *json = json_pack(
        "{s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:i, s:i, s:I, s:b, s:o, s:o, s:o, s:o, s:o, s:s, s:b, s:b, s:o, s:o}",
        "id", text_json(info->id), "state", sandbox_state_name(info->state), "vmm_pid",
        info->vmm_pid > 0 ? json_integer(info->vmm_pid) : json_null(), "template", id_json(info->template_name),
        "template_id", id_json(info->template_id), "snapshot", id_json(info->snapshot_id), "parent",
        id_json(info->parent_id), "cpus", (int)info->cpus, "memory_mib", (int)info->memory_mib, "disk_bytes",
        (json_int_t)info->disk_bytes, "egress", (int)!info->egress_denied, "env",
        string_map_environment_json(&info->environment), "metadata", string_map_metadata_json(&info->metadata),
        "created_at", time_json(info->created_ns), "started_at", time_json(info->started_ns), "expires_at",
        time_json(info->expires_ns), "on_timeout", timeout_action_name(info->on_timeout), "auto_resume",
        (int)info->auto_resume, "durable", (int)info->durable, "timings", timings_json(&info->timings), "capture",
        capture_json(&info->capture));
    if (json == NULL)
        return NULL;
    int r = 0;
    if (info->lost_reason != NULL)
        r |= json_object_set_new(json, "lost_reason", text_json(info->lost_reason));
    if (with_token)
        r |= json_object_set_new(json, "access_token", id_json(info->access_token));
    if (r == 0)
        return json;
    json_decref(json);
    return NULL;
}

json_t *native_stats_json(const struct sandbox_stats *stats)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "private_bytes", (json_int_t)stats->private_bytes, "shared_bytes",
                     (json_int_t)stats->shared_bytes, "vmm_rss_bytes", (json_int_t)stats->vmm_rss_bytes, "cpu_ns",
                     (json_int_t)stats->cpu_ns, "overlay_bytes", (json_int_t)stats->overlay_bytes);
}

json_t *native_template_json(const struct template_info *info)
{
    return json_pack("{s:o, s:o, s:o, s:i, s:i, s:I, s:o}", "id", text_json(info->id), "name",
                     text_json(info->name), "snapshot", id_json(info->snapshot_id), "cpus", (int)info->cpus,
                     "memory_mib", (int)info->memory_mib, "disk_bytes", (json_int_t)info->disk_bytes, "created_at",
                     time_json(info->created_ns));
}

json_t *native_snapshot_json(const struct snapshot_info *info)
{
    json_t *names = json_array();
    for (size_t i = 0; i < info->names.count; i++)
        json_array_append_new(names, text_json(info->names.items[i]));
    return json_pack("{s:o, s:s?, s:o, s:b, s:o, s:o, s:o, s:b, s:i, s:i, s:o, s:I, s:I, s:I, s:o, s:I, s:I, s:i}",
                     "id", text_json(info->id), "problem", info->problem, "names", names, "checkpoint",
                     (int)info->checkpoint, "sandbox", id_json(info->sandbox_id), "template_id",
                     id_json(info->template_id), "parent", id_json(info->parent_id), "in_use", (int)info->in_use,
                     "cpus", (int)info->cpus, "memory_mib", (int)info->memory_mib, "created_at",
                     time_json(info->created_ns), "memory_bytes", (json_int_t)info->memory_bytes, "disk_bytes",
                     (json_int_t)info->disk_bytes, "state_bytes", (json_int_t)info->state_bytes, "disk_consistency",
                     id_json(info->disk_consistency), "stored_bytes", (json_int_t)info->stored_bytes, "own_bytes",
                     (json_int_t)info->own_bytes, "layers", (int)info->layers);
}
