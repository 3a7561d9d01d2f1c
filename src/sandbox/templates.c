/*
 * Templates: make a rootfs, boot it once, wait for the agent, snapshot it. The builder is a sandbox that is neither
 * listed nor recorded: if the daemon dies meanwhile, recovery removes its VMM and directory as nobody's.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/process.h"
#include "control/client.h"
#include "host/assets.h"
#include "image/capture.h"
#include "sandbox/internal.h"
#include "template/template.h"
#include "vmm/cpu_model.h"

#define TEMPLATE_MEMORY_DEFAULT_MIB 512

/* A freshly booted guest is snapshotted when it has used less than this share of a CPU for so many samples. */
#define SETTLE_SAMPLE_MS     100
#define SETTLE_BUSY_NS       10000000
#define SETTLE_QUIET_SAMPLES 3
#define SETTLE_SAMPLES_MAX   100

#define SYNC_TIMEOUT_MS 60000

struct build {
    struct manager *manager;
    const struct template_spec *spec;
    progress_function progress;
    void *context;
    struct guest_kernel kernel;
    struct sandbox *sandbox; /* the builder */
    char *directory;         /* for what the seed is made of */
    char *seed_id;
    struct template_info info;
    struct start_request request;
    bool cancelled;
};

static void build_done(struct build *build)
{
    if (build->sandbox != NULL)
        sandbox_teardown(build->manager, build->sandbox);
    sandbox_free(build->sandbox);
    if (build->seed_id != NULL)
        snapshot_discard(build->manager, build->seed_id);
    free(build->seed_id);
    if (build->directory != NULL)
        io_remove_tree(build->directory);
    free(build->directory);
    guest_kernel_done(&build->kernel);
    template_info_done(&build->info);
}

static bool tell(void *context, const char *line)
{
    struct build *build = context;
    if (build->progress != NULL && !build->progress(build->context, line))
        build->cancelled = true;
    return !build->cancelled;
}

static int announce(struct build *build, struct error *err, const char *format, ...) PRINTF_LIKE(3, 4);
static int announce(struct build *build, struct error *err, const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    return tell(build, line) ? 0 : error_set(err, ECANCELED, "the build was cancelled");
}

