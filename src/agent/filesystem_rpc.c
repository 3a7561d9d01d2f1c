#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/entry.h"
#include "agent/path.h"
#include "agent/proto.h"
#include "agent/rpc.h"
#include "base/io.h"

#define LIST_MAX 50000 /* entries of one answer */

/* Who asks; loaded for every request. */
struct caller {
    struct user_database database;
    struct user user;
};

static void caller_done(struct caller *caller)
{
    user_database_done(&caller->database);
    user_done(&caller->user);
}
#define CLEANUP_CALLER CLEANUP(caller_done)

static int load_caller(struct http_connection *connection, struct caller *caller, struct error *err)
{
    int r = users_load(&caller->database, err);
    return r < 0 ? r : rpc_user(connection, &caller->database, &caller->user, err);
}

static int read_path(struct http_connection *connection, const struct caller *caller, const json_t *request,
                     const char *name, char **ret, struct error *err)
{
    const char *path;
    int r = proto_text(request, name, &path, err);
    if (r < 0)
        return r;
    return path_resolve(path != NULL ? path : "", caller->user.home, agent_of(connection)->identity->workdir, ret,
                        err);
}

/* Loads the caller and the path in the member `name`. */
static int begin(struct http_connection *connection, const json_t *request, const char *name, struct caller *caller,
                 char **ret_path, struct error *err)
{
    int r = load_caller(connection, caller, err);
    return r < 0 ? r : read_path(connection, caller, request, name, ret_path, err);
}

static int respond_entry(const struct caller *caller, const char *path, json_t **ret, struct error *err)
{
    json_t *entry;
    int r = entry_describe(&caller->database, path, &entry, err);
    if (r < 0)
        return r;
    *ret = json_pack("{s:o}", "entry", entry);
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for an answer") : 0;
}

int filesystem_rpc_stat(struct http_connection *connection, const json_t *request, json_t **ret, struct error *err)
{
    CLEANUP_CALLER struct caller caller = {0};
    CLEANUP_FREE char *path = NULL;
    int r = begin(connection, request, "path", &caller, &path, err);
    return r < 0 ? r : respond_entry(&caller, path, ret, err);
}

int filesystem_rpc_make_dir(struct http_connection *connection, const json_t *request, json_t **ret,
                            struct error *err)
{
    CLEANUP_CALLER struct caller caller = {0};
    CLEANUP_FREE char *path = NULL;
    int r = begin(connection, request, "path", &caller, &path, err);
    if (r == 0)
        r = path_make_directories(path, caller.user.uid, caller.user.gid, err);
    return r < 0 ? r : respond_entry(&caller, path, ret, err);
}

int filesystem_rpc_move(struct http_connection *connection, const json_t *request, json_t **ret, struct error *err)
{
    CLEANUP_CALLER struct caller caller = {0};
    CLEANUP_FREE char *source = NULL;
    CLEANUP_FREE char *destination = NULL;
    struct stat status;
    int r = begin(connection, request, "source", &caller, &source, err);
    if (r == 0)
        r = read_path(connection, &caller, request, "destination", &destination, err);
    if (r < 0)
        return r;
    if (lstat(source, &status) < 0 && (errno == ENOENT || errno == ENOTDIR))
        return error_set(err, ENOENT, "path '%s' does not exist", source);
    r = path_make_parents(destination, caller.user.uid, caller.user.gid, err);
    if (r < 0)
        return r;
    if (rename(source, destination) < 0)
        return error_errno(err, "cannot move '%s' to '%s'", source, destination);
    return respond_entry(&caller, destination, ret, err);
}

int filesystem_rpc_remove(struct http_connection *connection, const json_t *request, json_t **ret,
                          struct error *err)
{
    CLEANUP_CALLER struct caller caller = {0};
    CLEANUP_FREE char *path = NULL;
    int r = begin(connection, request, "path", &caller, &path, err);
    if (r < 0)
        return r;
    if (strcmp(path, "/") == 0)
        return error_set(err, EINVAL, "the root directory cannot be removed");
    r = io_remove_tree(path);
    if (r < 0)
        return error_code(err, r, "cannot remove '%s'", path);
    *ret = json_object();
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for an answer") : 0;
}

/* ---- ListDir ---- */

static int not_dots(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* Not alphasort, which asks the locale. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int list(const struct caller *caller, const char *path, uint32_t depth, json_t *entries, struct error *err);

/* What vanishes meanwhile, or has no name in JSON, is left out. */
static int list_entry(const struct caller *caller, const char *path, uint32_t depth, json_t *entries,
                      struct error *err)
{
    json_t *entry;
    struct stat status;
    if (json_array_size(entries) >= LIST_MAX)
        return error_set(err, E2BIG, "there are more than %d entries; ask for less depth", LIST_MAX);
    if (entry_describe(&caller->database, path, &entry, NULL) < 0)
        return 0;
    json_array_append_new(entries, entry);
    if (depth <= 1 || lstat(path, &status) < 0 || !S_ISDIR(status.st_mode))
        return 0;
    int r = list(caller, path, depth - 1, entries, err);
    return r == -E2BIG ? r : 0;
}

static int list(const struct caller *caller, const char *path, uint32_t depth, json_t *entries, struct error *err)
{
    struct dirent **names;
    int count = scandir(path, &names, not_dots, by_name);
    if (count < 0)
        return errno == ENOENT ? error_set(err, ENOENT, "directory '%s' does not exist", path)
                               : error_errno(err, "cannot list '%s'", path);
    int r = 0;
    for (int i = 0; i < count; i++) {
        CLEANUP_STRBUF struct strbuf child = STRBUF_INIT;
        strbuf_printf(&child, "%s/%s", strcmp(path, "/") == 0 ? "" : path, names[i]->d_name);
        free(names[i]);
        if (r == 0 && !child.failed && child.length < PATH_MAX)
            r = list_entry(caller, child.data, depth, entries, err);
    }
    free(names);
    return r;
}

int filesystem_rpc_list_dir(struct http_connection *connection, const json_t *request, json_t **ret,
                            struct error *err)
{
    CLEANUP_CALLER struct caller caller = {0};
    CLEANUP_FREE char *path = NULL;
    uint32_t depth;
    int r = proto_uint32(request, "depth", &depth, err);
    if (r == 0)
        r = begin(connection, request, "path", &caller, &path, err);
    if (r < 0)
        return r;
    json_t *entries = json_array();
    r = list(&caller, path, MAX(depth, 1u), entries, err);
    if (r < 0) {
        json_decref(entries);
        return r;
    }
    *ret = json_pack("{s:o}", "entries", entries);
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for an answer") : 0;
}
