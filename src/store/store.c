#include "store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "store/store_internal.h"
#include "vmm/vmm.h"

char *store_path(struct error *err, const char *format, ...)
{
    char *path;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&path, format, arguments);
    va_end(arguments);
    if (length >= 0)
        return path;
    error_set(err, ENOMEM, "out of memory");
    return NULL;
}

int store_each_name(const char *directory, store_visit visit, void *context, struct error *err)
{
    DIR *entries = opendir(directory);
    if (entries == NULL)
        return error_errno(err, "cannot read %s", directory);
    int r = 0;
    while (r == 0) {
        /* An error must not pass for the end: gc would take the rest for not there. */
        errno = 0;
        struct dirent *entry = readdir(entries);
        if (entry == NULL) {
            if (errno != 0)
                r = error_errno(err, "cannot read %s", directory);
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = visit(context, entry->d_name, err);
    }
    closedir(entries);
    return r;
}

int store_sync(const char *path, struct error *err)
{
    int r = io_fsync_path(path);
    return r < 0 ? error_code(err, r, "cannot make %s durable", path) : 0;
}

int store_write_durable(const char *path, const void *bytes, size_t length, struct error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_errno(err, "cannot make %s", path);
    int r = io_write_full(fd, bytes, length);
    if (r < 0)
        return error_code(err, r, "cannot write %s", path);
    return fsync(fd) < 0 ? error_errno(err, "cannot make %s durable", path) : 0;
}

static bool is_leftover(const char *name)
{
    return strncmp(name, STORE_TEMPORARY, strlen(STORE_TEMPORARY)) == 0;
}

/* `context` is the directory. */
static int remove_leftover(void *context, const char *name, struct error *err)
{
    if (!is_leftover(name))
        return 0;
    CLEANUP_FREE char *path = store_path(err, "%s/%s", (const char *)context, name);
    if (path == NULL)
        return -ENOMEM;
    int r = io_remove_tree(path);
    return r < 0 ? error_code(err, r, "cannot remove %s, which is left over", path) : 0;
}

/* Of a snapshot that was being written or removed, or in one that was being compacted. */
static int remove_leftover_snapshot(void *context, const char *name, struct error *err)
{
    if (!layer_id_valid(name))
        return remove_leftover(context, name, err);
    CLEANUP_FREE char *path = store_path(err, "%s/%s", (const char *)context, name);
    if (path == NULL)
        return -ENOMEM;
    return store_each_name(path, remove_leftover, path, err);
}

static int make_directories(const struct store *store, struct error *err)
{
    const char *const paths[] = {store->layers, store->snapshots, store->vms};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        int r = io_make_directories(paths[i], 0700);
        if (r < 0)
            return error_code(err, r, "cannot make %s", paths[i]);
    }
    return store_sync(store->data, err);
}