static int check_spec(const struct template_spec *spec, struct error *err)
{
    size_t length = strlen(spec->name);
    if (length == 0 || length > 64 || strspn(spec->name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != length ||
        strchr("._-", spec->name[0]) != NULL)
        return error_set(err, EINVAL,
                         "'%.64s' is no name for a template: up to 64 of a-z, 0-9, '.', '_' and '-', the first a "
                         "letter or digit",
                         spec->name);
    if (spec->cpus > SANDBOX_CPUS_MAX)
        return error_set(err, EINVAL, "%u virtual CPUs are more than %d", spec->cpus, SANDBOX_CPUS_MAX);
    if (spec->memory_mib != 0 &&
        (spec->memory_mib < SANDBOX_MEMORY_MIN_MIB || spec->memory_mib > SANDBOX_MEMORY_MAX_MIB))
        return error_set(err, EINVAL, "memory must be from %d to %d MiB, not %u", SANDBOX_MEMORY_MIN_MIB,
                         SANDBOX_MEMORY_MAX_MIB, spec->memory_mib);
    if (spec->disk_mib != 0 && (spec->disk_mib < TEMPLATE_DISK_MIN_MIB || spec->disk_mib > TEMPLATE_DISK_MAX_MIB))
        return error_set(err, EINVAL, "the disk must be from %d to %d MiB, not %u", TEMPLATE_DISK_MIN_MIB,
                         TEMPLATE_DISK_MAX_MIB, spec->disk_mib);
    if (spec->recipe != NULL && spec->rootfs != NULL)
        return error_set(err, EINVAL, "a template is made from a recipe or a rootfs, not both");
    return 0;
}

/* The builder's sandbox, which carries the template's id. */
static int make_builder(struct build *build, struct error *err)
{
    struct sandbox_info info = {0};
    const struct template_spec *spec = build->spec;
    int r = 0;
    info.id = new_id(err);
    if (info.id == NULL)
        return -ENOMEM;
    r = replace_text(&build->info.id, info.id, err);
    if (r == 0)
        r = replace_text(&build->info.name, spec->name, err);
    if (r == 0)
        r = replace_text(&info.template_id, info.id, err);
    if (r == 0)
        r = replace_text(&info.template_name, spec->name, err);
    if (r == 0)
        r = replace_text(&info.snapshot_id, "", err);
    if (r == 0)
        r = replace_text(&info.parent_id, "", err);
    if (r == 0)
        r = replace_text(&info.access_token, "", err);
    info.state = SANDBOX_CREATING;
    info.cpus = build->info.cpus = spec->cpus != 0 ? spec->cpus : 1;
    info.memory_mib = build->info.memory_mib =
        spec->memory_mib != 0 ? spec->memory_mib : TEMPLATE_MEMORY_DEFAULT_MIB;
    if (r == 0) {
        build->sandbox = sandbox_new(build->manager, &info, err);
        r = build->sandbox != NULL ? 0 : -ENOMEM;
    }
    sandbox_info_done(&info);
    if (r < 0)
        return r;
    build->sandbox->unrecorded = true;
    return 0;
}

/* Without being told, the recipe called like the template, else "base". */
static int choose_recipe(const struct template_spec *spec, char **ret, struct error *err)
{
    if (spec->recipe != NULL)
        return replace_text(ret, spec->recipe, err);
    CLEANUP_FREE char *asset = NULL;
    if (asprintf(&asset, "recipes/%s", spec->name) < 0)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP_FREE char *path = asset_find(asset, NULL);
    return replace_text(ret, path != NULL ? spec->name : "base", err);
}

static int make_rootfs(struct build *build, struct error *err)
{
    CLEANUP_FREE char *rootfs = io_path(build->directory, VMM_FILE_ROOTFS, err);
    CLEANUP_FREE char *cache = manager_path(build->manager, "cache", "", err);
    if (rootfs == NULL || cache == NULL)
        return -ENOMEM;
    const struct template_spec *spec = build->spec;
    CLEANUP_FREE char *recipe = NULL;
    int r = 0;
    if (spec->rootfs == NULL)
        r = choose_recipe(spec, &recipe, err);
    struct rootfs_options options = {
        .recipe = recipe,
        .source = spec->rootfs,
        .size_bytes = (uint64_t)spec->disk_mib << 20,
        .cache = cache,
    };
    if (r == 0)
        r = rootfs_build(&options, rootfs, tell, build, &build->info.disk_bytes, err);
    return r;
}

/* The kernel's directory may be another file system than the links need: it isn't, both are in the data directory.
 */
static int link_kernel(struct build *build, struct error *err)
{
    CLEANUP_FREE char *kernel = io_path(build->directory, VMM_FILE_KERNEL, err);
    CLEANUP_FREE char *initrd = io_path(build->directory, VMM_FILE_INITRD, err);
    if (kernel == NULL || initrd == NULL)
        return -ENOMEM;
    if (link(build->kernel.kernel, kernel) < 0 || link(build->kernel.initrd, initrd) < 0)
        return error_errno(err, "cannot link the kernel into %s", build->directory);
    if (chown(kernel, 0, VMM_GROUP_ID) < 0 || chmod(kernel, 0440) < 0 || chown(initrd, 0, VMM_GROUP_ID) < 0 ||
        chmod(initrd, 0440) < 0)
        return error_errno(err, "cannot set up the kernel");
    return 0;
}

static int describe_seed(struct build *build, struct snapshot_manifest *manifest, struct error *err)
{
    CLEANUP_FREE char *version = NULL;
    int r = vmm_version(build->request.accelerator, &version, err);
    if (r < 0)
        return r;
    const struct {
        char **to;
        const char *from;
    } texts[] = {
        {&manifest->parent_id, ""},
        {&manifest->sandbox_id, ""},
        {&manifest->template_id, build->info.id},
        {&manifest->vmm, version},
        {&manifest->accelerator, vmm_accelerator_name(build->request.accelerator)},
        {&manifest->cpu_model, CPU_MODEL},
        {&manifest->kernel, build->kernel.version},
        {&manifest->disk_consistency, "frozen"},
    };
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(texts); i++)
        r = replace_text(texts[i].to, texts[i].from, err);
    manifest->machine_revision = VMM_MACHINE_REVISION;
    manifest->cpus = build->info.cpus;
    manifest->memory_bytes = (uint64_t)build->info.memory_mib << 20;
    manifest->disk_bytes = build->info.disk_bytes;
    manifest->created_ns = clock_realtime_ns();
    return r;
}

