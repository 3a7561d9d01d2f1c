#include "fake_manager.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/encode.h"
#include "base/io.h"

#define SANDBOXES_MAX 64

sem_t fake_verifying;
sem_t fake_cancelled;

struct manager {
    pthread_mutex_t lock;
    struct sandbox_info sandboxes[SANDBOXES_MAX];
    size_t count;
};

static char *copy(const char *text)
{
    char *result = strdup(text);
    if (result == NULL)
        abort();
    return result;
}

static void copy_list(const struct string_list *from, struct string_list *to)
{
    *to = (struct string_list){0};
    for (size_t i = 0; i < from->count; i++)
        if (string_list_add(to, from->items[i]) < 0)
            abort();
}

static void copy_info(const struct sandbox_info *from, struct sandbox_info *to)
{
    *to = *from;
    to->id = copy(from->id);
    to->lost_reason = from->lost_reason != NULL ? copy(from->lost_reason) : NULL;
    to->template_id = copy(from->template_id);
    to->template_name = copy(from->template_name);
    to->snapshot_id = copy(from->snapshot_id);
    to->parent_id = copy(from->parent_id);
    to->access_token = copy(from->access_token);
    copy_list(&from->environment, &to->environment);
    copy_list(&from->metadata, &to->metadata);
}

int manager_open(const struct manager_options *options, struct manager **ret, struct error *err)
{
    (void)options;
    (void)err;
    struct manager *manager = calloc(1, sizeof(*manager));
    if (manager == NULL)
        abort();
    pthread_mutex_init(&manager->lock, NULL);
    *ret = manager;
    return 0;
}

void manager_close(struct manager *manager)
{
    for (size_t i = 0; i < manager->count; i++)
        sandbox_info_done(&manager->sandboxes[i]);
    pthread_mutex_destroy(&manager->lock);
    free(manager);
}

const char *manager_api_key(const struct manager *manager)
{
    (void)manager;
    return FAKE_API_KEY;
}

/* Returns with the lock held on success. */
static int find(struct manager *manager, const char *id, struct sandbox_info **ret, struct error *err)
{
    *ret = NULL;
    pthread_mutex_lock(&manager->lock);
    for (size_t i = 0; i < manager->count; i++) {
        if (strncmp(manager->sandboxes[i].id, id, strlen(id)) != 0)
            continue;
        if (*ret != NULL) {
            pthread_mutex_unlock(&manager->lock);
            return error_set(err, EINVAL, "\"%s\" fits several sandboxes", id);
        }
        *ret = &manager->sandboxes[i];
    }
    if (*ret != NULL)
        return 0;
    pthread_mutex_unlock(&manager->lock);
    return error_set(err, ENOENT, "no sandbox \"%s\"", id);
}

static int find_in_state(struct manager *manager, const char *id, enum sandbox_state state,
                         struct sandbox_info **ret, struct error *err)
{
    int r = find(manager, id, ret, err);
    if (r < 0 || (*ret)->state == state)
        return r;
    r = error_set(err, EBUSY, "sandbox %s is %s", (*ret)->id, sandbox_state_name((*ret)->state));
    pthread_mutex_unlock(&manager->lock);
    return r;
}

static int64_t expiry(int64_t timeout_s)
{
    return timeout_s == 0 ? 0 : clock_realtime_ns() + timeout_s * 1000000000;
}

/* Under the lock. */
static int add(struct manager *manager, const struct sandbox_info *model, struct sandbox_info *ret,
               struct error *err)
{
    if (manager->count == SANDBOXES_MAX)
        return error_set(err, EAGAIN, "the fake is full");
    struct sandbox_info *info = &manager->sandboxes[manager->count++];
    char id[17];
    random_name(id, 16);
    copy_info(model, info);
    free(info->id);
    info->id = copy(id);
    free(info->access_token);
    if (asprintf(&info->access_token, FAKE_TOKEN_PREFIX "%s", id) < 0)
        abort();
    info->state = SANDBOX_RUNNING;
    info->vmm_pid = 1;
    info->created_ns = info->started_ns = clock_realtime_ns();
    copy_info(info, ret);
    return 0;
}

