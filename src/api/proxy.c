/*
 * One request through libcurl's multi interface, driven by the connection's own thread: while the server hands over
 * the request body, while the answer's head is awaited, and then each time the server wants more of the answer's
 * body. In between nothing moves, so back pressure is that of the two sockets.
 *
 * What ends an exchange early: the client hangs up or the daemon stops (both wake the wait), or the sandbox is no
 * longer the one that was connected to. The last is looked at periodically, because a guest that was paused or
 * killed says nothing: its end of the connection vanishes without a packet.
 */
#include "api/proxy.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "api/guest.h"
#include "api/proxy_target.h"
#include "api/reply.h"
#include "api/signature.h"
#include "api/upgrade.h"
#include "api/uri.h"

#define BUFFER_BYTES     (64 * 1024UL) /* of an answer, ahead of the client */
#define BLOCK_BYTES      (32 * 1024UL)
#define HEAD_BYTES_MAX   (32 * 1024UL) /* of an answer's head */
#define HEADERS_MAX      128
#define LIVENESS_WAIT_MS 1000

struct proxy {
    struct api *api;
    struct http_request *request;
    struct guest_endpoint endpoint;
    int64_t started_ns; /* of the sandbox: tells a later run of it from this one */
    int hangup_fd;
    CURL *easy;
    CURLM *multi;
    struct curl_slist *headers;
    bool upgrade;  /* not by curl: see upgrade.h */
    bool finished; /* curl is done, `result` says how */
    bool aborted;  /* by the client, by the daemon's end, or because the sandbox went */
    CURLcode result;

    const char *upload; /* the server's; valid during proxy_upload */
    size_t upload_length;
    uint64_t upload_left; /* bytes of the body that proxy_upload has not been given; UINT64_MAX: unknown */
    bool upload_complete;
    bool upload_paused; /* curl has sent all it was given and wants more */

    bool head_complete;
    struct strbuf head; /* header lines, each ended by NUL */
    size_t head_count;
    struct strbuf body; /* received, not yet taken by the client */
    bool body_paused;
};

/* ---- curl's callbacks ---- */

static size_t read_upload(char *buffer, size_t size, size_t count, void *context)
{
    struct proxy *proxy = context;
    if (proxy->upload_length == 0 && !proxy->upload_complete) {
        proxy->upload_paused = true;
        return CURL_READFUNC_PAUSE;
    }
    size_t length = MIN(size * count, proxy->upload_length);
    if (length > 0)
        memcpy(buffer, proxy->upload, length);
    proxy->upload += length;
    proxy->upload_length -= length;
    return length;
}

