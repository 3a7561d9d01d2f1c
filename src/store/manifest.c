/*
 * Reads manifests. Header and section table are checked as a whole before any section is looked at, and each
 * section is checked against its checksum before it is parsed, so that no length is used that was not bounded
 * first.
 *
 * A manifest comes from memory or from a file, of which only the wanted sections are read.
 */
#include "store/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/io.h"
#include "store/description.h"
#include "store/manifest_format.h"

struct source {
    const uint8_t *bytes; /* NULL: fd */
    int fd;
    uint64_t length;
};

struct sections {
    struct manifest_section table[MANIFEST_SECTIONS_MAX];
    uint32_t count;
    const struct manifest_section *known[SECTION_KINDS]; /* by kind; NULL: not there */
};

static const struct {
    const char *name;
    uint64_t bytes_max;
} kinds[SECTION_KINDS] = {
    [SECTION_DESCRIPTION] = {"description", DESCRIPTION_BYTES_MAX},
    [SECTION_LAYERS] = {"table of layers", MANIFEST_LAYERS_MAX * sizeof(struct manifest_layer)},
    [SECTION_MEMORY_MAP] = {"map of the memory image", IMAGE_MAP_EXTENTS_MAX *(uint64_t)sizeof(struct map_extent)},
    [SECTION_DISK_MAP] = {"map of the disk image", IMAGE_MAP_EXTENTS_MAX *(uint64_t)sizeof(struct map_extent)},
    [SECTION_DEVICE_STATE] = {"device state", DEVICE_STATE_MAX},
};

static int damaged(struct error *err, const char *what)
{
    return error_set(err, EBADMSG, "the manifest is damaged: %s", what);
}

static int source_read(const struct source *source, void *to, size_t length, uint64_t offset, struct error *err)
{
    if (offset > source->length || length > source->length - offset)
        return damaged(err, "it is cut short");
    if (source->bytes != NULL) {
        memcpy(to, source->bytes + offset, length);
        return 0;
    }
    ssize_t n = io_pread_full(source->fd, to, length, (off_t)offset);
    if (n < 0)
        return error_code(err, (int)n, "cannot read the manifest");
    return (size_t)n == length ? 0 : damaged(err, "it is cut short");
}

static int read_header(const struct source *source, struct manifest_header *header, struct error *err)
{
    int r = source_read(source, header, sizeof(*header), 0, err);
    if (r < 0)
        return r;
    if (memcmp(header->magic, MANIFEST_MAGIC, sizeof(header->magic)) != 0)
        return damaged(err, "it doesn't begin as a manifest does");
    if (header->checksum != XXH3_64bits(header, offsetof(struct manifest_header, checksum)))
        return damaged(err, "wrong checksum of its header");
    if (header->incompatible != 0)
        return error_set(err, EPROTONOSUPPORT,
                         "the manifest was written by a later version of dormouse (features %" PRIx32 ")",
                         header->incompatible);
    if (header->file_bytes != source->length || header->file_bytes > MANIFEST_BYTES_MAX)
        return damaged(err, "its size is not what it says");
    if (header->sections > MANIFEST_SECTIONS_MAX)
        return damaged(err, "too many sections");
    return 0;
}

/* Each section within the file, behind the table, apart from the others, and of a kind and size that may be. */
static int check_sections(struct sections *sections, uint64_t file_bytes, struct error *err)
{
    uint64_t begin = sizeof(struct manifest_header) + sections->count * sizeof(struct manifest_section);
    for (uint32_t i = 0; i < sections->count; i++) {
        const struct manifest_section *section = &sections->table[i];
        if (section->offset < begin || section->offset > file_bytes ||
            section->bytes > file_bytes - section->offset)
            return damaged(err, "a section lies outside of where sections are");
        for (uint32_t j = 0; j < i; j++) {
            const struct manifest_section *other = &sections->table[j];
            if (section->kind == other->kind)
                return damaged(err, "a section is there twice");
            if (section->offset < other->offset + other->bytes && other->offset < section->offset + section->bytes)
                return damaged(err, "sections overlap");
        }
        if (section->kind > 0 && section->kind < SECTION_KINDS) {
            if (section->bytes > kinds[section->kind].bytes_max)
                return error_set(err, EBADMSG, "the manifest is damaged: its %s is too large",
                                 kinds[section->kind].name);
            sections->known[section->kind] = section;
        } else if (!(section->flags & SECTION_FLAG_IGNORABLE)) {
            return error_set(err, EPROTONOSUPPORT,
                             "the manifest was written by a later version of dormouse (section %" PRIu32 ")",
                             section->kind);
        }
    }
    if (sections->known[SECTION_DESCRIPTION] == NULL || sections->known[SECTION_LAYERS] == NULL ||
        sections->known[SECTION_DISK_MAP] == NULL ||
        (sections->known[SECTION_MEMORY_MAP] == NULL) != (sections->known[SECTION_DEVICE_STATE] == NULL))
        return damaged(err, "a section is missing");
    if (sections->known[SECTION_DEVICE_STATE] != NULL && sections->known[SECTION_DEVICE_STATE]->bytes == 0)
        return damaged(err, "its device state is empty");
    return 0;
}

