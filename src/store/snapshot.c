#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/manifest.h"

void snapshot_done(struct snapshot *snapshot)
{
    snapshot_manifest_done(&snapshot->manifest);
    free(snapshot->layers);
    for (size_t i = 0; i < IMAGE_KINDS; i++)
        image_map_done(&snapshot->maps[i]);
    free(snapshot->device_state);
    *snapshot = (struct snapshot){0};
}

bool snapshot_is_disk_only(const struct snapshot *snapshot)
{
    return snapshot->device_state_bytes == 0;
}

int snapshot_add_layer(struct snapshot *snapshot, const char *id, uint64_t bytes, uint32_t *ret_index,
                       struct error *err)
{
    for (uint32_t i = 0; i < snapshot->layer_count; i++)
        if (strcmp(snapshot->layers[i].id, id) == 0) {
            *ret_index = i;
            return 0;
        }
    if (!layer_id_valid(id))
        return error_set(err, EINVAL, "\"%s\" is not the id of a layer", id);
    if (snapshot->layer_count >= MANIFEST_LAYERS_MAX)
        return error_set(err, E2BIG, "a snapshot has at most %u layers", MANIFEST_LAYERS_MAX);
    struct snapshot_layer *larger =
        realloc(snapshot->layers, (snapshot->layer_count + (size_t)1) * sizeof(*larger));
    if (larger == NULL)
        return error_set(err, ENOMEM, "no memory for a snapshot's layers");
    snapshot->layers = larger;
    struct snapshot_layer *added = &larger[snapshot->layer_count];
    memcpy(added->id, id, sizeof(added->id));
    added->bytes = bytes;
    *ret_index = snapshot->layer_count++;
    return 0;
}

void snapshot_drop_unused_layers(struct snapshot *snapshot)
{
    bool used[MANIFEST_LAYERS_MAX] = {false};
    uint32_t renumbered[MANIFEST_LAYERS_MAX];
    for (size_t kind = 0; kind < IMAGE_KINDS; kind++)
        for (size_t i = 0; i < snapshot->maps[kind].count; i++)
            used[snapshot->maps[kind].extents[i].layer] = true;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < snapshot->layer_count; i++)
        if (used[i]) {
            renumbered[i] = kept;
            snapshot->layers[kept++] = snapshot->layers[i];
        }
    snapshot->layer_count = kept;
    for (size_t kind = 0; kind < IMAGE_KINDS; kind++)
        for (size_t i = 0; i < snapshot->maps[kind].count; i++) {
            struct map_extent *extent = &snapshot->maps[kind].extents[i];
            extent->layer = renumbered[extent->layer];
        }
}
