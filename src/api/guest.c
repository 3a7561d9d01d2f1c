#include "api/guest.h"

#include <errno.h>
#include <stdio.h>

#include "base/strbuf.h"
#include "net/net.h"

#define AGENT_ANSWER_MAX (64 * 1024UL)
#define AGENT_TIMEOUT_MS 10000L

int guest_global_init(struct error *err)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return error_set(err, EIO, "cannot initialise libcurl");
    return 0;
}

static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    (void)purpose;
    (void)address;
    struct guest_endpoint *endpoint = context;
    error_done(&endpoint->socket_error);
    int fd = manager_socket(endpoint->manager, endpoint->sandbox_id, &endpoint->socket_error);
    return fd < 0 ? CURL_SOCKET_BAD : fd;
}

CURL *guest_curl(struct guest_endpoint *endpoint, const char *target)
{
    CLEANUP_FREE char *url = NULL;
    if (asprintf(&url, "http://" NET_GUEST_ADDRESS ":%u%s", endpoint->port, target) < 0) {
        url = NULL;
        return NULL;
    }
    CURL *curl = curl_easy_init();
    if (curl == NULL)
        return NULL;
    if (curl_easy_setopt(curl, CURLOPT_URL, url) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http") != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_PROXY, "") != CURLE_OK) {
        curl_easy_cleanup(curl);
        return NULL;
    }
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)GUEST_CONNECT_MS);
    curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, endpoint);
    return curl;
}

static size_t collect(char *data, size_t size, size_t count, void *context)
{
    struct strbuf *answer = context;
    if (size * count > AGENT_ANSWER_MAX - answer->length)
        return 0;
    strbuf_append(answer, data, size * count);
    return answer->failed ? 0 : size * count;
}

static int perform(CURL *curl, struct guest_endpoint *endpoint, const struct strbuf *answer, json_t **ret,
                   struct error *err)
{
    CURLcode code = curl_easy_perform(curl);
    if (endpoint->socket_error.code != 0) {
        error_move(err, &endpoint->socket_error);
        return err != NULL ? -err->code : -EIO;
    }
    if (code == CURLE_OPERATION_TIMEDOUT)
        return error_set(err, ETIMEDOUT, "the agent of sandbox %s did not answer", endpoint->sandbox_id);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    json_t *json =
        code == CURLE_OK && status == 200 ? json_loadb(strbuf_text(answer), answer->length, 0, NULL) : NULL;
    if (!json_is_object(json)) {
        json_decref(json);
        return error_set(err, EBADMSG, "the agent of sandbox %s gave no proper answer (%s, status %ld)",
                         endpoint->sandbox_id, curl_easy_strerror(code), status);
    }
    *ret = json;
    return 0;
}

int guest_agent_json(struct manager *manager, const struct sandbox_info *info, const char *target, json_t **ret,
                     struct error *err)
{
    struct guest_endpoint endpoint = {
        .manager = manager, .sandbox_id = info->id, .port = GUEST_AGENT_PORT, .socket_error = ERROR_INIT};
    CLEANUP_FREE char *token = NULL;
    if (asprintf(&token, "X-Access-Token: %s", info->access_token) < 0) {
        token = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    CURL *curl = guest_curl(&endpoint, target);
    struct curl_slist *headers = curl_slist_append(NULL, token);
    CLEANUP_STRBUF struct strbuf answer = STRBUF_INIT;
    int r;
    if (curl == NULL || headers == NULL) {
        r = error_set(err, ENOMEM, "out of memory");
    } else {
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, AGENT_TIMEOUT_MS);
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, collect);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
        r = perform(curl, &endpoint, &answer, ret, err);
    }
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    error_done(&endpoint.socket_error);
    return r;
}
