/*
 * commit.c: new snapshots.
 *
 * Durable before the name that depends on it: layers' content, their names, the linked files' content, the
 * manifest's content, the names in the snapshot's directory, then that directory's own name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/io.h"
#include "store/store_internal.h"
#include "vmm/vmm.h"

struct new_layer {
    struct layer_writer *writer; /* NULL: finished, or dropped */
    bool finished;
    char id[LAYER_ID_LENGTH + 1];
};

struct snapshot_writer {
    struct new_layers layers;
    char id[LAYER_ID_LENGTH + 1];
    char *directory; /* the temporary one */
};

int new_layers_add(struct new_layers *set, enum image_kind kind, struct layer_writer **ret, struct error *err)
{
    struct new_layer *larger = realloc(set->layers, (set->count + 1) * sizeof(*larger));
    if (larger == NULL)
        return error_set(err, ENOMEM, "out of memory");
    set->layers = larger;
    struct new_layer *layer = &set->layers[set->count];
    *layer = (struct new_layer){0};
    unsigned frame_pages = kind == IMAGE_MEMORY ? LAYER_FRAME_PAGES_MEMORY : LAYER_FRAME_PAGES_DISK;
    int r = layer_writer_open(set->store->layers_fd, LAYER_CODEC_ZSTD, frame_pages, &layer->writer, err);
    if (r < 0)
        return r;
    memcpy(layer->id, layer_writer_id(layer->writer), sizeof(layer->id));
    r = store_hold_layer(set->store, set, layer->id, err);
    if (r < 0) {
        layer_writer_abort(layer->writer);
        return r;
    }
    set->count++;
    *ret = layer->writer;
    return 0;
}

static struct snapshot_layer *find_layer(struct snapshot *snapshot, const char *id)
{
    for (uint32_t i = 0; i < snapshot->layer_count; i++)
        if (strcmp(snapshot->layers[i].id, id) == 0)
            return &snapshot->layers[i];
    return NULL;
}

int new_layers_finish(struct new_layers *set, struct snapshot *snapshot, struct error *err)
{
    for (size_t i = 0; i < set->count; i++) {
        struct new_layer *layer = &set->layers[i];
        struct snapshot_layer *named = find_layer(snapshot, layer->id);
        if (named == NULL) {
            layer_writer_abort(TAKE_PTR(layer->writer));
            continue;
        }
        int r = layer_writer_finish(TAKE_PTR(layer->writer), &named->bytes, err);
        if (r < 0)
            return r;
        layer->finished = true;
    }
    return 0;
}

void new_layers_done(struct new_layers *set, bool keep)
{
    for (size_t i = 0; i < set->count; i++) {
        if (set->layers[i].writer != NULL)
            layer_writer_abort(set->layers[i].writer);
        else if (set->layers[i].finished && !keep)
            unlinkat(set->store->layers_fd, set->layers[i].id, 0);
    }
    store_release_layers(set->store, set);
    free(set->layers);
    *set = (struct new_layers){0};
}

static bool is_new(const struct new_layers *set, const char *id)
{
    for (size_t i = 0; i < set->count; i++)
        if (strcmp(set->layers[i].id, id) == 0)
            return true;
    return false;
}

int store_begin(struct store *store, struct snapshot_writer **ret, struct error *err)
{
    struct snapshot_writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL)
        return error_set(err, ENOMEM, "out of memory");
    writer->layers.store = store;
    int r = random_name(writer->id, LAYER_ID_LENGTH);
    if (r < 0)
        error_code(err, r, "no random numbers");
    else if ((writer->directory = store_path(err, "%s/" STORE_TEMPORARY "%s", store->snapshots, writer->id)) ==
             NULL)
        r = -ENOMEM;
    else if (mkdir(writer->directory, 0700) < 0)
        r = error_errno(err, "cannot make %s", writer->directory);
    if (r < 0) {
        free(writer->directory);
        free(writer);
        return r;
    }
    *ret = writer;
    return 0;
}

const char *snapshot_writer_id(const struct snapshot_writer *writer)
{
    return writer->id;
}

