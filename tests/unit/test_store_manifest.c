#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "store/description.h"
#include "store/manifest_format.h"
#include "unit.h"

#define MEMORY_PAGES 1024u
#define DISK_PAGES   512u

static const char *const layer_ids[] = {"aaaaaaaaaaaaaaaaaaa1", "bbbbbbbbbbbbbbbbbbb2", "ccccccccccccccccccc3"};

static void add_map(struct snapshot *snapshot, enum image_kind kind, uint64_t pages,
                    const struct map_extent *extents, size_t count)
{
    assert_int_equal(image_map_apply(NULL, pages, extents, count, &snapshot->maps[kind], NULL), 0);
}

static struct snapshot make_snapshot(bool with_memory)
{
    struct snapshot snapshot = {.manifest = {.id = strdup("snapshot-1"),
                                             .parent_id = strdup(""),
                                             .sandbox_id = strdup("sandbox-1"),
                                             .template_id = strdup("template-ü"),
                                             .vmm = strdup("qemu 7.2.22"),
                                             .accelerator = strdup("tcg"),
                                             .cpu_model = strdup("qemu64,+ssse3"),
                                             .kernel = strdup("6.1.0-56"),
                                             .disk_consistency = strdup(with_memory ? "" : "frozen"),
                                             .machine_revision = 3,
                                             .cpus = 2,
                                             .memory_bytes = MEMORY_PAGES * (uint64_t)IMAGE_PAGE_BYTES,
                                             .disk_bytes = DISK_PAGES * (uint64_t)IMAGE_PAGE_BYTES,
                                             .created_ns = 1790000000123456789}};
    for (uint32_t i = 0; i < ARRAY_SIZE(layer_ids); i++) {
        uint32_t index;
        assert_int_equal(snapshot_add_layer(&snapshot, layer_ids[i], 4096 + i, &index, NULL), 0);
        assert_int_equal(index, i);
    }
    static const struct map_extent disk[] = {{0, 5, 1, 0}, {100, 412, 1, 16}};
    add_map(&snapshot, IMAGE_DISK, DISK_PAGES, disk, ARRAY_SIZE(disk));
    if (with_memory) {
        static const struct map_extent memory[] = {{1, 2, 0, 0}, {3, 7, 2, 4}, {1020, 4, 0, 8}};
        add_map(&snapshot, IMAGE_MEMORY, MEMORY_PAGES, memory, ARRAY_SIZE(memory));
        snapshot.device_state = strdup("state of devices");
        snapshot.device_state_bytes = strlen(snapshot.device_state);
    }
    return snapshot;
}

static uint8_t *encode(const struct snapshot *snapshot, size_t *ret_length)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    void *bytes = NULL;
    if (manifest_encode(snapshot, &bytes, ret_length, &err) < 0)
        fail_msg("%s", error_message(&err));
    return bytes;
}

static void assert_same_head(const struct snapshot *a, const struct snapshot *b)
{
    assert_string_equal(a->manifest.id, b->manifest.id);
    assert_string_equal(a->manifest.parent_id, b->manifest.parent_id);
    assert_string_equal(a->manifest.sandbox_id, b->manifest.sandbox_id);
    assert_string_equal(a->manifest.template_id, b->manifest.template_id);
    assert_string_equal(a->manifest.vmm, b->manifest.vmm);
    assert_string_equal(a->manifest.accelerator, b->manifest.accelerator);
    assert_string_equal(a->manifest.cpu_model, b->manifest.cpu_model);
    assert_string_equal(a->manifest.kernel, b->manifest.kernel);
    assert_string_equal(a->manifest.disk_consistency, b->manifest.disk_consistency);
    assert_true(snapshot_is_disk_only(a) == snapshot_is_disk_only(b));
    assert_int_equal(a->manifest.machine_revision, b->manifest.machine_revision);
    assert_int_equal(a->manifest.cpus, b->manifest.cpus);
    assert_true(a->manifest.memory_bytes == b->manifest.memory_bytes);
    assert_true(a->manifest.disk_bytes == b->manifest.disk_bytes);
    assert_true(a->manifest.created_ns == b->manifest.created_ns);
    assert_int_equal(a->layer_count, b->layer_count);
    for (uint32_t i = 0; i < a->layer_count; i++) {
        assert_string_equal(a->layers[i].id, b->layers[i].id);
        assert_true(a->layers[i].bytes == b->layers[i].bytes);
    }
}

