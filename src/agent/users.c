#include "agent/users.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"

#define FILE_LIMIT   (4 * 1024 * 1024)
#define GROUPS_MAX   1024
#define FIELDS_MAX   7
#define DEFAULT_NAME "user"

/* One line "a:b:c…" of the file, in pieces. */
struct record {
    const char *fields[FIELDS_MAX];
    size_t lengths[FIELDS_MAX];
    size_t count;
};

static bool next_record(const char **at, struct record *record)
{
    const char *field = *at;
    if (*field == '\0')
        return false;
    record->count = 0;
    for (;;) {
        size_t length = strcspn(field, ":\n");
        if (record->count < FIELDS_MAX) {
            record->fields[record->count] = field;
            record->lengths[record->count++] = length;
        }
        field += length;
        if (*field != ':')
            break;
        field++;
    }
    *at = field + (*field == '\n');
    return true;
}

static bool field_is(const struct record *record, size_t index, const char *text)
{
    return record->lengths[index] == strlen(text) &&
           memcmp(record->fields[index], text, record->lengths[index]) == 0;
}

static bool field_number(const struct record *record, size_t index, uint32_t *ret)
{
    uint64_t value = 0;
    for (size_t i = 0; i < record->lengths[index]; i++) {
        char c = record->fields[index][i];
        if (c < '0' || c > '9')
            return false;
        value = value * 10 + (uint64_t)(c - '0');
        if (value >= UINT32_MAX) /* the number itself means "none" */
            return false;
    }
    *ret = (uint32_t)value;
    return record->lengths[index] > 0;
}

static int load_file(const char *path, char **ret)
{
    int r = io_read_file(path, FILE_LIMIT, ret, NULL);
    if (r != -ENOENT)
        return r;
    *ret = strdup("");
    return *ret == NULL ? -ENOMEM : 0;
}

int users_load_from(const char *passwd_path, const char *group_path, struct user_database *ret, struct error *err)
{
    CLEANUP_FREE char *passwd = NULL;
    CLEANUP_FREE char *group = NULL;
    int r = load_file(passwd_path, &passwd);
    if (r < 0)
        return error_code(err, r, "cannot read %s", passwd_path);
    r = load_file(group_path, &group);
    if (r < 0)
        return error_code(err, r, "cannot read %s", group_path);
    *ret = (struct user_database){.passwd = TAKE_PTR(passwd), .group = TAKE_PTR(group)};
    return 0;
}

int users_load(struct user_database *ret, struct error *err)
{
    return users_load_from("/etc/passwd", "/etc/group", ret, err);
}

void user_database_done(struct user_database *database)
{
    free(TAKE_PTR(database->passwd));
    free(TAKE_PTR(database->group));
}

void user_done(struct user *user)
{
    free(TAKE_PTR(user->name));
    free(TAKE_PTR(user->home));
    free(TAKE_PTR(user->groups));
}

/* Whether the member list "a,b,c" has the name. */
static bool list_has(const char *list, size_t length, const char *name)
{
    const char *end = list + length;
    while (list < end) {
        const char *comma = memchr(list, ',', (size_t)(end - list));
        size_t member = (size_t)((comma != NULL ? comma : end) - list);
        if (member == strlen(name) && memcmp(list, name, member) == 0)
            return true;
        list += member + 1;
    }
    return false;
}

static int read_groups(const struct user_database *database, struct user *user)
{
    user->groups = calloc(GROUPS_MAX, sizeof(gid_t));
    if (user->groups == NULL)
        return -ENOMEM;
    user->groups[user->group_count++] = user->gid;
    struct record record;
    const char *at = database->group;
    while (user->group_count < GROUPS_MAX && next_record(&at, &record)) {
        uint32_t gid;
        if (record.count >= 4 && field_number(&record, 2, &gid) && gid != user->gid &&
            list_has(record.fields[3], record.lengths[3], user->name))
            user->groups[user->group_count++] = gid;
    }
    return 0;
}

static int make_user(const struct user_database *database, const char *name, const char *home, uid_t uid, gid_t gid,
                     struct user *ret, struct error *err)
{
    CLEANUP_USER struct user user = {.name = strdup(name), .home = strdup(home), .uid = uid, .gid = gid};
    if (user.name == NULL || user.home == NULL || read_groups(database, &user) < 0)
        return error_set(err, ENOMEM, "no memory for the user %s", name);
    *ret = user;
    user = (struct user){0};
    return 0;
}

static int user_of_record(const struct user_database *database, const struct record *record, struct user *ret,
                          struct error *err)
{
    uint32_t uid;
    uint32_t gid;
    CLEANUP_FREE char *name = strndup(record->fields[0], record->lengths[0]);
    CLEANUP_FREE char *home = strndup(record->fields[5], record->lengths[5]);
    if (name == NULL || home == NULL)
        return error_set(err, ENOMEM, "no memory for a user");
    if (!field_number(record, 2, &uid) || !field_number(record, 3, &gid))
        return error_set(err, EKEYREJECTED, "the entry of the user '%s' in /etc/passwd is damaged", name);
    return make_user(database, name, home[0] == '/' ? home : "/", uid, gid, ret, err);
}

int users_find(const struct user_database *database, const char *name, struct user *ret, struct error *err)
{
    struct record record;
    for (const char *at = database->passwd; next_record(&at, &record);)
        if (record.count >= 6 && field_is(&record, 0, name))
            return user_of_record(database, &record, ret, err);
    return error_set(err, EKEYREJECTED, "there is no user '%.64s'", name);
}

int users_default(const struct user_database *database, struct user *ret, struct error *err)
{
    struct record record;
    uid_t self = geteuid();
    if (self == 0) {
        if (users_find(database, DEFAULT_NAME, ret, NULL) == 0)
            return 0;
        if (users_find(database, "root", ret, NULL) == 0)
            return 0;
        return make_user(database, "root", "/", 0, 0, ret, err); /* an image without users */
    }
    uint32_t uid;
    for (const char *at = database->passwd; next_record(&at, &record);)
        if (record.count >= 6 && field_number(&record, 2, &uid) && uid == self)
            return user_of_record(database, &record, ret, err);
    return error_set(err, EKEYREJECTED, "the agent's own user %u is not in /etc/passwd", self);
}

static void append_name(const char *text, uint32_t number, struct strbuf *out)
{
    struct record record;
    uint32_t value;
    for (const char *at = text; next_record(&at, &record);) {
        if (record.count >= 3 && field_number(&record, 2, &value) && value == number) {
            strbuf_append(out, record.fields[0], record.lengths[0]);
            return;
        }
    }
    strbuf_printf(out, "%u", number);
}

void users_append_owner(const struct user_database *database, uid_t uid, struct strbuf *out)
{
    append_name(database->passwd, uid, out);
}

void users_append_group(const struct user_database *database, gid_t gid, struct strbuf *out)
{
    append_name(database->group, gid, out);
}
