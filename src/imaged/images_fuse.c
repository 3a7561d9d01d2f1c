/*
 * The mount of images as FUSE requests.
 *
 * The inode number that the kernel knows an image by is the object's address, valid while the kernel's lookup count
 * is not 0. Names, attributes and pages never change, so the kernel may keep them for ever.
 *
 * Stock QEMU opens a memory image for writing although it maps it privately. Refusing the write request would be
 * too late: the kernel has copied the bytes into the shared page cache before it sends one. So image files have the
 * set-user-ID bit (of no effect: they aren't executable). The kernel takes it away before the first write of anyone
 * but root, by a setattr request, and this is what is refused. Root's writes and those through shared writable
 * mappings do arrive here: the pages are thrown out of the page cache, and what comes from a mapping is a failure
 * of the image, since VMs may have read it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "imaged/images_internal.h"

static __thread struct reader *self;

void images_enter_thread(void *context, unsigned thread)
{
    struct images *images = context;
    self = &images->readers[thread];
}

static struct served *served_of(fuse_ino_t inode)
{
    return (struct served *)(uintptr_t)inode;
}

static void images_init(void *context, struct fuse_conn_info *connection)
{
    struct images *images = context;
    connection->max_readahead = images->options.max_readahead;
    connection->max_read = FUSE_MOUNT_MAX_BYTES;
    connection->max_background = 64;
    connection->congestion_threshold = 48;
    connection->want &= ~(unsigned)(FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_AUTO_INVAL_DATA);
}

void served_attributes(const struct served *served, struct stat *ret)
{
    bool memory = served->images->options.kind == IMAGE_MEMORY;
    *ret = (struct stat){
        .st_ino = served->generation + FUSE_ROOT_ID,
        .st_mode = S_IFREG | (memory ? S_ISUID | 0660 : 0440),
        .st_nlink = 1,
        .st_gid = served->gid,
        .st_size = (off_t)(served->pages * IMAGE_PAGE_BYTES),
        .st_blocks = (blkcnt_t)(served->pages * IMAGE_PAGE_BYTES / 512),
        .st_blksize = IMAGE_PAGE_BYTES,
    };
}

static void attributes_of(struct served *served, struct stat *ret)
{
    pthread_mutex_lock(&served->images->lock);
    served_attributes(served, ret);
    pthread_mutex_unlock(&served->images->lock);
}

static void images_op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    int code = ENOENT;
    struct served *served = parent != FUSE_ROOT_ID || strlen(name) > SERVED_NAME_MAX
                                ? NULL
                                : images_lookup(fuse_req_userdata(request), name, &code);
    if (served == NULL) {
        fuse_reply_err(request, code);
        return;
    }
    struct fuse_entry_param entry = {
        .ino = (fuse_ino_t)(uintptr_t)served,
        .generation = served->generation,
        .attr_timeout = FUSE_MOUNT_FOREVER,
        .entry_timeout = FUSE_MOUNT_FOREVER,
    };
    attributes_of(served, &entry.attr);
    if (fuse_reply_entry(request, &entry) != 0)
        served_forget(served, 1);
}

static void images_op_forget(fuse_req_t request, fuse_ino_t inode, uint64_t lookups)
{
    if (inode != FUSE_ROOT_ID)
        served_forget(served_of(inode), lookups);
    fuse_reply_none(request);
}

static void images_op_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        if (forgets[i].ino != FUSE_ROOT_ID)
            served_forget(served_of(forgets[i].ino), forgets[i].nlookup);
    fuse_reply_none(request);
}

static void images_op_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    struct stat attributes;
    if (inode == FUSE_ROOT_ID)
        fuse_mount_root_attributes(&attributes);
    else
        attributes_of(served_of(inode), &attributes);
    fuse_reply_attr(request, &attributes, FUSE_MOUNT_FOREVER);
}

static void images_op_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *attributes, int which,
                              struct fuse_file_info *file)
{
    (void)inode;
    (void)attributes;
    (void)which;
    (void)file;
    fuse_reply_err(request, EROFS);
}

static void images_op_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    struct served *served = served_of(inode);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = served_open(served, &err);
    if (r < 0) {
        fuse_reply_err(request, r == -ENOENT ? ENOENT : EIO);
        return;
    }
    file->keep_cache = 1;
    file->noflush = 1;
    if (fuse_reply_open(request, file) != 0)
        served_put(served);
}

static void images_op_release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    fuse_reply_err(request, 0);
    served_put(served_of(inode));
}

/* The frame that a thread's buffer holds. */
struct held_frame {
    struct layer *layer; /* NULL: none */
    uint32_t frame;
    unsigned count;
    const uint8_t *pages;
    uint64_t wanted; /* a page of the image that is in it */
    uint64_t next;   /* the first page after those that follow in it */
};

