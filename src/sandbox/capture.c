/*
 * From a guest to a snapshot.
 *
 * The parent image is cloned while the guest still runs (it is immutable), so the stop lasts as long as the private
 * pages take. Until the snapshot is committed the stopped VMM is kept; whatever fails before that, the guest is
 * continued and nothing is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "image/capture.h"
#include "image/clone.h"
#include "sandbox/internal.h"

struct capture_job {
    struct manager *manager;
    struct sandbox *sandbox;
    enum capture_mode mode;
    struct snapshot_writer *writer;
    int parent_fd;
    int image_fd;
    struct snapshot_manifest manifest;
    int64_t stopped_ns; /* CLOCK_MONOTONIC */
    struct capture_figures figures;
};

static void capture_job_done(struct capture_job *job)
{
    cleanup_close(&job->parent_fd);
    cleanup_close(&job->image_fd);
    snapshot_manifest_done(&job->manifest);
    store_abort(job->writer);
}

static int clone_parent(struct capture_job *job, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/%s", job->sandbox->vm_directory, VMM_FILE_MEMORY) < 0)
        return error_set(err, ENOMEM, "out of memory");
    job->parent_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (job->parent_fd < 0)
        return error_errno(err, "cannot open %s", path);
    job->image_fd = snapshot_writer_open(job->writer, VMM_FILE_MEMORY, err);
    if (job->image_fd < 0)
        return job->image_fd;
    int r = image_clone(job->parent_fd, job->image_fd, err);
    if (r < 0)
        return r;
    /* What was copied reaches the disk now, so that the commit, with the guest stopped, waits only for what it
     * changed. */
    return fdatasync(job->image_fd) < 0 ? error_errno(err, "cannot make the copy of the image durable") : 0;
}

static int copy_private_pages(struct capture_job *job, struct error *err)
{
    CLEANUP_FREE struct vmm_ram_range *ranges = NULL;
    struct capture_source source = {.pid = vmm_pid(job->sandbox->vmm), .parent_fd = job->parent_fd};
    int r = vmm_ram_ranges(job->sandbox->vmm, &ranges, &source.range_count, err);
    if (r < 0)
        return r;
    source.ranges = ranges;
    struct capture_result result;
    r = capture_memory(&source, job->image_fd, &result, err);
    if (r < 0)
        return r;
    job->figures.bytes_private = (int64_t)result.private_bytes;
    job->figures.bytes_written = (int64_t)result.written_bytes;
    return 0;
}

static int take_disk(struct capture_job *job, struct error *err)
{
    const char *directory = job->sandbox->vm_directory;
    static const char *const shared[] = {VMM_FILE_BASE, VMM_FILE_KERNEL, VMM_FILE_INITRD};
    int r = 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(shared); i++)
        r = snapshot_writer_link(job->writer, directory, shared[i], err);
    if (r == 0)
        r = snapshot_writer_clone(job->writer, directory, VMM_FILE_STATE, err);
    if (r < 0)
        return r;
    if (job->mode == CAPTURE_AND_STOP)
        return snapshot_writer_link(job->writer, directory, VMM_FILE_OVERLAY, err);
    return snapshot_writer_clone(job->writer, directory, VMM_FILE_OVERLAY, err);
}

static int describe(struct capture_job *job, struct error *err)
{
    const struct sandbox_info *info = &job->sandbox->info;
    struct snapshot_manifest *manifest = &job->manifest;
    int r = store_read_origin(job->sandbox->vm_directory, manifest, err);
    if (r == 0)
        r = replace_text(&manifest->parent_id, info->snapshot_id, err);
    if (r == 0)
        r = replace_text(&manifest->sandbox_id, job->sandbox->unrecorded ? "" : info->id, err);
    if (r == 0)
        r = replace_text(&manifest->template_id, info->template_id, err);
    manifest->cpus = info->cpus;
    manifest->memory_bytes = (uint64_t)info->memory_mib << 20;
    manifest->created_ns = clock_realtime_ns();
    return r;
}

/* With the guest stopped. */
static int capture_stopped(struct capture_job *job, struct error *err)
{
    int r = vmm_save_device_state(job->sandbox->vmm, &job->manifest.state_bytes, err);
    if (r == 0)
        r = copy_private_pages(job, err);
    if (r == 0)
        r = take_disk(job, err);
    return r;
}

static int commit(struct capture_job *job, struct error *err)
{
    struct snapshot_writer *writer = TAKE_PTR(job->writer);
    return store_commit(writer, &job->manifest, err);
}

static void note_stop_time(struct capture_job *job)
{
    job->figures.stopped_us = (clock_monotonic_ns() - job->stopped_ns) / 1000;
}

static int stop_and_capture(struct capture_job *job, struct error *err)
{
    struct vmm *vmm = job->sandbox->vmm;
    job->stopped_ns = clock_monotonic_ns();
    int r = vmm_pause(vmm, err);
    if (r < 0)
        return r;
    r = capture_stopped(job, err);
    if (job->mode == CAPTURE_AND_STOP && r == 0)
        r = commit(job, err);
    if (job->mode == CAPTURE_AND_STOP && r == 0) {
        note_stop_time(job);
        return 0;
    }
    CLEANUP_ERROR struct error continue_error = ERROR_INIT;
    int continued = vmm_continue(vmm, &continue_error);
    note_stop_time(job);
    if (r == 0 && continued == 0)
        return commit(job, err);
    if (r == 0)
        error_move(err, &continue_error);
    return r < 0 ? r : continued;
}

int sandbox_capture(struct manager *manager, struct sandbox *sandbox, enum capture_mode mode,
                    char **ret_snapshot_id, struct error *err)
{
    CLEANUP(capture_job_done)
    struct capture_job job = {
        .manager = manager, .sandbox = sandbox, .mode = mode, .parent_fd = -1, .image_fd = -1};
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
        r = describe(&job, err);
    if (r == 0)
        r = clone_parent(&job, err);
    if (r == 0)
        r = stop_and_capture(&job, err);
    if (r < 0)
        return error_wrap(err, r, "capturing sandbox %s", sandbox->info.id);
    job.figures.total_us = (clock_monotonic_ns() - begin_ns) / 1000;
    pthread_mutex_lock(&manager->lock);
    sandbox->info.capture = job.figures;
    pthread_mutex_unlock(&manager->lock);
    *ret_snapshot_id = TAKE_PTR(id);
    return 0;
}
