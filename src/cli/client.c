#include "cli/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "cli/cli.h"
#include "cli/format.h"

#define AGENT_PORT         "49983"
#define CONNECT_TIMEOUT_S  10L
#define POLL_MAX_MS        1000
#define MESSAGE_LENGTH_MAX 2000

struct client {
    char *socket_path;
    CURLM *multi; /* keeps the connection for the next call */
    int cancel_fd;
};

struct client_stream {
    struct client *client;
    CURL *easy;
    struct curl_slist *headers;
    client_source source;
    void *source_context;
    struct strbuf buffer; /* received, not yet read */
    size_t consumed;      /* of the buffer */
    bool answering;       /* the answer's body has begun */
    bool finished;
    CURLcode result; /* once finished */
};

int client_open(const char *socket_path, struct client **ret, struct error *err)
{
    if (strlen(socket_path) >= sizeof((struct sockaddr_un){0}.sun_path))
        return error_set(err, ENAMETOOLONG, "the socket's path is too long: %s", socket_path);
    struct client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return error_set(err, ENOMEM, "out of memory");
    client->cancel_fd = -1;
    client->socket_path = strdup(socket_path);
    client->multi = curl_multi_init();
    if (client->socket_path == NULL || client->multi == NULL) {
        client_close(&client);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret = client;
    return 0;
}

void client_close(struct client **client)
{
    struct client *c = TAKE_PTR(*client);
    if (c == NULL)
        return;
    curl_multi_cleanup(c->multi);
    free(c->socket_path);
    free(c);
}

void client_set_cancel(struct client *client, int fd)
{
    client->cancel_fd = fd;
}

/* ---- errors of answers ---- */

/* A peer's text as one clean line. */
static char *clean_text(const char *text)
{
    return format_clean(strndup(text, MESSAGE_LENGTH_MAX));
}

static int status_errno(long status)
{
    switch (status) {
    case 400:
        return EINVAL;
    case 401:
    case 403:
        return EACCES;
    case 404:
        return ENOENT;
    case 409:
        return EBUSY;
    case 429:
    case 503:
        return EAGAIN;
    case 504:
        return ETIMEDOUT;
    case 507:
        return ENOSPC;
    default:
        return EIO;
    }
}

static int connect_errno(const char *name)
{
    static const struct {
        const char *name;
        int code;
    } codes[] = {
        {"canceled", ECANCELED},          {"invalid_argument", EINVAL},
        {"deadline_exceeded", ETIMEDOUT}, {"not_found", ENOENT},
        {"already_exists", EEXIST},       {"permission_denied", EACCES},
        {"resource_exhausted", EAGAIN},   {"failed_precondition", EBUSY},
        {"unimplemented", ENOSYS},        {"unauthenticated", EKEYREJECTED},
        {"unavailable", EAGAIN},
    };
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
        if (strcmp(name, codes[i].name) == 0)
            return codes[i].code;
    return EIO;
}

static int set_peer_error(struct error *err, int code, const json_t *object)
{
    const char *message = json_string_value(json_object_get(object, "message"));
    const char *hint = json_string_value(json_object_get(object, "hint"));
    CLEANUP_FREE char *clean = clean_text(message != NULL && *message != '\0' ? message : strerror(code));
    error_set(err, code, "%s", clean != NULL ? clean : strerror(code));
    if (hint != NULL && *hint != '\0') {
        CLEANUP_FREE char *clean_hint = clean_text(hint);
        error_hint(err, "%s", clean_hint != NULL ? clean_hint : "");
    }
    return -code;
}

int client_peer_error(const json_t *object, struct error *err)
{
    const json_t *code = json_object_get(object, "code");
    if (json_is_string(code))
        return set_peer_error(err, connect_errno(json_string_value(code)), object);
    return set_peer_error(err, status_errno((long)json_integer_value(code)), object);
}

int client_http_error(long status, const char *body, size_t length, struct error *err)
{
    json_t *answer = json_loadb(body, length, 0, NULL);
    int r;
    if (json_is_string(json_object_get(answer, "code")))
        r = client_peer_error(answer, err);
    else if (json_is_string(json_object_get(answer, "message")))
        r = set_peer_error(err, status_errno(status), answer);
    else
        r = error_set(err, status_errno(status), "the daemon answered with HTTP status %ld and no explanation",
                      status);
    json_decref(answer);
    return r;
}

static int unreachable_error(const struct client *client, CURL *easy, struct error *err)
{
    long os_errno = 0;
    curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &os_errno);
    int code = os_errno > 0 ? (int)os_errno : ECONNREFUSED;
    error_code(err, -code, "cannot reach the daemon at %s", client->socket_path);
    if (code == EACCES || code == EPERM)
        error_hint(err, "run it as root, or as a user who may open that socket");
    else
        error_hint(err, "start it with: dormoused --socket %s; or name another with --socket", client->socket_path);
    return -code;
}

