/*
 * auth.h: access tokens and the signatures of file URLs.
 *
 * Both are compared in constant time. Where the identity has no token, everything is allowed. One thread.
 */
#ifndef DORMOUSE_AGENT_AUTH_H
#define DORMOUSE_AGENT_AUTH_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/identity.h"
#include "base/error.h"

/* `token` as in the X-Access-Token header, NULL if there was none. -EKEYREJECTED if it is wrong. */
int auth_check_token(const struct identity *identity, const char *token);

struct auth_signature {
    const char *path;      /* as in the URL, decoded */
    const char *operation; /* "read" or "write" */
    const char *user;      /* as in the URL, "" if none */
    const char *signature; /* "v1_…", NULL if none */
    const char *expires;   /* unix seconds as text, NULL if never */
};

/* -EKEYREJECTED with the message that clients expect. `now_s`: unix time. */
int auth_check_signature(const struct identity *identity, const struct auth_signature *given, int64_t now_s,
                         struct error *err);

#endif
