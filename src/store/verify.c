#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/store_internal.h"
#include "vmm/vmm.h"

static int verify_extent(struct layer *layer, const struct map_extent *extent, struct error *err)
{
    unsigned frame_pages = layer_frame_pages(layer);
    uint64_t end = (uint64_t)extent->slot + extent->count;
    for (uint64_t slot = extent->slot; slot < end;) {
        uint64_t frame = slot / frame_pages;
        unsigned pages = 0;
        uint32_t stored = 0;
        if (frame < layer_frame_count(layer)) {
            int r = layer_frame_info(layer, (uint32_t)frame, &pages, &stored, err);
            if (r < 0)
                return r;
        }
        uint64_t next = MIN(end, (frame + 1) * frame_pages);
        if (next > frame * frame_pages + pages)
            return error_set(
                err, EBADMSG, "page %u of an image is said to be in slot %llu of layer %s, which has none",
                (unsigned)(extent->page + (slot - extent->slot)), (unsigned long long)slot, layer_id(layer));
        slot = next;
    }
    return 0;
}

/* Sound, or why not. */
struct finding {
    char id[LAYER_ID_LENGTH + 1];
    struct error damage;
};

struct layer_findings {
    void *tree; /* of struct finding, by id */
    uint64_t count;
    uint64_t bytes;
};

int layer_findings_new(struct layer_findings **ret, struct error *err)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

static void free_finding(void *node)
{
    struct finding *finding = node;
    error_done(&finding->damage);
    free(finding);
}

void layer_findings_free(struct layer_findings *findings)
{
    if (findings == NULL)
        return;
    tdestroy(findings->tree, free_finding);
    free(findings);
}

uint64_t layer_findings_count(const struct layer_findings *findings)
{
    return findings->count;
}

uint64_t layer_findings_bytes(const struct layer_findings *findings)
{
    return findings->bytes;
}

static int compare_findings(const void *a, const void *b)
{
    return strcmp(((const struct finding *)a)->id, ((const struct finding *)b)->id);
}

/* What is missing now may only have been replaced, and memory may be there again: neither is kept. */
static bool is_lasting(int r)
{
    return r == 0 || r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EIO;
}

/* Reads the layer unless that has been done; *err is what was found then. */
static int verify_frames(struct layer *layer, struct layer_findings *findings, struct error *err)
{
    struct finding *found = calloc(1, sizeof(*found));
    if (found == NULL)
        return error_set(err, ENOMEM, "out of memory");
    memcpy(found->id, layer_id(layer), LAYER_ID_LENGTH);
    struct finding **known = tsearch(found, &findings->tree, compare_findings);
    if (known == NULL) {
        free(found);
        return error_set(err, ENOMEM, "out of memory");
    }
    bool is_new = *known == found;
    int r = 0;
    if (is_new) {
        r = layer_verify(layer, &found->damage);
        findings->count++;
        findings->bytes += layer_file_bytes(layer);
    } else {
        free(found);
        found = *known;
        r = -found->damage.code;
    }
    if (r < 0)
        error_set(err, -r, "%s", error_message(&found->damage));
    if (is_new && !is_lasting(r)) {
        tdelete(found, &findings->tree, compare_findings);
        free_finding(found);
    }
    return r;
}

static int verify_layer(struct store *store, const struct snapshot *snapshot, uint32_t index,
                        struct layer_findings *findings, struct error *err)
{
    struct layer *layer = NULL;
    int r = layer_open(store->layers_fd, snapshot->layers[index].id, snapshot->layers[index].bytes, &layer, err);
    if (r < 0)
        return r;
    r = verify_frames(layer, findings, err);
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        const struct image_map *map = &snapshot->maps[kind];
        for (size_t i = 0; r == 0 && i < map->count; i++)
            if (map->extents[i].layer == index)
                r = verify_extent(layer, &map->extents[i], err);
    }
    layer_close(layer);
    return r;
}

static int verify_files(struct store *store, const char *id, struct error *err)
{
    static const char *const names[] = {VMM_FILE_KERNEL, VMM_FILE_INITRD};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = store_path(err, "%s/%s/%s", store->snapshots, id, names[i]);
        if (path == NULL)
            return -ENOMEM;
        if (access(path, R_OK) < 0)
            return error_errno(err, "cannot read %s", path);
    }
    return 0;
}

int store_verify_with(struct store *store, const char *id, struct layer_findings *findings, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    int r = store_load(store, id, &snapshot, err);
    if (r == 0)
        r = verify_files(store, id, err);
    for (uint32_t i = 0; r == 0 && i < snapshot.layer_count; i++)
        r = verify_layer(store, &snapshot, i, findings, err);
    return r;
}

int store_verify(struct store *store, const char *id, struct error *err)
{
    struct layer_findings *findings;
    int r = layer_findings_new(&findings, err);
    if (r < 0)
        return r;
    r = store_verify_with(store, id, findings, err);
    layer_findings_free(findings);
    return r < 0 ? error_wrap(err, r, "verifying snapshot %s", id) : 0;
}
