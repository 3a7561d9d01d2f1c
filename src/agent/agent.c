#include "agent/agent.h"

int agent_find_user(const struct agent *agent, const struct user_database *database, const char *name,
                    struct user *ret, struct error *err)
{
    if (name == NULL || *name == '\0')
        name = agent->identity->user;
    return *name != '\0' ? users_find(database, name, ret, err) : users_default(database, ret, err);
}
