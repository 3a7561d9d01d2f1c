#include "imaged/images.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/images_internal.h"

const char *served_name(const struct served *served)
{
    return served->name;
}

uint64_t served_pages(const struct served *served)
{
    return served->pages;
}

const char *images_path(const struct images *images)
{
    return images->mount_path;
}

static struct served *find(struct images *images, const char *name)
{
    struct served *served = images->list;
    while (served != NULL && strcmp(served->name, name) != 0)
        served = served->next;
    return served;
}

static void unlist(struct served *served)
{
    if (!served->listed)
        return;
    struct served **link = &served->images->list;
    while (*link != served)
        link = &(*link)->next;
    *link = served->next;
    served->listed = false;
}

/* Under the lock, a new one in the list. */
static struct served *add(struct images *images, const char *name, uint64_t pages)
{
    struct served *served = calloc(1, sizeof(*served));
    if (served == NULL)
        return NULL;
    served->images = images;
    snprintf(served->name, sizeof(served->name), "%s", name);
    served->generation = ++images->next_generation;
    served->pages = pages;
    read_ahead_init(&served->ahead);
    pthread_mutex_init(&served->recording_lock, NULL);
    served->listed = true;
    served->next = images->list;
    images->list = served;
    return served;
}

static void free_served(struct served *served)
{
    working_set_done(&served->recorded);
    pthread_mutex_destroy(&served->recording_lock);
    read_ahead_done(&served->ahead);
    free(served);
}

/* Under the lock: frees it when nobody has it any more. */
static void free_unused(struct served *served)
{
    if (served->holders > 0 || served->lookups > 0)
        return;
    unlist(served);
    free_served(served);
}

void served_hold(struct served *served)
{
    pthread_mutex_lock(&served->images->lock);
    served->holders++;
    pthread_mutex_unlock(&served->images->lock);
}

void served_put(struct served *served)
{
    struct images *images = served->images;
    struct image *unused = NULL;
    pthread_mutex_lock(&images->lock);
    if (--served->holders == 0)
        unused = atomic_exchange(&served->opened, NULL);
    free_unused(served);
    pthread_mutex_unlock(&images->lock);
    image_close(unused);
}

void served_forget(struct served *served, uint64_t lookups)
{
    struct images *images = served->images;
    pthread_mutex_lock(&images->lock);
    served->lookups -= MIN(lookups, served->lookups);
    free_unused(served);
    pthread_mutex_unlock(&images->lock);
}

/* A snapshot of the store, of which nothing but its name is known here. */
static int read_snapshot(const struct images *images, const char *id, enum manifest_parts parts,
                         struct snapshot *ret, struct error *err)
{
    if (!layer_id_valid(id))
        return error_set(err, ENOENT, "there is no snapshot %s", id);
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/snapshots/%s/manifest", images->options.data_directory, id) < 0)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = manifest_read(path, parts, &snapshot, err);
    if (r < 0)
        return r;
    if (strcmp(snapshot.manifest.id, id) != 0)
        return error_set(err, EBADMSG, "%s is the manifest of another snapshot", path);
    *ret = snapshot;
    snapshot = (struct snapshot){0};
    return 0;
}

static uint64_t image_bytes(const struct images *images, const struct snapshot *snapshot)
{
    return images->options.kind == IMAGE_MEMORY ? snapshot->manifest.memory_bytes : snapshot->manifest.disk_bytes;
}

