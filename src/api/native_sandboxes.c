/* Dormouse's own API: /dormouse/v1/sandboxes, health and env. The shapes are in docs/api.yaml. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "api/body.h"
#include "api/native_json.h"
#include "api/reply.h"
#include "api/string_map.h"

#define LOGS_DEFAULT_BYTES (256 * 1024L)
#define LOGS_MAX_BYTES     (16 * 1024 * 1024L)

static int get_health(struct api_call *call, struct error *err)
{
    (void)err;
    reply_json(call->reply, 200, json_pack("{s:s}", "version", DORMOUSE_VERSION));
    return 0;
}

static int get_env(struct api_call *call, struct error *err)
{
    if (!call->request->trusted)
        return error_set(err, ENOENT, "this is served on the unix socket only");
    reply_json(call->reply, 200,
               json_pack("{s:s, s:s, s:s}", "api_url", call->api->url, "sandbox_url", call->api->url, "api_key",
                         manager_api_key(call->api->manager)));
    return 0;
}

/* Answers with the sandbox and frees what `info` holds. */
static int reply_sandbox(struct api_call *call, unsigned status, struct sandbox_info *info)
{
    reply_json(call->reply, status, native_sandbox_json(info, call->request->trusted));
    sandbox_info_done(info);
    return 0;
}

static int list_sandboxes(struct api_call *call, struct error *err)
{
    struct sandbox_list list;
    int r = manager_list(call->api->manager, &list, err);
    if (r < 0)
        return r;
    json_t *array = json_array();
    for (size_t i = 0; i < list.count; i++)
        json_array_append_new(array, native_sandbox_json(&list.items[i], call->request->trusted));
    sandbox_list_done(&list);
    reply_json(call->reply, 200, array);
    return 0;
}

static int read_timeout(json_t *body, int64_t *ret, struct error *err)
{
    return body_integer(body, "timeout_s", 0, SANDBOX_TIMEOUT_MAX_S, ret, err);
}

static int read_on_timeout(json_t *body, enum timeout_action *ret, struct error *err)
{
    const char *action = "kill";
    int r = body_string(body, "on_timeout", &action, err);
    if (r < 0)
        return r;
    r = timeout_action_parse(action, ret);
    return r < 0 ? error_set(err, EINVAL, "\"on_timeout\" must be \"kill\", \"pause\" or \"pause-disk\"") : 0;
}

static int read_spec(json_t *body, struct sandbox_spec *spec, struct error *err)
{
    static const char *const known[] = {"template", "memory_mib", "cpus", "timeout_s", "on_timeout", "auto_resume",
                                        "durable",  "egress",     "env",  "metadata",  NULL};
    bool egress = true;
    json_t *environment = NULL;
    json_t *metadata = NULL;
    int r;
    if ((r = body_known(body, known, err)) < 0 ||
        (r = body_string(body, "template", &spec->template_name, err)) < 0 ||
        (r = body_unsigned(body, "memory_mib", &spec->memory_mib, err)) < 0 ||
        (r = body_unsigned(body, "cpus", &spec->cpus, err)) < 0 ||
        (r = read_timeout(body, &spec->timeout_s, err)) < 0 ||
        (r = read_on_timeout(body, &spec->on_timeout, err)) < 0 ||
        (r = body_boolean(body, "auto_resume", &spec->auto_resume, err)) < 0 ||
        (r = body_boolean(body, "durable", &spec->durable, err)) < 0 ||
        (r = body_boolean(body, "egress", &egress, err)) < 0 ||
        (r = body_object(body, "env", &environment, err)) < 0 ||
        (r = body_object(body, "metadata", &metadata, err)) < 0)
        return r;
    spec->egress_denied = !egress;
    r = string_map_environment(environment, "env", &spec->environment, err);
    return r < 0 ? r : string_map_metadata(metadata, "metadata", &spec->metadata, err);
}

static int create_sandbox(struct api_call *call, struct error *err)
{
    struct sandbox_spec spec = {.template_name = "base", .timeout_s = SANDBOX_TIMEOUT_DEFAULT_S};
    struct sandbox_info info;
    int r = read_spec(call->body, &spec, err);
    if (r == 0)
        r = manager_create(call->api->manager, &spec, &info, err);
    string_list_done(&spec.environment);
    string_list_done(&spec.metadata);
    return r < 0 ? r : reply_sandbox(call, 201, &info);
}

static int get_sandbox(struct api_call *call, struct error *err)
{
    struct sandbox_info info;
    int r = manager_get(call->api->manager, call->parameters[0], &info, err);
    return r < 0 ? r : reply_sandbox(call, 200, &info);
}

