/*
 * proxy_target.h: which sandbox and port a request is for, and what may not be asked of it from outside.
 *
 * Pure; any thread; all input is untrusted.
 */
#ifndef DORMOUSE_API_PROXY_TARGET_H
#define DORMOUSE_API_PROXY_TARGET_H

#include <stdbool.h>

#define PROXY_ID_MAX 64

struct proxy_target {
    char sandbox_id[PROXY_ID_MAX + 1]; /* [a-z0-9]+ */
    unsigned port;
};

/*
 * From the headers Host, E2b-Sandbox-Id and E2b-Sandbox-Port, each NULL when absent. A host of the form
 * <port>-<id>[-<client>].<domain> counts first, then the other two; the port defaults to the agent's. Returns 1, 0
 * when the request names no sandbox, -EINVAL when it names one badly.
 */
int proxy_target_parse(const char *host, const char *sandbox_id, const char *sandbox_port,
                       struct proxy_target *ret);

/* Whether the raw path, read in any way a server may read it, is one that only the host may ask the agent for. */
bool proxy_target_host_only(const char *path);

/* Whether a header's comma-separated list has the token, in any case. */
bool proxy_list_has(const char *list, const char *token);

/*
 * Whether a header concerns one connection only or is meant for the daemon, and so is not passed on. `connection`
 * is the message's Connection header, which may name more; NULL when absent.
 */
bool proxy_header_stays(const char *name, const char *connection);

#endif