static size_t write_body(char *data, size_t size, size_t count, void *context)
{
    struct proxy *proxy = context;
    if (proxy->body.length >= BUFFER_BYTES) {
        proxy->body_paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    strbuf_append(&proxy->body, data, size * count);
    return proxy->body.failed ? 0 : size * count;
}

static bool is_blank(const char *line, size_t length)
{
    return length == 0 || (length <= 2 && line[length - 1] == '\n' && (length == 1 || line[0] == '\r'));
}

/* Called for each line of each head (there may be 1xx ones before the last), and for trailers, which are dropped.
 */
static size_t read_header(char *line, size_t size, size_t count, void *context)
{
    struct proxy *proxy = context;
    size_t length = size * count;
    if (proxy->head_complete)
        return length;
    if (is_blank(line, length)) {
        long status = 0;
        curl_easy_getinfo(proxy->easy, CURLINFO_RESPONSE_CODE, &status);
        proxy->head_complete = status >= 200;
        return status == 101 ? 0 : length; /* an upgrade that nobody asked for */
    }
    if (length > strlen("HTTP/") && strncasecmp(line, "HTTP/", strlen("HTTP/")) == 0) {
        proxy->head_count = 0;
        strbuf_consume(&proxy->head, proxy->head.length);
        return length;
    }
    if (++proxy->head_count > HEADERS_MAX || proxy->head.length + length > HEAD_BYTES_MAX ||
        memchr(line, '\0', length) != NULL)
        return 0; /* ends the transfer */
    while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r'))
        length--;
    strbuf_append(&proxy->head, line, length);
    strbuf_append(&proxy->head, "", 1);
    return proxy->head.failed ? 0 : size * count;
}

/* ---- driving it ---- */

static void update_pauses(struct proxy *proxy)
{
    int mask = (proxy->upload_paused ? CURLPAUSE_SEND : 0) | (proxy->body_paused ? CURLPAUSE_RECV : 0);
    curl_easy_pause(proxy->easy, mask);
}

static void collect_result(struct proxy *proxy)
{
    int left;
    CURLMsg *message;
    while ((message = curl_multi_info_read(proxy->multi, &left)) != NULL) {
        if (message->msg == CURLMSG_DONE) {
            proxy->finished = true;
            proxy->result = message->data.result;
        }
    }
}

/* Whether the sandbox still is what was connected to. While it is being captured it may yet go on. */
static bool sandbox_lives(void *context)
{
    struct proxy *proxy = context;
    struct sandbox_info info;
    if (manager_get(proxy->api->manager, proxy->endpoint.sandbox_id, &info, NULL) < 0)
        return false;
    bool lives =
        info.started_ns == proxy->started_ns && (info.state == SANDBOX_RUNNING || info.state == SANDBOX_PAUSING);
    sandbox_info_done(&info);
    return lives;
}

/* Moves what can be moved and waits for something to happen; afterwards the caller looks at the state. */
static void step(struct proxy *proxy)
{
    int running;
    size_t buffered = proxy->body.length;
    bool wanted = proxy->upload_paused;
    size_t to_send = proxy->upload_length;
    if (curl_multi_perform(proxy->multi, &running) != CURLM_OK)
        proxy->aborted = true;
    collect_result(proxy);
    if (proxy->finished || proxy->aborted || proxy->body.length > buffered || proxy->upload_length < to_send ||
        proxy->upload_paused != wanted)
        return;
    struct curl_waitfd hangup = {.fd = proxy->hangup_fd, .events = CURL_WAIT_POLLIN};
    int events = 0;
    if (curl_multi_poll(proxy->multi, &hangup, 1, LIVENESS_WAIT_MS, &events) != CURLM_OK || hangup.revents != 0 ||
        (events == 0 && !sandbox_lives(proxy)))
        proxy->aborted = true;
}

static bool over(const struct proxy *proxy)
{
    return proxy->finished || proxy->aborted;
}

void proxy_upload(struct proxy *proxy, const char *data, size_t length)
{
    proxy->upload = data;
    proxy->upload_length = length;
    if (proxy->upload_left != UINT64_MAX)
        proxy->upload_left -= length;
    if (proxy->upload_paused) {
        proxy->upload_paused = false;
        update_pauses(proxy);
    }
    /* Until it is sent, not just taken: the client may now pause. After the last piece curl won't ask for more. */
    while ((proxy->upload_length > 0 || (proxy->upload_left > 0 && !proxy->upload_paused)) && !over(proxy))
        step(proxy);
    proxy->upload_length = 0; /* after an early end the rest of the body has nowhere to go */
}

static ssize_t read_body(void *context, uint64_t position, char *buffer, size_t size)
{
    (void)position;
    struct proxy *proxy = context;
    while (proxy->body.length == 0 && !over(proxy)) {
        if (proxy->body_paused) {
            proxy->body_paused = false;
            update_pauses(proxy);
        } else {
            step(proxy);
        }
    }
    if (proxy->aborted)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t length = MIN(size, proxy->body.length);
    if (length == 0)
        return proxy->result == CURLE_OK ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    memcpy(buffer, proxy->body.data, length);
    strbuf_consume(&proxy->body, length);
    return (ssize_t)length;
}

/* ---- the answer ---- */

/* The bodies that E2B's clients look for. */
static void reply_unreachable(struct http_reply *reply, const char *sandbox_id, unsigned port, const char *message)
{
    json_t *json = json_pack("{s:s, s:s, s:i}", "sandboxId", sandbox_id, "message", message, "code", 502);
    if (port != 0)
        json_object_set_new(json, "port", json_integer(port));
    reply_json(reply, 502, json);
}

static void reply_gone(struct http_reply *reply, const char *sandbox_id)
{
    reply_unreachable(reply, sandbox_id, 0, "The sandbox was not found");
}

static void reply_no_answer(struct proxy *proxy, bool connected, struct http_reply *reply)
{
    const struct guest_endpoint *endpoint = &proxy->endpoint;
    int problem = endpoint->socket_error.code;
    if (problem == EBUSY || problem == ENOENT)
        reply_gone(reply, endpoint->sandbox_id);
    else if (problem != 0)
        reply_failure(reply, &endpoint->socket_error);
    else if (!connected)
        reply_unreachable(reply, endpoint->sandbox_id, endpoint->port,
                          "The sandbox is running but port is not open");
    else
        reply_unreachable(reply, endpoint->sandbox_id, endpoint->port,
                          "The server in the sandbox gave no proper HTTP answer");
}

static const char *find_head_value(const struct proxy *proxy, const char *name)
{
    size_t length = strlen(name);
    const char *end = strbuf_text(&proxy->head) + proxy->head.length;
    for (const char *line = strbuf_text(&proxy->head); line < end; line += strlen(line) + 1)
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " \t");
    return NULL;
}