struct served *images_lookup(struct images *images, const char *name, int *ret_error)
{
    pthread_mutex_lock(&images->lock);
    struct served *served = find(images, name);
    if (served != NULL)
        served->lookups++;
    pthread_mutex_unlock(&images->lock);
    if (served != NULL)
        return served;

    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = read_snapshot(images, name, MANIFEST_HEAD, &snapshot, NULL);
    if (r < 0) {
        *ret_error = r == -ENOENT ? ENOENT : EIO;
        return NULL;
    }
    uint64_t pages = image_bytes(images, &snapshot) / IMAGE_PAGE_BYTES;
    if (pages == 0) {
        *ret_error = ENOENT; /* a snapshot without memory */
        return NULL;
    }
    pthread_mutex_lock(&images->lock);
    served = find(images, name);
    if (served == NULL)
        served = add(images, name, pages);
    if (served != NULL)
        served->lookups++;
    pthread_mutex_unlock(&images->lock);
    *ret_error = ENOMEM;
    return served;
}

/* The caller is a holder; the image takes the place of none. */
static void install(struct served *served, struct image *image)
{
    pthread_mutex_lock(&served->images->lock);
    struct image *none = NULL;
    if (atomic_compare_exchange_strong(&served->opened, &none, image))
        image = NULL;
    pthread_mutex_unlock(&served->images->lock);
    image_close(image);
}

int served_open(struct served *served, struct error *err)
{
    struct images *images = served->images;
    served_hold(served);
    if (served->empty || atomic_load(&served->opened) != NULL)
        return 0;
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    struct image *image;
    int r = read_snapshot(images, served->name, 1 << images->options.kind, &snapshot, err);
    if (r == 0)
        r = image_open(images->layers_fd, &snapshot, images->options.kind, &image, err);
    if (r == 0 && image_pages(image) != served->pages) {
        image_close(image);
        r = error_set(err, EBADMSG, "snapshot %s has another size than before", served->name);
    }
    if (r < 0)
        served_put(served);
    else
        install(served, image);
    return r;
}

/* The kernel has the old group in its cache. */
static void set_group(struct served *served, gid_t gid)
{
    pthread_mutex_lock(&served->images->lock);
    bool changed = served->gid != gid;
    served->gid = gid;
    bool known = served->lookups > 0;
    pthread_mutex_unlock(&served->images->lock);
    if (changed && known)
        fuse_lowlevel_notify_inval_inode(fuse_mount_session(served->images->mount), (fuse_ino_t)(uintptr_t)served,
                                         -1, 0);
}

struct served *images_use(struct images *images, const char *id, gid_t gid)
{
    pthread_mutex_lock(&images->lock);
    struct served *served = find(images, id);
    if (served != NULL && atomic_load(&served->opened) != NULL)
        served->holders++;
    else
        served = NULL;
    pthread_mutex_unlock(&images->lock);
    if (served != NULL)
        set_group(served, gid);
    return served;
}

int images_add(struct images *images, struct snapshot *snapshot, gid_t gid, struct served **ret, struct error *err)
{
    const char *id = snapshot->manifest.id;
    if (!layer_id_valid(id))
        return error_set(err, EBADMSG, "a manifest has the id \"%s\"", id);
    struct image *image;
    int r = image_open(images->layers_fd, snapshot, images->options.kind, &image, err);
    if (r < 0)
        return r;
    uint64_t pages = image_pages(image);
    pthread_mutex_lock(&images->lock);
    struct served *served = find(images, id);
    if (served == NULL)
        served = add(images, id, pages);
    bool same = served != NULL && served->pages == pages;
    if (same)
        served->holders++;
    pthread_mutex_unlock(&images->lock);
    if (!same) {
        image_close(image);
        return served == NULL ? error_set(err, ENOMEM, "out of memory")
                              : error_set(err, EBADMSG, "snapshot %s has another size than before", id);
    }
    install(served, image);
    set_group(served, gid);
    *ret = served;
    return 0;
}

int images_add_empty(struct images *images, const char *name, uint64_t bytes, gid_t gid, struct served **ret,
                     struct error *err)
{
    pthread_mutex_lock(&images->lock);
    bool taken = find(images, name) != NULL;
    struct served *served = taken ? NULL : add(images, name, bytes / IMAGE_PAGE_BYTES);
    if (served != NULL) {
        served->empty = true;
        served->gid = gid;
        served->holders = 1;
    }
    pthread_mutex_unlock(&images->lock);
    if (served == NULL)
        return taken ? error_set(err, EEXIST, "there is an image %s", name)
                     : error_set(err, ENOMEM, "out of memory");
    *ret = served;
    return 0;
}

