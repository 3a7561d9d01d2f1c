#include "agent/rpc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/auth.h"
#include "base/encode.h"

#define UNARY_TYPE         "application/json"
#define STREAM_TYPE        "application/connect+json"
#define TIMEOUT_DIGITS_MAX 10 /* as the protocol says */

static const struct procedure {
    const char *path;
    rpc_unary *unary;
    rpc_stream *stream;
} procedures[] = {
    {"/process.Process/Start", NULL, command_rpc_start},
    {"/process.Process/Connect", NULL, command_rpc_connect},
    {"/process.Process/List", command_rpc_list, NULL},
    {"/process.Process/Update", command_rpc_update, NULL},
    {"/process.Process/SendInput", command_rpc_send_input, NULL},
    {"/process.Process/SendSignal", command_rpc_send_signal, NULL},
    {"/process.Process/CloseStdin", command_rpc_close_stdin, NULL},
    {"/filesystem.Filesystem/Stat", filesystem_rpc_stat, NULL},
    {"/filesystem.Filesystem/MakeDir", filesystem_rpc_make_dir, NULL},
    {"/filesystem.Filesystem/Move", filesystem_rpc_move, NULL},
    {"/filesystem.Filesystem/ListDir", filesystem_rpc_list_dir, NULL},
    {"/filesystem.Filesystem/Remove", filesystem_rpc_remove, NULL},
};

static const struct procedure *find_procedure(const char *path)
{
    for (size_t i = 0; i < ARRAY_SIZE(procedures); i++)
        if (strcmp(procedures[i].path, path) == 0)
            return &procedures[i];
    return NULL;
}

/* ---- answers ---- */

void rpc_respond(struct http_connection *connection, const json_t *message)
{
    CLEANUP_FREE char *text = json_dumps(message, JSON_COMPACT);
    if (text == NULL) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        error_set(&err, ENOMEM, "the answer cannot be written as JSON");
        rpc_fail(connection, &err);
        return;
    }
    http_respond(connection, 200, UNARY_TYPE, "", text, strlen(text));
}

void rpc_fail(struct http_connection *connection, const struct error *err)
{
    CLEANUP_STRBUF struct strbuf body = STRBUF_INIT;
    connect_append_error(&body, err);
    http_respond(connection, connect_http_status(err->code), UNARY_TYPE, "", strbuf_text(&body), body.length);
}

void rpc_stream_begin(struct http_connection *connection, const struct http_handler *handler, void *owner)
{
    http_handle(connection, handler, owner);
    http_stream_begin(connection, STREAM_TYPE);
}

void rpc_stream_end(struct http_connection *connection, const struct error *err)
{
    CLEANUP_STRBUF struct strbuf frame = STRBUF_INIT;
    connect_append_end(&frame, err);
    http_stream_append(connection, strbuf_text(&frame), frame.length);
    http_stream_end(connection);
}

/* ---- requests ---- */

int rpc_user(struct http_connection *connection, const struct user_database *database, struct user *ret,
             struct error *err)
{
    static const char scheme[] = "Basic ";
    const char *header = http_header(connection, "Authorization");
    if (header == NULL || strncasecmp(header, scheme, strlen(scheme)) != 0)
        return agent_find_user(agent_of(connection), database, NULL, ret, err);
    CLEANUP_STRBUF struct strbuf credentials = STRBUF_INIT;
    const char *text = header + strlen(scheme);
    if (base64_decode(&credentials, text, strlen(text)) < 0 || credentials.length == 0)
        return error_set(err, EKEYREJECTED, "the Authorization header is not valid");
    credentials.data[strcspn(credentials.data, ":")] = '\0';
    return agent_find_user(agent_of(connection), database, credentials.data, ret, err);
}

int rpc_timeout(struct http_connection *connection, int64_t *ret_ns, struct error *err)
{
    const char *header = http_header(connection, "Connect-Timeout-Ms");
    if (header == NULL) {
        *ret_ns = 0;
        return 0;
    }
    size_t length = strlen(header);
    if (length == 0 || length > TIMEOUT_DIGITS_MAX || strspn(header, "0123456789") != length)
        return error_set(err, EINVAL, "Connect-Timeout-Ms is not a number of at most %d digits",
                         TIMEOUT_DIGITS_MAX);
    *ret_ns = (int64_t)strtoll(header, NULL, 10) * 1000000;
    return 0;
}