static int hold_frame(struct reader *reader, const struct image_place *place, uint64_t page,
                      struct held_frame *held, struct error *err)
{
    if (held->layer == place->layer && held->frame == place->frame)
        return 0;
    if (held->layer != NULL)
        layer_have_read(held->layer, held->frame, 1);
    held->layer = NULL;
    store_note_frame(reader->images, place->layer, place->frame);
    int count = layer_read_frame(place->layer, place->frame, reader->frame, &held->pages, err);
    if (count < 0)
        return count;
    metric_add(&reader->images->options.metrics->decompressed_bytes, (uint64_t)count * IMAGE_PAGE_BYTES);
    held->layer = place->layer;
    held->frame = place->frame;
    held->count = (unsigned)count;
    held->wanted = page;
    return 0;
}

/* Fills reader->reply with the run's pages. */
static int fetch(struct reader *reader, const struct served *served, struct page_run run, struct held_frame *held,
                 struct error *err)
{
    const struct image *image = atomic_load(&((struct served *)served)->opened);
    uint64_t end = run.page + run.count;
    uint8_t *to = reader->reply;
    if (image == NULL && !served->empty)
        return error_set(err, EIO, "image %s is not open", served->name);
    for (uint64_t page = run.page; page < end;) {
        struct image_place place = {.zero = true, .count = end - page};
        if (image != NULL)
            image_locate(image, page, &place);
        size_t count = MIN(place.count, end - page);
        if (place.zero) {
            memset(to, 0, count * IMAGE_PAGE_BYTES);
        } else {
            int r = hold_frame(reader, &place, page, held, err);
            if (r < 0)
                return error_wrap(err, r, "page %llu of %s", (unsigned long long)page, served->name);
            if (place.index + count > held->count)
                return error_set(err, EBADMSG, "page %llu of %s: layer %s frame %u has no such page",
                                 (unsigned long long)page, served->name, layer_id(place.layer), place.frame);
            memcpy(to, held->pages + (size_t)place.index * IMAGE_PAGE_BYTES, count * IMAGE_PAGE_BYTES);
            held->next = page + place.count;
        }
        to += count * IMAGE_PAGE_BYTES;
        page += count;
    }
    return 0;
}

/* After the answer: what may be wanted next. */
static void look_ahead(struct reader *reader, struct served *served, struct page_run run, struct held_frame *held)
{
    static const struct read_ahead_limits holes = {.first = 15, .next = 32, .most = 512};
    static const struct read_ahead_limits frames = {.first = 0, .next = 16, .most = 256};
    uint64_t pushed = run.page + run.count;
    bool zero = held->layer == NULL;
    if (!zero) {
        layer_have_read(held->layer, held->frame, 1);
        pushed = MAX(pushed, held->next);
        store_frame(served, held->wanted, &reader->frame, held->pages, held->count);
    }
    struct page_run push = read_ahead_miss(&served->ahead, run, pushed, zero ? &holes : &frames);
    uint64_t left = served->pages - MIN(push.page, served->pages);
    push.count = MIN(push.count, left);
    /* What is pushed ahead leaves no miss when it is touched; that it is wanted is likely enough. */
    served_record(served, push);
    store_run(served, push);
}