void images_release(struct served *served)
{
    if (served == NULL)
        return;
    struct images *images = served->images;
    bool empty = served->empty;
    char name[SERVED_NAME_MAX + 1];
    memcpy(name, served->name, sizeof(name));
    if (empty) {
        pthread_mutex_lock(&images->lock);
        unlist(served);
        pthread_mutex_unlock(&images->lock);
    }
    served_put(served);
    /* Otherwise the kernel would keep its pages, and give the old file to another VM of that name. */
    if (empty)
        fuse_lowlevel_notify_inval_entry(fuse_mount_session(images->mount), FUSE_ROOT_ID, name, strlen(name));
}

static int make_readers(struct images *images, struct error *err)
{
    images->readers = calloc(images->options.threads, sizeof(*images->readers));
    if (images->readers == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < images->options.threads; i++) {
        struct reader *reader = &images->readers[i];
        reader->images = images;
        reader->reply = malloc(FUSE_MOUNT_MAX_BYTES);
        if (reader->reply == NULL)
            return error_set(err, ENOMEM, "out of memory");
        int r = frame_buffer_new(&reader->frame, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int open_layers(struct images *images, struct error *err)
{
    CLEANUP_FREE char *path = io_path(images->options.data_directory, "layers", err);
    if (path == NULL)
        return -ENOMEM;
    int r = io_make_directories(path, 0700);
    if (r < 0)
        return error_code(err, r, "cannot make %s", path);
    images->layers_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return images->layers_fd < 0 ? error_errno(err, "cannot open %s", path) : 0;
}

int images_start(const struct images_options *options, struct images **ret, struct error *err)
{
    struct images *images = calloc(1, sizeof(*images));
    if (images == NULL)
        return error_set(err, ENOMEM, "out of memory");
    images->options = *options;
    images->layers_fd = -1;
    pthread_mutex_init(&images->lock, NULL);
    images->mount_path = io_path(options->data_directory, options->mount, err);
    int r = images->mount_path == NULL ? -ENOMEM : 0;
    int queue = store_queue_start(images, err);
    int prefetcher = prefetcher_start(images, err);
    r = r < 0 ? r : MIN(queue, prefetcher);
    if (r == 0 && (r = open_layers(images, err)) == 0 && (r = make_readers(images, err)) == 0) {
        struct fuse_mount_options mount = {.path = images->mount_path,
                                           .name = "dormouse-images",
                                           .operations = &images_operations,
                                           .context = images,
                                           .threads = options->threads,
                                           .enter = images_enter_thread};
        r = fuse_mount_start(&mount, &images->mount, err);
    }
    if (r < 0)
        images_stop(images);
    else
        *ret = images;
    return r;
}

void images_unmount(struct images *images)
{
    prefetcher_stop(images);
    store_queue_stop(images);
    if (images->mount != NULL)
        fuse_mount_stop(images->mount);
}

void images_stop(struct images *images)
{
    if (images == NULL)
        return;
    images_unmount(images);
    fuse_mount_free(images->mount);
    prefetcher_done(images);
    store_queue_done(images);
    for (unsigned i = 0; images->readers != NULL && i < images->options.threads; i++) {
        free(images->readers[i].reply);
        frame_buffer_free(images->readers[i].frame);
    }
    free(images->readers);
    while (images->list != NULL) {
        struct served *served = images->list;
        images->list = served->next;
        image_close(atomic_load(&served->opened));
        free_served(served);
    }
    if (images->layers_fd >= 0)
        close(images->layers_fd);
    pthread_mutex_destroy(&images->lock);
    free(images->mount_path);
    free(images);
}
