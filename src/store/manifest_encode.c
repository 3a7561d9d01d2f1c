/* Writes manifests. What could not be read again is refused here. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "store/description.h"
#include "store/manifest_format.h"
#include "store/map_check.h"

#define ALIGNMENT 8u

struct part {
    enum manifest_section_kind kind;
    const void *bytes;
    size_t length;
};

static int encode_layers(const struct snapshot *snapshot, struct manifest_layer **ret, struct error *err)
{
    if (snapshot->layer_count > MANIFEST_LAYERS_MAX)
        return error_set(err, E2BIG, "a snapshot has at most %u layers", MANIFEST_LAYERS_MAX);
    struct manifest_layer *layers = calloc(snapshot->layer_count + (size_t)1, sizeof(*layers));
    if (layers == NULL)
        return error_set(err, ENOMEM, "no memory for a manifest");
    for (uint32_t i = 0; i < snapshot->layer_count; i++) {
        if (!layer_id_valid(snapshot->layers[i].id)) {
            free(layers);
            return error_set(err, EINVAL, "\"%s\" is not the id of a layer", snapshot->layers[i].id);
        }
        memcpy(layers[i].id, snapshot->layers[i].id, LAYER_ID_LENGTH);
        layers[i].bytes = snapshot->layers[i].bytes;
    }
    *ret = layers;
    return 0;
}

static int check_map(const struct snapshot *snapshot, enum image_kind kind, uint64_t image_bytes, struct error *err)
{
    const struct image_map *map = &snapshot->maps[kind];
    const char *name = kind == IMAGE_MEMORY ? "memory" : "disk";
    if (map->pages != image_bytes / IMAGE_PAGE_BYTES)
        return error_set(err, EINVAL, "the map of the %s image is for %" PRIu64 " pages, the image has %" PRIu64,
                         name, map->pages, image_bytes / IMAGE_PAGE_BYTES);
    int r = map_extents_check(map->extents, map->count, map->pages, snapshot->layer_count, err);
    return r < 0 ? error_wrap(err, -EINVAL, "the %s image", name) : 0;
}

static int check_images(const struct snapshot *snapshot, struct error *err)
{
    int r = check_map(snapshot, IMAGE_DISK, snapshot->manifest.disk_bytes, err);
    if (r < 0)
        return r;
    if (snapshot->device_state != NULL)
        r = check_map(snapshot, IMAGE_MEMORY, snapshot->manifest.memory_bytes, err);
    else if (snapshot->maps[IMAGE_MEMORY].count > 0)
        r = error_set(err, EINVAL, "a snapshot without device state can't have memory");
    if (r == 0 && (snapshot->device_state == NULL) != (snapshot->device_state_bytes == 0))
        r = error_set(err, EINVAL, "the device state has bytes if and only if it is there");
    if (r == 0 && snapshot->device_state_bytes > DEVICE_STATE_MAX)
        r = error_set(err, E2BIG, "the device state has %zu bytes, more than %u", snapshot->device_state_bytes,
                      DEVICE_STATE_MAX);
    return r;
}

static size_t parts_table_bytes(size_t count)
{
    return sizeof(struct manifest_header) + count * sizeof(struct manifest_section);
}

/* Header, table, and the parts one after the other. */
static int assemble(const struct part *parts, size_t count, void **ret, size_t *ret_length, struct error *err)
{
    size_t length = parts_table_bytes(count);
    for (size_t i = 0; i < count; i++)
        length = ROUND_UP(length, (size_t)ALIGNMENT) + parts[i].length;
    uint8_t *bytes = calloc(1, length);
    if (bytes == NULL)
        return error_set(err, ENOMEM, "no memory for a manifest of %zu bytes", length);
    struct manifest_header *header = (struct manifest_header *)bytes;
    struct manifest_section *table = (struct manifest_section *)(header + 1);
    size_t offset = parts_table_bytes(count);
    for (size_t i = 0; i < count; i++) {
        offset = ROUND_UP(offset, (size_t)ALIGNMENT);
        if (parts[i].length > 0)
            memcpy(bytes + offset, parts[i].bytes, parts[i].length);
        table[i] = (struct manifest_section){.kind = parts[i].kind,
                                             .offset = offset,
                                             .bytes = parts[i].length,
                                             .checksum = XXH3_64bits(bytes + offset, parts[i].length)};
        offset += parts[i].length;
    }
    memcpy(header->magic, MANIFEST_MAGIC, sizeof(header->magic));
    header->file_bytes = length;
    header->sections = (uint32_t)count;
    header->table_checksum = XXH3_64bits(table, count * sizeof(*table));
    header->checksum = XXH3_64bits(header, offsetof(struct manifest_header, checksum));
    *ret = bytes;
    *ret_length = length;
    return 0;
}

int manifest_encode(const struct snapshot *snapshot, void **ret, size_t *ret_length, struct error *err)
{
    int r = check_images(snapshot, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *description = NULL;
    size_t description_length = 0;
    r = description_encode(&snapshot->manifest, &description, &description_length, err);
    if (r < 0)
        return r;
    CLEANUP_FREE struct manifest_layer *layers = NULL;
    r = encode_layers(snapshot, &layers, err);
    if (r < 0)
        return r;
    const struct image_map *disk = &snapshot->maps[IMAGE_DISK];
    const struct image_map *memory = &snapshot->maps[IMAGE_MEMORY];
    /* What lists need comes first: one read gets it. */
    const struct part parts[] = {
        {SECTION_DESCRIPTION, description, description_length},
        {SECTION_LAYERS, layers, snapshot->layer_count * sizeof(*layers)},
        {SECTION_DISK_MAP, disk->extents, disk->count * sizeof(*disk->extents)},
        {SECTION_DEVICE_STATE, snapshot->device_state, snapshot->device_state_bytes},
        {SECTION_MEMORY_MAP, memory->extents, memory->count * sizeof(*memory->extents)},
    };
    size_t count = snapshot->device_state != NULL ? ARRAY_SIZE(parts) : 3;
    return assemble(parts, count, ret, ret_length, err);
}