static void assert_same(const struct snapshot *a, const struct snapshot *b)
{
    assert_same_head(a, b);
    for (size_t kind = 0; kind < IMAGE_KINDS; kind++) {
        assert_true(a->maps[kind].pages == b->maps[kind].pages);
        assert_int_equal(a->maps[kind].count, b->maps[kind].count);
        if (a->maps[kind].count > 0)
            assert_memory_equal(a->maps[kind].extents, b->maps[kind].extents,
                                a->maps[kind].count * sizeof(struct map_extent));
    }
    assert_int_equal(a->device_state_bytes, b->device_state_bytes);
    assert_true((a->device_state == NULL) == (b->device_state == NULL));
    if (a->device_state != NULL)
        assert_memory_equal(a->device_state, b->device_state, a->device_state_bytes);
}

/* Decodes, and if that works it must give `right`. */
static int decode_as(const uint8_t *bytes, size_t length, const struct snapshot *right)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    CLEANUP(snapshot_done) struct snapshot head = {0};
    int r = manifest_decode(bytes, length, MANIFEST_ALL, &snapshot, &err);
    assert_true((r < 0) == (err.message != NULL));
    if (r == 0 && right != NULL)
        assert_same(&snapshot, right);
    else if (r < 0)
        assert_null(snapshot.manifest.id);
    int head_r = manifest_decode(bytes, length, MANIFEST_HEAD, &head, NULL);
    assert_true(r < 0 || head_r == 0);
    if (head_r == 0 && right != NULL)
        assert_same_head(&head, right);
    return r;
}

static void what_was_encoded_is_decoded(void **state)
{
    (void)state;
    for (int with_memory = 0; with_memory < 2; with_memory++) {
        CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(with_memory != 0);
        size_t length = 0;
        CLEANUP_FREE uint8_t *bytes = encode(&snapshot, &length);
        assert_int_equal(decode_as(bytes, length, &snapshot), 0);
    }
}

static void a_file_is_read_whole_or_its_head_only(void **state)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(true);
    size_t length = 0;
    CLEANUP_FREE uint8_t *bytes = encode(&snapshot, &length);
    CLEANUP_FREE char *path = unit_path(*state, "manifest");
    assert_int_equal(io_write_file_atomic(path, bytes, length, 0600), 0);
    CLEANUP(snapshot_done) struct snapshot whole = {0};
    assert_int_equal(manifest_read(path, MANIFEST_ALL, &whole, NULL), 0);
    assert_same(&whole, &snapshot);
    CLEANUP(snapshot_done) struct snapshot head = {0};
    assert_int_equal(manifest_read(path, MANIFEST_HEAD, &head, NULL), 0);
    assert_same_head(&head, &snapshot);
    assert_int_equal(head.maps[IMAGE_DISK].count, 0);
    assert_null(head.device_state);

    /* Damage to the last section, a map, is none to the head. */
    bytes[length - 1] ^= 1;
    assert_int_equal(io_write_file_atomic(path, bytes, length, 0600), 0);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct snapshot damaged = {0};
    assert_int_equal(manifest_read(path, MANIFEST_ALL, &damaged, &err), -EBADMSG);
    assert_non_null(strstr(err.message, path));
    snapshot_done(&head);
    assert_int_equal(manifest_read(path, MANIFEST_HEAD, &head, NULL), 0);

    assert_int_equal(truncate(path, (off_t)length - 1), 0);
    assert_int_equal(manifest_read(path, MANIFEST_HEAD, &damaged, NULL), -EBADMSG);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(manifest_read(path, MANIFEST_ALL, &damaged, NULL), -ENOENT);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(manifest_read(path, MANIFEST_ALL, &damaged, NULL), -EBADMSG);
}

/* Whether the byte belongs to nothing: sections are aligned. */
static bool in_gap(const uint8_t *bytes, size_t at)
{
    struct manifest_header header;
    memcpy(&header, bytes, sizeof(header));
    bool used = at < sizeof(header) + header.sections * sizeof(struct manifest_section);
    for (uint32_t i = 0; i < header.sections; i++) {
        struct manifest_section section;
        memcpy(&section, bytes + sizeof(header) + i * sizeof(section), sizeof(section));
        used |= at >= section.offset && at < section.offset + section.bytes;
    }
    return !used;
}

