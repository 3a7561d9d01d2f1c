/*
 * From a guest to a snapshot.
 *
 * A new snapshot is what the machine was started from (the manifest in its VM directory) with two new layers on
 * top: the pages that its memory holds privately, and the blocks that its overlay holds. While the guest is
 * stopped, its device state is saved, its overlay frozen and its private pages read; the frozen blocks and the
 * commit need no stopped guest. In a pause the guest stays stopped all the same, since its VMM ends with the
 * commit; until then it is kept: whatever fails before that, the guest is continued and nothing is left.
 *
 * After a snapshot of a guest that runs on, its overlay lies over that snapshot's disk (disk-manifest), and digests
 * of its private pages are kept, so the next one stores only what was written since. The daemon that dies takes the
 * digests with it: then the next snapshot stores all private pages again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "control/client.h"
#include "image/capture.h"
#include "sandbox/internal.h"

#define FREEZE_TIMEOUT_MS 20000
#define THAW_TIMEOUT_MS   5000

struct capture_job {
    struct manager *manager;
    struct sandbox *sandbox;
    enum capture_mode mode;
    enum capture_extent extent;
    struct snapshot_writer *writer;
    struct image_map parents[IMAGE_KINDS]; /* with the new snapshot's numbers for layers */
    struct image_map last_memory;          /* likewise: of the last snapshot that it ran on after */
    bool has_last;
    struct capture_memory memory; /* the following it refers to */
    struct vmm_ram_range *ranges;
    struct capture_last last;
    struct page_digests *digests; /* for the next capture */
    struct capture_copy *copy;    /* of memory, not stored yet */
    int parent_fd;                /* of memory, as long as there is a copy */
    struct layer_writer *layers[IMAGE_KINDS];
    uint32_t layer_indexes[IMAGE_KINDS];
    struct snapshot snapshot; /* to be */
    uint64_t generation;      /* of the overlay, frozen */
    int64_t stopped_ns;       /* CLOCK_MONOTONIC */
    struct capture_figures figures;
};

static void capture_job_done(struct capture_job *job)
{
    capture_copy_free(job->copy); /* it refers to the layers */
    cleanup_close(&job->parent_fd);
    page_digests_free(job->digests);
    free(job->ranges);
    store_abort(job->writer);
    image_map_done(&job->last_memory);
    for (size_t kind = 0; kind < IMAGE_KINDS; kind++)
        image_map_done(&job->parents[kind]);
    snapshot_done(&job->snapshot);
}

/* Takes an image's map over into the new snapshot, whose table numbers the layers anew. */
static int adopt_map(struct capture_job *job, struct snapshot *from, enum image_kind kind, struct image_map *ret,
                     struct error *err)
{
    struct image_map *map = &from->maps[kind];
    CLEANUP_FREE uint32_t *numbers = calloc(from->layer_count + 1, sizeof(*numbers));
    if (numbers == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < from->layer_count; i++) {
        int r = snapshot_add_layer(&job->snapshot, from->layers[i].id, from->layers[i].bytes, &numbers[i], err);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < map->count; i++)
        map->extents[i].layer = numbers[map->extents[i].layer];
    *ret = *map;
    *map = (struct image_map){0};
    return 0;
}

static int describe(struct capture_job *job, const struct snapshot_manifest *origin, struct error *err)
{
    const struct sandbox *sandbox = job->sandbox;
    const struct sandbox_info *info = &sandbox->info;
    const struct machine *machine = &sandbox->machine;
    bool known = machine->vmm != NULL; /* not if an older daemon started it */
    struct snapshot_manifest *manifest = &job->snapshot.manifest;
    const struct {
        char **to;
        const char *from;
    } texts[] = {
        {&manifest->parent_id, info->snapshot_id},
        {&manifest->sandbox_id, sandbox->unrecorded ? "" : info->id},
        {&manifest->template_id, info->template_id},
        {&manifest->vmm, known ? machine->vmm : origin->vmm},
        {&manifest->accelerator, known ? vmm_accelerator_name(machine->accelerator) : origin->accelerator},
        {&manifest->cpu_model, known ? machine->cpu_model : origin->cpu_model},
        {&manifest->kernel, origin->kernel},
        {&manifest->disk_consistency, ""},
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        int r = replace_text(texts[i].to, texts[i].from, err);
        if (r < 0)
            return r;
    }
    manifest->machine_revision = known ? machine->revision : origin->machine_revision;
    manifest->cpus = info->cpus;
    manifest->memory_bytes = (uint64_t)info->memory_mib << 20;
    manifest->disk_bytes = origin->disk_bytes;
    manifest->created_ns = clock_realtime_ns();
    return 0;
}

