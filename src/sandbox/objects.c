/* The lists of sandboxes and templates: finding, referring to, recording and changing the state of an object. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "base/json.h"
#include "base/process.h"
#include "sandbox/internal.h"

#define BOOT_ID_PATH   "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_LENGTH 36

/* Two clocks read one after the other differ by less, unless one of them was set. */
#define CLOCK_JITTER_NS 100000000

int64_t boottime_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Names the present boot of the host, to which a time of CLOCK_BOOTTIME belongs; "" when it can't be known. */
static void read_boot_id(char ret[static BOOT_ID_LENGTH + 1])
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    ret[0] = '\0';
    if (io_read_file(BOOT_ID_PATH, BOOT_ID_LENGTH + 1, &text, &length) == 0 && length >= BOOT_ID_LENGTH)
        snprintf(ret, BOOT_ID_LENGTH + 1, "%.36s", text);
}

/* When the deadline will be on the wall clock, which may have jumped since it was set. Under manager->lock. */
static void update_expiry(struct sandbox *sandbox)
{
    if (sandbox->deadline_ns == 0)
        return;
    int64_t expires_ns = clock_realtime_ns() + sandbox->deadline_ns - boottime_ns();
    if (llabs(expires_ns - sandbox->info.expires_ns) > CLOCK_JITTER_NS)
        sandbox->info.expires_ns = expires_ns;
}

void sandbox_free(struct sandbox *sandbox)
{
    if (sandbox == NULL)
        return;
    pthread_mutex_destroy(&sandbox->operation);
    sandbox_info_done(&sandbox->info);
    free(sandbox->vm_directory);
    free(sandbox->pending_snapshot);
    machine_done(&sandbox->machine);
    free(sandbox->cgroup);
    imaged_files_done(&sandbox->files);
    page_digests_free(sandbox->digests);
    free(sandbox->digests_snapshot);
    free(sandbox);
}

/* Under manager->lock: the sandbox with that id, or the only one whose id begins so. */
static int find_sandbox(struct manager *manager, const char *id_or_prefix, struct sandbox **ret, struct error *err)
{
    size_t length = strlen(id_or_prefix);
    struct sandbox *found = NULL;
    bool ambiguous = false;
    for (struct sandbox *sandbox = manager->sandboxes; sandbox != NULL && length > 0; sandbox = sandbox->next) {
        if (strncmp(sandbox->info.id, id_or_prefix, length) != 0)
            continue;
        ambiguous = found != NULL;
        found = sandbox;
        if (sandbox->info.id[length] == '\0' || ambiguous)
            break;
    }
    if (ambiguous) {
        error_set(err, EINVAL, "the id %s fits more than one sandbox", id_or_prefix);
        error_hint(err, "give more of it");
        return -EINVAL;
    }
    if (found == NULL) {
        error_set(err, ENOENT, "there is no sandbox %.64s", id_or_prefix);
        error_hint(err, "dormouse ls lists them");
        return -ENOENT;
    }
    *ret = found;
    return 0;
}

