/* A VM's memory and disk as files of the image server: which they are, and what the snapshot says of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "sandbox/internal.h"

int sandbox_attach_images(struct manager *manager, struct sandbox *sandbox, struct error *err)
{
    struct imaged_attach attach = {
        .vm = sandbox->info.id,
        .vm_directory = sandbox->vm_directory,
        .uid = VMM_USER_ID_FIRST + (uid_t)sandbox->network_slot,
        .gid = VMM_GROUP_ID,
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
    if (sandbox->files.memory == NULL)
        return;
    imaged_files_done(&sandbox->files);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = imaged_detach(manager->images, sandbox->info.id, &err);
    if (r < 0 && r != -EHOSTDOWN)
        manager_log(manager, "sandbox %s: %s", sandbox->info.id, error_message(&err));
}

int sandbox_open_device_state(const struct sandbox *sandbox, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/%s", sandbox->vm_directory, STORE_FILE_MANIFEST) < 0)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = manifest_read(path, &snapshot, err);
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