/*
 * The last snapshot that the machine ran on after, if there is one. It may have been compacted since: then that is
 * what to build upon, or each capture of a machine that runs for long would bring more layers to be compacted.
 */
static int load_last(struct capture_job *job, struct snapshot *ret, bool *ret_present, struct error *err)
{
    struct sandbox *sandbox = job->sandbox;
    CLEANUP_FREE char *path = io_path(sandbox->vm_directory, STORE_FILE_DISK_MANIFEST, err);
    if (path == NULL)
        return -ENOMEM;
    *ret_present = access(path, F_OK) == 0;
    if (!*ret_present)
        return 0;
    CLEANUP(snapshot_done) struct snapshot head = {0};
    int r = manifest_read(path, MANIFEST_HEAD, &head, err);
    if (r == 0)
        store_link_disk_manifest(job->manager->store, head.manifest.id, sandbox->vm_directory, NULL);
    return r == 0 ? manifest_read(path, MANIFEST_ALL, ret, err) : r;
}

/* What the machine's images were when it was started, or at its last snapshot. */
static int load_parents(struct capture_job *job, struct error *err)
{
    const struct sandbox *sandbox = job->sandbox;
    CLEANUP_FREE char *path = io_path(sandbox->vm_directory, STORE_FILE_MANIFEST, err);
    CLEANUP(snapshot_done) struct snapshot origin = {0};
    CLEANUP(snapshot_done) struct snapshot last = {0};
    bool has_last = false;
    int r = path != NULL ? manifest_read(path, MANIFEST_ALL, &origin, err) : -ENOMEM;
    if (r == 0)
        r = describe(job, &origin.manifest, err);
    if (r == 0)
        r = load_last(job, &last, &has_last, err);
    job->parents[IMAGE_MEMORY].pages = job->snapshot.manifest.memory_bytes / IMAGE_PAGE_BYTES;
    if (r == 0 && job->extent == CAPTURE_ALL && !sandbox->fresh_memory)
        r = adopt_map(job, &origin, IMAGE_MEMORY, &job->parents[IMAGE_MEMORY], err);
    job->has_last = job->extent == CAPTURE_ALL && has_last && sandbox->digests != NULL &&
                    strcmp(sandbox->digests_snapshot, last.manifest.id) == 0;
    if (r == 0 && job->has_last)
        r = adopt_map(job, &last, IMAGE_MEMORY, &job->last_memory, err);
    if (r < 0)
        return r;
    return adopt_map(job, has_last ? &last : &origin, IMAGE_DISK, &job->parents[IMAGE_DISK], err);
}

static int open_layers(struct capture_job *job, struct error *err)
{
    int r = 0;
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++) {
        if (kind == IMAGE_MEMORY && job->extent == CAPTURE_DISK)
            continue;
        r = snapshot_writer_layer(job->writer, kind, &job->layers[kind], err);
        if (r == 0)
            r = snapshot_add_layer(&job->snapshot, layer_writer_id(job->layers[kind]), 0, &job->layer_indexes[kind],
                                   err);
    }
    return r;
}

static int apply(struct capture_job *job, enum image_kind kind, const struct capture_result *result,
                 struct error *err)
{
    const struct snapshot_manifest *manifest = &job->snapshot.manifest;
    uint64_t bytes = kind == IMAGE_MEMORY ? manifest->memory_bytes : manifest->disk_bytes;
    return image_map_apply(&job->parents[kind], bytes / IMAGE_PAGE_BYTES, result->changes, result->change_count,
                           &job->snapshot.maps[kind], err);
}