static int import_rootfs(struct build *build, struct snapshot_writer *writer, struct snapshot *seed,
                         struct error *err)
{
    CLEANUP_FREE char *path = io_path(build->directory, VMM_FILE_ROOTFS, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    struct layer_writer *layer;
    uint32_t index;
    int r = snapshot_writer_layer(writer, IMAGE_DISK, &layer, err);
    if (r == 0)
        r = snapshot_add_layer(seed, layer_writer_id(layer), 0, &index, err);
    if (r < 0)
        return r;
    CLEANUP(capture_result_done) struct capture_result result = {0};
    r = capture_file(fd, build->info.disk_bytes, layer, index, &result, err);
    return r == 0 ? image_map_apply(NULL, build->info.disk_bytes / IMAGE_PAGE_BYTES, result.changes,
                                    result.change_count, &seed->maps[IMAGE_DISK], err)
                  : r;
}

/* The snapshot that the builder boots from: the new root file system, no memory. */
static int make_seed(struct build *build, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot seed = {0};
    struct snapshot_writer *writer = NULL;
    int r = store_begin(build->manager->store, &writer, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *id = strdup(snapshot_writer_id(writer));
    r = id == NULL ? error_set(err, ENOMEM, "out of memory") : describe_seed(build, &seed.manifest, err);
    if (r == 0)
        r = import_rootfs(build, writer, &seed, err);
    if (r == 0)
        r = snapshot_writer_link(writer, build->directory, VMM_FILE_KERNEL, err);
    if (r == 0)
        r = snapshot_writer_link(writer, build->directory, VMM_FILE_INITRD, err);
    if (r < 0) {
        store_abort(writer);
        return r;
    }
    r = store_commit(writer, &seed, err);
    if (r == 0)
        build->seed_id = TAKE_PTR(id);
    return r;
}

static int make_work_directory(struct build *build, struct error *err)
{
    build->directory = manager_path(build->manager, "tmp", build->info.id, err);
    if (build->directory == NULL)
        return -ENOMEM;
    return mkdir(build->directory, 0700) < 0 ? error_errno(err, "cannot make %s", build->directory) : 0;
}

static int prepare(struct build *build, struct error *err)
{
    CLEANUP_FREE char *kernels = manager_path(build->manager, "kernels", "", err);
    if (kernels == NULL)
        return -ENOMEM;
    int r = guest_kernel_prepare(kernels, tell, build, &build->kernel, err);
    if (r == 0)
        r = accelerator_choose(build->manager, build->kernel.kernel, build->kernel.initrd,
                               &build->request.accelerator, err);
    if (r == 0)
        r = make_builder(build, err);
    if (r == 0)
        r = make_work_directory(build, err);
    if (r == 0)
        r = make_rootfs(build, err);
    if (r == 0)
        r = link_kernel(build, err);
    if (r == 0)
        r = make_seed(build, err);
    return r;
}

static int sync_guest(struct sandbox *sandbox, struct error *err)
{
    int fd = vmm_control_fd(sandbox->vmm, err);
    if (fd < 0)
        return fd;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    control_end(&message, control_begin(&message, CONTROL_SYNC, 0));
    struct control_reply reply;
    return control_request(fd, vmm_pidfd(sandbox->vmm), &message, SYNC_TIMEOUT_MS, &reply, err);
}

/*
 * Every sandbox made from the template continues what the guest was doing in this moment, so it should be idle.
 * There is no event for that: the VMM's CPU time is sampled, for a bounded number of times.
 */
static void settle(const struct build *build)
{
    pid_t pid = vmm_pid(build->sandbox->vmm);
    int64_t last = 0;
    int quiet = 0;
    for (int i = 0; i < SETTLE_SAMPLES_MAX && quiet < SETTLE_QUIET_SAMPLES; i++) {
        int64_t now;
        if (process_cpu_time(pid, &now) < 0)
            return;
        quiet = i > 0 && now - last < SETTLE_BUSY_NS ? quiet + 1 : 0;
        last = now;
        struct pollfd ended = {.fd = vmm_pidfd(build->sandbox->vmm), .events = POLLIN};
        if (poll(&ended, 1, SETTLE_SAMPLE_MS) != 0)
            return;
    }
}

/* What the guest printed last is the best explanation of a boot that failed. */
static void explain_by_console(const struct build *build, int result, struct error *err)
{
    CLEANUP_FREE char *path = io_path(build->sandbox->vm_directory, VMM_FILE_CONSOLE, NULL);
    CLEANUP_FREE char *text = NULL;
    if (path == NULL || io_read_file(path, 1 << 20, &text, NULL) < 0)
        return;
    size_t length = strlen(text);
    char *tail = text + (length > 400 ? length - 400 : 0);
    for (char *c = tail; *c != '\0'; c++)
        if (*c < ' ' || *c > '~')
            *c = ' ';
    CLEANUP_FREE char *message = strdup(error_message(err));
    if (message != NULL)
        error_set(err, -result, "%s; the guest's console %s%s", message, *tail != '\0' ? "ends with: " : "is empty",
                  tail);
}

static int boot_and_capture(struct build *build, struct error *err)
{
    int r = announce(build, err, "booting it once (%s)", vmm_accelerator_name(build->request.accelerator));
    if (r < 0)
        return r;
    build->request.request_ns = clock_monotonic_ns();
    build->request.boot = true;
    build->request.snapshot_id = build->seed_id;
    r = sandbox_try_start(build->manager, build->sandbox, &build->request, err);
    if (r < 0) {
        explain_by_console(build, r, err);
        return error_wrap(err, r, "the template does not boot");
    }
    r = announce(build, err, "the agent answered after %.1f s; taking the snapshot",
                 (double)build->sandbox->info.timings.agent_us / 1e6);
    if (r == 0)
        r = sync_guest(build->sandbox, err);
    if (r < 0)
        return r;
    settle(build);
    return sandbox_capture(build->manager, build->sandbox, CAPTURE_AND_STOP, CAPTURE_ALL, &build->info.snapshot_id,
                           err);
}

/* Puts the new template in the place of one with the same name. */
static int publish(struct build *build, struct template_info *ret, struct error *err)
{
    struct manager *manager = build->manager;
    build->info.created_ns = clock_realtime_ns();
    struct template *template = calloc(1, sizeof(*template));
    if (template == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (template_info_copy(&template->info, &build->info) < 0 || template_info_copy(ret, &build->info) < 0) {
        template_info_done(&template->info);
        free(template);
        return error_set(err, ENOMEM, "out of memory");
    }
    int r = template_record(manager, &build->info, err);
    if (r < 0) {
        template_info_done(&template->info);
        free(template);
        template_info_done(ret);
        return r;
    }
    pthread_mutex_lock(&manager->lock);
    struct template **link = &manager->templates;
    while (*link != NULL && strcmp((*link)->info.name, build->info.name) != 0)
        link = &(*link)->next;
    struct template *replaced = *link;
    if (replaced != NULL)
        *link = replaced->next;
    template->next = manager->templates;
    manager->templates = template;
    pthread_mutex_unlock(&manager->lock);
    if (replaced != NULL) {
        r = registry_delete(manager->registry, REGISTRY_TEMPLATE, replaced->info.id, err);
        snapshot_collect(manager, replaced->info.snapshot_id);
        template_info_done(&replaced->info);
        free(replaced);
    }
    return r;
}

int manager_template_build(struct manager *manager, const struct template_spec *spec, progress_function progress,
                           void *context, struct template_info *ret, struct error *err)
{
    int r = check_spec(spec, err);
    if (r < 0)
        return r;
    CLEANUP(build_done)
    struct build build = {.manager = manager, .spec = spec, .progress = progress, .context = context};
    if (pthread_mutex_trylock(&manager->build) != 0)
        return error_set(err, EBUSY, "another template is being built; try again when it is done");
    r = prepare(&build, err);
    if (r == 0)
        r = boot_and_capture(&build, err);
    if (r == 0)
        r = publish(&build, ret, err);
    pthread_mutex_unlock(&manager->build);
    return r < 0 ? error_wrap(err, r, "building template %s", spec->name) : 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct template_info *)a)->name, ((const struct template_info *)b)->name);
}