int snapshot_writer_link(struct snapshot_writer *writer, const char *vm_directory, const char *name,
                         struct error *err)
{
    CLEANUP_FREE char *from = store_path(err, "%s/%s", vm_directory, name);
    CLEANUP_FREE char *to = store_path(err, "%s/%s", writer->directory, name);
    if (from == NULL || to == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_errno(err, "cannot open %s", from);
    if (!S_ISREG(status.st_mode))
        return error_set(err, EINVAL, "%s is no regular file", from);
    /* Before it gets another name, while it most likely is clean, this costs next to nothing. */
    if (fsync(fd) < 0)
        return error_errno(err, "cannot make %s durable", from);
    return linkat(fd, "", AT_FDCWD, to, AT_EMPTY_PATH) < 0 ? error_errno(err, "cannot link %s to %s", from, to) : 0;
}

int snapshot_writer_layer(struct snapshot_writer *writer, enum image_kind kind, struct layer_writer **ret,
                          struct error *err)
{
    return new_layers_add(&writer->layers, kind, ret, err);
}

static int check_files(const struct snapshot_writer *writer, struct error *err)
{
    static const char *const names[] = {VMM_FILE_KERNEL, VMM_FILE_INITRD};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = store_path(err, "%s/%s", writer->directory, names[i]);
        if (path == NULL)
            return -ENOMEM;
        if (access(path, F_OK) < 0)
            return error_errno(err, "the snapshot has no %s", names[i]);
    }
    return 0;
}

/* The layers of parents: the parents' snapshots and VMs may go from now on. */
static int hold_parents(const struct snapshot_writer *writer, const struct snapshot *snapshot, struct error *err)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < snapshot->layer_count; i++)
        if (!is_new(&writer->layers, snapshot->layers[i].id))
            r = store_hold_existing_layer(writer->layers.store, &writer->layers, &snapshot->layers[i], err);
    return r;
}

static int write_manifest(const struct snapshot_writer *writer, const struct snapshot *snapshot, struct error *err)
{
    CLEANUP_FREE char *path = store_path(err, "%s/" STORE_FILE_MANIFEST, writer->directory);
    CLEANUP_FREE void *bytes = NULL;
    size_t length = 0;
    if (path == NULL)
        return -ENOMEM;
    int r = manifest_encode(snapshot, &bytes, &length, err);
    if (r == 0)
        r = store_write_durable(path, bytes, length, err);
    return r == 0 ? store_sync(writer->directory, err) : r;
}

/* *ret_visible: on failure, the snapshot may be there again after a crash of the host. */
static int publish(const struct snapshot_writer *writer, bool *ret_visible, struct error *err)
{
    const char *snapshots = writer->layers.store->snapshots;
    CLEANUP_FREE char *final = store_path(err, "%s/%s", snapshots, writer->id);
    if (final == NULL)
        return -ENOMEM;
    if (rename(writer->directory, final) < 0)
        return error_errno(err, "cannot rename %s", writer->directory);
    *ret_visible = true;
    atomic_fetch_add(&writer->layers.store->changes, 1);
    int r = store_sync(snapshots, err);
    if (r < 0 && rename(final, writer->directory) < 0)
        return error_wrap(err, r, "a snapshot that couldn't be committed remains in %s", final);
    return r;
}

static int prepare(struct snapshot_writer *writer, struct snapshot *snapshot, struct error *err)
{
    char *id = strdup(writer->id);
    if (id == NULL)
        return error_set(err, ENOMEM, "out of memory");
    free(snapshot->manifest.id);
    snapshot->manifest.id = id;
    snapshot_drop_unused_layers(snapshot);
    int r = check_files(writer, err);
    if (r == 0)
        r = hold_parents(writer, snapshot, err);
    if (r == 0)
        r = new_layers_finish(&writer->layers, snapshot, err);
    return r == 0 ? write_manifest(writer, snapshot, err) : r;
}

static void end_writer(struct snapshot_writer *writer, bool keep_layers)
{
    new_layers_done(&writer->layers, keep_layers);
    free(writer->directory);
    free(writer);
}

int store_commit(struct snapshot_writer *writer, struct snapshot *snapshot, struct error *err)
{
    bool visible = false;
    int r = prepare(writer, snapshot, err);
    if (r == 0)
        r = publish(writer, &visible, err);
    if (r < 0)
        io_remove_tree(writer->directory);
    /* gc takes the layers of one that was visible, when its removal is durable. */
    end_writer(writer, r == 0 || visible);
    return r < 0 ? error_wrap(err, r, "committing a snapshot") : 0;
}

void store_abort(struct snapshot_writer *writer)
{
    if (writer == NULL)
        return;
    io_remove_tree(writer->directory);
    end_writer(writer, false);
}