static void images_op_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                           struct fuse_file_info *file)
{
    (void)file;
    struct served *served = served_of(inode);
    struct images *images = served->images;
    struct metrics *metrics = images->options.metrics;
    int64_t begin_ns = clock_monotonic_ns();
    /* The kernel reads whole pages: nobody reads past its cache but with O_DIRECT, which must be aligned. */
    if (offset < 0 || offset % IMAGE_PAGE_BYTES != 0) {
        fuse_reply_err(request, EINVAL);
        return;
    }
    struct page_run run = {.page = (uint64_t)offset / IMAGE_PAGE_BYTES};
    if (run.page >= served->pages || size == 0) {
        fuse_reply_buf(request, NULL, 0);
        return;
    }
    size = MIN(size, FUSE_MOUNT_MAX_BYTES);
    run.count = MIN((size + IMAGE_PAGE_BYTES - 1) / IMAGE_PAGE_BYTES, served->pages - run.page);
    metric_add(&metrics->misses, 1);
    metric_add(&metrics->miss_pages, run.count);
    served_record(served, run);
    served_hold(served); /* once it is answered, the kernel may forget it */
    struct held_frame held = {0};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = fetch(self, served, run, &held, &err);
    if (r < 0) {
        /* First, so that whoever sees the error can learn why. */
        metric_add(&metrics->failed_reads, 1);
        images->options.failed(images->options.context, served, error_message(&err));
        fuse_reply_err(request, EIO);
        served_put(served);
        return;
    }
    fuse_reply_buf(request, (const char *)self->reply, MIN(size, run.count * IMAGE_PAGE_BYTES));
    histogram_add(&metrics->fetch, clock_monotonic_ns() - begin_ns);
    look_ahead(self, served, run, &held);
    served_put(served);
}

static void images_op_write(fuse_req_t request, fuse_ino_t inode, const char *bytes, size_t size, off_t offset,
                            struct fuse_file_info *file)
{
    (void)bytes;
    struct served *served = served_of(inode);
    struct images *images = served->images;
    metric_add(&images->options.metrics->refused_writes, 1);
    if (file->writepage)
        images->options.failed(images->options.context, served,
                               "a VMM wrote to the image through a shared mapping");
    served_hold(served);
    fuse_reply_err(request, EROFS);
    if (offset >= 0)
        store_invalidate(served, (struct page_run){.page = (uint64_t)offset / IMAGE_PAGE_BYTES,
                                                   .count = size / IMAGE_PAGE_BYTES + 2});
    served_put(served);
}

static void images_op_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
                                struct fuse_file_info *file)
{
    (void)inode;
    (void)mode;
    (void)offset;
    (void)length;
    (void)file;
    fuse_reply_err(request, EROFS);
}

/* One name a call, at most: the list may change between them. */
static void images_op_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                              struct fuse_file_info *file)
{
    (void)inode;
    (void)file;
    struct images *images = fuse_req_userdata(request);
    struct stat attributes = {.st_mode = S_IFREG};
    char name[SERVED_NAME_MAX + 1] = "";
    pthread_mutex_lock(&images->lock);
    /* Newer ones are in front, with higher generations: the offset is the generation before which to go on. */
    for (struct served *served = images->list; served != NULL; served = served->next)
        if (offset == 0 || served->generation < (uint64_t)offset) {
            served_attributes(served, &attributes);
            offset = (off_t)served->generation;
            memcpy(name, served->name, sizeof(name));
            break;
        }
    pthread_mutex_unlock(&images->lock);
    char buffer[128];
    size_t length = 0;
    if (name[0] != '\0')
        length = fuse_add_direntry(request, buffer, sizeof(buffer), name, &attributes, offset);
    fuse_reply_buf(request, buffer, length <= MIN(size, sizeof(buffer)) ? length : 0);
}

const struct fuse_lowlevel_ops images_operations = {
    .init = images_init,
    .lookup = images_op_lookup,
    .forget = images_op_forget,
    .forget_multi = images_op_forget_multi,
    .getattr = images_op_getattr,
    .setattr = images_op_setattr,
    .open = images_op_open,
    .release = images_op_release,
    .read = images_op_read,
    .write = images_op_write,
    .fallocate = images_op_fallocate,
    .readdir = images_op_readdir,
};
