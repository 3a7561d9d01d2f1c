#include "agent/rest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/auth.h"
#include "agent/metrics.h"
#include "agent/path.h"
#include "agent/proto.h"
#include "base/io.h"

#define JSON_TYPE      "application/json"
#define INIT_BODY_MAX  (1024 * 1024)
#define TOKEN_REQUIRED "the X-Access-Token header does not have this sandbox's access token"

/* ---- answers ---- */

static unsigned http_status(int error_code)
{
    switch (error_code) {
    case EINVAL:
    case EISDIR:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP:
        return 400;
    case EKEYREJECTED:
        return 401;
    case EACCES:
    case EPERM:
    case EROFS:
        return 403;
    case ENOENT:
        return 404;
    case ENOSPC:
    case EDQUOT:
        return 507;
    default:
        return 500;
    }
}

void rest_respond(struct http_connection *connection, unsigned status, const json_t *body)
{
    CLEANUP_FREE char *text = json_dumps(body, JSON_COMPACT);
    const char *sent = text != NULL ? text : "{\"code\":500,\"message\":\"the answer cannot be written as JSON\"}";
    http_respond(connection, text != NULL ? status : 500, JSON_TYPE, "", sent, strlen(sent));
}

void rest_fail(struct http_connection *connection, const struct error *err)
{
    unsigned status = http_status(err->code);
    json_t *body = json_pack("{s:i, s:s}", "code", (int)status, "message", error_message(err));
    rest_respond(connection, status, body);
    json_decref(body);
}

/* ---- /files: what both directions share ---- */

static int query(struct http_connection *connection, const char *name, char **ret, struct error *err)
{
    *ret = NULL;
    int r = http_query(connection, name, ret);
    if (r == -EINVAL)
        return error_set(err, EINVAL, "the query parameter '%s' is not validly encoded", name);
    return r < 0 ? error_code(err, r, "cannot read the query parameter '%s'", name) : 0;
}

static int check_signature(struct http_connection *connection, const char *operation, const char *path,
                           const char *user, struct error *err)
{
    const struct identity *identity = agent_of(connection)->identity;
    CLEANUP_FREE char *signature = NULL;
    CLEANUP_FREE char *expires = NULL;
    int r = query(connection, "signature", &signature, err);
    if (r == 0)
        r = query(connection, "signature_expiration", &expires, err);
    if (r < 0)
        return r;
    struct auth_signature given = {
        .path = path != NULL ? path : "",
        .operation = operation,
        .user = user != NULL ? user : "",
        .signature = signature,
        .expires = expires,
    };
    return auth_check_signature(identity, &given, clock_realtime_ns() / 1000000000, err);
}

int rest_resolve(struct http_connection *connection, const struct user *user, const char *path, char **ret,
                 struct error *err)
{
    return path_resolve(path, user->home, agent_of(connection)->identity->workdir, ret, err);
}

static struct rest_file take_file(struct rest_file *file)
{
    struct rest_file taken = *file;
    *file = (struct rest_file){0};
    return taken;
}

int rest_file_of(struct http_connection *connection, const char *operation, struct rest_file *ret,
                 struct error *err)
{
    const struct agent *agent = agent_of(connection);
    CLEANUP(rest_file_done) struct rest_file file = {0};
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *user = NULL;
    int r = query(connection, "path", &path, err);
    if (r == 0)
        r = query(connection, "username", &user, err);
    const char *token = http_header(connection, "X-Access-Token");
    if (r == 0 && (token == NULL || auth_check_token(agent->identity, token) < 0))
        r = check_signature(connection, operation, path, user, err);
    if (r == 0)
        r = users_load(&file.database, err);
    if (r == 0)
        r = agent_find_user(agent, &file.database, user, &file.user, err);
    if (r == 0 && path != NULL)
        r = rest_resolve(connection, &file.user, path, &file.path, err);
    if (r < 0)
        return r;
    *ret = take_file(&file);
    return 0;
}

void rest_file_done(struct rest_file *file)
{
    user_database_done(&file->database);
    user_done(&file->user);
    free(TAKE_PTR(file->path));
}

/* ---- /health, /metrics, /envs ---- */

static void health(struct http_connection *connection)
{
    http_respond(connection, 204, NULL, "Cache-Control: no-store\r\n", NULL, 0);
}

static void metrics(struct http_connection *connection)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *body;
    if (metrics_read(&body, &err) < 0) {
        rest_fail(connection, &err);
        return;
    }
    rest_respond(connection, 200, body);
    json_decref(body);
}

