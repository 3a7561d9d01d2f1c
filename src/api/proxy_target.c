#include "api/proxy_target.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/guest.h"
#include "api/uri.h"
#include "base/macro.h"

#define DIGITS   "0123456789"
#define ID_CHARS DIGITS "abcdefghijklmnopqrstuvwxyz"

static int parse_port(const char *text, size_t length, unsigned *ret)
{
    unsigned port = 0;
    if (length == 0 || length > 5 || strspn(text, DIGITS) < length)
        return -EINVAL;
    for (size_t i = 0; i < length; i++)
        port = port * 10 + (unsigned)(text[i] - '0');
    if (port == 0 || port > 65535)
        return -EINVAL;
    *ret = port;
    return 0;
}

/* An id up to its end or a "-": what follows that is E2B's client id, which means nothing here. */
static int parse_id(const char *text, size_t length, struct proxy_target *target)
{
    size_t used = strspn(text, ID_CHARS);
    if (used == 0 || used > PROXY_ID_MAX || used > length || (used < length && text[used] != '-'))
        return -EINVAL;
    memcpy(target->sandbox_id, text, used);
    target->sandbox_id[used] = '\0';
    return 0;
}

/* Whether the host's first label begins like <port>-<id>; then *ret_label_length is the label's. */
static bool names_sandbox(const char *host, size_t *ret_port_length, size_t *ret_label_length)
{
    *ret_port_length = strspn(host, DIGITS);
    *ret_label_length = strcspn(host, ".:");
    return *ret_port_length > 0 && host[*ret_port_length] == '-' && host[*ret_label_length] == '.';
}

int proxy_target_parse(const char *host, const char *sandbox_id, const char *sandbox_port, struct proxy_target *ret)
{
    struct proxy_target target = {.port = GUEST_AGENT_PORT};
    size_t port_length;
    size_t label_length;
    int r = 0;
    if (host != NULL && names_sandbox(host, &port_length, &label_length)) {
        r = parse_port(host, port_length, &target.port);
        if (r == 0)
            r = parse_id(host + port_length + 1, label_length - port_length - 1, &target);
    } else if (sandbox_id != NULL) {
        r = parse_id(sandbox_id, strlen(sandbox_id), &target);
        if (r == 0 && sandbox_port != NULL)
            r = parse_port(sandbox_port, strlen(sandbox_port), &target.port);
    } else {
        return 0;
    }
    if (r < 0)
        return r;
    *ret = target;
    return 1;
}

bool proxy_target_host_only(const char *path)
{
    static const char *const paths[] = {"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw"};
    CLEANUP_FREE char *normal = NULL;
    if (uri_normalize_path(path, &normal) < 0)
        return true; /* nobody needs what cannot be read, and it is not known what the agent reads in it */
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        if (strcasecmp(normal, paths[i]) == 0)
            return true;
    return false;
}

bool proxy_list_has(const char *list, const char *token)
{
    size_t length = strlen(token);
    while (*list != '\0') {
        list += strspn(list, " \t,");
        size_t n = strcspn(list, " \t,");
        if (n == length && strncasecmp(list, token, n) == 0)
            return true;
        list += n;
    }
    return false;
}

bool proxy_header_stays(const char *name, const char *connection)
{
    static const char *const names[] = {
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Content-Length",
        "Expect",
        "X-API-Key",
        "E2b-Sandbox-Id",
        "E2b-Sandbox-Port",
        "E2b-Traffic-Access-Token",
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcasecmp(name, names[i]) == 0)
            return true;
    return connection != NULL && proxy_list_has(connection, name);
}