static void copy_head(struct proxy *proxy, struct MHD_Response *response)
{
    const char *connection = find_head_value(proxy, "Connection");
    char *end = proxy->head.data + proxy->head.length;
    for (char *line = proxy->head.data; line < end;) {
        char *next = line + strlen(line) + 1;
        char *colon = strchr(line, ':');
        if (colon != NULL) {
            *colon = '\0';
            /* The library refuses names and values that could split the head; such a header is dropped. */
            if (!proxy_header_stays(line, connection))
                (void)MHD_add_response_header(response, line, colon + 1 + strspn(colon + 1, " \t"));
            *colon = ':';
        }
        line = next;
    }
}

static void reply_answer(struct proxy *proxy, struct http_reply *reply)
{
    long status = 0;
    curl_off_t length = -1;
    curl_easy_getinfo(proxy->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(proxy->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    uint64_t size = length >= 0 ? (uint64_t)length : MHD_SIZE_UNKNOWN;
    reply->response = MHD_create_response_from_callback(size, BLOCK_BYTES, read_body, proxy, NULL);
    if (reply->response == NULL)
        return;
    reply->status = (unsigned)status;
    copy_head(proxy, reply->response);
}

/* A client that was answered there gets no reply here: its connection is closed. */
static void run_upgrade(struct proxy *proxy, struct http_reply *reply)
{
    struct upgrade upgrade = {.request = proxy->request,
                              .endpoint = &proxy->endpoint,
                              .hangup_fd = proxy->hangup_fd,
                              .alive = sandbox_lives,
                              .alive_context = proxy};
    enum upgrade_result result = upgrade_run(&upgrade);
    if (result == UPGRADE_ABORTED && !sandbox_lives(proxy))
        reply_gone(reply, proxy->endpoint.sandbox_id);
    else if (result != UPGRADE_DONE && result != UPGRADE_ABORTED)
        reply_no_answer(proxy, result == UPGRADE_MALFORMED, reply);
}

static void run_transfer(struct proxy *proxy, struct http_reply *reply)
{
    proxy->upload_complete = true;
    if (proxy->upload_paused) {
        proxy->upload_paused = false;
        update_pauses(proxy);
    }
    while (!proxy->head_complete && !over(proxy))
        step(proxy);
    curl_off_t connect_us = 0;
    curl_easy_getinfo(proxy->easy, CURLINFO_CONNECT_TIME_T, &connect_us);
    if (proxy->head_complete)
        reply_answer(proxy, reply);
    else if (proxy->finished)
        reply_no_answer(proxy, connect_us > 0, reply);
    else if (!sandbox_lives(proxy))
        reply_gone(reply, proxy->endpoint.sandbox_id);
}

void proxy_respond(struct proxy *proxy, struct http_reply *reply)
{
    proxy->request->unbounded_reply = true;
    if (proxy->upgrade)
        run_upgrade(proxy, reply);
    else
        run_transfer(proxy, reply);
}

/* ---- the request ---- */

bool proxy_wants(struct http_request *request)
{
    struct proxy_target target;
    int r = proxy_target_parse(http_request_header(request, MHD_HTTP_HEADER_HOST),
                               http_request_header(request, "E2b-Sandbox-Id"),
                               http_request_header(request, "E2b-Sandbox-Port"), &target);
    return r != 0 || strcmp(request->path, "/files") == 0;
}

/* The sandbox whose token made the signature. -EACCES when there is none. */
static int find_by_signature(struct proxy *proxy, struct sandbox_info *ret)
{
    struct uri_query query;
    if (uri_query_parse(proxy->request->query, &query) < 0)
        return -EACCES;
    struct sandbox_list list;
    int r = manager_list(proxy->api->manager, &list, NULL);
    if (r == 0) {
        size_t i = 0;
        while (i < list.count && !signature_fits(&query, proxy->request->method, list.items[i].access_token))
            i++;
        r = i < list.count ? manager_get(proxy->api->manager, list.items[i].id, ret, NULL) : -EACCES;
        sandbox_list_done(&list);
    }
    uri_query_done(&query);
    return r;
}

static int find_sandbox(struct proxy *proxy, struct sandbox_info *ret, struct http_reply *reply)
{
    struct proxy_target target = {0};
    int named = proxy_target_parse(http_request_header(proxy->request, MHD_HTTP_HEADER_HOST),
                                   http_request_header(proxy->request, "E2b-Sandbox-Id"),
                                   http_request_header(proxy->request, "E2b-Sandbox-Port"), &target);
    if (named < 0) {
        reply_error(reply, 400, "the request names a sandbox or port in a wrong form", NULL);
        return named;
    }
    if (named == 0) {
        int r = find_by_signature(proxy, ret);
        if (r < 0)
            reply_error(reply, 401, "the signature fits no sandbox", NULL);
        proxy->endpoint.port = GUEST_AGENT_PORT;
        return r;
    }
    proxy->endpoint.port = target.port;
    struct sandbox_info info;
    int r = manager_get(proxy->api->manager, target.sandbox_id, &info, NULL);
    if (r == 0 && strcmp(info.id, target.sandbox_id) == 0) {
        *ret = info;
        return 0;
    }
    if (r == 0)
        sandbox_info_done(&info);
    reply_gone(reply, target.sandbox_id);
    return -ENOENT;
}

static bool add_header(struct proxy *proxy, const char *name, const char *value)
{
    CLEANUP_FREE char *line = NULL;
    /* "Name;" is how curl is told to send an empty value: "Name:" would remove the header. */
    if (asprintf(&line, value[0] != '\0' ? "%s: %s" : "%s;%s", name, value) < 0) {
        line = NULL;
        return false;
    }
    struct curl_slist *longer = curl_slist_append(proxy->headers, line);
    if (longer == NULL)
        return false;
    proxy->headers = longer;
    return true;
}

static enum MHD_Result copy_header(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    (void)kind;
    struct proxy *proxy = context;
    if (proxy_header_stays(name, http_request_header(proxy->request, MHD_HTTP_HEADER_CONNECTION)))
        return MHD_YES;
    return add_header(proxy, name, value != NULL ? value : "") ? MHD_YES : MHD_NO;
}

/* The client's headers, and without those that curl would add of its own. */
static bool make_headers(struct proxy *proxy, const char *access_token)
{
    struct http_request *request = proxy->request;
    int total = MHD_get_connection_values(request->connection, MHD_HEADER_KIND, NULL, NULL);
    struct curl_slist *quiet = curl_slist_append(NULL, "Expect:");
    if (quiet == NULL)
        return false;
    proxy->headers = quiet;
    if (http_request_header(request, MHD_HTTP_HEADER_ACCEPT) == NULL &&
        curl_slist_append(proxy->headers, "Accept:") == NULL)
        return false;
    if (MHD_get_connection_values(request->connection, MHD_HEADER_KIND, copy_header, proxy) != total)
        return false;
    bool add_token = request->trusted && proxy->endpoint.port == GUEST_AGENT_PORT &&
                     http_request_header(request, "X-Access-Token") == NULL;
    return !add_token || add_header(proxy, "X-Access-Token", access_token);
}

static void set_method(struct proxy *proxy)
{
    struct http_request *request = proxy->request;
    const char *length = http_request_header(request, MHD_HTTP_HEADER_CONTENT_LENGTH);
    bool chunked = http_request_header(request, MHD_HTTP_HEADER_TRANSFER_ENCODING) != NULL;
    CURL *easy = proxy->easy;
    if (chunked || length != NULL) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, read_upload);
        curl_easy_setopt(easy, CURLOPT_READDATA, proxy);
        proxy->upload_left = chunked ? UINT64_MAX : strtoull(length, NULL, 10);
        curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, chunked ? (curl_off_t)-1 : (curl_off_t)proxy->upload_left);
    }
    if (strcmp(request->method, MHD_HTTP_METHOD_HEAD) == 0)
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
    else
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
}