/* The parent image as a file; the caller closes it. */
static int open_parent(const struct capture_job *job, enum image_kind kind, struct error *err)
{
    const struct imaged_files *files = &job->sandbox->files;
    const char *path = kind == IMAGE_MEMORY ? files->memory_parent : files->disk_parent;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? error_errno(err, "cannot open %s", path) : fd;
}

/* `result` is that of the whole capture of memory. */
static int apply_memory(struct capture_job *job, const struct capture_result *result, struct error *err)
{
    job->figures.bytes_private = (int64_t)result->private_bytes;
    job->figures.bytes_written = (int64_t)result->changed_bytes;
    return apply(job, IMAGE_MEMORY, result, err);
}

/* While the guest still runs: what will be captured, and, if it is to run on, room for it. */
static int prepare_memory(struct capture_job *job, struct error *err)
{
    struct sandbox *sandbox = job->sandbox;
    struct capture_memory *source = &job->memory;
    *source = (struct capture_memory){.pid = vmm_pid(sandbox->vmm), .cancelled = &sandbox->cancelled};
    int r = vmm_ram_ranges(sandbox->vmm, &job->ranges, &source->range_count, err);
    if (r < 0)
        return r;
    source->ranges = job->ranges;
    job->parent_fd = open_parent(job, IMAGE_MEMORY, err);
    if (job->parent_fd < 0)
        return job->parent_fd;
    source->parent = (struct capture_parent){.map = &job->parents[IMAGE_MEMORY], .fd = job->parent_fd};
    job->last = (struct capture_last){.digests = sandbox->digests, .map = &job->last_memory};
    source->last = job->has_last ? &job->last : NULL;
    if (job->mode == CAPTURE_AND_STOP)
        return 0;
    r = page_digests_new(job->parents[IMAGE_MEMORY].pages, job->has_last ? sandbox->digests : NULL, &job->digests,
                         err);
    source->record = job->digests;
    return r == 0 ? capture_copy_new(source, &job->copy, err) : r;
}

/* With the guest stopped. One that is to run on is kept no longer than its pages are copied. */
static int take_memory(struct capture_job *job, struct error *err)
{
    struct layer_writer *layer = job->layers[IMAGE_MEMORY];
    uint32_t index = job->layer_indexes[IMAGE_MEMORY];
    if (job->copy != NULL)
        return capture_memory_copy(job->copy, layer, index, err);
    CLEANUP(capture_result_done) struct capture_result result = {0};
    int r = capture_memory(&job->memory, layer, index, &result, err);
    return r == 0 ? apply_memory(job, &result, err) : r;
}

/* What take_memory has copied. */
static int store_memory(struct capture_job *job, struct error *err)
{
    if (job->copy == NULL)
        return 0;
    CLEANUP(capture_result_done) struct capture_result result = {0};
    int r = capture_memory_store(job->copy, &result, err);
    return r == 0 ? apply_memory(job, &result, err) : r;
}

static int capture_blocks(struct capture_job *job, struct capture_result *ret, struct error *err)
{
    CLEANUP_CLOSE int parent_fd = open_parent(job, IMAGE_DISK, err);
    if (parent_fd < 0)
        return parent_fd;
    struct capture_disk source = {
        .parent = {.map = &job->parents[IMAGE_DISK], .fd = parent_fd},
        .cancelled = &job->sandbox->cancelled,
    };
    int r = overlay_view_open(job->sandbox->vm_directory, job->snapshot.manifest.disk_bytes, job->generation,
                              &source.view, err);
    if (r < 0)
        return r;
    r = capture_disk(&source, job->layers[IMAGE_DISK], job->layer_indexes[IMAGE_DISK], ret, err);
    overlay_view_close(source.view);
    return r;
}

static int take_disk(struct capture_job *job, struct error *err)
{
    CLEANUP(capture_result_done) struct capture_result result = {0};
    int r = job->generation > 0 ? capture_blocks(job, &result, err) : 0;
    return r == 0 ? apply(job, IMAGE_DISK, &result, err) : r;
}