int manager_template_list(struct manager *manager, struct template_list *ret, struct error *err)
{
    struct template_list list = {0};
    pthread_mutex_lock(&manager->lock);
    size_t count = 0;
    for (const struct template *template = manager->templates; template != NULL; template = template->next)
        count++;
    list.items = calloc(count + 1, sizeof(*list.items));
    bool failed = list.items == NULL;
    for (const struct template *t = manager->templates; !failed && t != NULL; t = t->next) {
        failed = template_info_copy(&list.items[list.count], &t->info) < 0;
        list.count += !failed;
    }
    pthread_mutex_unlock(&manager->lock);
    if (failed) {
        template_list_done(&list);
        return error_set(err, ENOMEM, "out of memory");
    }
    qsort(list.items, list.count, sizeof(*list.items), compare_names);
    *ret = list;
    return 0;
}

int manager_template_remove(struct manager *manager, const char *name_or_id, struct error *err)
{
    pthread_mutex_lock(&manager->lock);
    struct template *template = template_find(manager, name_or_id);
    if (template != NULL) {
        struct template **link = &manager->templates;
        while (*link != template)
            link = &(*link)->next;
        *link = template->next;
    }
    pthread_mutex_unlock(&manager->lock);
    if (template == NULL) {
        error_set(err, ENOENT, "there is no template %.64s", name_or_id);
        error_hint(err, "dormouse template ls lists them");
        return -ENOENT;
    }
    int r = registry_delete(manager->registry, REGISTRY_TEMPLATE, template->info.id, err);
    snapshot_collect(manager, template->info.snapshot_id);
    template_info_done(&template->info);
    free(template);
    return r;
}
