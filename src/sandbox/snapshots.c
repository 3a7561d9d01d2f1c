/* Listing and removing snapshots, and what is done for them in the background. What forks still use outlives its
 * snapshot (store/store.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sandbox/internal.h"

enum use { USE_NONE, USE_ORIGIN, USE_NEEDED };

int snapshot_refuse(const char *id, int result, struct error *err)
{
    const char *reason = result == -ENOENT ? "snapshot_missing" : "snapshot_damaged";
    if (result != -ENOENT && result != -EBADMSG && result != -EPROTONOSUPPORT && result != -EIO)
        return result;
    if (err == NULL)
        return -EBUSY;
    err->code = EBUSY;
    error_reason(err, reason);
    error_hint(err, "dormouse snapshot verify %.12s tells more; a boot from its disk may do: resume --reboot", id);
    return -EBUSY;
}

/* Under manager->lock. By objects, not names. ORIGIN: a running sandbox came from it, which doesn't need it any
 * more.
 */
static enum use find_user(struct manager *manager, const char *id)
{
    enum use use = USE_NONE;
    for (const struct snapshot_pin *pin = manager->pins; pin != NULL; pin = pin->next)
        if (strcmp(pin->id, id) == 0)
            return USE_NEEDED;
    for (const struct template *template = manager->templates; template != NULL; template = template->next)
        if (strcmp(template->info.snapshot_id, id) == 0)
            return USE_NEEDED;
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next) {
        if (sandbox->pending_snapshot != NULL && strcmp(sandbox->pending_snapshot, id) == 0)
            return USE_NEEDED;
        if (strcmp(sandbox->info.snapshot_id, id) != 0 || sandbox->info.state == SANDBOX_KILLED)
            continue;
        enum sandbox_state state = sandbox->info.state;
        if (state == SANDBOX_PAUSED || state == SANDBOX_RESUMING || state == SANDBOX_CREATING)
            return USE_NEEDED;
        use = USE_ORIGIN;
    }
    return use;
}

/* Under manager->lock. */
static enum use find_use(struct manager *manager, const char *id)
{
    return checkpoint_of(manager, id) != NULL ? USE_NEEDED : find_user(manager, id);
}

void snapshot_pin(struct manager *manager, struct snapshot_pin *pin, const char *id)
{
    pin->id = id;
    pthread_mutex_lock(&manager->lock);
    pin->next = manager->pins;
    manager->pins = pin;
    pthread_mutex_unlock(&manager->lock);
}

void snapshot_unpin(struct manager *manager, struct snapshot_pin *pin)
{
    pthread_mutex_lock(&manager->lock);
    struct snapshot_pin **link = &manager->pins;
    while (*link != pin)
        link = &(*link)->next;
    *link = pin->next;
    pthread_mutex_unlock(&manager->lock);
}

static void run_gc(struct manager *manager, void *unused)
{
    (void)unused;
    for (bool again = true; again;) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        struct store_gc_result result;
        pthread_mutex_lock(&manager->lock);
        manager->gc_wanted = false;
        pthread_mutex_unlock(&manager->lock);
        if (store_gc(manager->store, &result, &err) < 0)
            manager_log(manager, "collecting unused layers: %s", error_message(&err));
        pthread_mutex_lock(&manager->lock);
        again = manager->gc_wanted;
        manager->gc_runs = again;
        pthread_mutex_unlock(&manager->lock);
    }
}

void snapshot_gc_soon(struct manager *manager)
{
    pthread_mutex_lock(&manager->lock);
    bool runs = manager->gc_runs;
    manager->gc_wanted = manager->gc_runs = true;
    pthread_mutex_unlock(&manager->lock);
    if (!runs && manager_spawn(manager, run_gc, NULL) < 0)
        run_gc(manager, NULL);
}

void snapshot_discard(struct manager *manager, const char *id)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = store_remove(manager->store, id, &err);
    if (r < 0 && r != -ENOENT)
        manager_log(manager, "%s", error_message(&err));
    snapshot_gc_soon(manager);
}

void snapshot_compact(struct manager *manager, const char *id)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = store_load(manager->store, id, &snapshot, &err);
    if (r == 0 && store_wants_compaction(&snapshot))
        r = store_compact(manager->store, id, &err);
    if (r < 0 && r != -ENOENT)
        manager_log(manager, "compacting snapshot %s: %s", id, error_message(&err));
}