static int take_device_state(struct capture_job *job, struct error *err)
{
    uint64_t size;
    CLEANUP_FREE char *path = io_path(job->sandbox->vm_directory, VMM_FILE_STATE, err);
    if (path == NULL)
        return -ENOMEM;
    int r = vmm_save_device_state(job->sandbox->vmm, &size, err);
    if (r < 0)
        return r;
    char *state = NULL;
    size_t length = 0;
    r = io_read_file(path, VMM_STATE_MAX, &state, &length);
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    job->snapshot.device_state = state;
    job->snapshot.device_state_bytes = length;
    return 0;
}

/* With the guest stopped. */
static int capture_stopped(struct capture_job *job, struct error *err)
{
    int r = job->extent == CAPTURE_ALL ? take_device_state(job, err) : 0;
    if (r == 0)
        r = imaged_freeze(job->manager->images, job->sandbox->info.id, &job->generation, err);
    if (r == 0 && job->extent == CAPTURE_ALL)
        r = take_memory(job, err);
    return r;
}

static int ask_agent(struct sandbox *sandbox, enum control_type type, int timeout_ms, struct control_reply *ret,
                     struct error *err)
{
    int fd = vmm_control_fd(sandbox->vmm, err);
    if (fd < 0)
        return fd;
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    control_end(&message, control_begin(&message, type, 0));
    return control_request(fd, vmm_pidfd(sandbox->vmm), &message, timeout_ms, ret, err);
}

void sandbox_thaw(struct sandbox *sandbox)
{
    struct control_reply reply;
    ask_agent(sandbox, CONTROL_THAW, THAW_TIMEOUT_MS, &reply, NULL);
}

/* What the guest believes to be on its disk is there, and the file systems are whole. */
static int freeze_guest(struct capture_job *job, struct error *err)
{
    struct control_reply reply;
    int r = ask_agent(job->sandbox, CONTROL_FREEZE, FREEZE_TIMEOUT_MS, &reply, err);
    if (r < 0) {
        sandbox_thaw(job->sandbox);
        return error_wrap(err, r, "freezing the guest's file systems");
    }
    bool all = reply.frozen > 0 && reply.synced == 0;
    return replace_text(&job->snapshot.manifest.disk_consistency, all ? "frozen" : "synced", err);
}

/* What this guest touched first after its resume is the best guess for the next one. */
static void inherit_working_set(struct capture_job *job)
{
    snapshot_writer_link(job->writer, job->sandbox->vm_directory, STORE_FILE_INHERITED_SET, NULL);
}

static int finish(struct capture_job *job, struct error *err)
{
    int r = store_memory(job, err);
    if (r == 0)
        r = take_disk(job, err);
    if (r == 0)
        r = snapshot_writer_link(job->writer, job->sandbox->vm_directory, VMM_FILE_KERNEL, err);
    if (r == 0)
        r = snapshot_writer_link(job->writer, job->sandbox->vm_directory, VMM_FILE_INITRD, err);
    if (r == 0 && job->extent == CAPTURE_ALL)
        inherit_working_set(job);
    if (r == 0 && atomic_load(&job->sandbox->cancelled))
        r = error_set(err, ECANCELED, "it was cancelled");
    return r == 0 ? store_commit(TAKE_PTR(job->writer), &job->snapshot, err) : r;
}

static void note_stop_time(struct capture_job *job)
{
    job->figures.stopped_us = (clock_monotonic_ns() - job->stopped_ns) / 1000;
}

static int stop_and_capture(struct capture_job *job, struct error *err)
{
    struct vmm *vmm = job->sandbox->vmm;
    job->stopped_ns = clock_monotonic_ns();
    int r = job->extent == CAPTURE_DISK ? freeze_guest(job, err) : 0;
    if (r < 0)
        return r;
    r = vmm_pause(vmm, err);
    if (r == 0)
        r = capture_stopped(job, err);
    if (job->mode == CAPTURE_AND_STOP && r == 0)
        r = finish(job, err);
    if (job->mode == CAPTURE_AND_STOP && r == 0) {
        note_stop_time(job);
        return 0;
    }
    CLEANUP_ERROR struct error continue_error = ERROR_INIT;
    int continued = vmm_continue(vmm, &continue_error);
    note_stop_time(job);
    /* Also a guest that doesn't answer now: it finds the message when it does. */
    if (job->extent == CAPTURE_DISK)
        sandbox_thaw(job->sandbox);
    if (r == 0 && continued == 0)
        return finish(job, err);
    if (r == 0)
        error_move(err, &continue_error);
    return r < 0 ? r : continued;
}