static void a_flipped_bit_is_refused(void **state)
{
    (void)state;
    CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(true);
    size_t length = 0;
    CLEANUP_FREE uint8_t *bytes = encode(&snapshot, &length);
    for (size_t bit = 0; bit < length * 8; bit++) {
        bool harmless = in_gap(bytes, bit / 8);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(decode_as(bytes, length, &snapshot), harmless ? 0 : -EBADMSG);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void a_truncated_manifest_is_refused(void **state)
{
    (void)state;
    CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(true);
    size_t length = 0;
    CLEANUP_FREE uint8_t *bytes = encode(&snapshot, &length);
    for (size_t i = 0; i < length; i++) {
        /* A copy, so that reading beyond it shows under the address sanitizer. */
        CLEANUP_FREE uint8_t *cut = malloc(i + (i == 0));
        memcpy(cut, bytes, i);
        assert_int_equal(decode_as(cut, i, NULL), -EBADMSG);
    }
    CLEANUP_FREE uint8_t *longer = calloc(1, length + 1);
    memcpy(longer, bytes, length);
    assert_int_equal(decode_as(longer, length + 1, NULL), -EBADMSG);
}

/* A manifest to be damaged with checksums that agree. Sections are found by kind. */
struct forged {
    uint8_t *bytes;
    size_t length;
    struct manifest_header *header;
    struct manifest_section *table;
};

static struct manifest_section *find(const struct forged *forged, uint32_t kind)
{
    for (uint32_t i = 0;; i++)
        if (forged->table[i].kind == kind)
            return &forged->table[i];
}

static struct forged forge(void)
{
    CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(true);
    struct forged forged = {0};
    forged.bytes = encode(&snapshot, &forged.length);
    forged.header = (struct manifest_header *)forged.bytes;
    forged.table = (struct manifest_section *)(forged.header + 1);
    return forged;
}

/* Gives right checksums to all that lies where it may; frees it. */
static int check_forged(struct forged *forged)
{
    for (uint32_t i = 0; i < 5; i++) {
        struct manifest_section *section = &forged->table[i];
        if (section->offset <= forged->length && section->bytes <= forged->length - section->offset)
            section->checksum = XXH3_64bits(forged->bytes + section->offset, section->bytes);
    }
    forged->header->table_checksum =
        XXH3_64bits(forged->table, MIN(forged->header->sections, 5u) * sizeof(*forged->table));
    forged->header->checksum = XXH3_64bits(forged->header, offsetof(struct manifest_header, checksum));
    int r = decode_as(forged->bytes, forged->length, NULL);
    free(forged->bytes);
    return r;
}

#define FORGERY(field, value, expected)                                                                            \
    do {                                                                                                           \
        struct forged forged = forge();                                                                            \
        (field) = (value);                                                                                         \
        assert_int_equal(check_forged(&forged), expected);                                                         \
    } while (0)
#define SECTION(kind) find(&forged, kind)

static void the_header_is_not_believed(void **state)
{
    (void)state;
    FORGERY(forged.header->compatible, 1, 0);
    FORGERY(forged.header->incompatible, 1, -EPROTONOSUPPORT);
    FORGERY(forged.header->file_bytes, forged.length - 1, -EBADMSG);
    FORGERY(forged.header->file_bytes, UINT64_MAX, -EBADMSG);
    FORGERY(forged.header->sections, 4, -EBADMSG);
    FORGERY(forged.header->sections, 0, -EBADMSG);
    FORGERY(forged.header->sections, 65, -EBADMSG);
    FORGERY(forged.header->sections, UINT32_MAX, -EBADMSG);
}

static void the_section_table_is_not_believed(void **state)
{
    (void)state;
    FORGERY(SECTION(SECTION_DISK_MAP)->kind, SECTION_MEMORY_MAP, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->offset, SECTION(SECTION_DESCRIPTION)->offset, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->offset, 0, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->offset, UINT64_MAX, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->bytes, UINT64_MAX, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->bytes, forged.length, -EBADMSG);
    FORGERY(SECTION(SECTION_LAYERS)->bytes, 33, -EBADMSG);
    FORGERY(SECTION(SECTION_MEMORY_MAP)->bytes, 17, -EBADMSG);
    FORGERY(SECTION(SECTION_DESCRIPTION)->bytes, 0, -EBADMSG);
    FORGERY(SECTION(SECTION_DEVICE_STATE)->bytes, 0, -EBADMSG);

    /* Without a section: of an unknown kind, that may or may not be ignored. */
    static const enum manifest_section_kind needed[] = {SECTION_DESCRIPTION, SECTION_LAYERS, SECTION_DISK_MAP,
                                                        SECTION_MEMORY_MAP, SECTION_DEVICE_STATE};
    for (size_t i = 0; i < ARRAY_SIZE(needed); i++) {
        FORGERY(SECTION(needed[i])->kind, 99, -EPROTONOSUPPORT);
        FORGERY(*SECTION(needed[i]), ((struct manifest_section){99, SECTION_FLAG_IGNORABLE, forged.length, 0, 0}),
                -EBADMSG);
    }
    FORGERY(SECTION(SECTION_LAYERS)->kind, 0, -EPROTONOSUPPORT);
}

/* Neither memory nor state, but two things from the future. */
static struct forged forge_later(uint32_t first, uint32_t second)
{
    struct forged forged = forge();
    struct manifest_section *memory = find(&forged, SECTION_MEMORY_MAP);
    struct manifest_section *state = find(&forged, SECTION_DEVICE_STATE);
    memory->flags = SECTION_FLAG_IGNORABLE;
    state->flags = SECTION_FLAG_IGNORABLE | 2;
    memory->kind = first;
    state->kind = second;
    return forged;
}

static void a_section_of_a_later_version_can_be_ignored(void **state)
{
    (void)state;
    struct forged forged = forge_later(1000, UINT32_MAX);
    assert_int_equal(check_forged(&forged), 0);
    /* As long as they keep to the rules for all sections. */
    forged = forge_later(1000, 1000);
    assert_int_equal(check_forged(&forged), -EBADMSG);
    forged = forge_later(1000, 1001);
    find(&forged, 1000)->offset = find(&forged, 1001)->offset + 1;
    find(&forged, 1000)->bytes = 1;
    assert_int_equal(check_forged(&forged), -EBADMSG);
}

static void sections_are_bounded(void **state)
{
    (void)state;
    /* As large as no description, no table of layers may be, in a file that is large enough for it. */
    static const struct {
        enum manifest_section_kind kind;
        size_t bytes;
    } large[] = {{SECTION_DESCRIPTION, DESCRIPTION_BYTES_MAX + 1},
                 {SECTION_LAYERS, (MANIFEST_LAYERS_MAX + 1) * sizeof(struct manifest_layer)},
                 {SECTION_DEVICE_STATE, DEVICE_STATE_MAX + 1}};
    for (size_t i = 0; i < ARRAY_SIZE(large); i++) {
        struct forged forged = forge();
        size_t length = forged.length + large[i].bytes;
        forged.bytes = realloc(forged.bytes, length);
        assert_non_null(forged.bytes);
        memset(forged.bytes + forged.length, ' ', large[i].bytes);
        forged.header = (struct manifest_header *)forged.bytes;
        forged.table = (struct manifest_section *)(forged.header + 1);
        find(&forged, large[i].kind)->offset = forged.length;
        find(&forged, large[i].kind)->bytes = large[i].bytes;
        forged.header->file_bytes = forged.length = length;
        assert_int_equal(check_forged(&forged), -EBADMSG);
    }
}

static void layers_and_extents_are_checked(void **state)
{
    (void)state;
    for (int attempt = 0; attempt < 6; attempt++) {
        struct forged forged = forge();
        struct manifest_layer *layers = (void *)(forged.bytes + find(&forged, SECTION_LAYERS)->offset);
        struct map_extent *extents = (void *)(forged.bytes + find(&forged, SECTION_MEMORY_MAP)->offset);
        int expected = -EBADMSG;
        if (attempt == 0)
            layers[2] = layers[0];
        else if (attempt == 1)
            layers[1].id[3] = '/';
        else if (attempt == 2)
            layers[1].id[LAYER_ID_LENGTH] = 'x';
        else if (attempt == 3)
            extents[1].layer = ARRAY_SIZE(layer_ids);
        else if (attempt == 4)
            extents[1].page = 2;
        else
            expected = 0;
        assert_int_equal(check_forged(&forged), expected);
    }
}

static int decode_description(const char *text)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP(snapshot_manifest_done) struct snapshot_manifest manifest = {0};
    int r = description_decode(text, strlen(text), &manifest, &err);
    assert_true((r < 0) == (err.message != NULL));
    return r;
}

static void the_description_is_checked(void **state)
{
    (void)state;
#define TEXTS                                                                                                      \
    "\"id\":\"a\",\"parent\":\"\",\"sandbox\":\"\",\"template\":\"\",\"vmm\":\"\",\"accelerator\":\"\","           \
    "\"cpu_model\":\"\",\"kernel\":\"\",\"disk_consistency\":\"\""
#define NUMBERS "\"cpus\":1,\"memory_bytes\":4096,\"disk_bytes\":0,\"created_ns\":0"
    assert_int_equal(decode_description("{" TEXTS "," NUMBERS ",\"machine_revision\":1}"), 0);
    assert_int_equal(decode_description("{" TEXTS "," NUMBERS ",\"machine_revision\":1,\"new\":[]}"), 0);
    static const char *const bad[] = {
        "",
        "[]",
        "{" TEXTS "," NUMBERS "}",
        "{" TEXTS "," NUMBERS ",\"machine_revision\":0}",
        "{" TEXTS "," NUMBERS ",\"machine_revision\":\"1\"}",
        "{" TEXTS "," NUMBERS ",\"machine_revision\":1,\"cpus\":1}",
        "{" TEXTS "," NUMBERS ",\"machine_revision\":1} {}",
        "{" NUMBERS ",\"machine_revision\":1}",
        "{" TEXTS ",\"machine_revision\":1,\"cpus\":1,\"memory_bytes\":4097,\"disk_bytes\":0,\"created_ns\":0}",
        "{" TEXTS ",\"machine_revision\":1,\"cpus\":1,\"memory_bytes\":-4096,\"disk_bytes\":0,\"created_ns\":0}",
        "{" TEXTS ",\"machine_revision\":1,\"cpus\":1,\"memory_bytes\":17592186048512,\"disk_bytes\":0,"
        "\"created_ns\":0}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(decode_description(bad[i]), -EBADMSG);
}

static void what_could_not_be_read_is_not_encoded(void **state)
{
    (void)state;
    for (int attempt = 0; attempt < 8; attempt++) {
        CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(attempt != 2);
        if (attempt == 0)
            snapshot.manifest.cpus = 0;
        else if (attempt == 1)
            snapshot.manifest.kernel[0] = '\xff';
        else if (attempt == 2)
            add_map(&snapshot, IMAGE_MEMORY, MEMORY_PAGES, &(struct map_extent){0, 1, 0, 0}, 1);
        else if (attempt == 3)
            snapshot.manifest.memory_bytes += IMAGE_PAGE_BYTES;
        else if (attempt == 4)
            snapshot.maps[IMAGE_DISK].extents[0].layer = 3;
        else if (attempt == 5)
            snapshot.layers[1].id[0] = '.';
        else if (attempt == 6)
            snapshot.manifest.disk_bytes++;
        else
            snapshot.device_state_bytes = 0;
        void *bytes = NULL;
        size_t length;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(manifest_encode(&snapshot, &bytes, &length, &err), -EINVAL);
        assert_non_null(err.message);
        assert_null(bytes);
    }
}

static void layers_are_added_once_and_dropped_unused(void **state)
{
    (void)state;
    CLEANUP(snapshot_done) struct snapshot snapshot = make_snapshot(true);
    uint32_t index = 0;
    assert_int_equal(snapshot_add_layer(&snapshot, layer_ids[1], 0, &index, NULL), 0);
    assert_int_equal(index, 1);
    assert_int_equal(snapshot.layer_count, 3);
    assert_int_equal(snapshot_add_layer(&snapshot, "../passwd", 0, &index, NULL), -EINVAL);
    /* Nothing but the memory's third layer is left in use. */
    image_map_done(&snapshot.maps[IMAGE_DISK]);
    image_map_done(&snapshot.maps[IMAGE_MEMORY]);
    add_map(&snapshot, IMAGE_MEMORY, MEMORY_PAGES, &(struct map_extent){7, 1, 2, 9}, 1);
    snapshot_drop_unused_layers(&snapshot);
    assert_int_equal(snapshot.layer_count, 1);
    assert_string_equal(snapshot.layers[0].id, layer_ids[2]);
    assert_int_equal(snapshot.maps[IMAGE_MEMORY].extents[0].layer, 0);

    char id[LAYER_ID_LENGTH + 1];
    for (uint32_t i = 1; i < MANIFEST_LAYERS_MAX; i++) {
        snprintf(id, sizeof(id), "%020u", i);
        assert_int_equal(snapshot_add_layer(&snapshot, id, 0, &index, NULL), 0);
    }
    assert_int_equal(snapshot_add_layer(&snapshot, layer_ids[0], 0, &index, NULL), -E2BIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_encoded_is_decoded),
        UNIT_TEST(a_file_is_read_whole_or_its_head_only),
        cmocka_unit_test(a_flipped_bit_is_refused),
        cmocka_unit_test(a_truncated_manifest_is_refused),
        cmocka_unit_test(the_header_is_not_believed),
        cmocka_unit_test(the_section_table_is_not_believed),
        cmocka_unit_test(a_section_of_a_later_version_can_be_ignored),
        cmocka_unit_test(sections_are_bounded),
        cmocka_unit_test(layers_and_extents_are_checked),
        cmocka_unit_test(the_description_is_checked),
        cmocka_unit_test(what_could_not_be_read_is_not_encoded),
        cmocka_unit_test(layers_are_added_once_and_dropped_unused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