void sandbox_end_vmm(const struct sandbox *sandbox)
{
    if (sandbox->info.vmm_pid == 0)
        return;
    CLEANUP_CLOSE int pidfd = process_open(sandbox->info.vmm_pid, sandbox->vmm_start_time);
    if (pidfd >= 0)
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

/* `preemption` NULL: waits for its turn. */
static int acquire(struct manager *manager, const char *id_or_prefix, const enum preemption *preemption,
                   struct sandbox **ret, struct error *err)
{
    struct sandbox *sandbox;
    pthread_mutex_lock(&manager->lock);
    int r = find_sandbox(manager, id_or_prefix, &sandbox, err);
    if (r == 0)
        sandbox->references++;
    if (r == 0 && preemption != NULL && (*preemption == PREEMPT_ALL || sandbox->info.state == SANDBOX_PAUSING))
        atomic_store(&sandbox->cancelled, true);
    if (r == 0 && preemption != NULL && *preemption == PREEMPT_ALL) {
        sandbox->doomed = true;
        sandbox_end_vmm(sandbox);
    }
    pthread_mutex_unlock(&manager->lock);
    if (r < 0)
        return r;
    if (preemption != NULL && *preemption == PREEMPT_ALL)
        admission_wake(manager->admission); /* it may wait for its turn to start */
    pthread_mutex_lock(&sandbox->operation);
    if (sandbox->removed) {
        sandbox_release(manager, sandbox);
        if (preemption != NULL && *preemption == PREEMPT_ALL)
            return error_set(err, EALREADY, "sandbox %.64s has just gone", id_or_prefix);
        return error_set(err, ENOENT, "there is no sandbox %.64s any more", id_or_prefix);
    }
    *ret = sandbox;
    return 0;
}

int sandbox_acquire(struct manager *manager, const char *id_or_prefix, struct sandbox **ret, struct error *err)
{
    return acquire(manager, id_or_prefix, NULL, ret, err);
}

int sandbox_preempt(struct manager *manager, const char *id_or_prefix, enum preemption preemption,
                    struct sandbox **ret, struct error *err)
{
    return acquire(manager, id_or_prefix, &preemption, ret, err);
}

void sandbox_release(struct manager *manager, struct sandbox *sandbox)
{
    pthread_mutex_unlock(&sandbox->operation);
    pthread_mutex_lock(&manager->lock);
    bool last = --sandbox->references == 0 && sandbox->removed;
    pthread_mutex_unlock(&manager->lock);
    if (last)
        sandbox_free(sandbox);
}

struct sandbox *sandbox_new(struct manager *manager, struct sandbox_info *info, struct error *err)
{
    struct sandbox *sandbox = calloc(1, sizeof(*sandbox));
    if (sandbox == NULL) {
        error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    sandbox->network_slot = -1;
    sandbox->vm_directory = manager_path(manager, "vms", info->id, err);
    if (sandbox->vm_directory == NULL) {
        free(sandbox);
        return NULL;
    }
    pthread_mutex_init(&sandbox->operation, NULL);
    sandbox->info = *info;
    *info = (struct sandbox_info){0};
    return sandbox;
}

static void list_sandbox(struct manager *manager, struct sandbox *sandbox)
{
    pthread_mutex_lock(&manager->lock);
    sandbox->next = manager->sandboxes;
    manager->sandboxes = sandbox;
    pthread_mutex_unlock(&manager->lock);
}

int sandbox_add(struct manager *manager, struct sandbox_info *info, struct sandbox **ret, struct error *err)
{
    struct sandbox *sandbox = sandbox_new(manager, info, err);
    if (sandbox == NULL)
        return -ENOMEM;
    int r = sandbox_record(manager, sandbox, err);
    if (r < 0) {
        sandbox_free(sandbox);
        return r;
    }
    sandbox->references = 1;
    pthread_mutex_lock(&sandbox->operation);
    list_sandbox(manager, sandbox);
    *ret = sandbox;
    return 0;
}

int sandbox_remove(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    int r = registry_delete(manager->registry, REGISTRY_SANDBOX, sandbox->info.id, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&manager->lock);
    for (struct sandbox **link = &manager->sandboxes; *link != NULL; link = &(*link)->next) {
        if (*link == sandbox) {
            *link = sandbox->next;
            break;
        }
    }
    sandbox->removed = true;
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

json_t *json_list(const struct string_list *list)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < list->count; i++)
        json_array_append_new(array, json_string(list->items[i]));
    return array;
}

int sandbox_record(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    const struct sandbox_info *info = &sandbox->info;
    if (sandbox->unrecorded)
        return 0;
    json_t *document = json_pack(
        "{s:s, s:s?, s:I, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:b, s:o, s:o, s:I, s:I, "
        "s:I, s:I, s:I, s:s?, s:b, s:b, s:b}",
        "state", sandbox_state_name(info->state), "lost_reason", info->lost_reason, "vmm_pid",
        (json_int_t)info->vmm_pid, "vmm_start_time", (json_int_t)sandbox->vmm_start_time, "network_slot",
        (json_int_t)sandbox->network_slot, "template_id", info->template_id, "template_name", info->template_name,
        "snapshot_id", info->snapshot_id, "parent_id", info->parent_id, "access_token", info->access_token, "cpus",
        (json_int_t)info->cpus, "memory_mib", (json_int_t)info->memory_mib, "disk_bytes",
        (json_int_t)info->disk_bytes, "egress_denied", (int)info->egress_denied, "environment",
        json_list(&info->environment), "metadata", json_list(&info->metadata), "created_ns",
        (json_int_t)info->created_ns, "started_ns", (json_int_t)info->started_ns, "expires_ns",
        (json_int_t)info->expires_ns, "on_timeout", (json_int_t)info->on_timeout, "timeout_s",
        (json_int_t)sandbox->timeout_s, "pending_snapshot", sandbox->pending_snapshot, "fresh_memory",
        (int)sandbox->fresh_memory, "auto_resume", (int)info->auto_resume, "durable", (int)info->durable);
    char boot_id[BOOT_ID_LENGTH + 1];
    read_boot_id(boot_id);
    json_t *more = json_pack("{s:I, s:s, s:o*}", "deadline_ns", (json_int_t)sandbox->deadline_ns, "boot_id",
                             boot_id, "machine", machine_json(&sandbox->machine));
    bool complete = document != NULL && json_object_update(document, more) == 0;
    json_decref(more);
    if (!complete) {
        json_decref(document);
        return error_set(err, ENOMEM, "out of memory");
    }
    /* What a pause commits must be found again, since what the sandbox had before is removed then. A resume doesn't
     * wait for the disk: without its record the sandbox is paused as it was. */
    bool durable = info->durable || sandbox->pending_snapshot != NULL;
    int r = registry_put(manager->registry, REGISTRY_SANDBOX, info->id, document, durable, err);
    json_decref(document);
    return r;
}

int json_read_list(const json_t *document, const char *key, struct string_list *ret, struct error *err)
{
    const json_t *array = json_object_get(document, key);
    size_t index;
    const json_t *item;
    json_array_foreach (array, index, item) {
        if (!json_is_string(item))
            return error_set(err, EUCLEAN, "%s is damaged", key);
        if (string_list_add(ret, json_string_value(item)) < 0)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int read_texts(const json_t *document, struct sandbox_info *info, struct error *err)
{
    const struct {
        const char *key;
        char **value;
    } texts[] = {
        {"template_id", &info->template_id},   {"template_name", &info->template_name},
        {"snapshot_id", &info->snapshot_id},   {"parent_id", &info->parent_id},
        {"access_token", &info->access_token},
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        int r = json_read_text(document, texts[i].key, texts[i].value, err);
        if (r < 0)
            return r;
    }
    const char *reason = json_string_value(json_object_get(document, "lost_reason"));
    return reason != NULL ? replace_text(&info->lost_reason, reason, err) : 0;
}

struct numbers {
    int64_t pid;
    int64_t start_time;
    int64_t slot;
    int64_t timeout_s;
    int64_t deadline_ns;
};

static int read_numbers(const json_t *document, struct sandbox_info *info, struct numbers *ret, struct error *err)
{
    int64_t cpus = 0;
    int64_t memory = 0;
    int64_t disk = 0;
    int64_t action = 0;
    const struct {
        const char *key;
        int64_t minimum;
        int64_t maximum;
        int64_t absent;
        int64_t *value;
    } numbers[] = {
        {"vmm_pid", 0, INT32_MAX, 0, &ret->pid},
        {"vmm_start_time", 0, INT64_MAX, 0, &ret->start_time},
        {"network_slot", -1, INT32_MAX, -1, &ret->slot},
        {"timeout_s", 0, SANDBOX_TIMEOUT_MAX_S, 0, &ret->timeout_s},
        {"deadline_ns", 0, INT64_MAX, 0, &ret->deadline_ns},
        {"cpus", 1, SANDBOX_CPUS_MAX, 1, &cpus},
        {"memory_mib", 1, SANDBOX_MEMORY_MAX_MIB, 1, &memory},
        {"disk_bytes", 0, INT64_MAX, 0, &disk},
        {"created_ns", 0, INT64_MAX, 0, &info->created_ns},
        {"started_ns", 0, INT64_MAX, 0, &info->started_ns},
        {"expires_ns", 0, INT64_MAX, 0, &info->expires_ns},
        {"on_timeout", TIMEOUT_KILL, TIMEOUT_PAUSE_DISK, TIMEOUT_KILL, &action},
    };
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        int r = json_read_integer(document, numbers[i].key, numbers[i].minimum, numbers[i].maximum,
                                  numbers[i].absent, numbers[i].value, err);
        if (r < 0)
            return r;
    }
    info->cpus = (unsigned)cpus;
    info->memory_mib = (unsigned)memory;
    info->disk_bytes = (uint64_t)disk;
    info->on_timeout = (enum timeout_action)action;
    info->vmm_pid = (pid_t)ret->pid;
    return 0;
}

static int read_info(const char *id, const json_t *document, struct sandbox_info *info, struct numbers *numbers,
                     struct error *err)
{
    const char *state = json_string_value(json_object_get(document, "state"));
    int parsed = state != NULL ? sandbox_state_parse(state) : -1;
    if (parsed < 0)
        return error_set(err, EUCLEAN, "the state is damaged");
    info->state = (enum sandbox_state)parsed;
    int r = replace_text(&info->id, id, err);
    if (r == 0)
        r = read_texts(document, info, err);
    if (r == 0)
        r = read_numbers(document, info, numbers, err);
    if (r == 0)
        r = json_read_bool(document, "egress_denied", false, &info->egress_denied, err);
    if (r == 0)
        r = json_read_bool(document, "auto_resume", false, &info->auto_resume, err);
    if (r == 0)
        r = json_read_bool(document, "durable", false, &info->durable, err);
    if (r == 0)
        r = json_read_list(document, "environment", &info->environment, err);
    if (r == 0)
        r = json_read_list(document, "metadata", &info->metadata, err);
    return r;
}

/*
 * The wall clock may have been set while no daemon was there. Only after a boot of the host it has to tell how much
 * time is left.
 */
static void set_recorded_deadline(struct sandbox *sandbox, int64_t deadline_ns, const char *recorded_boot_id)
{
    char boot_id[BOOT_ID_LENGTH + 1];
    read_boot_id(boot_id);
    bool same_boot = boot_id[0] != '\0' && recorded_boot_id != NULL && strcmp(recorded_boot_id, boot_id) == 0;
    if (sandbox->info.expires_ns == 0)
        sandbox->deadline_ns = 0;
    else if (same_boot && deadline_ns != 0)
        sandbox->deadline_ns = deadline_ns;
    else
        sandbox->deadline_ns = boottime_ns() + MAX(sandbox->info.expires_ns - clock_realtime_ns(), (int64_t)1);
}

int sandbox_load(struct manager *manager, const char *id, const json_t *document, struct error *err)
{
    CLEANUP(sandbox_info_done) struct sandbox_info info = {0};
    struct numbers numbers = {0};
    int r = read_info(id, document, &info, &numbers, err);
    if (r < 0)
        return error_wrap(err, -EUCLEAN, "the registry's record of sandbox %s", id);
    const char *pending = json_string_value(json_object_get(document, "pending_snapshot"));
    struct sandbox *sandbox = sandbox_new(manager, &info, err);
    if (sandbox == NULL)
        return -ENOMEM;
    sandbox->vmm_start_time = (uint64_t)numbers.start_time;
    sandbox->network_slot = numbers.slot;
    sandbox->timeout_s = numbers.timeout_s;
    sandbox->fresh_memory = json_is_true(json_object_get(document, "fresh_memory"));
    if (pending != NULL)
        r = replace_text(&sandbox->pending_snapshot, pending, err);
    if (r == 0)
        r = machine_read(json_object_get(document, "machine"), &sandbox->machine, err);
    if (r < 0) {
        sandbox_free(sandbox);
        return error_wrap(err, -EUCLEAN, "the registry's record of sandbox %s", id);
    }
    set_recorded_deadline(sandbox, numbers.deadline_ns, json_string_value(json_object_get(document, "boot_id")));
    list_sandbox(manager, sandbox);
    return 0;
}

int sandbox_require(const struct sandbox *sandbox, enum sandbox_state state, const char *what, struct error *err)
{
    if (sandbox->info.state == state)
        return 0;
    const char *name = sandbox_state_name(sandbox->info.state);
    if (strcmp(name, what) == 0)
        return error_set(err, EBUSY, "sandbox %s is already %s", sandbox->info.id, name);
    error_set(err, EBUSY, "sandbox %s is %s: it can't be %s", sandbox->info.id, name, what);
    if (sandbox->info.state == SANDBOX_PAUSED)
        error_hint(err, "resume it first: dormouse resume %.12s", sandbox->info.id);
    if (sandbox->info.state == SANDBOX_LOST && sandbox->info.lost_reason != NULL)
        error_hint(err, "it was lost: %s", sandbox->info.lost_reason);
    return -EBUSY;
}

static void change_state(struct manager *manager, struct sandbox *sandbox, enum sandbox_state state)
{
    pthread_mutex_lock(&manager->lock);
    sandbox->info.state = state;
    pthread_mutex_unlock(&manager->lock);
}

int sandbox_set_state(struct manager *manager, struct sandbox *sandbox, enum sandbox_state state, struct error *err)
{
    enum sandbox_state before = sandbox->info.state;
    if (!sandbox_state_may_follow(before, state))
        return error_set(err, EBUSY, "sandbox %s is %s and can't become %s", sandbox->info.id,
                         sandbox_state_name(before), sandbox_state_name(state));
    change_state(manager, sandbox, state);
    int r = sandbox_record(manager, sandbox, err);
    if (r < 0)
        change_state(manager, sandbox, before);
    return r;
}

void sandbox_force_state(struct manager *manager, struct sandbox *sandbox, enum sandbox_state state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    change_state(manager, sandbox, state);
    if (sandbox_record(manager, sandbox, &err) < 0)
        manager_log(manager, "sandbox %s is %s, which could not be recorded: %s", sandbox->info.id,
                    sandbox_state_name(state), error_message(&err));
}

void sandbox_set_lost(struct manager *manager, struct sandbox *sandbox, const char *reason)
{
    char *copy = strdup(reason);
    pthread_mutex_lock(&manager->lock);
    free(sandbox->info.lost_reason);
    sandbox->info.lost_reason = copy;
    sandbox->deadline_ns = 0;
    sandbox->info.expires_ns = 0;
    pthread_mutex_unlock(&manager->lock);
    manager_log(manager, "sandbox %s is lost: %s", sandbox->info.id, reason);
    sandbox_force_state(manager, sandbox, SANDBOX_LOST);
}

int sandbox_report(struct manager *manager, struct sandbox *sandbox, struct sandbox_info *ret, struct error *err)
{
    if (ret == NULL)
        return 0;
    pthread_mutex_lock(&manager->lock);
    update_expiry(sandbox);
    int r = sandbox_info_copy(ret, &sandbox->info);
    pthread_mutex_unlock(&manager->lock);
    return r < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

void sandbox_set_deadline(struct manager *manager, struct sandbox *sandbox, int64_t timeout_s)
{
    pthread_mutex_lock(&manager->lock);
    sandbox->timeout_s = timeout_s;
    sandbox->deadline_ns = timeout_s > 0 ? boottime_ns() + timeout_s * 1000000000 : 0;
    sandbox->info.expires_ns = timeout_s > 0 ? clock_realtime_ns() + timeout_s * 1000000000 : 0;
    pthread_mutex_unlock(&manager->lock);
    watch_wake(manager);
}

void sandbox_postpone(struct manager *manager, struct sandbox *sandbox, int64_t delay_ns)
{
    pthread_mutex_lock(&manager->lock);
    sandbox->deadline_ns = boottime_ns() + delay_ns;
    sandbox->info.expires_ns = clock_realtime_ns() + delay_ns;
    pthread_mutex_unlock(&manager->lock);
    watch_wake(manager);
}

int manager_get(struct manager *manager, const char *id_or_prefix, struct sandbox_info *ret, struct error *err)
{
    struct sandbox *sandbox;
    pthread_mutex_lock(&manager->lock);
    int r = find_sandbox(manager, id_or_prefix, &sandbox, err);
    if (r == 0)
        update_expiry(sandbox);
    if (r == 0 && sandbox_info_copy(ret, &sandbox->info) < 0)
        r = error_set(err, ENOMEM, "out of memory");
    pthread_mutex_unlock(&manager->lock);
    return r;
}

static int compare_created(const void *a, const void *b)
{
    const struct sandbox_info *left = a;
    const struct sandbox_info *right = b;
    if (left->created_ns != right->created_ns)
        return left->created_ns < right->created_ns ? -1 : 1;
    return strcmp(left->id, right->id);
}

int manager_list(struct manager *manager, struct sandbox_list *ret, struct error *err)
{
    struct sandbox_list list = {0};
    pthread_mutex_lock(&manager->lock);
    size_t count = 0;
    for (struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        count++;
    list.items = calloc(count + 1, sizeof(*list.items));
    bool failed = list.items == NULL;
    for (struct sandbox *sandbox = manager->sandboxes; !failed && sandbox != NULL; sandbox = sandbox->next) {
        update_expiry(sandbox);
        failed = sandbox_info_copy(&list.items[list.count], &sandbox->info) < 0;
        list.count += !failed;
    }
    pthread_mutex_unlock(&manager->lock);
    if (failed) {
        sandbox_list_done(&list);
        return error_set(err, ENOMEM, "out of memory");
    }
    qsort(list.items, list.count, sizeof(*list.items), compare_created);
    *ret = list;
    return 0;
}

struct template *template_find(struct manager *manager, const char *name_or_id)
{
    for (struct template *template = manager->templates; template != NULL; template = template->next)
        if (strcmp(template->info.name, name_or_id) == 0 || strcmp(template->info.id, name_or_id) == 0)
            return template;
    return NULL;
}

int template_load(struct manager *manager, const char *id, const json_t *document, struct error *err)
{
    struct template *template = calloc(1, sizeof(*template));
    if (template == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int64_t cpus = 0;
    int64_t memory = 0;
    int64_t disk = 0;
    int r = replace_text(&template->info.id, id, err);
    if (r == 0)
        r = json_read_text(document, "name", &template->info.name, err);
    if (r == 0)
        r = json_read_text(document, "snapshot_id", &template->info.snapshot_id, err);
    if (r == 0)
        r = json_read_integer(document, "cpus", 1, SANDBOX_CPUS_MAX, 1, &cpus, err);
    if (r == 0)
        r = json_read_integer(document, "memory_mib", 1, SANDBOX_MEMORY_MAX_MIB, 1, &memory, err);
    if (r == 0)
        r = json_read_integer(document, "disk_bytes", 0, INT64_MAX, 0, &disk, err);
    if (r == 0)
        r = json_read_integer(document, "created_ns", 0, INT64_MAX, 0, &template->info.created_ns, err);
    if (r < 0) {
        template_info_done(&template->info);
        free(template);
        return error_wrap(err, -EUCLEAN, "the registry's record of template %s", id);
    }
    template->info.cpus = (unsigned)cpus;
    template->info.memory_mib = (unsigned)memory;
    template->info.disk_bytes = (uint64_t)disk;
    pthread_mutex_lock(&manager->lock);
    template->next = manager->templates;
    manager->templates = template;
    pthread_mutex_unlock(&manager->lock);
    return 0;
}

int template_record(struct manager *manager, const struct template_info *info, struct error *err)
{
    json_t *document =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "name", info->name, "snapshot_id", info->snapshot_id, "cpus",
                  (json_int_t)info->cpus, "memory_mib", (json_int_t)info->memory_mib, "disk_bytes",
                  (json_int_t)info->disk_bytes, "created_ns", (json_int_t)info->created_ns);
    if (document == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = registry_put(manager->registry, REGISTRY_TEMPLATE, info->id, document, true, err);
    json_decref(document);
    return r;
}