static int delete_sandbox(struct api_call *call, struct error *err)
{
    int r = manager_kill(call->api->manager, call->parameters[0], err);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

static int pause_sandbox(struct api_call *call, struct error *err)
{
    static const char *const known[] = {"disk_only", NULL};
    bool disk_only = false;
    struct sandbox_info info;
    int r;
    if ((r = body_known(call->body, known, err)) < 0 ||
        (r = body_boolean(call->body, "disk_only", &disk_only, err)) < 0)
        return r;
    r = manager_pause(call->api->manager, call->parameters[0], disk_only, &info, err);
    return r < 0 ? r : reply_sandbox(call, 200, &info);
}

static int resume_sandbox(struct api_call *call, struct error *err)
{
    static const char *const known[] = {"timeout_s", "reboot", NULL};
    struct resume_options options = {.timeout_s = -1};
    bool was_running = false;
    struct sandbox_info info;
    int r = body_known(call->body, known, err);
    if (r == 0)
        r = read_timeout(call->body, &options.timeout_s, err);
    if (r == 0)
        r = body_boolean(call->body, "reboot", &options.reboot, err);
    if (r == 0)
        r = manager_resume(call->api->manager, call->parameters[0], &options, &was_running, &info, err);
    if (r < 0)
        return r;
    json_t *json = native_sandbox_json(&info, call->request->trusted);
    sandbox_info_done(&info);
    json_object_set_new(json, "was_running", json_boolean(was_running));
    reply_json(call->reply, 200, json);
    return 0;
}

static int checkpoint_sandbox(struct api_call *call, struct error *err)
{
    static const char *const known[] = {"name", NULL};
    const char *name = NULL;
    struct snapshot_info info;
    int r = body_known(call->body, known, err);
    if (r == 0)
        r = body_string(call->body, "name", &name, err);
    if (r == 0)
        r = manager_checkpoint(call->api->manager, call->parameters[0], name, &info, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 201, native_snapshot_json(&info));
    snapshot_info_done(&info);
    return 0;
}

static json_t *fork_results_json(const struct fork_result *results, unsigned count, bool with_token)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++) {
        const struct error *problem = &results[i].error;
        json_t *entry = problem->code == 0
                            ? json_pack("{s:o}", "sandbox", native_sandbox_json(&results[i].info, with_token))
                            : json_pack("{s:o}", "error", reply_failure_json(problem));
        json_array_append_new(array, entry);
    }
    return json_pack("{s:o}", "results", array);
}

static int fork_sandbox(struct api_call *call, struct error *err)
{
    int64_t count = 1;
    int64_t timeout_s = SANDBOX_TIMEOUT_DEFAULT_S;
    int r = body_integer(call->body, "count", 1, SANDBOX_FORK_MAX, &count, err);
    if (r == 0)
        r = read_timeout(call->body, &timeout_s, err);
    if (r < 0)
        return r;
    CLEANUP_FREE struct fork_result *results = calloc((size_t)count, sizeof(*results));
    if (results == NULL)
        return error_set(err, ENOMEM, "out of memory");
    r = manager_fork(call->api->manager, call->parameters[0], (unsigned)count, timeout_s, results, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 201, fork_results_json(results, (unsigned)count, call->request->trusted));
    fork_results_done(results, (unsigned)count);
    return 0;
}

static int set_timeout(struct api_call *call, struct error *err)
{
    int64_t timeout_s = -1;
    int r = read_timeout(call->body, &timeout_s, err);
    if (r < 0)
        return r;
    if (timeout_s < 0)
        return error_set(err, EINVAL, "\"timeout_s\" is missing");
    r = manager_set_timeout(call->api->manager, call->parameters[0], timeout_s, err);
    if (r == 0)
        reply_empty(call->reply, 204);
    return r;
}

static int get_logs(struct api_call *call, struct error *err)
{
    int64_t limit = LOGS_DEFAULT_BYTES;
    int r = api_query_integer(call, "limit", 1, LOGS_MAX_BYTES, &limit, err);
    if (r < 0)
        return r;
    char *text;
    size_t length;
    r = manager_logs(call->api->manager, call->parameters[0], (size_t)limit, &text, &length, err);
    if (r == 0)
        reply_text(call->reply, 200, text, length);
    return r;
}

static int get_stats(struct api_call *call, struct error *err)
{
    struct sandbox_stats stats;
    int r = manager_stats(call->api->manager, call->parameters[0], &stats, err);
    if (r == 0)
        reply_json(call->reply, 200, native_stats_json(&stats));
    return r;
}

const struct api_route native_sandbox_routes[] = {
    {"GET", "/dormouse/v1/health", get_health},
    {"GET", "/dormouse/v1/env", get_env},
    {"GET", "/dormouse/v1/sandboxes", list_sandboxes},
    {"POST", "/dormouse/v1/sandboxes", create_sandbox},
    {"GET", "/dormouse/v1/sandboxes/{}", get_sandbox},
    {"DELETE", "/dormouse/v1/sandboxes/{}", delete_sandbox},
    {"POST", "/dormouse/v1/sandboxes/{}/pause", pause_sandbox},
    {"POST", "/dormouse/v1/sandboxes/{}/resume", resume_sandbox},
    {"POST", "/dormouse/v1/sandboxes/{}/checkpoint", checkpoint_sandbox},
    {"POST", "/dormouse/v1/sandboxes/{}/fork", fork_sandbox},
    {"POST", "/dormouse/v1/sandboxes/{}/timeout", set_timeout},
    {"GET", "/dormouse/v1/sandboxes/{}/logs", get_logs},
    {"GET", "/dormouse/v1/sandboxes/{}/stats", get_stats},
    {0},
};
