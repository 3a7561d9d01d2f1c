/*
 * identity.h: who this sandbox is: ids, access token, environment, default user and directory.
 *
 * Set as a whole by the control channel on each resume or fork (by POST /init in `serve` mode) and read by the
 * HTTP side; a running process keeps the environment it was started with. All of it has fixed room: setting lies
 * on the resume path, and init keeps it in memory that a restarted server shares, so that a crash does not drop the
 * access token. Pages of it that were never written to take no memory. One thread.
 */
#ifndef DORMOUSE_AGENT_IDENTITY_H
#define DORMOUSE_AGENT_IDENTITY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define IDENTITY_TEXT_MAX        256 /* of ids, token and user name, bytes with the NUL */
#define IDENTITY_ENVIRONMENT_MAX (256 * 1024)

struct identity {
    char sandbox_id[IDENTITY_TEXT_MAX];
    char template_id[IDENTITY_TEXT_MAX];
    char token[IDENTITY_TEXT_MAX]; /* "": none is demanded */
    size_t token_length;
    char user[IDENTITY_TEXT_MAX]; /* "": see users_default */
    char workdir[PATH_MAX];       /* "": the user's home */
    bool hosts_stale;             /* the host name has changed since /etc/hosts was last brought up to date */
    size_t environment_length;
    char environment[IDENTITY_ENVIRONMENT_MAX]; /* "K=V\0K=V\0…" */
};

/* Copies into a fixed field; -ENAMETOOLONG when it does not fit or holds a NUL. */
int identity_set_text(char *field, size_t size, const void *bytes, size_t length);
int identity_set_token(struct identity *identity, const void *bytes, size_t length);

/* Whether `text` ("K=V", K not empty, no NUL) can be an environment entry. */
bool identity_is_environment_entry(const void *text, size_t length);

void identity_clear_environment(struct identity *identity);
/* Appends an entry; -E2BIG when there is no more room. */
int identity_add_environment(struct identity *identity, const void *entry, size_t length);

/*
 * Calls `visit` for each entry a new process gets: E2B_SANDBOX, E2B_SANDBOX_ID, E2B_TEMPLATE_ID where known,
 * then the environment given. A later entry of the same name wins.
 */
void identity_each_variable(const struct identity *identity,
                            void (*visit)(void *context, const char *name, size_t name_length, const char *value),
                            void *context);

/* Lets the present host name resolve without DNS (sudo asks for it); does nothing unless hosts_stale. */
void identity_refresh_hosts(struct identity *identity);

#endif