static int parse_message(const char *text, size_t length, json_t **ret, struct error *err)
{
    json_error_t where;
    json_t *message = json_loadb(text, length, 0, &where);
    if (message == NULL)
        return error_set(err, EINVAL, "the request is not valid JSON: %s", where.text);
    if (!json_is_object(message)) {
        json_decref(message);
        return error_set(err, EINVAL, "the request is not a JSON object");
    }
    *ret = message;
    return 0;
}

static void run_unary(struct http_connection *connection, const struct procedure *procedure)
{
    const struct strbuf *body = http_body(connection);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *request = NULL;
    json_t *response = NULL;
    int r = parse_message(strbuf_text(body), body->length, &request, &err);
    if (r == 0)
        r = procedure->unary(connection, request, &response, &err);
    if (r < 0)
        rpc_fail(connection, &err);
    else if (r != RPC_DEFERRED)
        rpc_respond(connection, response);
    json_decref(request);
    json_decref(response);
}

/* An error of a stream is its end frame; the HTTP status says nothing. */
static void fail_stream(struct http_connection *connection, const struct error *err)
{
    http_stream_begin(connection, STREAM_TYPE);
    rpc_stream_end(connection, err);
}

static void run_stream(struct http_connection *connection, const struct procedure *procedure)
{
    const struct strbuf *body = http_body(connection);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *request = NULL;
    const char *text;
    size_t length;
    int r = connect_parse_request(strbuf_text(body), body->length, &text, &length, &err);
    if (r == 0)
        r = parse_message(text, length, &request, &err);
    if (r == 0)
        r = procedure->stream(connection, request, &err);
    if (r < 0)
        fail_stream(connection, &err);
    json_decref(request);
}

static void request_complete(struct http_connection *connection)
{
    const struct procedure *procedure = find_procedure(http_path(connection));
    if (procedure->unary != NULL)
        run_unary(connection, procedure);
    else
        run_stream(connection, procedure);
}

static bool has_type(struct http_connection *connection, const char *type)
{
    const char *header = http_header(connection, "Content-Type");
    size_t length = strlen(type);
    return header != NULL && strncasecmp(header, type, length) == 0 &&
           (header[length] == '\0' || header[length] == ';' || header[length] == ' ');
}

static bool is_compressed(struct http_connection *connection, const char *header)
{
    const char *value = http_header(connection, header);
    return value != NULL && *value != '\0' && strcasecmp(value, "identity") != 0;
}

/* Refuses what can be refused before the body is read. */
static void begin_call(struct http_connection *connection, const struct procedure *procedure)
{
    static const struct http_handler handler = {.body_limit = RPC_BODY_MAX, .complete = request_complete};
    const struct identity *identity = agent_of(connection)->identity;
    bool stream = has_type(connection, STREAM_TYPE);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (auth_check_token(identity, http_header(connection, "X-Access-Token")) < 0) {
        error_set(&err, EKEYREJECTED, "the X-Access-Token header does not have this sandbox's access token");
        rpc_fail(connection, &err);
    } else if (procedure == NULL) {
        error_set(&err, ENOSYS, "the procedure %.128s is not implemented", http_path(connection));
        (stream ? fail_stream : rpc_fail)(connection, &err);
    } else if (stream != (procedure->stream != NULL) || (!stream && !has_type(connection, UNARY_TYPE))) {
        http_respond(connection, 415, NULL,
                     procedure->stream != NULL ? "Accept-Post: " STREAM_TYPE "\r\n"
                                               : "Accept-Post: " UNARY_TYPE "\r\n",
                     NULL, 0);
    } else if (is_compressed(connection, stream ? "Connect-Content-Encoding" : "Content-Encoding")) {
        error_set(&err, ENOSYS, "compressed messages are not supported");
        (stream ? fail_stream : rpc_fail)(connection, &err);
    } else {
        http_handle(connection, &handler, NULL);
    }
}

bool rpc_begin(struct http_connection *connection)
{
    static const char *const services[] = {"/process.Process/", "/filesystem.Filesystem/"};
    const char *path = http_path(connection);
    for (size_t i = 0; i < ARRAY_SIZE(services); i++) {
        if (strncmp(path, services[i], strlen(services[i])) != 0)
            continue;
        if (http_method(connection) == HTTP_POST)
            begin_call(connection, find_procedure(path));
        else
            http_respond(connection, 405, NULL, "Allow: POST\r\n", NULL, 0);
        return true;
    }
    return false;
}
