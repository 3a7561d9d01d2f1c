/*
 * Checkpoints: snapshots that are kept because somebody asked for them, by name or by their id alone.
 *
 * A name is an object of the registry, written (durably) when its snapshot is committed and deleted before the
 * snapshot is removed: a crash in between leaves a snapshot that nothing refers to, which recovery removes. Names
 * are changed by one thread at a time (manager->naming), so that list and registry say the same.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "sandbox/internal.h"

#define NAME_MAX_LENGTH 63
#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyz0123456789._-"

static void checkpoint_free(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    free(checkpoint->name);
    free(checkpoint->snapshot_id);
    string_list_done(&checkpoint->environment);
    free(checkpoint);
}

void checkpoints_free(struct manager *manager)
{
    while (manager->checkpoints != NULL) {
        struct checkpoint *checkpoint = manager->checkpoints;
        manager->checkpoints = checkpoint->next;
        checkpoint_free(checkpoint);
    }
}

static bool part_is_valid(const char *text, size_t length)
{
    return length >= 1 && length <= NAME_MAX_LENGTH && strspn(text, NAME_CHARACTERS) >= length &&
           strchr("._-", text[0]) == NULL;
}

/* "name:tag" of what a user wrote; the caller frees *ret. */
static int complete_name(const char *text, char **ret, struct error *err)
{
    const char *colon = strchrnul(text, ':');
    const char *tag = *colon != '\0' ? colon + 1 : CHECKPOINT_TAG_DEFAULT;
    if (!part_is_valid(text, (size_t)(colon - text)) || !part_is_valid(tag, strlen(tag)))
        return error_set(
            err, EINVAL,
            "'%.127s' is no name for a checkpoint: NAME or NAME:TAG, each up to %d of a-z, 0-9, '.', '_' "
            "and '-', the first a letter or digit",
            text, NAME_MAX_LENGTH);
    if (asprintf(ret, "%.*s:%s", (int)(colon - text), text, tag) >= 0)
        return 0;
    *ret = NULL;
    return error_set(err, ENOMEM, "out of memory");
}

/* Under manager->lock. */
static struct checkpoint *find_exact(struct manager *manager, const char *name)
{
    struct checkpoint *checkpoint = manager->checkpoints;
    while (checkpoint != NULL && strcmp(checkpoint->name, name) != 0)
        checkpoint = checkpoint->next;
    return checkpoint;
}

const struct checkpoint *checkpoint_find(struct manager *manager, const char *name)
{
    CLEANUP_FREE char *complete = NULL;
    return complete_name(name, &complete, NULL) == 0 ? find_exact(manager, complete) : NULL;
}

const struct checkpoint *checkpoint_of(struct manager *manager, const char *snapshot_id)
{
    const struct checkpoint *checkpoint = manager->checkpoints;
    while (checkpoint != NULL && strcmp(checkpoint->snapshot_id, snapshot_id) != 0)
        checkpoint = checkpoint->next;
    return checkpoint;
}

bool checkpoint_is(struct manager *manager, const char *snapshot_id)
{
    return find_exact(manager, snapshot_id) != NULL;
}

int checkpoint_names(struct manager *manager, const char *snapshot_id, struct string_list *ret)
{
    int r = 0;
    for (const struct checkpoint *checkpoint = manager->checkpoints; r == 0 && checkpoint != NULL;
         checkpoint = checkpoint->next)
        if (strcmp(checkpoint->snapshot_id, snapshot_id) == 0 && strcmp(checkpoint->name, snapshot_id) != 0)
            r = string_list_add(ret, checkpoint->name);
    return r;
}

