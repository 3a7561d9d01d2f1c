/*
 * What a person looks after the store with: inspect, verify, compare, compact, collect, count.
 *
 * None of it holds a lock while it reads pages: layers are opened first and stay readable when gc has removed their
 * names. Between reading a manifest and opening its layers, compaction may have replaced both; then it is done
 * again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"
#include "imaged/protocol.h"
#include "imaged/working_set.h"
#include "sandbox/internal.h"
#include "store/manifest_format.h"

#define REPLACED_RETRIES 3
#define BATCH_PAGES      512u

/* ---- inspect ---- */

/* From a manifest that has been decoded, and so checked. */
static int inspect_sections(const char *bytes, struct snapshot_inspection *inspection, struct error *err)
{
    struct manifest_header header;
    memcpy(&header, bytes, sizeof(header));
    inspection->manifest_bytes = header.file_bytes;
    inspection->compatible_features = header.compatible;
    inspection->incompatible_features = header.incompatible;
    inspection->sections = calloc(header.sections + 1, sizeof(*inspection->sections));
    if (inspection->sections == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < header.sections; i++) {
        struct manifest_section section;
        memcpy(&section, bytes + sizeof(header) + i * sizeof(section), sizeof(section));
        inspection->sections[inspection->section_count++] = (struct inspected_section){
            .kind = section.kind,
            .ignorable = (section.flags & SECTION_FLAG_IGNORABLE) != 0,
            .offset = section.offset,
            .bytes = section.bytes,
        };
    }
    return 0;
}

static struct inspected_image inspect_image(const struct image_map *map)
{
    struct inspected_image image = {.pages = map->pages, .extents = map->count};
    for (size_t i = 0; i < map->count; i++)
        image.mapped_pages += map->extents[i].count;
    return image;
}

static int inspect_layer(struct manager *manager, const struct snapshot_layer *named, struct inspected_layer *ret,
                         struct error *err)
{
    CLEANUP_ERROR struct error problem = ERROR_INIT;
    struct layer *layer;
    ret->bytes = named->bytes;
    int r = replace_text(&ret->id, named->id, err);
    if (r < 0)
        return r;
    if (layer_open(store_layers_fd(manager->store), named->id, named->bytes, &layer, &problem) < 0)
        return replace_text(&ret->problem, error_message(&problem), err);
    ret->frames = layer_frame_count(layer);
    ret->frame_pages = layer_frame_pages(layer);
    ret->pages = layer_page_count(layer);
    layer_close(layer);
    return 0;
}

static int inspect_layers(struct manager *manager, const struct snapshot *snapshot,
                          struct snapshot_inspection *inspection, struct error *err)
{
    inspection->layers = calloc(snapshot->layer_count + (size_t)1, sizeof(*inspection->layers));
    if (inspection->layers == NULL)
        return error_set(err, ENOMEM, "out of memory");
    inspection->layer_count = snapshot->layer_count;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < snapshot->layer_count; i++)
        r = inspect_layer(manager, &snapshot->layers[i], &inspection->layers[i], err);
    const struct image_map *memory = &snapshot->maps[IMAGE_MEMORY];
    for (size_t i = 0; i < memory->count; i++)
        inspection->layers[memory->extents[i].layer].memory_pages += memory->extents[i].count;
    const struct image_map *disk = &snapshot->maps[IMAGE_DISK];
    for (size_t i = 0; i < disk->count; i++)
        inspection->layers[disk->extents[i].layer].disk_pages += disk->extents[i].count;
    return r;
}

static int read_whole_manifest(struct manager *manager, const char *id, char **ret_bytes, struct snapshot *ret,
                               struct error *err)
{
    CLEANUP_FREE char *directory = manager_path(manager, "snapshots", id, err);
    CLEANUP_FREE char *bytes = NULL;
    size_t length;
    if (directory == NULL)
        return -ENOMEM;
    CLEANUP_FREE char *path = io_path(directory, STORE_FILE_MANIFEST, err);
    if (path == NULL)
        return -ENOMEM;
    int r = io_read_file(path, MANIFEST_BYTES_MAX, &bytes, &length);
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    r = manifest_decode(bytes, length, MANIFEST_ALL, ret, err);
    if (r < 0)
        return error_wrap(err, r, "%s", path);
    *ret_bytes = TAKE_PTR(bytes);
    return 0;
}

