/* A VM's memory and disk as files of the image server: which they are, and what the snapshot says of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "image/resident.h"
#include "imaged/working_set.h"
#include "sandbox/internal.h"

/* What a guest touches from its resume to this long after it ran is its working set. */
#define WORKING_SET_MS 200

int sandbox_attach_images(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    struct imaged_attach attach = {
        .vm = sandbox->info.id,
        .vm_directory = sandbox->vm_directory,
        .uid = VMM_USER_ID_FIRST + (uid_t)sandbox->network_slot,
        .gid = VMM_GROUP_ID,
        .disk_limit = manager->options.disk_limit_bytes,
        .empty_memory = sandbox->fresh_memory ? (uint64_t)sandbox->info.memory_mib << 20 : 0,
    };
    struct imaged_files files = {0};
    int r = imaged_attach(manager->images, &attach, &files, err);
    if (r < 0)
        return r;
    imaged_files_done(&sandbox->files);
    sandbox->files = files;
    return 0;
}

void sandbox_detach_images(struct manager *manager, struct sandbox *sandbox)
{
    imaged_files_done(&sandbox->files);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    /* Also what an earlier daemon attached before it died. */
    int r = imaged_detach(manager->images, sandbox->info.id, &err);
    if (r < 0 && r != -EHOSTDOWN && r != -ENOENT)
        manager_log(manager, "sandbox %s: %s", sandbox->info.id, error_message(&err));
}

