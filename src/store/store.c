#include "store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/io.h"
#include "image/clone.h"
#include "store/manifest.h"
#include "vmm/vmm.h"

#define MANIFEST "manifest.json"

/* A directory with this prefix is not (yet, or any more) a snapshot. */
#define TEMPORARY_PREFIX "tmp."

#define ID_LENGTH 20

struct store {
    char *directory;
};

struct snapshot_writer {
    struct store *store;
    char id[ID_LENGTH + 1];
    char *directory; /* the temporary one */
};

static char *join(const char *directory, const char *prefix, const char *name, struct error *err)
{
    char *path;
    if (asprintf(&path, "%s/%s%s", directory, prefix, name) >= 0)
        return path;
    error_set(err, ENOMEM, "out of memory");
    return NULL;
}

/* Only names that this store gives; nothing that could leave the directory. */
static bool is_id(const char *text)
{
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789");
    return length == ID_LENGTH && text[length] == '\0';
}

static int remove_leftovers(const char *directory, struct error *err)
{
    DIR *entries = opendir(directory);
    if (entries == NULL)
        return error_errno(err, "cannot read %s", directory);
    int r = 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(entries)) != NULL;) {
        if (strncmp(entry->d_name, TEMPORARY_PREFIX, strlen(TEMPORARY_PREFIX)) != 0)
            continue;
        CLEANUP_FREE char *path = join(directory, "", entry->d_name, err);
        r = path == NULL ? -ENOMEM : io_remove_tree(path);
        if (r < 0)
            error_code(err, r, "cannot remove what is left of a snapshot in %s", directory);
    }
    closedir(entries);
    return r;
}

