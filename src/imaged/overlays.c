#include "imaged/overlays.h"

#include <errno.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "imaged/fuse_mount.h"
#include "imaged/protocol.h"

#define DISK_NAME_MAX 40

/* Lives as long as it is attached or the kernel's lookup count is not 0; its address is its inode number. */
struct disk {
    struct overlays *overlays;
    struct disk *next;
    char name[DISK_NAME_MAX + 1];
    uint64_t generation;
    uint64_t bytes;
    uid_t uid;

    /* Under overlays->lock. */
    uint64_t lookups;
    struct overlay *overlay; /* NULL: removed */
    unsigned busy;           /* requests that use it */
};

struct overlays {
    struct overlays_options options;
    char *mount_path;
    struct fuse_mount *mount;
    uint8_t **buffers; /* one a thread, FUSE_MOUNT_MAX_BYTES */

    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct disk *list;
    uint64_t next_generation;
};

static __thread uint8_t *own_buffer;

static void enter_thread(void *context, unsigned thread)
{
    struct overlays *overlays = context;
    own_buffer = overlays->buffers[thread];
}

static struct disk *disk_of(fuse_ino_t inode)
{
    return (struct disk *)(uintptr_t)inode;
}

/* The overlay for one request; NULL, and the request has its error, when the disk has been removed. */
static struct overlay *disk_enter(struct disk *disk, fuse_req_t request)
{
    pthread_mutex_lock(&disk->overlays->lock);
    struct overlay *overlay = disk->overlay;
    if (overlay != NULL)
        disk->busy++;
    pthread_mutex_unlock(&disk->overlays->lock);
    if (overlay == NULL)
        fuse_reply_err(request, EIO);
    return overlay;
}

static void disk_leave(struct disk *disk)
{
    pthread_mutex_lock(&disk->overlays->lock);
    if (--disk->busy == 0)
        pthread_cond_broadcast(&disk->overlays->idle);
    pthread_mutex_unlock(&disk->overlays->lock);
}

/* Notes what went wrong; the errno for the guest. */
static int disk_failed(struct disk *disk, const char *what, int negative_errno)
{
    struct overlays *overlays = disk->overlays;
    if (negative_errno == -ENOSPC || negative_errno == -EDQUOT) {
        metric_add(&overlays->options.metrics->overlay_full, 1);
        return ENOSPC;
    }
    if (negative_errno == -ERANGE)
        return EFBIG;
    char reason[128];
    snprintf(reason, sizeof(reason), "cannot %s the disk: %s", what, strerror(-negative_errno));
    overlays->options.failed(overlays->options.context, disk->name, reason);
    return EIO;
}

static void overlays_init(void *context, struct fuse_conn_info *connection)
{
    (void)context;
    connection->max_write = FUSE_MOUNT_MAX_BYTES;
    connection->max_read = FUSE_MOUNT_MAX_BYTES;
    connection->max_background = 64;
    connection->congestion_threshold = 48;
}

static void disk_attributes(const struct disk *disk, struct stat *ret)
{
    *ret = (struct stat){
        .st_ino = disk->generation + FUSE_ROOT_ID,
        .st_mode = S_IFREG | 0600,
        .st_nlink = 1,
        .st_uid = disk->uid,
        .st_size = (off_t)disk->bytes,
        .st_blocks = (blkcnt_t)(disk->bytes / 512),
        .st_blksize = OVERLAY_BLOCK_BYTES,
    };
}

/* Under the lock. */
static void free_unused(struct disk *disk)
{
    if (disk->overlay == NULL && disk->lookups == 0)
        free(disk);
}

static void forget(struct disk *disk, uint64_t lookups)
{
    pthread_mutex_t *lock = &disk->overlays->lock;
    pthread_mutex_lock(lock);
    disk->lookups -= MIN(lookups, disk->lookups);
    free_unused(disk);
    pthread_mutex_unlock(lock);
}

static struct disk *find(struct overlays *overlays, const char *name)
{
    struct disk *disk = overlays->list;
    while (disk != NULL && strcmp(disk->name, name) != 0)
        disk = disk->next;
    return disk;
}

static void op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct overlays *overlays = fuse_req_userdata(request);
    pthread_mutex_lock(&overlays->lock);
    struct disk *disk = parent == FUSE_ROOT_ID ? find(overlays, name) : NULL;
    if (disk != NULL)
        disk->lookups++;
    pthread_mutex_unlock(&overlays->lock);
    if (disk == NULL) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    struct fuse_entry_param entry = {
        .ino = (fuse_ino_t)(uintptr_t)disk,
        .generation = disk->generation,
        .attr_timeout = FUSE_MOUNT_FOREVER,
        .entry_timeout = FUSE_MOUNT_FOREVER,
    };
    disk_attributes(disk, &entry.attr);
    if (fuse_reply_entry(request, &entry) != 0)
        forget(disk, 1);
}