static int lock_store(struct store *store, struct error *err)
{
    store->layers_fd = open(store->layers, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->layers_fd < 0)
        return error_errno(err, "cannot open %s", store->layers);
    if (flock(store->layers_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno != EWOULDBLOCK)
        return error_errno(err, "cannot lock %s", store->layers);
    error_set(err, EBUSY, "the snapshots in %s are in use by another process", store->data);
    error_hint(err, "is a dormoused with this data directory running?");
    return -EBUSY;
}

static int open_store(struct store *store, struct error *err)
{
    int r = make_directories(store, err);
    if (r == 0)
        r = lock_store(store, err);
    if (r == 0)
        r = store_each_name(store->layers, remove_leftover, store->layers, err);
    if (r == 0)
        r = store_each_name(store->snapshots, remove_leftover_snapshot, store->snapshots, err);
    return r;
}

int store_open(const char *data_directory, struct store **ret, struct error *err)
{
    struct store *store = calloc(1, sizeof(*store));
    if (store == NULL)
        return error_set(err, ENOMEM, "out of memory");
    store->layers_fd = -1;
    pthread_mutex_init(&store->lock, NULL);
    pthread_mutex_init(&store->gc_lock, NULL);
    pthread_mutex_init(&store->compact_lock, NULL);
    pthread_mutex_init(&store->usage_lock, NULL);
    store->data = store_path(err, "%s", data_directory);
    store->layers = store_path(err, "%s/" STORE_DIRECTORY_LAYERS, data_directory);
    store->snapshots = store_path(err, "%s/" STORE_DIRECTORY_SNAPSHOTS, data_directory);
    store->vms = store_path(err, "%s/" STORE_DIRECTORY_VMS, data_directory);
    bool named = store->data != NULL && store->layers != NULL && store->snapshots != NULL && store->vms != NULL;
    int r = named ? open_store(store, err) : -ENOMEM;
    if (r < 0) {
        store_close(store);
        return error_wrap(err, r, "opening the snapshot store");
    }
    *ret = store;
    return 0;
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    cleanup_close(&store->layers_fd);
    pthread_mutex_destroy(&store->lock);
    pthread_mutex_destroy(&store->gc_lock);
    pthread_mutex_destroy(&store->compact_lock);
    pthread_mutex_destroy(&store->usage_lock);
    store_forget_usage(store);
    free(store->data);
    free(store->layers);
    free(store->snapshots);
    free(store->vms);
    free(store);
}

int store_layers_fd(const struct store *store)
{
    return store->layers_fd;
}

int store_find(struct store *store, const char *id, char **ret, struct error *err)
{
    if (!layer_id_valid(id))
        return error_set(err, ENOENT, "there is no snapshot %s", id);
    CLEANUP_FREE char *directory = store_path(err, "%s/%s", store->snapshots, id);
    CLEANUP_FREE char *manifest = store_path(err, "%s/%s/" STORE_FILE_MANIFEST, store->snapshots, id);
    if (directory == NULL || manifest == NULL)
        return -ENOMEM;
    if (access(manifest, F_OK) < 0)
        return errno == ENOENT ? error_set(err, ENOENT, "there is no snapshot %s", id)
                               : error_errno(err, "cannot read %s", manifest);
    *ret = TAKE_PTR(directory);
    return 0;
}

struct list {
    struct store *store;
    char **ids;
    size_t count;
};

static int list_snapshot(void *context, const char *name, struct error *err)
{
    struct list *list = context;
    CLEANUP_FREE char *directory = NULL;
    if (!layer_id_valid(name))
        return 0;
    int r = store_find(list->store, name, &directory, NULL);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return error_code(err, r, "cannot read snapshot %s", name);
    char **larger = realloc(list->ids, (list->count + 2) * sizeof(*larger));
    if (larger == NULL)
        return error_set(err, ENOMEM, "out of memory");
    list->ids = larger;
    list->ids[list->count + 1] = NULL;
    list->ids[list->count] = strdup(name);
    return list->ids[list->count++] == NULL ? error_set(err, ENOMEM, "out of memory") : 0;
}

int store_list(struct store *store, char ***ret_ids, struct error *err)
{
    struct list list = {.store = store, .ids = calloc(1, sizeof(*list.ids))};
    if (list.ids == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = store_each_name(store->snapshots, list_snapshot, &list, err);
    if (r < 0) {
        store_list_done(list.ids);
        return r;
    }
    *ret_ids = list.ids;
    return 0;
}

void store_list_done(char **ids)
{
    for (size_t i = 0; ids != NULL && ids[i] != NULL; i++)
        free(ids[i]);
    free(ids);
}

static int read_manifest(struct store *store, const char *id, enum manifest_parts parts, struct snapshot *ret,
                         struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = store_find(store, id, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path = store_path(err, "%s/" STORE_FILE_MANIFEST, directory);
    if (path == NULL)
        return -ENOMEM;
    struct snapshot snapshot = {0};
    r = manifest_read(path, parts, &snapshot, err);
    if (r < 0)
        return r;
    if (strcmp(snapshot.manifest.id, id) != 0) {
        snapshot_done(&snapshot);
        return error_set(err, EBADMSG, "%s is another snapshot's", path);
    }
    *ret = snapshot;
    return 0;
}

int store_read(struct store *store, const char *id, struct snapshot *ret, struct error *err)
{
    return read_manifest(store, id, MANIFEST_HEAD, ret, err);
}

int store_load(struct store *store, const char *id, struct snapshot *ret, struct error *err)
{
    return read_manifest(store, id, MANIFEST_ALL, ret, err);
}

static int take_name(struct store *store, const char *id, const char *doomed, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = store_find(store, id, &directory, err);
    if (r < 0)
        return r;
    if (rename(directory, doomed) < 0)
        return error_errno(err, "cannot remove snapshot %s", id);
    atomic_fetch_add(&store->changes, 1);
    return store_sync(store->snapshots, err);
}

int store_remove(struct store *store, const char *id, struct error *err)
{
    CLEANUP_FREE char *doomed = store_path(err, "%s/" STORE_TEMPORARY "%s", store->snapshots, id);
    if (doomed == NULL)
        return -ENOMEM;
    /* Absent at once and as a whole; a crash from here on leaves what store_open removes. Under the lock, because a
     * compaction may be about to replace the manifest. */
    pthread_mutex_lock(&store->lock);
    int r = take_name(store, id, doomed, err);
    pthread_mutex_unlock(&store->lock);
    if (r < 0)
        return r;
    r = io_remove_tree(doomed);
    return r < 0 ? error_code(err, r, "cannot remove %s", doomed) : 0;
}

static int link_into(int snapshot_fd, const char *id, const char *name, const char *vm_directory,
                     const char *vm_name, struct error *err)
{
    CLEANUP_FREE char *to = store_path(err, "%s/%s", vm_directory, vm_name);
    if (to == NULL)
        return -ENOMEM;
    if (linkat(snapshot_fd, name, AT_FDCWD, to, 0) == 0)
        return 0;
    return error_errno(err, "cannot link %s of snapshot %s to %s", name, id, to);
}

static int open_snapshot(struct store *store, const char *id, struct error *err)
{
    CLEANUP_FREE char *directory = NULL;
    int r = store_find(store, id, &directory, err);
    if (r < 0)
        return r;
    int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? error_errno(err, "cannot open %s", directory) : fd;
}

int store_materialize(struct store *store, const char *id, const char *vm_directory, struct error *err)
{
    static const char *const always[] = {STORE_FILE_MANIFEST, VMM_FILE_KERNEL, VMM_FILE_INITRD};
    CLEANUP_CLOSE int fd = open_snapshot(store, id, err);
    int r = fd < 0 ? fd : 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(always); i++)
        r = link_into(fd, id, always[i], vm_directory, always[i], err);
    const char *set =
        faccessat(fd, STORE_FILE_WORKING_SET, F_OK, 0) == 0 ? STORE_FILE_WORKING_SET : STORE_FILE_INHERITED_SET;
    if (r == 0 && faccessat(fd, set, F_OK, 0) == 0) {
        r = link_into(fd, id, set, vm_directory, STORE_FILE_WORKING_SET, err);
        if (r == 0)
            r = link_into(fd, id, set, vm_directory, STORE_FILE_INHERITED_SET, err);
    }
    return r < 0 ? error_wrap(err, r, "preparing a VM from snapshot %s", id) : 0;
}

bool store_has_working_set(struct store *store, const char *id)
{
    CLEANUP_CLOSE int fd = open_snapshot(store, id, NULL);
    return fd >= 0 && faccessat(fd, STORE_FILE_WORKING_SET, F_OK, 0) == 0;
}

int store_keep_working_set(struct store *store, const char *id, const char *vm_directory, struct error *err)
{
    CLEANUP_FREE char *from = store_path(err, "%s/" STORE_FILE_WORKING_SET, vm_directory);
    if (from == NULL)
        return -ENOMEM;
    /* Nothing may get into a directory that is being removed. */
    pthread_mutex_lock(&store->lock);
    CLEANUP_CLOSE int fd = open_snapshot(store, id, err);
    int r = fd < 0 ? fd : 0;
    if (r == 0 && linkat(AT_FDCWD, from, fd, STORE_FILE_WORKING_SET, 0) < 0 && errno != EEXIST)
        r = error_errno(err, "cannot keep the working set of snapshot %s", id);
    pthread_mutex_unlock(&store->lock);
    return r;
}

int store_link_disk_manifest(struct store *store, const char *id, const char *vm_directory, struct error *err)
{
    static const char temporary[] = STORE_TEMPORARY STORE_FILE_DISK_MANIFEST;
    CLEANUP_FREE char *from = store_path(err, "%s/%s", vm_directory, temporary);
    CLEANUP_FREE char *to = store_path(err, "%s/" STORE_FILE_DISK_MANIFEST, vm_directory);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open_snapshot(store, id, err);
    if (fd < 0)
        return fd;
    if (unlink(from) < 0 && errno != ENOENT)
        return error_errno(err, "cannot remove %s", from);
    /* gc doesn't know the temporary name: the snapshot must stay until it has the right one. */
    pthread_mutex_lock(&store->lock);
    int r = link_into(fd, id, STORE_FILE_MANIFEST, vm_directory, temporary, err);
    if (r == 0 && rename(from, to) < 0)
        r = error_errno(err, "cannot rename %s", from);
    pthread_mutex_unlock(&store->lock);
    /* Renaming one link over another of the same file does nothing, and leaves both. */
    unlink(from);
    /* What the overlay held is dropped next. */
    return r == 0 ? store_sync(vm_directory, err) : r;
}
