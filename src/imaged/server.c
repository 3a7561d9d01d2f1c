#include "imaged/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/images.h"
#include "imaged/overlays.h"
#include "imaged/protocol.h"
#include "imaged/server_internal.h"

static bool valid_vm(const char *id)
{
    size_t length = strlen(id);
    return length >= 1 && length <= VM_ID_MAX && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789") == length;
}

/* Under the server's lock. */
static struct vm *find(struct server *server, const char *id)
{
    struct vm *vm = server->vms;
    while (vm != NULL && strcmp(vm->id, id) != 0)
        vm = vm->next;
    return vm;
}

static struct vm *add(struct server *server, const char *id)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    if (vm == NULL)
        return NULL;
    snprintf(vm->id, sizeof(vm->id), "%s", id);
    pthread_mutex_init(&vm->lock, NULL);
    vm->next = server->vms;
    server->vms = vm;
    return vm;
}

/* A VM for one call, which has it for itself; with `attached`, only one that is. Given back by leave. */
static int enter(struct server *server, const char *id, bool attached, struct vm **ret, struct error *err)
{
    if (!valid_vm(id))
        return error_set(err, EINVAL, "\"%s\" is not the id of a VM", id);
    pthread_mutex_lock(&server->lock);
    struct vm *vm = find(server, id);
    if (vm == NULL && !attached)
        vm = add(server, id);
    if (vm != NULL)
        vm->references++;
    pthread_mutex_unlock(&server->lock);
    if (vm == NULL)
        return attached ? error_set(err, ENOENT, "VM %s is not attached", id)
                        : error_set(err, ENOMEM, "out of memory");
    pthread_mutex_lock(&vm->lock);
    if (attached && !vm->attached) {
        server_leave(server, vm);
        return error_set(err, ENOENT, "VM %s is not attached", id);
    }
    *ret = vm;
    return 0;
}

int server_enter(struct server *server, const char *id, struct vm **ret, struct error *err)
{
    return enter(server, id, true, ret, err);
}

struct vm *server_try_enter(struct server *server, const char *id)
{
    pthread_mutex_lock(&server->lock);
    struct vm *vm = find(server, id);
    if (vm != NULL && pthread_mutex_trylock(&vm->lock) != 0)
        vm = NULL;
    if (vm != NULL)
        vm->references++;
    pthread_mutex_unlock(&server->lock);
    if (vm != NULL && !vm->attached) {
        server_leave(server, vm);
        vm = NULL;
    }
    return vm;
}

void server_leave(struct server *server, struct vm *vm)
{
    pthread_mutex_unlock(&vm->lock);
    pthread_mutex_lock(&server->lock);
    bool unused = --vm->references == 0 && !vm->attached;
    if (unused) {
        struct vm **link = &server->vms;
        while (*link != vm)
            link = &(*link)->next;
        *link = vm->next;
    }
    pthread_mutex_unlock(&server->lock);
    if (unused) {
        pthread_mutex_destroy(&vm->lock);
        free(vm);
    }
}

/* Under the server's lock. A watcher that can't be told is disconnected, so that it asks. */
static void tell_watcher(int watcher, const struct vm *vm)
{
    json_t *packet = json_pack("{s:s, s:s}", "vm", vm->id, "reason", vm->failure);
    if (packet == NULL || protocol_send(watcher, 0, packet, NULL) < 0)
        (void)shutdown(watcher, SHUT_RDWR);
    json_decref(packet);
}

static void vm_failed(struct server *server, struct vm *vm, const char *reason)
{
    if (vm->failure != NULL)
        return;
    vm->failure = strdup(reason);
    if (vm->failure == NULL)
        return;
    fprintf(stderr, "VM %s failed: %s\n", vm->id, reason);
    for (size_t i = 0; i < server->watcher_count; i++)
        tell_watcher(server->watchers[i], vm);
}

void server_image_failed(void *context, struct served *served, const char *reason)
{
    struct server *server = context;
    pthread_mutex_lock(&server->lock);
    for (struct vm *vm = server->vms; vm != NULL; vm = vm->next)
        if (vm->memory == served || (vm->base != NULL && vm->base->served == served))
            vm_failed(server, vm, reason);
    pthread_mutex_unlock(&server->lock);
}