int manager_create(struct manager *manager, const struct sandbox_spec *spec, struct sandbox_info *ret,
                   struct error *err)
{
    if (strcmp(spec->template_name, "base") != 0)
        return error_set(err, ENOENT, "no template \"%s\"", spec->template_name);
    struct sandbox_info model = {.id = (char *)"",
                                 .template_id = (char *)"t0base",
                                 .template_name = (char *)"base",
                                 .snapshot_id = (char *)"s0base",
                                 .parent_id = (char *)"",
                                 .access_token = (char *)"",
                                 .cpus = spec->cpus != 0 ? spec->cpus : 1,
                                 .memory_mib = spec->memory_mib != 0 ? spec->memory_mib : 512,
                                 .disk_bytes = (uint64_t)2 << 30,
                                 .egress_denied = spec->egress_denied,
                                 .environment = spec->environment,
                                 .metadata = spec->metadata,
                                 .expires_ns = expiry(spec->timeout_s),
                                 .on_timeout = spec->on_timeout,
                                 .auto_resume = spec->auto_resume};
    pthread_mutex_lock(&manager->lock);
    int r = add(manager, &model, ret, err);
    pthread_mutex_unlock(&manager->lock);
    return r;
}

int manager_get(struct manager *manager, const char *id_or_prefix, struct sandbox_info *ret, struct error *err)
{
    struct sandbox_info *info;
    int r = find(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    copy_info(info, ret);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_list(struct manager *manager, struct sandbox_list *ret, struct error *err)
{
    (void)err;
    pthread_mutex_lock(&manager->lock);
    ret->count = manager->count;
    ret->items = calloc(manager->count + 1, sizeof(*ret->items));
    for (size_t i = 0; i < manager->count && ret->items != NULL; i++)
        copy_info(&manager->sandboxes[i], &ret->items[i]);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_pause(struct manager *manager, const char *id_or_prefix, bool disk_only, struct sandbox_info *ret,
                  struct error *err)
{
    (void)disk_only;
    struct sandbox_info *info;
    int r = find_in_state(manager, id_or_prefix, SANDBOX_RUNNING, &info, err);
    if (r < 0)
        return r;
    info->state = SANDBOX_PAUSED;
    info->vmm_pid = 0;
    copy_info(info, ret);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_resume(struct manager *manager, const char *id_or_prefix, const struct resume_options *options,
                   bool *ret_was_running, struct sandbox_info *ret, struct error *err)
{
    struct sandbox_info *info;
    int r = find(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    *ret_was_running = info->state == SANDBOX_RUNNING;
    info->state = SANDBOX_RUNNING;
    info->vmm_pid = 1;
    int64_t expires_ns = expiry(options->timeout_s);
    if (options->timeout_s >= 0 && (!*ret_was_running || expires_ns > info->expires_ns))
        info->expires_ns = expires_ns;
    copy_info(info, ret);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_wake(struct manager *manager, const char *id, struct sandbox_info *ret, struct error *err)
{
    struct sandbox_info *info;
    int r = find(manager, id, &info, err);
    if (r < 0)
        return r;
    if (info->state == SANDBOX_PAUSED && info->auto_resume)
        info->state = SANDBOX_RUNNING;
    if (info->state != SANDBOX_RUNNING)
        r = error_set(err, EBUSY, "sandbox %s is not woken", id);
    else
        copy_info(info, ret);
    pthread_mutex_unlock(&manager->lock);
    return r;
}

int manager_fork(struct manager *manager, const char *id_or_prefix, unsigned count, int64_t timeout_s,
                 struct fork_result *results, struct error *err)
{
    struct sandbox_info *info;
    int r = find(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    struct sandbox_info model;
    copy_info(info, &model);
    free(model.parent_id);
    model.parent_id = copy(info->id);
    model.expires_ns = expiry(timeout_s);
    for (unsigned i = 0; i < count; i++) {
        results[i] = (struct fork_result){.error = ERROR_INIT};
        add(manager, &model, &results[i].info, &results[i].error);
    }
    sandbox_info_done(&model);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_kill(struct manager *manager, const char *id_or_prefix, struct error *err)
{
    struct sandbox_info *info;
    int r = find(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    sandbox_info_done(info);
    memmove(info, info + 1, (size_t)(manager->sandboxes + --manager->count - info) * sizeof(*info));
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_set_timeout(struct manager *manager, const char *id_or_prefix, int64_t timeout_s, struct error *err)
{
    struct sandbox_info *info;
    int r = find_in_state(manager, id_or_prefix, SANDBOX_RUNNING, &info, err);
    if (r < 0)
        return r;
    info->expires_ns = expiry(timeout_s);
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_set_egress(struct manager *manager, const char *id_or_prefix, bool allowed, struct error *err)
{
    struct sandbox_info *info;
    int r = find_in_state(manager, id_or_prefix, SANDBOX_RUNNING, &info, err);
    if (r < 0)
        return r;
    info->egress_denied = !allowed;
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int manager_stats(struct manager *manager, const char *id_or_prefix, struct sandbox_stats *ret, struct error *err)
{
    struct sandbox_info *info;
    int r = find_in_state(manager, id_or_prefix, SANDBOX_RUNNING, &info, err);
    if (r < 0)
        return r;
    pthread_mutex_unlock(&manager->lock);
    *ret = (struct sandbox_stats){1 << 20, 64 << 20, 90 << 20, 1500000000, 4 << 20};
    return 0;
}

int manager_logs(struct manager *manager, const char *id_or_prefix, size_t limit, char **ret_text,
                 size_t *ret_length, struct error *err)
{
    static const char text[] = "first line\nsecond \xff line\n";
    struct sandbox_info *info;
    int r = find(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    pthread_mutex_unlock(&manager->lock);
    size_t length = MIN(sizeof(text) - 1, limit);
    *ret_text = copy(text + sizeof(text) - 1 - length);
    *ret_length = length;
    return 0;
}

int manager_socket(struct manager *manager, const char *id, struct error *err)
{
    struct sandbox_info *info;
    int r = find_in_state(manager, id, SANDBOX_RUNNING, &info, err);
    if (r < 0)
        return r;
    pthread_mutex_unlock(&manager->lock);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 ? error_errno(err, "cannot create a socket") : fd;
}

static void base_template(struct template_info *ret, const char *name)
{
    *ret = (struct template_info){copy("t0base"),    copy(name),         copy("s0base"), 1, 512,
                                  (uint64_t)2 << 30, clock_realtime_ns()};
}

/* A template called "endless" reports progress until it is cancelled, "broken" fails. */
int manager_template_build(struct manager *manager, const struct template_spec *spec, progress_function progress,
                           void *context, struct template_info *ret, struct error *err)
{
    (void)manager;
    do {
        if (!progress(context, "making the root file system"))
            return error_set(err, ECANCELED, "cancelled");
    } while (strcmp(spec->name, "endless") == 0);
    if (strcmp(spec->name, "broken") == 0) {
        error_set(err, ETIMEDOUT, "the agent did not answer");
        error_hint(err, "look at the console");
        return -ETIMEDOUT;
    }
    base_template(ret, spec->name);
    return 0;
}

int manager_template_list(struct manager *manager, struct template_list *ret, struct error *err)
{
    (void)manager;
    (void)err;
    ret->count = 1;
    ret->items = calloc(1, sizeof(*ret->items));
    if (ret->items == NULL)
        abort();
    base_template(&ret->items[0], "base");
    return 0;
}

int manager_template_remove(struct manager *manager, const char *name_or_id, struct error *err)
{
    (void)manager;
    return strcmp(name_or_id, "base") == 0 ? 0 : error_set(err, ENOENT, "no template \"%s\"", name_or_id);
}

static void base_snapshot(struct snapshot_info *ret)
{
    *ret = (struct snapshot_info){
        .id = copy("s0base"),
        .sandbox_id = copy(""),
        .template_id = copy("t0base"),
        .parent_id = copy(""),
        .disk_consistency = copy(""),
        .in_use = true,
        .cpus = 1,
        .memory_mib = 512,
        .created_ns = clock_realtime_ns(),
        .memory_bytes = 80 << 20,
        .disk_bytes = 1 << 20,
        .state_bytes = 4096,
        .stored_bytes = 30 << 20,
        .own_bytes = 10 << 20,
        .layers = 2,
    };
}

/* "name:tag" as the real one completes it; what it may be is not looked at, but for "taken". */
int manager_checkpoint(struct manager *manager, const char *id_or_prefix, const char *name,
                       struct snapshot_info *ret, struct error *err)
{
    struct sandbox_info info;
    int r = manager_get(manager, id_or_prefix, &info, err);
    if (r < 0)
        return r;
    if (name != NULL && strcmp(name, "taken") == 0) {
        sandbox_info_done(&info);
        return error_set(err, EBUSY, "taken is the name of a template");
    }
    base_snapshot(ret);
    free(ret->sandbox_id);
    ret->sandbox_id = copy(info.id);
    ret->checkpoint = true;
    sandbox_info_done(&info);
    CLEANUP_FREE char *complete = NULL;
    if (name != NULL &&
        (asprintf(&complete, "%s%s", name, strchr(name, ':') != NULL ? "" : ":default") < 0 ||
         string_list_add(&ret->names, "other:name") < 0 || string_list_add(&ret->names, complete) < 0))
        abort();
    return 0;
}

int manager_snapshot_list(struct manager *manager, struct snapshot_list *ret, struct error *err)
{
    (void)manager;
    (void)err;
    ret->count = 1;
    ret->items = calloc(1, sizeof(*ret->items));
    if (ret->items == NULL)
        abort();
    base_snapshot(&ret->items[0]);
    return 0;
}

static int check_snapshot(const char *id_or_prefix, struct error *err)
{
    if (strncmp("s0base", id_or_prefix, strlen(id_or_prefix)) != 0)
        return error_set(err, ENOENT, "no snapshot \"%s\"", id_or_prefix);
    return 0;
}

int manager_snapshot_get(struct manager *manager, const char *id_or_prefix, struct snapshot_info *ret,
                         struct error *err)
{
    (void)manager;
    int r = check_snapshot(id_or_prefix, err);
    if (r == 0)
        base_snapshot(ret);
    return r;
}

int manager_snapshot_remove(struct manager *manager, const char *id_or_prefix, struct error *err)
{
    (void)manager;
    return error_set(err, EBUSY, "snapshot %s is needed by template base", id_or_prefix);
}

/* Two layers, the second of which can't be opened, and a section of a kind from the future. */
int manager_snapshot_inspect(struct manager *manager, const char *id_or_prefix, struct snapshot_inspection *ret,
                             struct error *err)
{
    (void)manager;
    int r = check_snapshot(id_or_prefix, err);
    if (r < 0)
        return r;
    *ret = (struct snapshot_inspection){
        .vmm = copy("qemu 7.2"),
        .accelerator = copy("tcg"),
        .cpu_model = copy("qemu64"),
        .kernel = copy("6.1"),
        .machine_revision = 1,
        .manifest_bytes = 512,
        .sections = calloc(2, sizeof(*ret->sections)),
        .section_count = 2,
        .layers = calloc(2, sizeof(*ret->layers)),
        .layer_count = 2,
        .memory = {.pages = 131072, .mapped_pages = 5, .extents = 2},
        .disk = {.pages = 524288},
        .working_set = {.present = true, .runs = 3, .pages = 7},
    };
    if (ret->sections == NULL || ret->layers == NULL)
        abort();
    base_snapshot(&ret->info);
    ret->sections[0] = (struct inspected_section){.kind = 1, .offset = 128, .bytes = 300};
    ret->sections[1] = (struct inspected_section){.kind = 99, .ignorable = true, .offset = 428, .bytes = 84};
    ret->layers[0] = (struct inspected_layer){
        .id = copy("l0"), .bytes = 4096, .frames = 2, .frame_pages = 4, .pages = 6, .memory_pages = 4};
    ret->layers[1] =
        (struct inspected_layer){.id = copy("l1"), .bytes = 99, .memory_pages = 1, .problem = copy("missing")};
    return 0;
}

/* The store as a whole has a damaged snapshot; s0base is sound; "s0" alone lasts until it is cancelled. */
int manager_verify(struct manager *manager, const char *id_or_prefix, cancel_function cancel, void *context,
                   struct store_verification *ret, struct error *err)
{
    (void)manager;
    int r = id_or_prefix != NULL ? check_snapshot(id_or_prefix, err) : 0;
    if (r < 0)
        return r;
    if (id_or_prefix != NULL && strcmp(id_or_prefix, FAKE_ENDLESS_SNAPSHOT) == 0) {
        sem_post(&fake_verifying);
        while (!cancel(context))
            sched_yield();
        sem_post(&fake_cancelled);
        return error_set(err, ECANCELED, "cancelled");
    }
    *ret = (struct store_verification){.snapshots = 1, .layers = 2, .layer_bytes = 4195};
    if (id_or_prefix != NULL)
        return 0;
    ret->damaged = calloc(1, sizeof(*ret->damaged));
    if (ret->damaged == NULL)
        abort();
    ret->damaged[0] = (struct snapshot_damage){copy("s1"), copy("frame 3 of l1"), copy("remove it")};
    ret->damaged_count = 1;
    return 0;
}

int manager_snapshot_diff(struct manager *manager, const char *const ids_or_prefixes[2], size_t ranges_max,
                          cancel_function cancel, void *context, struct snapshot_difference *ret, struct error *err)
{
    (void)manager;
    int r = check_snapshot(ids_or_prefixes[0], err);
    if (r == 0)
        r = check_snapshot(ids_or_prefixes[1], err);
    if (r == 0 && cancel(context))
        r = error_set(err, ECANCELED, "cancelled");
    if (r < 0)
        return r;
    *ret = (struct snapshot_difference){
        .ids = {copy("s0base"), copy("s0base")},
        .memory = {.pages = {8, 8}, .read_pages = 4, .different_pages = 3, .ranges_cut = ranges_max == 0},
    };
    ret->memory.ranges = calloc(1, sizeof(*ret->memory.ranges));
    if (ret->memory.ranges == NULL)
        abort();
    ret->memory.ranges[0] = (struct page_range){2, 3};
    ret->memory.range_count = MIN(ranges_max, 1U);
    return 0;
}

int manager_snapshot_compact(struct manager *manager, const char *id_or_prefix, struct snapshot_compaction *ret,
                             struct error *err)
{
    (void)manager;
    int r = check_snapshot(id_or_prefix, err);
    if (r == 0)
        *ret = (struct snapshot_compaction){copy("s0base"), true, {17, 8}, {40, 20}, {900, 800}};
    return r;
}

int manager_snapshot_disk(struct manager *manager, const char *id_or_prefix, char **ret_id, char **ret_path,
                          struct error *err)
{
    (void)manager;
    int r = check_snapshot(id_or_prefix, err);
    if (r < 0)
        return r;
    *ret_id = copy("s0base");
    *ret_path = copy("/data/images/disk/s0base");
    return 0;
}

int manager_store_report(struct manager *manager, struct store_report *ret, struct error *err)
{
    (void)manager;
    (void)err;
    *ret = (struct store_report){1, 2, 4195, 99, 8192, json_pack("{s:i}", "misses", 5)};
    return 0;
}

int manager_store_gc(struct manager *manager, struct store_collection *ret, struct error *err)
{
    (void)manager;
    (void)err;
    *ret = (struct store_collection){1, 99};
    return 0;
}
