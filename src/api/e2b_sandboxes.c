/* E2B's API: the life of a sandbox. What is not built yet is refused, never ignored. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "api/body.h"
#include "api/e2b.h"
#include "api/reply.h"
#include "api/string_map.h"
#include "base/io.h"

#define REFRESH_DEFAULT_S 15
#define REFRESH_MAX_S     3600

static int get_health(struct api_call *call, struct error *err)
{
    (void)err;
    reply_empty(call->reply, 204);
    return 0;
}

/* Answers with a Sandbox and frees what `info` holds. */
static int reply_sandbox(struct api_call *call, unsigned status, struct sandbox_info *info)
{
    reply_json(call->reply, status, e2b_sandbox_json(call->api, info));
    sandbox_info_done(info);
    return 0;
}

static int read_lifecycle(json_t *body, struct sandbox_spec *spec, struct error *err)
{
    bool pause = false;
    bool with_memory = true;
    bool auto_resume = false;
    json_t *resume = NULL;
    int r;
    if ((r = body_boolean(body, "autoPause", &pause, err)) < 0 ||
        (r = body_boolean(body, "autoPauseMemory", &with_memory, err)) < 0 ||
        (r = body_object(body, "autoResume", &resume, err)) < 0 ||
        (r = body_boolean(resume, "enabled", &auto_resume, err)) < 0)
        return r;
    if (!with_memory && (!pause || auto_resume))
        return error_set(err, EINVAL, "\"autoPauseMemory\": false needs \"autoPause\" and excludes \"autoResume\"");
    spec->auto_resume = auto_resume;
    spec->on_timeout = !pause ? TIMEOUT_KILL : with_memory ? TIMEOUT_PAUSE : TIMEOUT_PAUSE_DISK;
    return 0;
}

static int read_egress(json_t *body, struct sandbox_spec *spec, struct error *err)
{
    bool internet = true;
    json_t *network = NULL;
    int r;
    if ((r = body_boolean(body, "allow_internet_access", &internet, err)) < 0 ||
        (r = body_object(body, "network", &network, err)) < 0 ||
        (r = e2b_read_network(network, &spec->egress_denied, err)) < 0)
        return r;
    spec->egress_denied |= !internet;
    return 0;
}

static int refuse_unsupported(json_t *body, struct error *err)
{
    json_t *volumes = NULL;
    int r = body_array(body, "volumeMounts", &volumes, err);
    if (r < 0)
        return r;
    if (json_array_size(volumes) > 0)
        return error_set(err, EINVAL, "\"volumeMounts\" is not supported yet");
    if (json_object_size(json_object_get(body, "iam")) > 0)
        return error_set(err, EINVAL, "\"iam\" is not supported yet");
    return 0;
}

static int read_spec(json_t *body, struct sandbox_spec *spec, struct error *err)
{
    json_t *environment = NULL;
    json_t *metadata = NULL;
    int r;
    if ((r = body_string(body, "templateID", &spec->template_name, err)) < 0 ||
        (r = e2b_read_timeout(body, &spec->timeout_s, err)) < 0 || (r = read_lifecycle(body, spec, err)) < 0 ||
        (r = read_egress(body, spec, err)) < 0 || (r = refuse_unsupported(body, err)) < 0 ||
        (r = body_object(body, "envVars", &environment, err)) < 0 ||
        (r = body_object(body, "metadata", &metadata, err)) < 0 ||
        (r = string_map_environment(environment, "envVars", &spec->environment, err)) < 0 ||
        (r = string_map_metadata(metadata, "metadata", &spec->metadata, err)) < 0)
        return r;
    return spec->template_name == NULL ? error_set(err, EINVAL, "\"templateID\" is missing") : 0;
}

static int create_sandbox(struct api_call *call, int64_t default_timeout_s, struct error *err)
{
    struct sandbox_spec spec = {.timeout_s = default_timeout_s};
    struct sandbox_info info;
    int r = read_spec(call->body, &spec, err);
    if (r == 0)
        r = manager_create(call->api->manager, &spec, &info, err);
    string_list_done(&spec.environment);
    string_list_done(&spec.metadata);
    return r < 0 ? r : reply_sandbox(call, 201, &info);
}

static int create_v1(struct api_call *call, struct error *err)
{
    return create_sandbox(call, E2B_TIMEOUT_V1_S, err);
}

static int create_v2(struct api_call *call, struct error *err)
{
    return create_sandbox(call, E2B_TIMEOUT_V2_S, err);
}

static int get_sandbox(struct api_call *call, struct error *err)
{
    struct sandbox_info info;
    int r = e2b_find(call, &info, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200, e2b_detail_json(call->api, &info));
    sandbox_info_done(&info);
    return 0;
}