int store_open(const char *directory, struct store **ret, struct error *err)
{
    int r = io_make_directories(directory, 0700);
    if (r < 0)
        return error_code(err, r, "cannot make %s", directory);
    r = remove_leftovers(directory, err);
    if (r < 0)
        return r;
    struct store *store = calloc(1, sizeof(*store));
    if (store != NULL)
        store->directory = strdup(directory);
    if (store == NULL || store->directory == NULL) {
        free(store);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret = store;
    return 0;
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    free(store->directory);
    free(store);
}

int store_list(struct store *store, char ***ret_ids, struct error *err)
{
    DIR *entries = opendir(store->directory);
    if (entries == NULL)
        return error_errno(err, "cannot read %s", store->directory);
    char **ids = calloc(1, sizeof(*ids));
    size_t count = 0;
    bool failed = ids == NULL;
    for (struct dirent *entry; !failed && (entry = readdir(entries)) != NULL;) {
        if (!is_id(entry->d_name))
            continue;
        char **larger = realloc(ids, (count + 2) * sizeof(*ids));
        failed = larger == NULL;
        if (failed)
            break;
        ids = larger;
        ids[count] = strdup(entry->d_name);
        failed = ids[count] == NULL;
        ids[++count] = NULL;
    }
    closedir(entries);
    if (failed) {
        store_list_done(ids);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret_ids = ids;
    return 0;
}

void store_list_done(char **ids)
{
    for (size_t i = 0; ids != NULL && ids[i] != NULL; i++)
        free(ids[i]);
    free(ids);
}

/* The path of an existing snapshot. */
static int find(struct store *store, const char *id, char **ret, struct error *err)
{
    CLEANUP_FREE char *path = is_id(id) ? join(store->directory, "", id, err) : NULL;
    if (path == NULL || access(path, F_OK) < 0)
        return error_set(err, ENOENT, "there is no snapshot %s", id);
    *ret = TAKE_PTR(path);
    return 0;
}

static int file_status(const char *directory, const char *name, struct stat *ret, struct error *err)
{
    CLEANUP_FREE char *path = join(directory, "", name, err);
    if (path == NULL)
        return -ENOMEM;
    if (lstat(path, ret) == 0 && S_ISREG(ret->st_mode))
        return 0;
    return error_set(err, EBADMSG, "the snapshot's file %s is missing", path);
}

static int check_size(const char *directory, const char *name, uint64_t expected, struct error *err)
{
    struct stat status;
    int r = file_status(directory, name, &status, err);
    if (r < 0)
        return r;
    if ((uint64_t)status.st_size == expected)
        return 0;
    return error_set(err, EBADMSG, "the snapshot's file %s/%s has %lld bytes instead of %llu", directory, name,
                     (long long)status.st_size, (unsigned long long)expected);
}

int store_read(struct store *store, const char *id, struct snapshot_manifest *ret, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = find(store, id, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path = join(directory, "", MANIFEST, err);
    if (path == NULL)
        return -ENOMEM;
    struct snapshot_manifest manifest = {0};
    r = manifest_read(path, &manifest, err);
    if (r < 0)
        return r;
    if (strcmp(manifest.id, id) != 0)
        r = error_set(err, EBADMSG, "%s names another snapshot", path);
    if (r == 0)
        r = check_size(directory, VMM_FILE_MEMORY, manifest.memory_bytes, err);
    if (r == 0)
        r = check_size(directory, VMM_FILE_STATE, manifest.state_bytes, err);
    if (r < 0) {
        snapshot_manifest_done(&manifest);
        return r;
    }
    *ret = manifest;
    return 0;
}

int store_usage(struct store *store, const char *id, struct snapshot_usage *ret, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = find(store, id, &directory, err);
    struct stat memory;
    struct stat overlay;
    if (r == 0)
        r = file_status(directory, VMM_FILE_MEMORY, &memory, err);
    if (r == 0)
        r = file_status(directory, VMM_FILE_OVERLAY, &overlay, err);
    if (r < 0)
        return r;
    ret->memory_bytes = (uint64_t)memory.st_blocks * 512;
    ret->overlay_bytes = (uint64_t)overlay.st_blocks * 512;
    return 0;
}

int store_remove(struct store *store, const char *id, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = find(store, id, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *doomed = join(store->directory, TEMPORARY_PREFIX, id, err);
    if (doomed == NULL)
        return -ENOMEM;
    /* Absent at once and as a whole; a crash from here on leaves what store_open removes. */
    if (rename(directory, doomed) < 0)
        return error_errno(err, "cannot remove snapshot %s", id);
    r = io_remove_tree(doomed);
    return r < 0 ? error_code(err, r, "cannot remove %s", doomed) : 0;
}

static void free_writer(struct snapshot_writer *writer)
{
    free(writer->directory);
    free(writer);
}

int store_begin(struct store *store, struct snapshot_writer **ret, struct error *err)
{
    struct snapshot_writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL)
        return error_set(err, ENOMEM, "out of memory");
    writer->store = store;
    int r = random_name(writer->id, ID_LENGTH);
    if (r < 0)
        error_code(err, r, "no random numbers");
    else if ((writer->directory = join(store->directory, TEMPORARY_PREFIX, writer->id, err)) == NULL)
        r = -ENOMEM;
    else if (mkdir(writer->directory, 0700) < 0)
        r = error_errno(err, "cannot make %s", writer->directory);
    if (r < 0) {
        free_writer(writer);
        return r;
    }
    *ret = writer;
    return 0;
}

const char *snapshot_writer_id(const struct snapshot_writer *writer)
{
    return writer->id;
}

static int link_file(const char *from_directory, const char *to_directory, const char *name, struct error *err)
{
    CLEANUP_FREE char *from = join(from_directory, "", name, err);
    CLEANUP_FREE char *to = join(to_directory, "", name, err);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    return link(from, to) < 0 ? error_errno(err, "cannot link %s to %s", from, to) : 0;
}

static int clone_file(const char *from_directory, const char *to_directory, const char *name, uid_t uid,
                      struct error *err)
{
    CLEANUP_FREE char *from = join(from_directory, "", name, err);
    CLEANUP_FREE char *to = join(to_directory, "", name, err);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int from_fd = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from_fd < 0)
        return error_errno(err, "cannot open %s", from);
    CLEANUP_CLOSE int to_fd = image_clone_to(from_fd, to, err);
    if (to_fd < 0)
        return to_fd;
    return fchown(to_fd, uid, VMM_GROUP_ID) < 0 ? error_errno(err, "cannot give %s away", to) : 0;
}

int snapshot_writer_link(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                         struct error *err)
{
    return link_file(vm_directory, writer->directory, name, err);
}

int snapshot_writer_clone(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                          struct error *err)
{
    return clone_file(vm_directory, writer->directory, name, 0, err);
}

int snapshot_writer_open(struct snapshot_writer *writer, const char *name, struct error *err)
{
    CLEANUP_FREE char *path = join(writer->directory, "", name, err);
    if (path == NULL)
        return -ENOMEM;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? error_errno(err, "cannot open %s", path) : fd;
}

/*
 * Hands a file over to the VMMs' group and makes it durable. QEMU opens the memory image for writing although it
 * maps it privately; everything else is read-only for it.
 */
static int seal_file(const char *directory, const char *name, mode_t mode, struct error *err)
{
    CLEANUP_FREE char *path = join(directory, "", name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    if (fchown(fd, 0, VMM_GROUP_ID) < 0 || fchmod(fd, mode) < 0 || fsync(fd) < 0)
        return error_errno(err, "cannot make %s durable", path);
    return 0;
}

static int seal(const struct snapshot_writer *writer, struct error *err)
{
    static const struct {
        const char *name;
        mode_t mode;
    } files[] = {
        {VMM_FILE_MEMORY, 0660}, {VMM_FILE_BASE, 0440},   {VMM_FILE_OVERLAY, 0440},
        {VMM_FILE_STATE, 0440},  {VMM_FILE_KERNEL, 0440}, {VMM_FILE_INITRD, 0440},
    };
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        int r = seal_file(writer->directory, files[i].name, files[i].mode, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int set_id(struct snapshot_manifest *manifest, const char *id, struct error *err)
{
    free(manifest->id);
    manifest->id = strdup(id);
    return manifest->id == NULL ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int publish(const struct snapshot_writer *writer, struct snapshot_manifest *manifest, struct error *err)
{
    CLEANUP_FREE char *manifest_path = join(writer->directory, "", MANIFEST, err);
    CLEANUP_FREE char *final = join(writer->store->directory, "", writer->id, err);
    if (manifest_path == NULL || final == NULL)
        return -ENOMEM;
    int r = set_id(manifest, writer->id, err);
    if (r == 0)
        r = manifest_write(manifest_path, manifest, err);
    if (r < 0)
        return r;
    if (rename(writer->directory, final) < 0)
        return error_errno(err, "cannot rename %s", writer->directory);
    r = io_fsync_path(writer->store->directory);
    if (r < 0 && rename(final, writer->directory) == 0)
        return error_code(err, r, "cannot make %s durable", final);
    return 0;
}

int store_commit(struct snapshot_writer *writer, struct snapshot_manifest *manifest, struct error *err)
{
    int r = seal(writer, err);
    if (r == 0)
        r = publish(writer, manifest, err);
    if (r < 0) {
        store_abort(writer);
        return error_wrap(err, r, "committing a snapshot");
    }
    free_writer(writer);
    return 0;
}

void store_abort(struct snapshot_writer *writer)
{
    if (writer == NULL)
        return;
    io_remove_tree(writer->directory);
    free_writer(writer);
}

static int make_empty_memory(const char *directory, uint64_t size, struct error *err)
{
    CLEANUP_FREE char *path = join(directory, "", VMM_FILE_MEMORY, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0660);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || fchown(fd, 0, VMM_GROUP_ID) < 0 || fchmod(fd, 0660) < 0)
        return error_errno(err, "cannot make %s", path);
    return 0;
}

int store_materialize(struct store *store, const char *id, const char *vm_directory, uid_t uid,
                      uint64_t memory_bytes, struct error *err)
{
    static const char *const always[] = {VMM_FILE_BASE, VMM_FILE_KERNEL, VMM_FILE_INITRD, MANIFEST};
    static const char *const to_restore[] = {VMM_FILE_MEMORY, VMM_FILE_STATE};
    CLEANUP_FREE char *directory = NULL;
    int r = find(store, id, &directory, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(always); i++)
        r = link_file(directory, vm_directory, always[i], err);
    for (size_t i = 0; r == 0 && memory_bytes == 0 && i < ARRAY_SIZE(to_restore); i++)
        r = link_file(directory, vm_directory, to_restore[i], err);
    if (r == 0 && memory_bytes != 0)
        r = make_empty_memory(vm_directory, memory_bytes, err);
    if (r == 0)
        r = clone_file(directory, vm_directory, VMM_FILE_OVERLAY, uid, err);
    return r < 0 ? error_wrap(err, r, "preparing a VM from snapshot %s", id) : 0;
}

int store_read_origin(const char *vm_directory, struct snapshot_manifest *ret, struct error *err)
{
    CLEANUP_FREE char *path = join(vm_directory, "", MANIFEST, err);
    return path != NULL ? manifest_read(path, ret, err) : -ENOMEM;
}

int store_write_origin(const char *vm_directory, const struct snapshot_manifest *manifest, struct error *err)
{
    CLEANUP_FREE char *path = join(vm_directory, "", MANIFEST, err);
    return path != NULL ? manifest_write(path, manifest, err) : -ENOMEM;
}
