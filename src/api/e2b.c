#include "api/e2b.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/body.h"
#include "api/string_map.h"
#include "base/timestamp.h"
#include "base/utf8.h"

#define CLIENT_ID "dormouse"
#define ALL_IPV4  "0.0.0.0/0"
#define NEVER     "9999-12-31T23:59:59.999Z"
#define MIB       (1024 * 1024UL)

bool e2b_is_visible(const struct sandbox_info *info)
{
    return info->state != SANDBOX_KILLED && info->state != SANDBOX_LOST;
}

bool e2b_is_running(const struct sandbox_info *info)
{
    return info->state != SANDBOX_PAUSING && info->state != SANDBOX_PAUSED;
}

int e2b_find(struct api_call *call, struct sandbox_info *ret, struct error *err)
{
    char *id = call->parameters[0];
    id[strcspn(id, "-")] = '\0';
    struct sandbox_info info;
    int r = manager_get(call->api->manager, id, &info, err);
    /* A prefix is not enough for this API. */
    bool exact = r == 0 && strcmp(info.id, id) == 0;
    if (exact && e2b_is_visible(&info)) {
        *ret = info;
        return 0;
    }
    if (r == 0)
        sandbox_info_done(&info);
    if (r == 0 || r == -EINVAL)
        r = error_set(err, ENOENT, "sandbox \"%s\" not found", id);
    return r;
}

int e2b_read_timeout(json_t *body, int64_t *ret, struct error *err)
{
    int r = body_integer(body, "timeout", 0, SANDBOX_TIMEOUT_MAX_S, ret, err);
    if (r == 0 && *ret == 0)
        *ret = 1;
    return r;
}

static bool is_empty(const json_t *value)
{
    return value == NULL || json_is_null(value) || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

int e2b_read_network(json_t *network, bool *ret_egress_denied, struct error *err)
{
    static const char *const unsupported[] = {"allowOut", "rules", "egressProxy", "maskRequestHost", "httpsPorts"};
    for (size_t i = 0; i < ARRAY_SIZE(unsupported); i++)
        if (!is_empty(json_object_get(network, unsupported[i])))
            return error_set(err, EINVAL, "network option \"%s\" is not supported yet", unsupported[i]);
    bool public_traffic = true;
    bool internet = true;
    json_t *denied = NULL;
    int r;
    if ((r = body_boolean(network, "allowPublicTraffic", &public_traffic, err)) < 0 ||
        (r = body_boolean(network, "allow_internet_access", &internet, err)) < 0 ||
        (r = body_array(network, "denyOut", &denied, err)) < 0)
        return r;
    if (!public_traffic)
        return error_set(err, EINVAL, "network option \"allowPublicTraffic\": false is not supported yet");
    bool all = false;
    for (size_t i = 0; i < json_array_size(denied); i++) {
        const char *entry = json_string_value(json_array_get(denied, i));
        if (entry == NULL)
            return error_set(err, EINVAL, "\"denyOut\" must be an array of strings");
        all |= strcmp(entry, ALL_IPV4) == 0;
    }
    if (!is_empty(denied) && !all)
        return error_set(err, EINVAL, "\"denyOut\" of anything but \"" ALL_IPV4 "\" is not supported yet");
    *ret_egress_denied = all || !internet;
    return 0;
}

static json_t *time_json(int64_t ns)
{
    char text[TIMESTAMP_LENGTH + 1];
    timestamp_format(ns, text);
    return json_string(text);
}

static json_t *text_json(const char *text)
{
    return utf8_json(text, strlen(text));
}

/* What all three shapes have; takes the object over. */
static json_t *add_common(json_t *json, const struct sandbox_info *info)
{
    int r = json_object_set_new(json, "sandboxID", text_json(info->id));
    r |= json_object_set_new(json, "templateID", text_json(info->template_id));
    r |= json_object_set_new(json, "clientID", json_string(CLIENT_ID));
    r |= json_object_set_new(json, "envdVersion", json_string(E2B_ENVD_VERSION));
    if (info->template_name[0] != '\0')
        r |= json_object_set_new(json, "alias", text_json(info->template_name));
    if (r == 0)
        return json;
    json_decref(json);
    return NULL;
}

json_t *e2b_sandbox_json(const struct api *api, const struct sandbox_info *info)
{
    return add_common(
        json_pack("{s:o, s:s}", "envdAccessToken", text_json(info->access_token), "domain", api->domain), info);
}

json_t *e2b_listed_json(const struct sandbox_info *info)
{
    json_t *json = json_pack("{s:o, s:o, s:s, s:i, s:i, s:I, s:o, s:[]}", "startedAt", time_json(info->started_ns),
                             "endAt", info->expires_ns != 0 ? time_json(info->expires_ns) : json_string(NEVER),
                             "state", e2b_is_running(info) ? "running" : "paused", "cpuCount", (int)info->cpus,
                             "memoryMB", (int)info->memory_mib, "diskSizeMB", (json_int_t)(info->disk_bytes / MIB),
                             "metadata", string_map_metadata_json(&info->metadata), "volumeMounts");
    return add_common(json, info);
}

json_t *e2b_detail_json(const struct api *api, const struct sandbox_info *info)
{
    json_t *more = json_pack(
        "{s:o, s:s, s:b, s:{s:s, s:b}, s:{s:b, s:o}}", "envdAccessToken", text_json(info->access_token), "domain",
        api->domain, "allowInternetAccess", (int)!info->egress_denied, "lifecycle", "onTimeout",
        info->on_timeout != TIMEOUT_KILL ? "pause" : "kill", "autoResume", (int)info->auto_resume, "network",
        "allowPublicTraffic", 1, "denyOut", info->egress_denied ? json_pack("[s]", ALL_IPV4) : json_array());
    json_t *json = e2b_listed_json(info);
    if (json == NULL || more == NULL || json_object_update(json, more) < 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(more);
    return json;
}