void snapshot_collect(struct manager *manager, const char *id)
{
    if (id == NULL || id[0] == '\0')
        return;
    pthread_mutex_lock(&manager->lock);
    bool unused = find_use(manager, id) == USE_NONE;
    pthread_mutex_unlock(&manager->lock);
    if (!unused)
        return;
    snapshot_discard(manager, id);
}

int snapshot_describe(struct manager *manager, const char *id, struct snapshot_info *ret, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct snapshot_usage usage;
    int r = store_load(manager->store, id, &snapshot, err);
    if (r == 0)
        r = store_usage(manager->store, id, &usage, err);
    if (r < 0)
        return r;
    struct snapshot_manifest *manifest = &snapshot.manifest;
    pthread_mutex_lock(&manager->lock);
    bool needed = find_use(manager, id) == USE_NEEDED;
    bool kept = checkpoint_of(manager, id) != NULL;
    struct string_list names = {0};
    r = checkpoint_names(manager, id, &names);
    pthread_mutex_unlock(&manager->lock);
    if (r < 0) {
        string_list_done(&names);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret = (struct snapshot_info){
        .id = TAKE_PTR(manifest->id),
        .sandbox_id = TAKE_PTR(manifest->sandbox_id),
        .template_id = TAKE_PTR(manifest->template_id),
        .parent_id = TAKE_PTR(manifest->parent_id),
        .disk_consistency = TAKE_PTR(manifest->disk_consistency),
        .names = names,
        .checkpoint = kept,
        .in_use = needed,
        .cpus = manifest->cpus,
        .memory_mib = (unsigned)(manifest->memory_bytes >> 20),
        .created_ns = manifest->created_ns,
        .memory_bytes = usage.image_bytes[IMAGE_MEMORY],
        .disk_bytes = usage.image_bytes[IMAGE_DISK],
        .state_bytes = snapshot.device_state_bytes,
        .stored_bytes = usage.stored_bytes,
        .own_bytes = usage.own_bytes,
        .layers = snapshot.layer_count,
    };
    return 0;
}

static int compare_created(const void *a, const void *b)
{
    const struct snapshot_info *left = a;
    const struct snapshot_info *right = b;
    if (left->created_ns != right->created_ns)
        return left->created_ns < right->created_ns ? -1 : 1;
    return strcmp(left->id, right->id);
}

/* One that is damaged is shown with what is wrong with it: the others are none the worse for it. */
static int describe_readable(struct manager *manager, const char *id, struct snapshot_info *ret, struct error *err)
{
    CLEANUP_ERROR struct error problem = ERROR_INIT;
    int r = snapshot_describe(manager, id, ret, &problem);
    if (r != -EBADMSG && r != -EPROTONOSUPPORT) {
        if (r < 0)
            error_move(err, &problem);
        return r;
    }
    const struct {
        char **to;
        const char *from;
    } texts[] = {
        {&ret->id, id},         {&ret->problem, error_message(&problem)},
        {&ret->sandbox_id, ""}, {&ret->template_id, ""},
        {&ret->parent_id, ""},  {&ret->disk_consistency, ""},
    };
    *ret = (struct snapshot_info){0};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        r = replace_text(texts[i].to, texts[i].from, err);
        if (r < 0) {
            snapshot_info_done(ret);
            return r;
        }
    }
    return 0;
}

int manager_snapshot_list(struct manager *manager, struct snapshot_list *ret, struct error *err)
{
    char **ids = NULL;
    int r = store_list(manager->store, &ids, err);
    if (r < 0)
        return r;
    size_t count = 0;
    while (ids[count] != NULL)
        count++;
    struct snapshot_list list = {.items = calloc(count + 1, sizeof(*list.items))};
    if (list.items == NULL)
        r = error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = describe_readable(manager, ids[i], &list.items[list.count], err);
        if (r == 0)
            list.count++;
        else if (r == -ENOENT)
            r = 0; /* removed meanwhile */
    }
    store_list_done(ids);
    if (r < 0) {
        snapshot_list_done(&list);
        return r;
    }
    qsort(list.items, list.count, sizeof(*list.items), compare_created);
    *ret = list;
    return 0;
}