int client_curl_error(const struct client *client, CURL *easy, CURLcode code, struct error *err)
{
    switch (code) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return unreachable_error(client, easy, err);
    case CURLE_OPERATION_TIMEDOUT:
        error_set(err, ETIMEDOUT, "the daemon at %s does not accept connections", client->socket_path);
        return -ETIMEDOUT;
    case CURLE_OUT_OF_MEMORY:
        return error_set(err, ENOMEM, "out of memory");
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
        return error_set(err, EPROTO, "what listens at %s does not speak HTTP", client->socket_path);
    default:
        error_set(err, ECONNRESET, "the connection to the daemon broke off (%s)", curl_easy_strerror(code));
        error_hint(err, "look at the daemon's log; the sandboxes go on without it");
        return -ECONNRESET;
    }
}

/* ---- requests ---- */

static bool append_header(struct curl_slist **headers, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*headers, line);
    if (longer != NULL)
        *headers = longer;
    return longer != NULL;
}

static bool append_guest_headers(struct curl_slist **headers, const struct guest *guest)
{
    CLEANUP_STRBUF struct strbuf id = STRBUF_INIT;
    strbuf_printf(&id, "E2b-Sandbox-Id: %s", guest->sandbox_id);
    return !id.failed && append_header(headers, strbuf_text(&id)) &&
           append_header(headers, "E2b-Sandbox-Port: " AGENT_PORT) &&
           append_header(headers, "Connect-Protocol-Version: 1");
}

CURL *client_easy_new(const struct client *client, const char *path, const struct guest *guest,
                      struct curl_slist **headers, struct error *err)
{
    CLEANUP_STRBUF struct strbuf url = STRBUF_INIT;
    strbuf_printf(&url, "http://localhost%s", path);
    CURL *easy = curl_easy_init();
    bool ok = easy != NULL && !url.failed && append_header(headers, "Expect:");
    if (ok && guest != NULL)
        ok = append_guest_headers(headers, guest);
    ok = ok && curl_easy_setopt(easy, CURLOPT_URL, strbuf_text(&url)) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, client->socket_path) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_PROXY, "") == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_USERAGENT, "dormouse/" DORMOUSE_VERSION) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_HTTPHEADER, *headers) == CURLE_OK;
    if (ok && guest != NULL && guest->user != NULL)
        ok = curl_easy_setopt(easy, CURLOPT_HTTPAUTH, (long)CURLAUTH_BASIC) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_USERNAME, guest->user) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_PASSWORD, "") == CURLE_OK;
    if (ok)
        return easy;
    curl_easy_cleanup(easy);
    error_set(err, ENOMEM, "cannot prepare a request");
    return NULL;
}

static size_t receive_body(char *data, size_t unit, size_t count, void *context)
{
    struct client_stream *stream = context;
    stream->answering = true;
    if (stream->consumed == stream->buffer.length && stream->consumed > 0) {
        strbuf_consume(&stream->buffer, stream->consumed);
        stream->consumed = 0;
    }
    strbuf_append(&stream->buffer, data, unit * count);
    return stream->buffer.failed ? 0 : unit * count;
}