/* It is a hint: one that can't be read is as good as none. */
static int inspect_working_set(struct manager *manager, const char *id, struct snapshot_inspection *inspection,
                               struct error *err)
{
    CLEANUP_FREE char *directory = manager_path(manager, "snapshots", id, err);
    CLEANUP(working_set_done) struct working_set set = {0};
    if (directory == NULL)
        return -ENOMEM;
    CLEANUP_FREE char *path = io_path(directory, STORE_FILE_WORKING_SET, err);
    if (path == NULL)
        return -ENOMEM;
    if (working_set_read(path, inspection->memory.pages, &set, NULL) == 0)
        inspection->working_set = (struct inspected_working_set){true, set.count, set.pages};
    return 0;
}

static int inspect(struct manager *manager, const char *id, struct snapshot_inspection *inspection,
                   struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP_FREE char *bytes = NULL;
    int r;
    if ((r = manager_snapshot_get(manager, id, &inspection->info, err)) < 0 ||
        (r = read_whole_manifest(manager, id, &bytes, &snapshot, err)) < 0 ||
        (r = inspect_sections(bytes, inspection, err)) < 0)
        return r;
    inspection->vmm = TAKE_PTR(snapshot.manifest.vmm);
    inspection->accelerator = TAKE_PTR(snapshot.manifest.accelerator);
    inspection->cpu_model = TAKE_PTR(snapshot.manifest.cpu_model);
    inspection->kernel = TAKE_PTR(snapshot.manifest.kernel);
    inspection->machine_revision = snapshot.manifest.machine_revision;
    inspection->memory = inspect_image(&snapshot.maps[IMAGE_MEMORY]);
    inspection->disk = inspect_image(&snapshot.maps[IMAGE_DISK]);
    r = inspect_working_set(manager, id, inspection, err);
    return r < 0 ? r : inspect_layers(manager, &snapshot, inspection, err);
}

int manager_snapshot_inspect(struct manager *manager, const char *id_or_prefix, struct snapshot_inspection *ret,
                             struct error *err)
{
    struct snapshot_inspection inspection = {0};
    CLEANUP_FREE char *id = NULL;
    int r = snapshot_resolve(manager, id_or_prefix, &id, err);
    if (r == 0)
        r = inspect(manager, id, &inspection, err);
    if (r < 0)
        snapshot_inspection_done(&inspection);
    else
        *ret = inspection;
    return r;
}

/* ---- verify ---- */

static bool is_there(struct manager *manager, const char *id)
{
    CLEANUP(snapshot_done) struct snapshot head = {0};
    return store_read(manager->store, id, &head, NULL) != -ENOENT;
}

/* Who loses what by the damage decides what to do about it. */
static char *make_remedy(struct manager *manager, const char *id)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    pthread_mutex_lock(&manager->lock);
    for (const struct template *template = manager->templates; template != NULL; template = template->next)
        if (strcmp(template->info.snapshot_id, id) == 0)
            strbuf_printf(&text, "make the template again: dormouse template build %s; ", template->info.name);
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next) {
        if (strcmp(sandbox->info.snapshot_id, id) != 0)
            continue;
        if (sandbox->info.state == SANDBOX_PAUSED)
            strbuf_printf(&text, "give up the paused sandbox: dormouse kill %.12s; ", sandbox->info.id);
        else if (sandbox->info.state == SANDBOX_RUNNING)
            strbuf_printf(&text, "save what sandbox %.12s has, which is lost when it needs the damaged part; ",
                          sandbox->info.id);
    }
    pthread_mutex_unlock(&manager->lock);
    if (text.length == 0)
        strbuf_printf(&text, "nothing needs it: dormouse snapshot rm %.12s; ", id);
    strbuf_puts(&text, "or put the file back from a copy");
    return strbuf_take(&text);
}