static void add_variable(void *context, const char *name, size_t name_length, const char *value)
{
    CLEANUP_FREE char *key = strndup(name, name_length);
    if (key != NULL)
        json_object_set_new(context, key, json_string(value));
}

static void envs(struct http_connection *connection)
{
    json_t *body = json_object();
    identity_each_variable(agent_of(connection)->identity, add_variable, body);
    rest_respond(connection, 200, body);
    json_decref(body);
}

/* ---- /init, on a host only ---- */

static int set_environment(struct identity *identity, const json_t *variables, struct error *err)
{
    const char *name;
    json_t *value;
    identity_clear_environment(identity);
    json_object_foreach ((json_t *)(uintptr_t)variables, name, value) {
        CLEANUP_STRBUF struct strbuf entry = STRBUF_INIT;
        if (!json_is_string(value) || *name == '\0' || strchr(name, '=') != NULL)
            return error_set(err, EINVAL, "'envVars' must map names to strings");
        strbuf_printf(&entry, "%s=%s", name, json_string_value(value));
        if (entry.failed || identity_add_environment(identity, entry.data, entry.length) < 0)
            return error_set(err, EINVAL, "'envVars' is too large");
    }
    return 0;
}

static int set_text(const json_t *message, const char *name, char *field, size_t size, struct error *err)
{
    const char *text;
    int r = proto_text(message, name, &text, err);
    if (r < 0 || text == NULL)
        return r;
    if (identity_set_text(field, size, text, strlen(text)) < 0)
        return error_set(err, EINVAL, "'%s' is too long", name);
    return 0;
}

static int apply_init(struct identity *identity, const json_t *message, struct error *err)
{
    const json_t *variables;
    int r = proto_object(message, "envVars", &variables, err);
    if (r == 0 && variables != NULL)
        r = set_environment(identity, variables, err);
    if (r == 0)
        r = set_text(message, "defaultUser", identity->user, sizeof(identity->user), err);
    if (r == 0)
        r = set_text(message, "defaultWorkdir", identity->workdir, sizeof(identity->workdir), err);
    if (r == 0)
        r = set_text(message, "accessToken", identity->token, sizeof(identity->token), err);
    identity->token_length = strlen(identity->token);
    return r;
}

static void init_complete(struct http_connection *connection)
{
    const struct strbuf *body = http_body(connection);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *message = body->length == 0 ? json_object() : json_loadb(body->data, body->length, 0, NULL);
    int r = json_is_object(message) ? apply_init(agent_of(connection)->identity, message, &err)
                                    : error_set(&err, EINVAL, "the body is not a JSON object");
    if (r < 0)
        rest_fail(connection, &err);
    else
        http_respond(connection, 204, NULL, "", NULL, 0);
    json_decref(message);
}

static void init(struct http_connection *connection)
{
    static const struct http_handler handler = {.body_limit = INIT_BODY_MAX, .complete = init_complete};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (agent_of(connection)->on_host) {
        http_handle(connection, &handler, NULL);
        return;
    }
    error_set(&err, EPERM, "only the host sets up this sandbox");
    rest_fail(connection, &err);
}

/* ---- dispatch ---- */

bool rest_begin(struct http_connection *connection)
{
    static const struct route {
        const char *path;
        enum http_method method;
        bool token_needed; /* the others do without, or check it themselves */
        void (*begin)(struct http_connection *connection);
    } routes[] = {
        {"/health", HTTP_GET, false, health},
        {"/metrics", HTTP_GET, true, metrics},
        {"/envs", HTTP_GET, true, envs},
        {"/init", HTTP_POST, false, init},
        {"/files", HTTP_GET, false, rest_download},
        {"/files", HTTP_POST, false, rest_upload},
    };
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool known = false;
    for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
        const struct route *route = &routes[i];
        if (strcmp(http_path(connection), route->path) != 0)
            continue;
        known = true;
        if (http_method(connection) != route->method)
            continue;
        const struct identity *identity = agent_of(connection)->identity;
        if (route->token_needed && auth_check_token(identity, http_header(connection, "X-Access-Token")) < 0) {
            error_set(&err, EKEYREJECTED, TOKEN_REQUIRED);
            rest_fail(connection, &err);
        } else {
            route->begin(connection);
        }
        return true;
    }
    if (known)
        http_respond(connection, 405, NULL, "", NULL, 0);
    return known;
}