static size_t send_body(char *buffer, size_t unit, size_t count, void *context)
{
    struct client_stream *stream = context;
    ssize_t n = stream->source(stream->source_context, buffer, unit * count);
    return n < 0 ? CURL_READFUNC_ABORT : (size_t)n;
}

static int set_request_body(struct client_stream *stream, const struct client_request *request)
{
    CLEANUP_STRBUF struct strbuf type = STRBUF_INIT;
    if (request->content_type != NULL) {
        strbuf_printf(&type, "Content-Type: %s", request->content_type);
        if (type.failed || !append_header(&stream->headers, strbuf_text(&type)))
            return -ENOMEM;
    }
    CURL *easy = stream->easy;
    bool ok = true;
    if (request->source != NULL) {
        stream->source = request->source;
        stream->source_context = request->source_context;
        ok = append_header(&stream->headers, "Transfer-Encoding: chunked") &&
             curl_easy_setopt(easy, CURLOPT_POST, 1L) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_READFUNCTION, send_body) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_READDATA, stream) == CURLE_OK;
    } else if (request->body != NULL || strcmp(request->method, "POST") == 0) {
        const char *body = request->body != NULL ? request->body : "";
        ok = curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body)) == CURLE_OK &&
             curl_easy_setopt(easy, CURLOPT_COPYPOSTFIELDS, body) == CURLE_OK;
    }
    ok = ok && curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_HTTPHEADER, stream->headers) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, receive_body) == CURLE_OK &&
         curl_easy_setopt(easy, CURLOPT_WRITEDATA, stream) == CURLE_OK;
    return ok ? 0 : -ENOMEM;
}

/* Moves the transfer on, waiting for it if need be; ends early when canceled. */
static int stream_advance(struct client_stream *stream, struct error *err)
{
    struct client *client = stream->client;
    int running;
    CURLMcode m = curl_multi_perform(client->multi, &running);
    int left;
    CURLMsg *message;
    while ((message = curl_multi_info_read(client->multi, &left)) != NULL)
        if (message->msg == CURLMSG_DONE && message->easy_handle == stream->easy) {
            stream->finished = true;
            stream->result = message->data.result;
        }
    if (stream->finished || stream->consumed < stream->buffer.length)
        return 0;
    struct curl_waitfd cancel = {.fd = client->cancel_fd, .events = CURL_WAIT_POLLIN};
    if (m == CURLM_OK)
        m = curl_multi_poll(client->multi, &cancel, client->cancel_fd >= 0 ? 1 : 0, POLL_MAX_MS, NULL);
    if (m != CURLM_OK)
        return error_set(err, EIO, "cannot wait for the daemon: %s", curl_multi_strerror(m));
    if (cancel.revents != 0)
        return error_set(err, ECANCELED, "interrupted");
    return 0;
}

static int stream_failure(struct client_stream *stream, struct error *err)
{
    return client_curl_error(stream->client, stream->easy, stream->result, err);
}

