/*
 * users.h: users and groups of the image, read from /etc/passwd and /etc/group.
 *
 * Read by hand because the agent is static: the C library's own look-up loads shared objects of the image. Loaded
 * anew for each request, since programs in the guest add users. Malformed lines are skipped.
 *
 * The database owns its texts; a struct user owns its copies. One thread.
 */
#ifndef DORMOUSE_AGENT_USERS_H
#define DORMOUSE_AGENT_USERS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/strbuf.h"

struct user_database {
    char *passwd; /* content of the files; "" where there is none */
    char *group;
};

struct user {
    char *name;
    char *home;
    uid_t uid;
    gid_t gid;
    gid_t *groups; /* supplementary ones */
    size_t group_count;
};

int users_load(struct user_database *ret, struct error *err);
int users_load_from(const char *passwd_path, const char *group_path, struct user_database *ret, struct error *err);
void user_database_done(struct user_database *database);
#define CLEANUP_USER_DATABASE CLEANUP(user_database_done)

/* -EKEYREJECTED: there is no such user. */
int users_find(const struct user_database *database, const char *name, struct user *ret, struct error *err);

/* "user" if there is one, else root; where the agent is not root, the one that it runs as. */
int users_default(const struct user_database *database, struct user *ret, struct error *err);
void user_done(struct user *user);
#define CLEANUP_USER CLEANUP(user_done)

/* Appends the name, or the number where it has none. */

void users_append_owner(const struct user_database *database, uid_t uid, struct strbuf *out);
void users_append_group(const struct user_database *database, gid_t gid, struct strbuf *out);

#endif