static int add_damage(struct manager *manager, struct store_verification *verification, const char *id,
                      const struct error *damage, struct error *err)
{
    struct snapshot_damage *larger =
        realloc(verification->damaged, (verification->damaged_count + 1) * sizeof(*larger));
    if (larger == NULL)
        return error_set(err, ENOMEM, "out of memory");
    verification->damaged = larger;
    struct snapshot_damage *added = &larger[verification->damaged_count++];
    *added = (struct snapshot_damage){strdup(id), strdup(error_message(damage)), make_remedy(manager, id)};
    if (added->id == NULL || added->reason == NULL || added->remedy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

/* What the store can say of a snapshot, as opposed to what kept it from looking. */
static bool is_damage(int r)
{
    return r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EIO || r == -ENOENT;
}

static int verify_one(struct manager *manager, const char *id, struct layer_findings *findings,
                      struct store_verification *verification, struct error *err)
{
    CLEANUP_ERROR struct error damage = ERROR_INIT;
    int r = -ENOENT;
    for (unsigned i = 0; r == -ENOENT && i < REPLACED_RETRIES; i++) {
        r = store_verify_with(manager->store, id, findings, &damage);
        if (r == -ENOENT && !is_there(manager, id))
            return 0;
    }
    if (r < 0 && !is_damage(r)) {
        error_move(err, &damage);
        return error_wrap(err, r, "verifying snapshot %s", id);
    }
    verification->snapshots++;
    return r < 0 ? add_damage(manager, verification, id, &damage, err) : 0;
}

static int verify_each(struct manager *manager, char *const *ids, cancel_function cancel, void *context,
                       struct store_verification *verification, struct error *err)
{
    struct layer_findings *findings;
    int r = layer_findings_new(&findings, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && ids[i] != NULL; i++) {
        r = verify_one(manager, ids[i], findings, verification, err);
        if (r == 0 && cancel(context))
            r = error_set(err, ECANCELED, "the verification was cancelled");
    }
    verification->layers = layer_findings_count(findings);
    verification->layer_bytes = layer_findings_bytes(findings);
    layer_findings_free(findings);
    return r;
}

int manager_verify(struct manager *manager, const char *id_or_prefix, cancel_function cancel, void *context,
                   struct store_verification *ret, struct error *err)
{
    struct store_verification verification = {0};
    CLEANUP_FREE char *id = NULL;
    char **all = NULL;
    int r = id_or_prefix != NULL ? snapshot_resolve(manager, id_or_prefix, &id, err)
                                 : store_list(manager->store, &all, err);
    if (r < 0)
        return r;
    char *one[] = {id, NULL};
    r = verify_each(manager, id != NULL ? one : all, cancel, context, &verification, err);
    store_list_done(all);
    if (r == 0 && id != NULL && verification.snapshots == 0)
        r = error_set(err, ENOENT, "snapshot %s was removed meanwhile", id);
    if (r < 0)
        store_verification_done(&verification);
    else
        *ret = verification;
    return r;
}

/* ---- diff ---- */

/* A snapshot and its open images. */
struct opened_snapshot {
    struct snapshot snapshot; /* its maps have gone to the images */
    struct image *images[IMAGE_KINDS];
};

static void close_snapshot(struct opened_snapshot *opened)
{
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        image_close(opened->images[kind]);
    snapshot_done(&opened->snapshot);
    *opened = (struct opened_snapshot){0};
}

static int try_open_snapshot(struct manager *manager, const char *id, struct opened_snapshot *ret,
                             struct error *err)
{
    struct opened_snapshot opened = {0};
    int r = store_load(manager->store, id, &opened.snapshot, err);
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++)
        if (opened.snapshot.maps[kind].pages > 0)
            r = image_open(store_layers_fd(manager->store), &opened.snapshot, kind, &opened.images[kind], err);
    if (r < 0)
        close_snapshot(&opened);
    else
        *ret = opened;
    return r;
}

static int open_snapshot(struct manager *manager, const char *id, struct opened_snapshot *ret, struct error *err)
{
    int r = -ENOENT;
    for (unsigned i = 0; r == -ENOENT && i < REPLACED_RETRIES; i++)
        r = try_open_snapshot(manager, id, ret, err);
    return r < 0 ? error_wrap(err, r, "snapshot %s", id) : 0;
}

struct comparison {
    const struct opened_snapshot *sides[2];
    struct image *images[2]; /* NULL: it has none */
    struct frame_buffer *frames[2];
    uint8_t *pages[2]; /* BATCH_PAGES each */
    size_t ranges_max;
    cancel_function cancel;
    void *context;
    struct image_difference *result;
};

static int note_difference(struct image_difference *result, uint64_t page, size_t ranges_max, struct error *err)
{
    result->different_pages++;
    struct page_range *last = result->range_count > 0 ? &result->ranges[result->range_count - 1] : NULL;
    if (last != NULL && !result->ranges_cut && last->page + last->count == page) {
        last->count++;
        return 0;
    }
    result->ranges_cut = result->range_count == ranges_max;
    if (result->ranges_cut)
        return 0;
    if ((result->range_count & (result->range_count + 1)) == 0) { /* as full as it was made */
        struct page_range *larger = realloc(result->ranges, 2 * (result->range_count + 1) * sizeof(*larger));
        if (larger == NULL)
            return error_set(err, ENOMEM, "out of memory");
        result->ranges = larger;
    }
    result->ranges[result->range_count++] = (struct page_range){page, 1};
    return 0;
}

/* What is beyond the end of one image, or zero, need not be read. */
static int read_side(struct comparison *comparison, int side, uint64_t page, size_t count, bool zero,
                     struct error *err)
{
    if (zero) {
        memset(comparison->pages[side], 0, count * IMAGE_PAGE_BYTES);
        return 0;
    }
    return image_read(comparison->images[side], page, count, comparison->frames[side], comparison->pages[side],
                      err);
}

static int compare_contents(struct comparison *comparison, uint64_t page, uint64_t end, const bool zero[2],
                            struct error *err)
{
    while (page < end) {
        size_t count = MIN(end - page, BATCH_PAGES);
        for (int side = 0; side < 2; side++) {
            int r = read_side(comparison, side, page, count, zero[side], err);
            if (r < 0)
                return r;
        }
        comparison->result->read_pages += count;
        for (size_t i = 0; i < count; i++) {
            size_t offset = i * IMAGE_PAGE_BYTES;
            if (memcmp(comparison->pages[0] + offset, comparison->pages[1] + offset, IMAGE_PAGE_BYTES) == 0)
                continue;
            int r = note_difference(comparison->result, page + i, comparison->ranges_max, err);
            if (r < 0)
                return r;
        }
        page += count;
        if (comparison->cancel(comparison->context))
            return error_set(err, ECANCELED, "the comparison was cancelled");
    }
    return 0;
}

/* As image_map_find, also beyond the end, where everything is zero. */
static const struct map_extent *find_extent(const struct image *image, uint64_t page, uint64_t *end)
{
    if (image == NULL || page >= image_pages(image))
        return NULL;
    uint64_t next;
    const struct map_extent *extent = image_map_find(image_map(image), page, &next);
    *end = MIN(*end, next);
    return extent;
}

static bool is_same_place(const struct comparison *comparison, const struct map_extent *left,
                          const struct map_extent *right, uint64_t page)
{
    const struct snapshot_layer *left_layers = comparison->sides[0]->snapshot.layers;
    const struct snapshot_layer *right_layers = comparison->sides[1]->snapshot.layers;
    return left->slot + (page - left->page) == right->slot + (page - right->page) &&
           strcmp(left_layers[left->layer].id, right_layers[right->layer].id) == 0;
}

static int compare_images(struct comparison *comparison, enum image_kind kind, struct image_difference *result,
                          struct error *err)
{
    comparison->result = result;
    for (int side = 0; side < 2; side++) {
        comparison->images[side] = comparison->sides[side]->images[kind];
        result->pages[side] = comparison->images[side] != NULL ? image_pages(comparison->images[side]) : 0;
    }
    uint64_t pages = MAX(result->pages[0], result->pages[1]);
    for (uint64_t page = 0, end; page < pages; page = end) {
        end = pages;
        const struct map_extent *left = find_extent(comparison->images[0], page, &end);
        const struct map_extent *right = find_extent(comparison->images[1], page, &end);
        if ((left == NULL && right == NULL) ||
            (left != NULL && right != NULL && is_same_place(comparison, left, right, page)))
            continue;
        const bool zero[2] = {left == NULL, right == NULL};
        int r = compare_contents(comparison, page, end, zero, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int compare_snapshots(struct comparison *comparison, struct snapshot_difference *difference,
                             struct error *err)
{
    int r = 0;
    for (int side = 0; r == 0 && side < 2; side++) {
        comparison->pages[side] = malloc((size_t)BATCH_PAGES * IMAGE_PAGE_BYTES);
        r = comparison->pages[side] != NULL ? frame_buffer_new(&comparison->frames[side], err)
                                            : error_set(err, ENOMEM, "out of memory");
    }
    if (r == 0)
        r = compare_images(comparison, IMAGE_MEMORY, &difference->memory, err);
    if (r == 0)
        r = compare_images(comparison, IMAGE_DISK, &difference->disk, err);
    for (int side = 0; side < 2; side++) {
        if (comparison->frames[side] != NULL)
            frame_buffer_free(comparison->frames[side]);
        free(comparison->pages[side]);
    }
    return r;
}

int manager_snapshot_diff(struct manager *manager, const char *const ids_or_prefixes[2], size_t ranges_max,
                          cancel_function cancel, void *context, struct snapshot_difference *ret, struct error *err)
{
    struct snapshot_difference difference = {0};
    struct opened_snapshot sides[2] = {0};
    int r = 0;
    for (int side = 0; r == 0 && side < 2; side++)
        r = snapshot_resolve(manager, ids_or_prefixes[side], &difference.ids[side], err);
    for (int side = 0; r == 0 && side < 2; side++)
        r = open_snapshot(manager, difference.ids[side], &sides[side], err);
    if (r == 0) {
        struct comparison comparison = {
            .sides = {&sides[0], &sides[1]},
            .ranges_max = ranges_max,
            .cancel = cancel,
            .context = context,
        };
        r = compare_snapshots(&comparison, &difference, err);
    }
    close_snapshot(&sides[0]);
    close_snapshot(&sides[1]);
    if (r < 0)
        snapshot_difference_done(&difference);
    else
        *ret = difference;
    return r;
}

/* ---- compact, collect, count, show ---- */

static void measure(const struct snapshot *snapshot, struct snapshot_compaction *compaction, int when)
{
    compaction->layers[when] = snapshot->layer_count;
    for (uint32_t i = 0; i < snapshot->layer_count; i++)
        compaction->stored_bytes[when] += snapshot->layers[i].bytes;
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        compaction->extents[when] += snapshot->maps[kind].count;
}

static int compact(struct manager *manager, struct snapshot_compaction *compaction, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot before = {0};
    CLEANUP(snapshot_done) struct snapshot after = {0};
    int r = store_load(manager->store, compaction->id, &before, err);
    if (r < 0)
        return r;
    measure(&before, compaction, 0);
    compaction->wanted = store_wants_compaction(&before);
    if (!compaction->wanted) {
        measure(&before, compaction, 1);
        return 0;
    }
    r = store_compact(manager->store, compaction->id, err);
    if (r == 0)
        r = store_load(manager->store, compaction->id, &after, err);
    if (r < 0)
        return r;
    measure(&after, compaction, 1);
    snapshot_gc_soon(manager);
    return 0;
}

int manager_snapshot_compact(struct manager *manager, const char *id_or_prefix, struct snapshot_compaction *ret,
                             struct error *err)
{
    struct snapshot_compaction compaction = {0};
    int r = snapshot_resolve(manager, id_or_prefix, &compaction.id, err);
    if (r == 0)
        r = compact(manager, &compaction, err);
    if (r < 0)
        snapshot_compaction_done(&compaction);
    else
        *ret = compaction;
    return r;
}

int manager_snapshot_disk(struct manager *manager, const char *id_or_prefix, char **ret_id, char **ret_path,
                          struct error *err)
{
    CLEANUP_FREE char *id = NULL;
    CLEANUP_FREE char *path = NULL;
    int r = snapshot_resolve(manager, id_or_prefix, &id, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *directory = realpath(manager->directory, NULL);
    if (directory == NULL)
        return error_errno(err, "cannot find %s", manager->directory);
    if (asprintf(&path, "%s/" PROTOCOL_MOUNT_DISK "/%s", directory, id) < 0)
        return error_set(err, ENOMEM, "out of memory");
    if (access(path, R_OK) < 0)
        return error_errno(err, "the image server doesn't serve the disk of snapshot %s", id);
    *ret_id = TAKE_PTR(id);
    *ret_path = TAKE_PTR(path);
    return 0;
}

int manager_store_report(struct manager *manager, struct store_report *ret, struct error *err)
{
    struct store_statistics statistics;
    int r = store_statistics(manager->store, &statistics, err);
    if (r < 0)
        return r;
    json_t *image_server = NULL;
    if (imaged_statistics(manager->images, &image_server, NULL) < 0)
        image_server = NULL;
    *ret = (struct store_report){
        .snapshots = statistics.snapshots,
        .layers = statistics.layers,
        .layer_bytes = statistics.layer_bytes,
        .unreachable_bytes = statistics.unreachable_bytes,
        .image_bytes = statistics.image_bytes,
        .image_server = image_server,
    };
    return 0;
}

int manager_store_gc(struct manager *manager, struct store_collection *ret, struct error *err)
{
    struct store_gc_result result;
    int r = store_gc(manager->store, &result, err);
    if (r == 0)
        *ret = (struct store_collection){result.layers_removed, result.bytes_removed};
    return r;
}