/* 0 or -ENOMEM. */
static int start_transfer(struct proxy *proxy, const char *access_token)
{
    struct http_request *request = proxy->request;
    CLEANUP_FREE char *target = NULL;
    if (asprintf(&target, "%s%s%s", request->path, request->query[0] != '\0' ? "?" : "", request->query) < 0) {
        target = NULL;
        return -ENOMEM;
    }
    proxy->easy = guest_curl(&proxy->endpoint, target);
    proxy->multi = curl_multi_init();
    if (proxy->easy == NULL || proxy->multi == NULL || !make_headers(proxy, access_token))
        return -ENOMEM;
    set_method(proxy);
    curl_easy_setopt(proxy->easy, CURLOPT_HTTPHEADER, proxy->headers);
    curl_easy_setopt(proxy->easy, CURLOPT_HEADERFUNCTION, read_header);
    curl_easy_setopt(proxy->easy, CURLOPT_HEADERDATA, proxy);
    curl_easy_setopt(proxy->easy, CURLOPT_WRITEFUNCTION, write_body);
    curl_easy_setopt(proxy->easy, CURLOPT_WRITEDATA, proxy);
    return curl_multi_add_handle(proxy->multi, proxy->easy) == CURLM_OK ? 0 : -ENOMEM;
}

/* A request for the agent must prove that it may; what is wrong with one for another port, its server finds. */
static bool may_wake(const struct proxy *proxy, const struct sandbox_info *info)
{
    if (proxy->endpoint.port != GUEST_AGENT_PORT)
        return true;
    const char *token = http_request_header(proxy->request, "X-Access-Token");
    if (token == NULL)
        return proxy->request->trusted;
    return strlen(token) == strlen(info->access_token) &&
           CRYPTO_memcmp(token, info->access_token, strlen(token)) == 0;
}