void server_disk_failed(void *context, const char *name, const char *reason)
{
    struct server *server = context;
    pthread_mutex_lock(&server->lock);
    struct vm *vm = find(server, name);
    if (vm != NULL)
        vm_failed(server, vm, reason);
    pthread_mutex_unlock(&server->lock);
}

static int read_base(void *context, uint64_t offset, size_t length, void *to)
{
    const struct base *base = context;
    for (size_t done = 0; done < length;) {
        ssize_t n = pread(base->fd, (char *)to + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

static void close_base(struct base *base)
{
    if (base == NULL)
        return;
    if (base->fd >= 0)
        close(base->fd);
    images_release(base->served);
    free(base);
}

/*
 * Opens the image of one kind that a manifest describes. If it is in use already, little more than the id is read.
 * -ENODATA: the snapshot has no such image.
 */
static int use_image(struct images *images, enum image_kind kind, const char *manifest, gid_t gid,
                     struct served **ret, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = manifest_read(manifest, MANIFEST_HEAD, &snapshot, err);
    if (r < 0)
        return r;
    if (kind == IMAGE_MEMORY && snapshot_is_disk_only(&snapshot))
        return error_set(err, ENODATA, "snapshot %s has no memory", snapshot.manifest.id);
    struct served *served = images_use(images, snapshot.manifest.id, gid);
    if (served == NULL) {
        snapshot_done(&snapshot);
        snapshot = (struct snapshot){0};
        r = manifest_read(manifest, 1 << kind, &snapshot, err);
        if (r < 0)
            return r;
        r = images_add(images, &snapshot, gid, &served, err);
        if (r < 0)
            return r;
    }
    *ret = served;
    return 0;
}

/* The disk below the overlay: that of `disk-manifest` if there is one, else of `manifest`. */
static int open_base(struct server *server, const char *directory, struct base **ret, struct error *err)
{
    CLEANUP_FREE char *manifest = io_path(directory, "disk-manifest", err);
    if (manifest == NULL)
        return -ENOMEM;
    if (access(manifest, F_OK) != 0)
        sprintf(manifest, "%s/manifest", directory);
    struct base *base = calloc(1, sizeof(*base));
    if (base == NULL)
        return error_set(err, ENOMEM, "out of memory");
    base->fd = -1;
    int r = use_image(server->disks, IMAGE_DISK, manifest, 0, &base->served, err);
    if (r == 0) {
        char path[PATH_MAX];
        snprintf(path, sizeof(path), "%s/%s", images_path(server->disks), served_name(base->served));
        base->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (base->fd < 0)
            r = error_errno(err, "cannot open %s", path);
    }
    if (r < 0) {
        close_base(base);
        return r;
    }
    /* What the guest asks for, no more: the kernel doesn't know what it reads next, the guest's own read-ahead
     * does. */
    (void)posix_fadvise(base->fd, 0, 0, POSIX_FADV_RANDOM);
    *ret = base;
    return 0;
}

static int attach_memory(struct server *server, const struct server_attach *attach, struct served **ret,
                         struct error *err)
{
    if (attach->empty_memory > 0) {
        char name[VM_ID_MAX + sizeof(".empty")];
        snprintf(name, sizeof(name), "%s.empty", attach->vm);
        return images_add_empty(server->memory, name, attach->empty_memory, attach->gid, ret, err);
    }
    CLEANUP_FREE char *manifest = io_path(attach->directory, "manifest", err);
    if (manifest == NULL)
        return -ENOMEM;
    int r = use_image(server->memory, IMAGE_MEMORY, manifest, attach->gid, ret, err);
    if (r == -ENODATA) {
        *ret = NULL;
        return 0;
    }
    return r;
}

static int attach_disk(struct server *server, const struct server_attach *attach, struct base *base,
                       struct disk **ret, struct error *err)
{
    uint64_t bytes = served_pages(base->served) * IMAGE_PAGE_BYTES;
    struct overlay *overlay;
    int r = overlay_open(attach->directory, bytes, read_base, base, &overlay, err);
    if (r < 0)
        return r;
    overlay_set_limit(overlay, attach->disk_limit);
    return disk_add(server->overlays, attach->vm, bytes, attach->uid, overlay, ret, err);
}

/* What a VM has, given back. */
static void release(struct server *server, struct vm *vm)
{
    /* Who fails from now on fails for others. */
    pthread_mutex_lock(&server->lock);
    struct served *memory = TAKE_PTR(vm->memory);
    struct base *base = TAKE_PTR(vm->base);
    struct disk *disk = TAKE_PTR(vm->disk);
    char *failure = TAKE_PTR(vm->failure);
    vm->attached = false;
    vm->vmm = 0;
    pthread_mutex_unlock(&server->lock);
    if (vm->recording)
        images_record_end(memory);
    vm->recording = false;
    disk_remove(disk);
    close_base(base);
    images_release(memory);
    free(failure);
    free(TAKE_PTR(vm->directory));
}

static int attach(struct server *server, struct vm *vm, const struct server_attach *options, struct error *err)
{
    struct served *memory = NULL;
    struct base *base = NULL;
    struct disk *disk = NULL;
    vm->directory = strdup(options->directory);
    int r = vm->directory != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
    if (r == 0 && (r = open_base(server, options->directory, &base, err)) == 0)
        r = attach_memory(server, options, &memory, err);
    pthread_mutex_lock(&server->lock);
    vm->memory = memory;
    vm->base = base;
    pthread_mutex_unlock(&server->lock);
    if (r == 0)
        r = attach_disk(server, options, base, &disk, err);
    pthread_mutex_lock(&server->lock);
    vm->disk = disk;
    vm->attached = r == 0;
    pthread_mutex_unlock(&server->lock);
    vm->recording = memory != NULL && options->empty_memory == 0;
    if (vm->recording)
        images_record(memory);
    if (r < 0)
        release(server, vm);
    return r;
}

static int add_path(json_t *reply, const char *key, const char *directory, const char *name, struct error *err)
{
    json_t *path = json_sprintf("%s/%s", directory, name);
    return json_object_set_new(reply, key, path) == 0 ? 0 : error_set(err, ENOMEM, "out of memory");
}

int server_attach(struct server *server, const struct server_attach *options, json_t *reply, struct error *err)
{
    if (options->directory[0] != '/' || strlen(options->directory) > PATH_MAX - 256)
        return error_set(err, EINVAL, "\"%s\" is not an absolute path", options->directory);
    if (options->empty_memory % IMAGE_PAGE_BYTES != 0 || options->empty_memory > UINT64_C(1) << 44)
        return error_set(err, EINVAL, "memory of %llu bytes", (unsigned long long)options->empty_memory);
    struct vm *vm;
    int r = enter(server, options->vm, false, &vm, err);
    if (r < 0)
        return r;
    if (!vm->attached)
        r = attach(server, vm, options, err);
    if (r == 0 && vm->memory != NULL)
        r = add_path(reply, "memory", images_path(server->memory), served_name(vm->memory), err);
    if (r == 0)
        r = add_path(reply, "disk", overlays_path(server->overlays), vm->id, err);
    if (r == 0)
        r = add_path(reply, "disk_parent", images_path(server->disks), served_name(vm->base->served), err);
    server_leave(server, vm);
    return r;
}

int server_detach(struct server *server, const char *id, struct error *err)
{
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    release(server, vm);
    server_leave(server, vm);
    return 0;
}

int server_freeze(struct server *server, const char *id, uint64_t *ret, struct error *err)
{
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    r = overlay_freeze(disk_overlay(vm->disk), ret, err);
    server_leave(server, vm);
    return r;
}

int server_rebase(struct server *server, const char *id, uint64_t generation, struct error *err)
{
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    struct base *base = NULL;
    r = open_base(server, vm->directory, &base, err);
    if (r == 0 && served_pages(base->served) != served_pages(vm->base->served))
        r = error_set(err, EINVAL, "the disk of snapshot %s has another size", served_name(base->served));
    if (r == 0)
        r = overlay_rebase(disk_overlay(vm->disk), generation, read_base, base, err);
    if (r == 0) {
        pthread_mutex_lock(&server->lock);
        struct base *old = vm->base;
        vm->base = base;
        base = old;
        pthread_mutex_unlock(&server->lock);
    }
    server_leave(server, vm);
    close_base(base);
    return r;
}

int server_set_vmm(struct server *server, const char *id, pid_t pid, struct error *err)
{
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&server->lock);
    vm->vmm = pid;
    pthread_mutex_unlock(&server->lock);
    server_leave(server, vm);
    return 0;
}

/* Adds what the file holds; a hint that is missing or damaged is none. */
static int read_working_set(const char *directory, const char *name, const struct served *memory,
                            struct working_set *set, struct error *err)
{
    CLEANUP_FREE char *path = io_path(directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP(working_set_done) struct working_set saved = {0};
    int r = working_set_read(path, served_pages(memory), &saved, NULL);
    for (size_t i = 0; r == 0 && i < saved.count; i++)
        r = working_set_add(set, saved.runs[i]);
    working_set_join(set);
    return r == -ENOMEM ? error_set(err, ENOMEM, "out of memory") : 0;
}

int server_prefetch(struct server *server, const char *id, struct error *err)
{
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    CLEANUP(working_set_done) struct working_set set = {0};
    if (vm->memory != NULL)
        r = read_working_set(vm->directory, "working-set", vm->memory, &set, err);
    if (r == 0 && set.count > 0)
        r = images_prefetch(vm->memory, &set, err);
    server_leave(server, vm);
    return r;
}

int server_warm(struct server *server, const char *directory, gid_t gid, struct error *err)
{
    CLEANUP_FREE char *manifest = io_path(directory, "manifest", err);
    if (manifest == NULL)
        return -ENOMEM;
    struct served *memory;
    int r = use_image(server->memory, IMAGE_MEMORY, manifest, gid, &memory, err);
    if (r < 0)
        return r;
    CLEANUP(working_set_done) struct working_set set = {0};
    r = read_working_set(directory, "working-set", memory, &set, err);
    if (r == 0 && set.count == 0)
        r = read_working_set(directory, "working-set.inherited", memory, &set, err);
    if (r == 0 && set.count > 0)
        r = images_prefetch(memory, &set, err);
    images_release(memory);
    return r;
}

int server_save_working_set(struct server *server, const char *id, const char *path, struct error *err)
{
    if (path[0] != '/')
        return error_set(err, EINVAL, "\"%s\" is not an absolute path", path);
    struct vm *vm;
    int r = server_enter(server, id, &vm, err);
    if (r < 0)
        return r;
    CLEANUP(working_set_done) struct working_set set = {0};
    if (!vm->recording)
        r = error_set(err, ENODATA, "nothing has been recorded for VM %s", id);
    if (r == 0 && (r = images_recorded(vm->memory, &set)) < 0)
        r = error_code(err, r, "cannot collect the working set of VM %s", id);
    if (r == 0)
        r = read_working_set(vm->directory, "working-set", vm->memory, &set, err);
    if (r == 0) {
        images_record_end(vm->memory);
        vm->recording = false;
        r = set.count > 0 ? working_set_write(path, &set, err)
                          : error_set(err, ENODATA, "nothing has been recorded for VM %s", id);
    }
    server_leave(server, vm);
    return r;
}

int server_failure(struct server *server, const char *id, json_t *reply, struct error *err)
{
    int r = 0;
    pthread_mutex_lock(&server->lock);
    const struct vm *vm = find(server, id);
    if (vm == NULL || !vm->attached)
        r = error_set(err, ENOENT, "VM %s is not attached", id);
    else if (vm->failure != NULL && json_object_set_new(reply, "reason", json_string(vm->failure)) != 0)
        r = error_set(err, ENOMEM, "out of memory");
    pthread_mutex_unlock(&server->lock);
    return r;
}

int server_watch(struct server *server, int fd, const json_t *reply, struct error *err)
{
    pthread_mutex_lock(&server->lock);
    int r = server->watcher_count < WATCHERS_MAX ? protocol_send(fd, 0, reply, err)
                                                 : error_set(err, EBUSY, "too many watchers");
    if (r == 0) {
        server->watchers[server->watcher_count++] = fd;
        for (struct vm *vm = server->vms; vm != NULL; vm = vm->next)
            if (vm->failure != NULL)
                tell_watcher(fd, vm);
    }
    pthread_mutex_unlock(&server->lock);
    return r;
}

void server_unwatch(struct server *server, int fd)
{
    pthread_mutex_lock(&server->lock);
    for (size_t i = 0; i < server->watcher_count; i++)
        if (server->watchers[i] == fd) {
            server->watchers[i] = server->watchers[--server->watcher_count];
            break;
        }
    pthread_mutex_unlock(&server->lock);
}