static int delete_sandbox(struct api_call *call, struct error *err)
{
    struct sandbox_info info;
    int r = e2b_find(call, &info, err);
    if (r < 0)
        return r;
    r = manager_kill(call->api->manager, info.id, err);
    sandbox_info_done(&info);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

/* "memory": false asks for the disk alone. */
static int read_memory(json_t *body, bool *ret, struct error *err)
{
    *ret = true;
    return body_boolean(body, "memory", ret, err);
}

static int pause_sandbox(struct api_call *call, struct error *err)
{
    bool with_memory;
    int r = read_memory(call->body, &with_memory, err);
    if (r < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    struct sandbox_info paused;
    r = manager_pause(call->api->manager, info.id, !with_memory, &paused, err);
    sandbox_info_done(&info);
    if (r < 0)
        return r;
    sandbox_info_done(&paused);
    reply_empty(call->reply, 204);
    return 0;
}

/* `running_allowed`: a running sandbox's life is extended; otherwise it is a conflict. */
static int resume_sandbox(struct api_call *call, int64_t timeout_s, bool running_allowed, struct error *err)
{
    struct resume_options options = {.timeout_s = timeout_s};
    bool with_memory;
    int r;
    if ((r = e2b_read_timeout(call->body, &options.timeout_s, err)) < 0 ||
        (r = read_memory(call->body, &with_memory, err)) < 0)
        return r;
    options.reboot = !with_memory;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    struct sandbox_info resumed;
    bool was_running = false;
    if (e2b_is_running(&info) && !running_allowed)
        r = error_set(err, EBUSY, "sandbox %s is running already", info.id);
    else
        r = manager_resume(call->api->manager, info.id, &options, &was_running, &resumed, err);
    sandbox_info_done(&info);
    return r < 0 ? r : reply_sandbox(call, was_running ? 200 : 201, &resumed);
}

static int connect_v1(struct api_call *call, struct error *err)
{
    return resume_sandbox(call, E2B_TIMEOUT_V1_S, true, err);
}

static int connect_v2(struct api_call *call, struct error *err)
{
    return resume_sandbox(call, E2B_TIMEOUT_V2_S, true, err);
}

static int resume_v1(struct api_call *call, struct error *err)
{
    return resume_sandbox(call, E2B_TIMEOUT_V1_S, false, err);
}

static json_t *fork_results_json(const struct api *api, const struct fork_result *results, unsigned count)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++) {
        const struct error *problem = &results[i].error;
        bool failed = problem->code != 0;
        json_t *outcome = failed ? reply_failure_json(problem) : e2b_sandbox_json(api, &results[i].info);
        json_array_append_new(array, json_pack("{s:o}", failed ? "error" : "sandbox", outcome));
    }
    return array;
}

static int fork_running(struct api_call *call, const struct sandbox_info *info, unsigned count, int64_t timeout_s,
                        struct error *err)
{
    if (!e2b_is_running(info))
        return error_set(err, EBUSY, "sandbox %s is paused", info->id);
    CLEANUP_FREE struct fork_result *results = calloc(count, sizeof(*results));
    if (results == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = manager_fork(call->api->manager, info->id, count, timeout_s, results, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 201, fork_results_json(call->api, results, count));
    fork_results_done(results, count);
    return 0;
}

static int fork_sandbox(struct api_call *call, struct error *err)
{
    int64_t count = 1;
    int64_t timeout_s = E2B_TIMEOUT_V1_S;
    int r;
    if ((r = body_integer(call->body, "count", 1, SANDBOX_FORK_MAX, &count, err)) < 0 ||
        (r = e2b_read_timeout(call->body, &timeout_s, err)) < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    r = fork_running(call, &info, (unsigned)count, timeout_s, err);
    sandbox_info_done(&info);
    return r;
}

static int set_timeout(struct api_call *call, struct error *err)
{
    int64_t timeout_s = -1;
    int r = e2b_read_timeout(call->body, &timeout_s, err);
    if (r < 0)
        return r;
    if (timeout_s < 0)
        return error_set(err, EINVAL, "\"timeout\" is missing");
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    r = manager_set_timeout(call->api->manager, info.id, timeout_s, err);
    sandbox_info_done(&info);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

/* Only ever extends. */
static int refresh_sandbox(struct api_call *call, struct error *err)
{
    int64_t duration_s = REFRESH_DEFAULT_S;
    int r = body_integer(call->body, "duration", 0, REFRESH_MAX_S, &duration_s, err);
    if (r < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    int64_t end_ns = clock_realtime_ns() + duration_s * INT64_C(1000000000);
    if (info.expires_ns != 0 && info.expires_ns < end_ns)
        r = manager_set_timeout(call->api->manager, info.id, duration_s, err);
    sandbox_info_done(&info);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

static int set_network(struct api_call *call, struct error *err)
{
    bool egress_denied = false;
    int r = e2b_read_network(call->body, &egress_denied, err);
    if (r < 0)
        return r;
    struct sandbox_info info;
    if ((r = e2b_find(call, &info, err)) < 0)
        return r;
    r = manager_set_egress(call->api->manager, info.id, !egress_denied, err);
    sandbox_info_done(&info);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

const struct api_route e2b_sandbox_routes[] = {
    {"GET", "/health", get_health},
    {"POST", "/sandboxes", create_v1},
    {"POST", "/v2/sandboxes", create_v2},
    {"GET", "/sandboxes", e2b_list_running},
    {"GET", "/v2/sandboxes", e2b_list_page},
    {"GET", "/sandboxes/{}", get_sandbox},
    {"DELETE", "/sandboxes/{}", delete_sandbox},
    {"POST", "/sandboxes/{}/pause", pause_sandbox},
    {"POST", "/sandboxes/{}/resume", resume_v1},
    {"POST", "/sandboxes/{}/connect", connect_v1},
    {"POST", "/v2/sandboxes/{}/connect", connect_v2},
    {"POST", "/sandboxes/{}/fork", fork_sandbox},
    {"POST", "/sandboxes/{}/timeout", set_timeout},
    {"POST", "/sandboxes/{}/refreshes", refresh_sandbox},
    {"PUT", "/sandboxes/{}/network", set_network},
    {"GET", "/sandboxes/{}/metrics", e2b_get_metrics},
    {"GET", "/sandboxes/{}/logs", e2b_get_logs},
    {"GET", "/v2/sandboxes/{}/logs", e2b_get_logs_v2},
    {"POST", "/sandboxes/{}/snapshots", e2b_create_snapshot},
    {"GET", "/snapshots", e2b_list_snapshots},
    {0},
};
