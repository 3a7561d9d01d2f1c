#include "sandbox/registry.h"

#include <errno.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCHEMA_VERSION 1

struct registry {
    sqlite3 *database;
    char *path;
    pthread_mutex_t lock;
};

static int to_errno(int code)
{
    switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return EUCLEAN;
    case SQLITE_FULL:
        return ENOSPC;
    case SQLITE_NOMEM:
        return ENOMEM;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return EACCES;
    case SQLITE_BUSY:
        return EBUSY;
    default:
        return EIO;
    }
}

static int damaged(struct registry *registry, const char *how, struct error *err)
{
    error_set(err, EUCLEAN, "the registry %s is damaged: %s", registry->path, how);
    error_hint(
        err,
        "it was left as it is; save it, then try: sqlite3 %s .recover > registry.sql, and load that into a new "
        "file of the same name",
        registry->path);
    return -EUCLEAN;
}

static int fail(struct registry *registry, struct error *err)
{
    int code = to_errno(sqlite3_errcode(registry->database));
    const char *text = sqlite3_errmsg(registry->database);
    if (code == EUCLEAN)
        return damaged(registry, text, err);
    return error_set(err, code, "the registry %s: %s", registry->path, text);
}

static int execute(struct registry *registry, const char *sql, struct error *err)
{
    return sqlite3_exec(registry->database, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(registry, err);
}

static int query_text(struct registry *registry, const char *sql, char *ret, size_t size, struct error *err)
{
    sqlite3_stmt *statement = NULL;
    int r = 0;
    if (sqlite3_prepare_v2(registry->database, sql, -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_step(statement) != SQLITE_ROW) {
        r = fail(registry, err);
    } else {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        strncpy(ret, text != NULL ? text : "", size - 1);
        ret[size - 1] = '\0';
    }
    sqlite3_finalize(statement);
    return r;
}

/* Nothing is written to a registry that exists: if something in it is damaged, it must stay as it is. */
static int prepare_schema(struct registry *registry, struct error *err)
{
    char text[256];
    int r = query_text(registry, "PRAGMA quick_check(1)", text, sizeof(text), err);
    if (r < 0)
        return r;
    text[strcspn(text, "\n")] = '\0';
    if (strcmp(text, "ok") != 0)
        return damaged(registry, text, err);
    r = query_text(registry, "PRAGMA user_version", text, sizeof(text), err);
    if (r < 0)
        return r;
    if (atoi(text) > SCHEMA_VERSION)
        return error_set(err, EPROTONOSUPPORT, "the registry %s was written by a later version of dormouse",
                         registry->path);
    if (atoi(text) == SCHEMA_VERSION)
        return execute(registry, "PRAGMA synchronous=NORMAL", err);
    return execute(registry,
                   "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                   "BEGIN; CREATE TABLE object(kind INTEGER NOT NULL, id TEXT NOT NULL, document TEXT NOT NULL,"
                   " PRIMARY KEY(kind, id)) WITHOUT ROWID; PRAGMA user_version=1; COMMIT;"
                   "PRAGMA synchronous=NORMAL;",
                   err);
}

int registry_open(const char *path, struct registry **ret, struct error *err)
{
    struct registry *registry = calloc(1, sizeof(*registry));
    if (registry == NULL || (registry->path = strdup(path)) == NULL) {
        free(registry);
        return error_set(err, ENOMEM, "out of memory");
    }
    pthread_mutex_init(&registry->lock, NULL);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int r = sqlite3_open_v2(path, &registry->database, flags, NULL) == SQLITE_OK ? 0 : fail(registry, err);
    if (r == 0) {
        sqlite3_busy_timeout(registry->database, 5000);
        r = prepare_schema(registry, err);
    }
    if (r < 0) {
        registry_close(registry);
        return r;
    }
    *ret = registry;
    return 0;
}

void registry_close(struct registry *registry)
{
    if (registry == NULL)
        return;
    sqlite3_close(registry->database);
    pthread_mutex_destroy(&registry->lock);
    free(registry->path);
    free(registry);
}

/* Runs a statement with kind, id and (if not NULL) a text bound. The lock is held. */
static int run(struct registry *registry, const char *sql, enum registry_kind kind, const char *id,
               const char *text, struct error *err)
{
    sqlite3_stmt *statement = NULL;
    int r = 0;
    if (sqlite3_prepare_v2(registry->database, sql, -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_bind_int(statement, 1, (int)kind) != SQLITE_OK ||
        sqlite3_bind_text(statement, 2, id, -1, SQLITE_STATIC) != SQLITE_OK ||
        (text != NULL && sqlite3_bind_text(statement, 3, text, -1, SQLITE_STATIC) != SQLITE_OK) ||
        sqlite3_step(statement) != SQLITE_DONE)
        r = fail(registry, err);
    sqlite3_finalize(statement);
    return r;
}

static int run_durable(struct registry *registry, const char *sql, enum registry_kind kind, const char *id,
                       const char *text, struct error *err)
{
    int r = execute(registry, "PRAGMA synchronous=FULL", err);
    if (r == 0)
        r = run(registry, sql, kind, id, text, err);
    execute(registry, "PRAGMA synchronous=NORMAL", NULL);
    return r;
}

int registry_put(struct registry *registry, enum registry_kind kind, const char *id, const json_t *document,
                 bool durable, struct error *err)
{
    static const char sql[] = "INSERT OR REPLACE INTO object(kind, id, document) VALUES(?, ?, ?)";
    CLEANUP_FREE char *text = json_dumps(document, JSON_COMPACT);
    if (text == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pthread_mutex_lock(&registry->lock);
    int r = (durable ? run_durable : run)(registry, sql, kind, id, text, err);
    pthread_mutex_unlock(&registry->lock);
    return r;
}

int registry_delete(struct registry *registry, enum registry_kind kind, const char *id, struct error *err)
{
    pthread_mutex_lock(&registry->lock);
    int r = run_durable(registry, "DELETE FROM object WHERE kind = ? AND id = ?", kind, id, NULL, err);
    pthread_mutex_unlock(&registry->lock);
    return r;
}

static int visit_row(struct registry *registry, sqlite3_stmt *statement, registry_visitor each, void *context,
                     struct error *err)
{
    const char *id = (const char *)sqlite3_column_text(statement, 0);
    const char *text = (const char *)sqlite3_column_text(statement, 1);
    json_t *document = text != NULL ? json_loads(text, 0, NULL) : NULL;
    if (!json_is_object(document)) {
        json_decref(document);
        CLEANUP_FREE char *how = NULL;
        if (asprintf(&how, "the record of %s", id != NULL ? id : "(no id)") < 0)
            how = NULL;
        return damaged(registry, how != NULL ? how : "a record", err);
    }
    int r = each(context, id, document, err);
    json_decref(document);
    return r;
}

int registry_visit(struct registry *registry, enum registry_kind kind, registry_visitor each, void *context,
                   struct error *err)
{
    pthread_mutex_lock(&registry->lock);
    sqlite3_stmt *statement = NULL;
    int r = 0;
    if (sqlite3_prepare_v2(registry->database, "SELECT id, document FROM object WHERE kind = ?", -1, &statement,
                           NULL) != SQLITE_OK ||
        sqlite3_bind_int(statement, 1, (int)kind) != SQLITE_OK)
        r = fail(registry, err);
    while (r == 0) {
        int step = sqlite3_step(statement);
        if (step == SQLITE_DONE)
            break;
        r = step == SQLITE_ROW ? visit_row(registry, statement, each, context, err) : fail(registry, err);
    }
    sqlite3_finalize(statement);
    pthread_mutex_unlock(&registry->lock);
    return r;
}