/*
 * Brings the sandbox to where it can be connected to, if it is to be woken by requests; *info is then what it is
 * now. 0, or a negative errno with the refusal in *reply.
 */
static int wake(struct proxy *proxy, struct sandbox_info *info, struct http_reply *reply)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct sandbox_info awake;
    int r = -EBUSY;
    if (info->auto_resume && may_wake(proxy, info))
        r = manager_wake(proxy->api->manager, info->id, &awake, &err);
    if (r == -EBUSY || r == -ENOENT)
        reply_gone(reply, info->id);
    else if (r < 0)
        reply_failure(reply, &err);
    if (r < 0)
        return r;
    sandbox_info_done(info);
    *info = awake;
    return 0;
}

/* Whether it can be connected to. One that is being captured may yet go on; if it is woken later, better wait. */
static bool is_awake(const struct sandbox_info *info)
{
    return info->state == SANDBOX_RUNNING || (info->state == SANDBOX_PAUSING && !info->auto_resume);
}

/* 0, or a negative errno with the refusal in *reply. */
static int begin(struct proxy *proxy, struct http_reply *reply)
{
    CLEANUP(sandbox_info_done) struct sandbox_info info = {0};
    int r = find_sandbox(proxy, &info, reply);
    if (r < 0)
        return r;
    if (proxy->endpoint.port == GUEST_AGENT_PORT && proxy_target_host_only(proxy->request->path)) {
        reply_error(reply, 403, "this path is for the host only", NULL);
        return -EACCES;
    }
    if (!is_awake(&info) && (r = wake(proxy, &info, reply)) < 0)
        return r;
    proxy->endpoint.manager = proxy->api->manager;
    proxy->endpoint.sandbox_id = strdup(info.id);
    proxy->started_ns = info.started_ns;
    proxy->hangup_fd = http_request_hangup_fd(proxy->request);
    proxy->upgrade = upgrade_wanted(proxy->request);
    if (proxy->endpoint.sandbox_id == NULL || proxy->hangup_fd < 0 ||
        (!proxy->upgrade && start_transfer(proxy, info.access_token) < 0)) {
        reply_error(reply, 503, "the proxy is out of memory or file descriptors", NULL);
        return -ENOMEM;
    }
    return 0;
}

struct proxy *proxy_open(struct api *api, struct http_request *request, struct http_reply *reply)
{
    struct proxy *proxy = calloc(1, sizeof(*proxy));
    if (proxy == NULL) {
        reply_error(reply, 503, "out of memory", NULL);
        return NULL;
    }
    proxy->api = api;
    proxy->request = request;
    if (begin(proxy, reply) == 0)
        return proxy;
    proxy_close(proxy);
    return NULL;
}

void proxy_close(struct proxy *proxy)
{
    if (proxy == NULL)
        return;
    if (proxy->multi != NULL && proxy->easy != NULL)
        curl_multi_remove_handle(proxy->multi, proxy->easy);
    curl_easy_cleanup(proxy->easy);
    if (proxy->multi != NULL)
        curl_multi_cleanup(proxy->multi);
    curl_slist_free_all(proxy->headers);
    free(proxy->endpoint.sandbox_id);
    error_done(&proxy->endpoint.socket_error);
    strbuf_done(&proxy->head);
    strbuf_done(&proxy->body);
    free(proxy);
}