void sandbox_prefetch(struct manager *manager, struct sandbox *sandbox)
{
    /* What is pushed is dropped unless somebody holds the file. */
    CLEANUP_CLOSE int fd = open(sandbox->files.memory, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (imaged_prefetch(manager->images, sandbox->info.id, &err) < 0)
        manager_log(manager, "sandbox %s: %s", sandbox->info.id, error_message(&err));
}

void snapshot_warm(struct manager *manager, const char *id)
{
    CLEANUP_FREE char *directory = manager_path(manager, "snapshots", id, NULL);
    CLEANUP_FREE char *image = manager_path(manager, "images/memory", id, NULL);
    CLEANUP_CLOSE int fd = image != NULL ? open(image, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && directory != NULL)
        imaged_warm(manager->images, directory, VMM_GROUP_ID, NULL);
}

struct recording {
    pid_t pid;
    int pidfd;
    uint64_t pages; /* of the memory image */
    char *id;
    char *snapshot_id;
    char *vm_directory;
};

static void recording_free(struct recording *recording)
{
    cleanup_close(&recording->pidfd);
    free(recording->id);
    free(recording->snapshot_id);
    free(recording->vm_directory);
    free(recording);
}

static int keep_mapped(const struct working_set *all, const uint8_t *bitmap, struct working_set *ret)
{
    int r = 0;
    for (size_t i = 0; i < all->count; i++)
        for (uint64_t page = all->runs[i].page; r == 0 && page < all->runs[i].page + all->runs[i].count; page++)
            if ((bitmap[page / 8] >> page % 8 & 1) != 0)
                r = working_set_add(ret, (struct page_run){page, 1});
    working_set_join(ret);
    return r;
}

/*
 * What was recorded holds what the image server read ahead, and what it held from resumes before: without this it
 * would only ever grow. What this guest has not mapped is left out.
 */
static int drop_untouched(const struct recording *recording, const char *path)
{
    CLEANUP_FREE struct vmm_ram_range *ranges = NULL;
    CLEANUP_FREE uint8_t *bitmap = calloc(1, recording->pages / 8 + 1);
    CLEANUP(working_set_done) struct working_set all = {0};
    CLEANUP(working_set_done) struct working_set touched = {0};
    size_t count;
    int r = bitmap == NULL ? -ENOMEM : vmm_ram_ranges_of(recording->pid, &ranges, &count, NULL);
    if (r == 0)
        r = resident_pages(recording->pid, ranges, count, recording->pages, bitmap, NULL);
    /* Only now it is sure that this was the process. */
    struct pollfd ended = {.fd = recording->pidfd, .events = POLLIN};
    if (r == 0 && poll(&ended, 1, 0) != 0)
        r = -ESRCH;
    if (r == 0)
        r = working_set_read(path, recording->pages, &all, NULL);
    if (r == 0)
        r = keep_mapped(&all, bitmap, &touched);
    return r == 0 ? working_set_write(path, &touched, NULL) : r;
}

/* The VM may end, and its directory go, at any time: what fails is only a hint less. */
static void save_working_set(struct manager *manager, const struct recording *recording)
{
    CLEANUP_FREE char *path = io_path(recording->vm_directory, STORE_FILE_WORKING_SET, NULL);
    CLEANUP_FREE char *inherited = io_path(recording->vm_directory, STORE_FILE_INHERITED_SET, NULL);
    if (path == NULL || inherited == NULL)
        return;
    if (imaged_save_working_set(manager->images, recording->id, path, NULL) < 0 ||
        drop_untouched(recording, path) < 0)
        return;
    unlink(inherited);
    if (link(path, inherited) == 0)
        store_keep_working_set(manager->store, recording->snapshot_id, recording->vm_directory, NULL);
}

static void record_working_set(struct manager *manager, void *argument)
{
    struct recording *recording = argument;
    struct pollfd ended = {.fd = recording->pidfd, .events = POLLIN};
    if (poll(&ended, 1, WORKING_SET_MS) == 0)
        save_working_set(manager, recording);
    recording_free(recording);
}

void sandbox_record_working_set(struct manager *manager, const struct sandbox *sandbox)
{
    if (store_has_working_set(manager->store, sandbox->info.snapshot_id))
        return;
    struct recording *recording = calloc(1, sizeof(*recording));
    if (recording == NULL)
        return;
    recording->pid = vmm_pid(sandbox->vmm);
    recording->pages = ((uint64_t)sandbox->info.memory_mib << 20) / IMAGE_PAGE_BYTES;
    recording->pidfd = fcntl(vmm_pidfd(sandbox->vmm), F_DUPFD_CLOEXEC, 3);
    recording->id = strdup(sandbox->info.id);
    recording->snapshot_id = strdup(sandbox->info.snapshot_id);
    recording->vm_directory = strdup(sandbox->vm_directory);
    bool complete = recording->pidfd >= 0 && recording->id != NULL && recording->snapshot_id != NULL &&
                    recording->vm_directory != NULL;
    if (!complete || manager_spawn(manager, record_working_set, recording) < 0)
        recording_free(recording);
}

int sandbox_open_device_state(const struct sandbox *sandbox, struct error *err)
{
    CLEANUP_FREE char *path = io_path(sandbox->vm_directory, STORE_FILE_MANIFEST, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = manifest_read(path, MANIFEST_DEVICE_STATE, &snapshot, err);
    if (r < 0)
        return r;
    if (snapshot.device_state == NULL)
        return error_set(err, EBUSY, "snapshot %s holds no memory", snapshot.manifest.id);
    CLEANUP_CLOSE int fd = memfd_create("device-state", MFD_CLOEXEC);
    if (fd < 0)
        return error_errno(err, "cannot hand over the device state");
    r = io_write_full(fd, snapshot.device_state, snapshot.device_state_bytes);
    if (r < 0 || lseek(fd, 0, SEEK_SET) < 0)
        return error_code(err, r < 0 ? r : -errno, "cannot hand over the device state");
    return TAKE_FD(fd);
}

int sandbox_overlay_bytes(const struct sandbox *sandbox, int64_t *ret, struct error *err)
{
    DIR *directory = opendir(sandbox->vm_directory);
    if (directory == NULL)
        return error_errno(err, "cannot read %s", sandbox->vm_directory);
    int64_t bytes = 0;
    struct stat status;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strncmp(entry->d_name, "overlay.", 8) == 0 &&
            fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0)
            bytes += (int64_t)status.st_blocks * 512;
    closedir(directory);
    *ret = bytes;
    return 0;
}