static int new_checkpoint(const char *name, const char *snapshot_id, struct checkpoint **ret, struct error *err)
{
    struct checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    if (checkpoint == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = replace_text(&checkpoint->name, name, err);
    if (r == 0)
        r = replace_text(&checkpoint->snapshot_id, snapshot_id, err);
    if (r == 0)
        *ret = checkpoint;
    else
        checkpoint_free(checkpoint);
    return r;
}

int checkpoint_load(struct manager *manager, const char *name, const json_t *document, struct error *err)
{
    CLEANUP_FREE char *snapshot_id = NULL;
    struct checkpoint *checkpoint = NULL;
    int r = json_read_text(document, "snapshot_id", &snapshot_id, err);
    if (r == 0)
        r = new_checkpoint(name, snapshot_id, &checkpoint, err);
    if (r == 0)
        r = json_read_list(document, "environment", &checkpoint->environment, err);
    if (r < 0) {
        checkpoint_free(checkpoint);
        return error_wrap(err, -EUCLEAN, "the registry's record of checkpoint %s", name);
    }
    pthread_mutex_lock(&manager->lock);
    checkpoint->next = manager->checkpoints;
    manager->checkpoints = checkpoint;
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

static int record(struct manager *manager, const struct checkpoint *checkpoint, struct error *err)
{
    json_t *document = json_pack("{s:s, s:o}", "snapshot_id", checkpoint->snapshot_id, "environment",
                                 json_list(&checkpoint->environment));
    if (document == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = registry_put(manager->registry, REGISTRY_CHECKPOINT, checkpoint->name, document, true, err);
    json_decref(document);
    return r;
}

/* manager->lock and manager->naming are held. */
static struct checkpoint *unlist(struct manager *manager, const char *name)
{
    struct checkpoint **link = &manager->checkpoints;
    while (*link != NULL && strcmp((*link)->name, name) != 0)
        link = &(*link)->next;
    struct checkpoint *checkpoint = *link;
    if (checkpoint != NULL)
        *link = checkpoint->next;
    return checkpoint;
}

/* Records and lists it, in the place of one with the same name. Takes it over. */
static int publish(struct manager *manager, struct checkpoint *checkpoint, struct error *err)
{
    pthread_mutex_lock(&manager->naming);
    int r = record(manager, checkpoint, err);
    struct checkpoint *before = checkpoint;
    if (r == 0) {
        pthread_mutex_lock(&manager->lock);
        before = unlist(manager, checkpoint->name);
        checkpoint->next = manager->checkpoints;
        manager->checkpoints = checkpoint;
        pthread_mutex_unlock(&manager->lock);
    }
    pthread_mutex_unlock(&manager->naming);
    if (r == 0 && before != NULL)
        snapshot_collect(manager, before->snapshot_id);
    checkpoint_free(before);
    return r;
}

int checkpoint_remove(struct manager *manager, const char *name, struct error *err)
{
    pthread_mutex_lock(&manager->naming);
    int r = registry_delete(manager->registry, REGISTRY_CHECKPOINT, name, err);
    struct checkpoint *checkpoint = NULL;
    if (r == 0) {
        pthread_mutex_lock(&manager->lock);
        checkpoint = unlist(manager, name);
        pthread_mutex_unlock(&manager->lock);
    }
    pthread_mutex_unlock(&manager->naming);
    checkpoint_free(checkpoint);
    return r;
}

/* A template's name would be found first, wherever one is looked for. */
static int refuse_template(struct manager *manager, const char *name, struct error *err)
{
    CLEANUP_FREE char *plain = strndup(name, strcspn(name, ":"));
    if (plain == NULL)
        return error_set(err, ENOMEM, "out of memory");
    pthread_mutex_lock(&manager->lock);
    bool taken = template_find(manager, plain) != NULL;
    pthread_mutex_unlock(&manager->lock);
    if (!taken)
        return 0;
    error_set(err, EBUSY, "%s is the name of a template", plain);
    error_hint(err, "give the checkpoint another one");
    return -EBUSY;
}

static void compact(struct manager *manager, void *argument)
{
    snapshot_compact(manager, argument);
    free(argument);
}

static void compact_soon(struct manager *manager, const char *snapshot_id)
{
    char *argument = strdup(snapshot_id);
    if (argument != NULL && manager_spawn(manager, compact, argument) < 0)
        free(argument); /* the next one that is made of it will be */
}

static int keep(struct manager *manager, const char *name, const char *snapshot_id, const struct sandbox_info *info,
                struct error *err)
{
    struct checkpoint *checkpoint = NULL;
    int r = new_checkpoint(name != NULL ? name : snapshot_id, snapshot_id, &checkpoint, err);
    if (r < 0)
        return r;
    if (string_list_copy(&checkpoint->environment, &info->environment) < 0) {
        checkpoint_free(checkpoint);
        return error_set(err, ENOMEM, "out of memory");
    }
    return publish(manager, checkpoint, err);
}

int manager_checkpoint(struct manager *manager, const char *id_or_prefix, const char *name,
                       struct snapshot_info *ret, struct error *err)
{
    CLEANUP_FREE char *complete = NULL;
    int r = name != NULL ? complete_name(name, &complete, err) : 0;
    if (r == 0 && name != NULL)
        r = refuse_template(manager, complete, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *snapshot_id = NULL;
    CLEANUP(sandbox_info_done) struct sandbox_info info = {0};
    struct snapshot_pin pin;
    r = sandbox_snapshot(manager, id_or_prefix, "checkpointed", &pin, &snapshot_id, &info, err);
    if (r < 0)
        return r;
    r = keep(manager, complete, snapshot_id, &info, err);
    if (r == 0)
        r = snapshot_describe(manager, snapshot_id, ret, err);
    snapshot_unpin(manager, &pin);
    /* One that could not be recorded is nobody's. */
    snapshot_collect(manager, snapshot_id);
    compact_soon(manager, snapshot_id);
    return r;
}