void sandbox_forget_digests(struct sandbox *sandbox)
{
    page_digests_free(TAKE_PTR(sandbox->digests));
    free(TAKE_PTR(sandbox->digests_snapshot));
}

/*
 * The next snapshot of a guest that runs on is built upon this one: its overlay comes to lie over this one's disk.
 * Should this fail, nothing is lost but time: the next snapshot holds the same pages and blocks again.
 */
static void remember(struct capture_job *job, const char *snapshot_id)
{
    struct manager *manager = job->manager;
    struct sandbox *sandbox = job->sandbox;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    sandbox_forget_digests(sandbox);
    int r = store_link_disk_manifest(manager->store, snapshot_id, sandbox->vm_directory, &err);
    if (r == 0 && job->digests != NULL && replace_text(&sandbox->digests_snapshot, snapshot_id, NULL) == 0)
        sandbox->digests = TAKE_PTR(job->digests);
    if (r == 0 && job->generation > 0)
        r = imaged_rebase(manager->images, sandbox->info.id, job->generation, &err);
    if (r == 0 && job->generation > 0)
        r = sandbox_attach_images(manager, sandbox, &err);
    if (r < 0)
        manager_log(manager, "sandbox %s: %s", sandbox->info.id, error_message(&err));
}

int sandbox_salvage(struct manager *manager, struct sandbox *sandbox, char **ret_snapshot_id, struct error *err)
{
    CLEANUP(capture_job_done)
    struct capture_job job = {.manager = manager, .sandbox = sandbox, .extent = CAPTURE_DISK, .parent_fd = -1};
    atomic_store(&sandbox->cancelled, false);
    int r = sandbox_attach_images(manager, sandbox, err);
    if (r == 0)
        r = store_begin(manager->store, &job.writer, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *id = strdup(snapshot_writer_id(job.writer));
    r = id == NULL ? error_set(err, ENOMEM, "out of memory") : load_parents(&job, err);
    if (r == 0)
        r = replace_text(&job.snapshot.manifest.disk_consistency, "crashed", err);
    if (r == 0)
        r = open_layers(&job, err);
    if (r == 0)
        r = imaged_freeze(manager->images, sandbox->info.id, &job.generation, err);
    if (r == 0)
        r = finish(&job, err);
    if (r < 0)
        return error_wrap(err, r, "keeping the disk of sandbox %s", sandbox->info.id);
    *ret_snapshot_id = TAKE_PTR(id);
    return 0;
}

int sandbox_capture(struct manager *manager, struct sandbox *sandbox, enum capture_mode mode,
                    enum capture_extent extent, char **ret_snapshot_id, struct error *err)
{
    CLEANUP(capture_job_done)
    struct capture_job job = {
        .manager = manager, .sandbox = sandbox, .mode = mode, .extent = extent, .parent_fd = -1};
    int64_t begin_ns = clock_monotonic_ns();
    int r = store_begin(manager->store, &job.writer, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *id = strdup(snapshot_writer_id(job.writer));
    if (id == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (mode == CAPTURE_AND_STOP) {
        /* Recorded before the commit: a daemon that starts again then knows whether the pause was done. */
        r = replace_text(&sandbox->pending_snapshot, id, err);
        if (r == 0)
            r = sandbox_record(manager, sandbox, err);
    }
    if (r == 0)
        r = load_parents(&job, err);
    if (r == 0)
        r = open_layers(&job, err);
    if (r == 0 && extent == CAPTURE_ALL)
        r = prepare_memory(&job, err);
    if (r == 0)
        r = stop_and_capture(&job, err);
    if (r < 0)
        return error_wrap(err, r, "capturing sandbox %s", sandbox->info.id);
    if (mode == CAPTURE_AND_CONTINUE)
        remember(&job, id);
    job.figures.total_us = (clock_monotonic_ns() - begin_ns) / 1000;
    pthread_mutex_lock(&manager->lock);
    sandbox->info.capture = job.figures;
    pthread_mutex_unlock(&manager->lock);
    *ret_snapshot_id = TAKE_PTR(id);
    return 0;
}