static bool is_among(char *const *ids, const char *id)
{
    while (*ids != NULL && strcmp(*ids, id) != 0)
        ids++;
    return *ids != NULL;
}

static int resolve_prefix(char *const *ids, const char *prefix, char **ret, struct error *err)
{
    size_t length = strlen(prefix);
    const char *found = NULL;
    for (size_t i = 0; length > 0 && ids[i] != NULL; i++) {
        if (strncmp(ids[i], prefix, length) != 0)
            continue;
        if (found != NULL) {
            error_set(err, EINVAL, "the id %s fits more than one snapshot", prefix);
            error_hint(err, "give more of it");
            return -EINVAL;
        }
        found = ids[i];
    }
    if (found != NULL)
        return replace_text(ret, found, err);
    error_set(err, ENOENT, "there is no snapshot %.64s", prefix);
    error_hint(err, "dormouse snapshot ls lists them");
    return -ENOENT;
}

/* -ENOENT when it is no checkpoint's. */
static int resolve_name(struct manager *manager, const char *name, char **ret, struct error *err)
{
    pthread_mutex_lock(&manager->lock);
    const struct checkpoint *checkpoint = checkpoint_find(manager, name);
    int r = checkpoint != NULL ? replace_text(ret, checkpoint->snapshot_id, err) : -ENOENT;
    pthread_mutex_unlock(&manager->lock);
    return r;
}

int snapshot_resolve(struct manager *manager, const char *text, char **ret, struct error *err)
{
    char **ids = NULL;
    int r = store_list(manager->store, &ids, err);
    if (r < 0)
        return r;
    r = is_among(ids, text) ? replace_text(ret, text, err) : resolve_name(manager, text, ret, err);
    if (r == -ENOENT)
        r = resolve_prefix(ids, text, ret, err);
    store_list_done(ids);
    return r;
}

int manager_snapshot_get(struct manager *manager, const char *id_or_prefix, struct snapshot_info *ret,
                         struct error *err)
{
    CLEANUP_FREE char *id = NULL;
    int r = snapshot_resolve(manager, id_or_prefix, &id, err);
    return r < 0 ? r : snapshot_describe(manager, id, ret, err);
}

static int refuse_needed(const char *id, struct error *err)
{
    error_set(err, EBUSY, "snapshot %s is what a paused sandbox or a template consists of", id);
    error_hint(err, "kill that sandbox, or remove the template");
    return -EBUSY;
}

/* With all names that it has. */
static int remove_whole(struct manager *manager, const char *id, struct error *err)
{
    CLEANUP(string_list_done) struct string_list names = {0};
    pthread_mutex_lock(&manager->lock);
    bool needed = find_user(manager, id) == USE_NEEDED;
    bool unnamed = checkpoint_is(manager, id);
    int r = checkpoint_names(manager, id, &names);
    pthread_mutex_unlock(&manager->lock);
    if (r < 0)
        return error_set(err, ENOMEM, "out of memory");
    if (needed && !unnamed)
        return refuse_needed(id, err);
    r = checkpoint_remove(manager, id, err);
    for (size_t i = 0; !needed && r == 0 && i < names.count; i++)
        r = checkpoint_remove(manager, names.items[i], err);
    if (r < 0 || needed)
        return r;
    r = store_remove(manager->store, id, err);
    snapshot_gc_soon(manager);
    return r;
}

int manager_snapshot_remove(struct manager *manager, const char *name_or_id, struct error *err)
{
    CLEANUP_FREE char *name = NULL;
    CLEANUP_FREE char *id = NULL;
    int r = snapshot_resolve(manager, name_or_id, &id, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&manager->lock);
    const struct checkpoint *checkpoint = strcmp(id, name_or_id) != 0 ? checkpoint_find(manager, name_or_id) : NULL;
    if (checkpoint != NULL)
        r = replace_text(&name, checkpoint->name, err);
    pthread_mutex_unlock(&manager->lock);
    if (r < 0)
        return r;
    if (name == NULL)
        return remove_whole(manager, id, err);
    r = checkpoint_remove(manager, name, err);
    if (r == 0)
        snapshot_collect(manager, id);
    return r;
}