static int read_sections(const struct source *source, struct sections *ret, struct error *err)
{
    struct manifest_header header;
    int r = read_header(source, &header, err);
    if (r < 0)
        return r;
    struct sections sections = {.count = header.sections};
    size_t table_bytes = sections.count * sizeof(struct manifest_section);
    r = source_read(source, sections.table, table_bytes, sizeof(header), err);
    if (r < 0)
        return r;
    if (header.table_checksum != XXH3_64bits(sections.table, table_bytes))
        return damaged(err, "wrong checksum of its section table");
    *ret = sections;
    return check_sections(ret, header.file_bytes, err);
}

/* *ret_owned is what the caller frees, if the bytes had to be read. */
static int read_section(const struct source *source, const struct manifest_section *section, void **ret_owned,
                        const void **ret_bytes, struct error *err)
{
    CLEANUP_FREE void *owned = NULL;
    const void *bytes = source->bytes != NULL ? source->bytes + section->offset : NULL;
    if (bytes == NULL) {
        owned = malloc(section->bytes + 1);
        if (owned == NULL)
            return error_set(err, ENOMEM, "no memory to read a manifest");
        int r = source_read(source, owned, section->bytes, section->offset, err);
        if (r < 0)
            return r;
        bytes = owned;
    }
    if (XXH3_64bits(bytes, section->bytes) != section->checksum)
        return error_set(err, EBADMSG, "the manifest is damaged: wrong checksum of its %s",
                         kinds[section->kind].name);
    *ret_owned = TAKE_PTR(owned);
    *ret_bytes = bytes;
    return 0;
}

static int read_description(const struct source *source, const struct sections *sections, struct snapshot *snapshot,
                            struct error *err)
{
    const struct manifest_section *section = sections->known[SECTION_DESCRIPTION];
    CLEANUP_FREE void *owned = NULL;
    const void *text;
    int r = read_section(source, section, &owned, &text, err);
    if (r < 0)
        return r;
    r = description_decode(text, section->bytes, &snapshot->manifest, err);
    return r < 0 ? error_wrap(err, r, "the manifest is damaged: its description") : 0;
}

static int compare_layers(const void *a, const void *b)
{
    return memcmp(((const struct manifest_layer *)a)->id, ((const struct manifest_layer *)b)->id,
                  sizeof(((const struct manifest_layer *)a)->id));
}

/* Sorts the layers. */
static int check_different(struct manifest_layer *layers, uint32_t count, struct error *err)
{
    qsort(layers, count, sizeof(*layers), compare_layers);
    for (uint32_t i = 1; i < count; i++)
        if (compare_layers(&layers[i - 1], &layers[i]) == 0)
            return damaged(err, "a layer is in its table twice");
    return 0;
}

static int read_layers(const struct source *source, const struct sections *sections, struct snapshot *snapshot,
                       struct error *err)
{
    const struct manifest_section *section = sections->known[SECTION_LAYERS];
    if (section->bytes % sizeof(struct manifest_layer) != 0)
        return damaged(err, "its table of layers ends within a layer");
    uint32_t count = (uint32_t)(section->bytes / sizeof(struct manifest_layer));
    CLEANUP_FREE void *owned = NULL;
    const void *bytes;
    int r = read_section(source, section, &owned, &bytes, err);
    if (r < 0 || count == 0)
        return r;
    CLEANUP_FREE struct manifest_layer *stored = malloc(section->bytes);
    snapshot->layers = calloc(count, sizeof(*snapshot->layers));
    if (stored == NULL || snapshot->layers == NULL)
        return error_set(err, ENOMEM, "no memory for a snapshot's layers");
    memcpy(stored, bytes, section->bytes);
    for (uint32_t i = 0; i < count; i++) {
        struct snapshot_layer *layer = &snapshot->layers[i];
        static const char padding[sizeof(stored->id) - LAYER_ID_LENGTH] = {0};
        memcpy(layer->id, stored[i].id, LAYER_ID_LENGTH);
        layer->bytes = stored[i].bytes;
        if (!layer_id_valid(layer->id) || memcmp(stored[i].id + LAYER_ID_LENGTH, padding, sizeof(padding)) != 0)
            return damaged(err, "its table of layers has something that is no id");
    }
    snapshot->layer_count = count;
    return check_different(stored, count, err);
}