static long stream_status(struct client_stream *stream)
{
    long status = 0;
    curl_easy_getinfo(stream->easy, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

/* Runs until the head is there; an error answer is read whole and reported. */
static int stream_await_head(struct client_stream *stream, struct error *err)
{
    while (!stream->finished && !stream->answering) {
        int r = stream_advance(stream, err);
        if (r < 0)
            return r;
    }
    long status = stream_status(stream);
    if (status < 400) {
        if (stream->finished && stream->result != CURLE_OK)
            return stream_failure(stream, err);
        return 0;
    }
    CLEANUP_STRBUF struct strbuf answer = STRBUF_INIT;
    while (answer.length <= CLIENT_ERROR_ANSWER_MAX) {
        char block[4096];
        ssize_t n = client_stream_read(stream, block, sizeof(block), NULL);
        if (n <= 0)
            break;
        strbuf_append(&answer, block, (size_t)n);
    }
    return client_http_error(status, strbuf_text(&answer), answer.length, err);
}

int client_stream_open(struct client *client, const struct client_request *request, struct client_stream **ret,
                       struct error *err)
{
    CLEANUP_STREAM struct client_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL)
        return error_set(err, ENOMEM, "out of memory");
    stream->client = client;
    stream->easy = client_easy_new(client, request->path, request->guest, &stream->headers, err);
    if (stream->easy == NULL)
        return -ENOMEM;
    if (set_request_body(stream, request) < 0 || curl_multi_add_handle(client->multi, stream->easy) != CURLM_OK)
        return error_set(err, ENOMEM, "cannot prepare a request");
    int r = stream_await_head(stream, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(stream);
    return 0;
}

ssize_t client_stream_read(struct client_stream *stream, void *buffer, size_t size, struct error *err)
{
    while (stream->consumed == stream->buffer.length) {
        if (stream->finished && stream->result != CURLE_OK)
            return stream_failure(stream, err);
        if (stream->finished)
            return 0;
        int r = stream_advance(stream, err);
        if (r < 0)
            return r;
    }
    size_t n = MIN(size, stream->buffer.length - stream->consumed);
    memcpy(buffer, stream->buffer.data + stream->consumed, n);
    stream->consumed += n;
    return (ssize_t)n;
}

int client_stream_read_all(struct client_stream *stream, struct strbuf *ret, struct error *err)
{
    char block[16384];
    for (;;) {
        ssize_t n = client_stream_read(stream, block, sizeof(block), err);
        if (n <= 0)
            return (int)n;
        strbuf_append(ret, block, (size_t)n);
        if (ret->failed)
            return error_set(err, ENOMEM, "out of memory");
        if (ret->length > CLIENT_ANSWER_MAX)
            return error_set(err, EFBIG, "the answer is larger than %zu MiB", CLIENT_ANSWER_MAX >> 20);
    }
}

void client_stream_close(struct client_stream **stream)
{
    struct client_stream *s = TAKE_PTR(*stream);
    if (s == NULL)
        return;
    if (s->easy != NULL)
        curl_multi_remove_handle(s->client->multi, s->easy);
    curl_easy_cleanup(s->easy);
    curl_slist_free_all(s->headers);
    strbuf_done(&s->buffer);
    free(s);
}

/* ---- whole calls ---- */

static int call(struct client *client, const struct client_request *request, json_t **ret, struct error *err)
{
    CLEANUP_STREAM struct client_stream *stream = NULL;
    CLEANUP_STRBUF struct strbuf answer = STRBUF_INIT;
    int r = client_stream_open(client, request, &stream, err);
    if (r < 0)
        return r;
    r = client_stream_read_all(stream, &answer, err);
    if (r < 0)
        return r;
    if (ret == NULL)
        return 0;
    json_t *value = json_loadb(strbuf_text(&answer), answer.length, 0, NULL);
    if (value == NULL)
        return error_set(err, EPROTO, "the daemon's answer to %s %s is not JSON", request->method, request->path);
    *ret = value;
    return 0;
}

static int call_with_body(struct client *client, struct client_request *request, json_t *body, json_t **ret,
                          struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    if (body != NULL) {
        text = json_dumps(body, JSON_COMPACT);
        json_decref(body);
        if (text == NULL)
            return error_set(err, ENOMEM, "out of memory");
        request->body = text;
        request->content_type = "application/json";
    }
    return call(client, request, ret, err);
}

int client_call(struct client *client, const char *method, const char *path, json_t *body, json_t **ret,
                struct error *err)
{
    struct client_request request = {.method = method, .path = path};
    return call_with_body(client, &request, body, ret, err);
}

int client_guest_call(struct client *client, const struct guest *guest, const char *procedure, json_t *body,
                      json_t **ret, struct error *err)
{
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, "/%s", procedure);
    struct client_request request = {.method = "POST", .path = strbuf_text(&path), .guest = guest};
    return call_with_body(client, &request, body, ret, err);
}