static void op_forget(fuse_req_t request, fuse_ino_t inode, uint64_t lookups)
{
    if (inode != FUSE_ROOT_ID)
        forget(disk_of(inode), lookups);
    fuse_reply_none(request);
}

static void op_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        if (forgets[i].ino != FUSE_ROOT_ID)
            forget(disk_of(forgets[i].ino), forgets[i].nlookup);
    fuse_reply_none(request);
}

static void op_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    struct stat attributes;
    if (inode == FUSE_ROOT_ID)
        fuse_mount_root_attributes(&attributes);
    else
        disk_attributes(disk_of(inode), &attributes);
    fuse_reply_attr(request, &attributes, FUSE_MOUNT_FOREVER);
}

/* Times are accepted and not kept; a disk's size, mode and owner don't change. */
static void op_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *attributes, int which,
                       struct fuse_file_info *file)
{
    bool refused = inode == FUSE_ROOT_ID ||
                   (which & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) ||
                   ((which & FUSE_SET_ATTR_SIZE) && (uint64_t)attributes->st_size != disk_of(inode)->bytes);
    if (refused)
        fuse_reply_err(request, EPERM);
    else
        op_getattr(request, inode, file);
}

static void op_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)inode;
    (void)file;
    /* fuse_reply_open of this libfuse doesn't know parallel writes yet. */
    struct fuse_open_out reply = {.open_flags = FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES};
    fuse_reply_buf(request, (const char *)&reply, sizeof(reply));
}

static void op_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)file;
    struct disk *disk = disk_of(inode);
    if (offset < 0 || (uint64_t)offset >= disk->bytes) {
        fuse_reply_buf(request, NULL, 0);
        return;
    }
    struct overlay *overlay = disk_enter(disk, request);
    if (overlay == NULL)
        return;
    size_t length = MIN(size, FUSE_MOUNT_MAX_BYTES);
    length = MIN(length, disk->bytes - (uint64_t)offset);
    int r = overlay_read(overlay, (uint64_t)offset, length, own_buffer);
    if (r == 0)
        fuse_reply_buf(request, (const char *)own_buffer, length);
    else
        fuse_reply_err(request, disk_failed(disk, "read", r));
    metric_add(&disk->overlays->options.metrics->overlay_read_bytes, length);
    disk_leave(disk);
}

static void op_write(fuse_req_t request, fuse_ino_t inode, const char *bytes, size_t size, off_t offset,
                     struct fuse_file_info *file)
{
    (void)file;
    struct disk *disk = disk_of(inode);
    struct overlay *overlay = disk_enter(disk, request);
    if (overlay == NULL)
        return;
    int r = offset < 0 ? -ERANGE : overlay_write(overlay, (uint64_t)offset, size, bytes);
    if (r == 0)
        fuse_reply_write(request, size);
    else
        fuse_reply_err(request, disk_failed(disk, "write", r));
    metric_add(&disk->overlays->options.metrics->overlay_written_bytes, size);
    disk_leave(disk);
}

static void op_fsync(fuse_req_t request, fuse_ino_t inode, int data_only, struct fuse_file_info *file)
{
    (void)data_only;
    (void)file;
    struct disk *disk = disk_of(inode);
    struct overlay *overlay = disk_enter(disk, request);
    if (overlay == NULL)
        return;
    int r = overlay_flush(overlay);
    fuse_reply_err(request, r == 0 ? 0 : disk_failed(disk, "flush", r));
    disk_leave(disk);
}

static void op_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
                         struct fuse_file_info *file)
{
    (void)file;
    if (!(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) ||
        (mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))) {
        fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    struct disk *disk = disk_of(inode);
    struct overlay *overlay = disk_enter(disk, request);
    if (overlay == NULL)
        return;
    int r = offset < 0 || length < 0 ? -ERANGE : overlay_zero(overlay, (uint64_t)offset, (uint64_t)length);
    fuse_reply_err(request, r == 0 ? 0 : disk_failed(disk, "trim", r));
    disk_leave(disk);
}

static const struct fuse_lowlevel_ops operations = {
    .init = overlays_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .fsync = op_fsync,
    .fallocate = op_fallocate,
};