static int read_map(const struct source *source, const struct sections *sections, enum manifest_section_kind kind,
                    uint64_t image_bytes, uint32_t layer_count, struct image_map *ret, struct error *err)
{
    const struct manifest_section *section = sections->known[kind];
    if (section == NULL)
        return 0;
    CLEANUP_FREE void *owned = NULL;
    const void *bytes;
    int r = read_section(source, section, &owned, &bytes, err);
    if (r < 0)
        return r;
    r = image_map_decode(bytes, section->bytes, image_bytes / IMAGE_PAGE_BYTES, layer_count, ret, err);
    return r < 0 ? error_wrap(err, r, "the manifest is damaged: its %s", kinds[kind].name) : 0;
}

static int read_device_state(const struct source *source, const struct sections *sections,
                             struct snapshot *snapshot, struct error *err)
{
    const struct manifest_section *section = sections->known[SECTION_DEVICE_STATE];
    if (section == NULL)
        return 0;
    CLEANUP_FREE void *owned = NULL;
    const void *bytes;
    int r = read_section(source, section, &owned, &bytes, err);
    if (r < 0)
        return r;
    if (owned == NULL) {
        owned = malloc(section->bytes + 1);
        if (owned == NULL)
            return error_set(err, ENOMEM, "no memory for a snapshot's device state");
        memcpy(owned, bytes, section->bytes);
    }
    snapshot->device_state = TAKE_PTR(owned);
    return 0;
}

static int read_parts(const struct source *source, const struct sections *sections, enum manifest_parts parts,
                      struct snapshot *snapshot, struct error *err)
{
    int r = 0;
    if (parts & MANIFEST_MEMORY)
        r = read_map(source, sections, SECTION_MEMORY_MAP, snapshot->manifest.memory_bytes, snapshot->layer_count,
                     &snapshot->maps[IMAGE_MEMORY], err);
    if (r == 0 && (parts & MANIFEST_DISK))
        r = read_map(source, sections, SECTION_DISK_MAP, snapshot->manifest.disk_bytes, snapshot->layer_count,
                     &snapshot->maps[IMAGE_DISK], err);
    if (r == 0 && (parts & MANIFEST_DEVICE_STATE))
        r = read_device_state(source, sections, snapshot, err);
    if (sections->known[SECTION_DEVICE_STATE] != NULL)
        snapshot->device_state_bytes = sections->known[SECTION_DEVICE_STATE]->bytes;
    return r;
}

static int decode(const struct source *source, enum manifest_parts parts, struct snapshot *ret, struct error *err)
{
    struct sections sections;
    int r = read_sections(source, &sections, err);
    if (r < 0)
        return r;
    struct snapshot snapshot = {0};
    r = read_description(source, &sections, &snapshot, err);
    if (r == 0)
        r = read_layers(source, &sections, &snapshot, err);
    if (r == 0)
        r = read_parts(source, &sections, parts, &snapshot, err);
    if (r < 0) {
        snapshot_done(&snapshot);
        return r;
    }
    *ret = snapshot;
    return 0;
}

int manifest_decode(const void *bytes, size_t length, enum manifest_parts parts, struct snapshot *ret,
                    struct error *err)
{
    struct source source = {.bytes = bytes, .fd = -1, .length = length};
    return decode(&source, parts, ret, err);
}

int manifest_read(const char *path, enum manifest_parts parts, struct snapshot *ret, struct error *err)
{
    /* Whatever lies there, opening it mustn't block. */
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, "cannot open %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, EBADMSG, "%s is not a file", path);
    struct source source = {.fd = fd, .length = (uint64_t)st.st_size};
    int r = decode(&source, parts, ret, err);
    return r < 0 ? error_wrap(err, r, "%s", path) : 0;
}
