#include "agent/identity.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "agent/etc.h"

int identity_set_text(char *field, size_t size, const void *bytes, size_t length)
{
    if (length >= size || memchr(bytes, '\0', length) != NULL)
        return -ENAMETOOLONG;
    memcpy(field, bytes, length);
    field[length] = '\0';
    return 0;
}

int identity_set_token(struct identity *identity, const void *bytes, size_t length)
{
    int r = identity_set_text(identity->token, sizeof(identity->token), bytes, length);
    if (r == 0)
        identity->token_length = length;
    return r;
}

bool identity_is_environment_entry(const void *text, size_t length)
{
    const char *equals = memchr(text, '=', length);
    return equals != NULL && equals != (const char *)text && memchr(text, '\0', length) == NULL;
}

void identity_clear_environment(struct identity *identity)
{
    identity->environment_length = 0;
}

int identity_add_environment(struct identity *identity, const void *entry, size_t length)
{
    if (length >= IDENTITY_ENVIRONMENT_MAX - identity->environment_length)
        return -E2BIG;
    char *at = identity->environment + identity->environment_length;
    memcpy(at, entry, length);
    at[length] = '\0';
    identity->environment_length += length + 1;
    return 0;
}

void identity_each_variable(const struct identity *identity,
                            void (*visit)(void *context, const char *name, size_t name_length, const char *value),
                            void *context)
{
    if (identity->sandbox_id[0] != '\0') {
        visit(context, "E2B_SANDBOX", strlen("E2B_SANDBOX"), "true");
        visit(context, "E2B_SANDBOX_ID", strlen("E2B_SANDBOX_ID"), identity->sandbox_id);
    }
    if (identity->template_id[0] != '\0')
        visit(context, "E2B_TEMPLATE_ID", strlen("E2B_TEMPLATE_ID"), identity->template_id);
    for (size_t at = 0; at < identity->environment_length; at += strlen(identity->environment + at) + 1) {
        const char *entry = identity->environment + at;
        const char *equals = strchr(entry, '=');
        visit(context, entry, (size_t)(equals - entry), equals + 1);
    }
}

void identity_refresh_hosts(struct identity *identity)
{
    if (!identity->hosts_stale)
        return;
    identity->hosts_stale = false;
    char name[HOST_NAME_MAX + 1];
    if (gethostname(name, sizeof(name)) == 0)
        etc_set_host_name(name);
}
