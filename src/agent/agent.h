/*
 * agent.h: what the HTTP side of the agent works on; the context of its struct http_server.
 */
#ifndef DORMOUSE_AGENT_AGENT_H
#define DORMOUSE_AGENT_AGENT_H

#include <stdbool.h>

#include "agent/command.h"
#include "agent/http.h"
#include "agent/identity.h"
#include "agent/loop.h"
#include "agent/users.h"

struct agent {
    struct loop loop;
    struct identity *identity;
    struct http_server http;
    struct command_table commands;
    bool on_host; /* `serve`: POST /init is allowed */
};

static inline struct agent *agent_of(const struct http_connection *connection)
{
    return http_context(connection);
}

/* The user of that name; without a name ("" or NULL) the sandbox's default user. */
int agent_find_user(const struct agent *agent, const struct user_database *database, const char *name,
                    struct user *ret, struct error *err);

#endif