int disk_add(struct overlays *overlays, const char *name, uint64_t bytes, uid_t uid, struct overlay *overlay,
             struct disk **ret, struct error *err)
{
    struct disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL) {
        overlay_close(overlay);
        return error_set(err, ENOMEM, "out of memory");
    }
    disk->overlays = overlays;
    disk->overlay = overlay;
    disk->bytes = bytes;
    disk->uid = uid;
    snprintf(disk->name, sizeof(disk->name), "%s", name);
    pthread_mutex_lock(&overlays->lock);
    bool taken = find(overlays, disk->name) != NULL;
    if (!taken) {
        disk->generation = ++overlays->next_generation;
        disk->next = overlays->list;
        overlays->list = disk;
    }
    pthread_mutex_unlock(&overlays->lock);
    if (taken) {
        overlay_close(overlay);
        free(disk);
        return error_set(err, EEXIST, "there is a disk %s", name);
    }
    *ret = disk;
    return 0;
}

struct overlay *disk_overlay(struct disk *disk)
{
    return disk->overlay;
}

void disk_remove(struct disk *disk)
{
    if (disk == NULL)
        return;
    struct overlays *overlays = disk->overlays;
    char name[DISK_NAME_MAX + 1];
    memcpy(name, disk->name, sizeof(name));
    pthread_mutex_lock(&overlays->lock);
    struct disk **link = &overlays->list;
    while (*link != disk)
        link = &(*link)->next;
    *link = disk->next;
    struct overlay *overlay = disk->overlay;
    disk->lookups++; /* ours, until the overlay is closed */
    disk->overlay = NULL;
    while (disk->busy > 0)
        pthread_cond_wait(&overlays->idle, &overlays->lock);
    pthread_mutex_unlock(&overlays->lock);
    overlay_close(overlay);
    forget(disk, 1);
    if (overlays->mount != NULL)
        fuse_lowlevel_notify_inval_entry(fuse_mount_session(overlays->mount), FUSE_ROOT_ID, name, strlen(name));
}

static int make_buffers(struct overlays *overlays, struct error *err)
{
    overlays->buffers = calloc(overlays->options.threads, sizeof(uint8_t *));
    bool complete = overlays->buffers != NULL;
    for (unsigned i = 0; complete && i < overlays->options.threads; i++)
        complete = (overlays->buffers[i] = aligned_alloc(OVERLAY_BLOCK_BYTES, FUSE_MOUNT_MAX_BYTES)) != NULL;
    return complete ? 0 : error_set(err, ENOMEM, "out of memory");
}

int overlays_start(const struct overlays_options *options, struct overlays **ret, struct error *err)
{
    struct overlays *overlays = calloc(1, sizeof(*overlays));
    if (overlays == NULL)
        return error_set(err, ENOMEM, "out of memory");
    overlays->options = *options;
    pthread_mutex_init(&overlays->lock, NULL);
    pthread_cond_init(&overlays->idle, NULL);
    int r = make_buffers(overlays, err);
    overlays->mount_path = r == 0 ? io_path(options->data_directory, PROTOCOL_MOUNT_OVERLAYS, err) : NULL;
    if (r == 0 && overlays->mount_path == NULL)
        r = -ENOMEM;
    if (r == 0) {
        struct fuse_mount_options mount = {.path = overlays->mount_path,
                                           .name = "dormouse-overlays",
                                           .operations = &operations,
                                           .context = overlays,
                                           .threads = options->threads,
                                           .enter = enter_thread};
        r = fuse_mount_start(&mount, &overlays->mount, err);
    }
    if (r < 0)
        overlays_stop(overlays);
    else
        *ret = overlays;
    return r;
}

const char *overlays_path(const struct overlays *overlays)
{
    return overlays->mount_path;
}

void overlays_unmount(struct overlays *overlays)
{
    if (overlays->mount != NULL)
        fuse_mount_stop(overlays->mount);
}

void overlays_stop(struct overlays *overlays)
{
    if (overlays == NULL)
        return;
    overlays_unmount(overlays);
    while (overlays->list != NULL)
        disk_remove(overlays->list);
    fuse_mount_free(overlays->mount);
    for (unsigned i = 0; overlays->buffers != NULL && i < overlays->options.threads; i++)
        free(overlays->buffers[i]);
    free(overlays->buffers);
    pthread_cond_destroy(&overlays->idle);
    pthread_mutex_destroy(&overlays->lock);
    free(overlays->mount_path);
    free(overlays);
}
