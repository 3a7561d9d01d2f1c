/*
 * Snapshots are visited in preorder of the forest that their parents make, so that a snapshot's descendants follow
 * it without a gap. One number for each distinct block is enough then to tell chains apart: the snapshot that has
 * it, topmost among those of the present chain. A later one either descends from it, and the block is known to its
 * chain, or comes after all its descendants, and takes its place.
 *
 * A first walk over the maps alone counts what needs no reading: zeros, what is the parent's, and how many blocks
 * are left, which bounds the table and gives the number of passes. A pass reads 2 MiB at a time, the largest block,
 * and looks at it in all sizes.
 */
#include "cli/dedup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "store/codec.h"
#include "store/image.h"

#define WINDOW_PAGES    512u /* the largest block */
#define WORD_PAGES      64u
#define WINDOW_WORDS    (WINDOW_PAGES / WORD_PAGES)
#define LOAD_RETRIES    3
#define EXAMINE_RETRIES 5
#define PASSES_MAX      4096u
#define NO_PARENT       UINT32_MAX
#define TABLE_FILL(n)   ((n) / 4 * 3)

const uint32_t dedup_block_bytes[DEDUP_SIZES] = {4096, 16384, 65536, 262144, 2097152};

/* One snapshot in the forest. */
struct node {
    char id[LAYER_ID_LENGTH + 1];
    char parent_id[LAYER_ID_LENGTH + 1];
    uint32_t parent; /* index, or NO_PARENT */
    uint32_t end;    /* the first one after its descendants, in preorder */
    bool placed;
};

/* What is known of a block; stored_bytes 0: nothing is here. */
struct entry {
    uint64_t digest[2];
    uint32_t holder;
    uint32_t stored_bytes;
};

struct examination {
    const char *data_directory;
    int layers_fd;
    struct node *nodes; /* in preorder, once arranged */
    uint32_t count;
    struct dedup_report report;
    struct entry *table;
    size_t slots; /* a power of two */
    size_t filled;
    unsigned pass;
    struct codec_encoder *encoder;
    struct frame_buffer *frame;
    uint8_t *window;
    uint8_t *compressed; /* a block, as large as the window */
};

void dedup_report_done(struct dedup_report *report)
{
    free(report->ids);
    *report = (struct dedup_report){0};
}

/* ---- which snapshots ---- */

static char *manifest_path(const struct examination *examination, const char *id)
{
    char *path;
    return asprintf(&path, "%s/snapshots/%s/manifest", examination->data_directory, id) < 0 ? NULL : path;
}

static int add_node(struct examination *examination, const char *id, bool named, struct error *err)
{
    CLEANUP(snapshot_done) struct snapshot head = {0};
    CLEANUP_FREE char *path = manifest_path(examination, id);
    for (uint32_t i = 0; i < examination->count; i++)
        if (strcmp(examination->nodes[i].id, id) == 0)
            return 0;
    int r = path != NULL ? manifest_read(path, MANIFEST_HEAD, &head, err) : error_set(err, ENOMEM, "out of memory");
    if (r == -ENOENT && !named)
        return 0; /* removed meanwhile */
    if (r < 0)
        return error_wrap(err, r, "snapshot %s", id);
    struct node *larger = realloc(examination->nodes, (examination->count + (size_t)1) * sizeof(*larger));
    if (larger == NULL)
        return error_set(err, ENOMEM, "out of memory");
    examination->nodes = larger;
    struct node *node = &larger[examination->count++];
    *node = (struct node){.parent = NO_PARENT};
    snprintf(node->id, sizeof(node->id), "%s", id);
    snprintf(node->parent_id, sizeof(node->parent_id), "%s", head.manifest.parent_id);
    return 0;
}

static const char *select_name(const struct dirent *entry, const char *prefix)
{
    bool fits = layer_id_valid(entry->d_name) && strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    return fits ? entry->d_name : NULL;
}

static int add_matching(struct examination *examination, DIR *directory, const char *prefix, struct error *err)
{
    char found[LAYER_ID_LENGTH + 1] = "";
    rewinddir(directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        const char *name = select_name(entry, prefix);
        if (name == NULL)
            continue;
        if (found[0] != '\0')
            return error_set(err, EINVAL, "the id %s fits more than one snapshot", prefix);
        memcpy(found, name, sizeof(found));
    }
    if (found[0] == '\0')
        return error_set(err, ENOENT, "there is no snapshot %.64s in %s", prefix, examination->data_directory);
    return add_node(examination, found, true, err);
}

static int add_all(struct examination *examination, DIR *directory, struct error *err)
{
    int r = 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(directory)) != NULL;) {
        const char *name = select_name(entry, "");
        if (name != NULL)
            r = add_node(examination, name, false, err);
    }
    return r;
}

static int choose_snapshots(struct examination *examination, char *const *ids, size_t count, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/snapshots", examination->data_directory) < 0)
        return error_set(err, ENOMEM, "out of memory");
    DIR *directory = opendir(path);
    if (directory == NULL) {
        int r = error_errno(err, "cannot read %s", path);
        error_hint(err, "--data names the daemon's data directory");
        return r;
    }
    int r = count == 0 ? add_all(examination, directory, err) : 0;
    for (size_t i = 0; r == 0 && i < count; i++)
        r = add_matching(examination, directory, ids[i], err);
    closedir(directory);
    return r;
}

/* ---- preorder ---- */

static void find_parents(struct node *nodes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < count; j++)
            if (i != j && strcmp(nodes[i].parent_id, nodes[j].id) == 0)
                nodes[i].parent = j;
}

static uint32_t find_child(const struct node *nodes, uint32_t count, uint32_t parent)
{
    for (uint32_t i = 0; i < count; i++)
        if (!nodes[i].placed && nodes[i].parent == parent)
            return i;
    return count;
}

/*
 * Places the tree below `root`; order[i] is the i-th of the preorder. Without recursion: chains may be long. What
 * has been placed is never visited again, so a circle of parents in damaged manifests ends, too.
 */
static uint32_t place_tree(struct node *nodes, uint32_t count, uint32_t root, uint32_t *order, uint32_t placed)
{
    nodes[root].placed = true;
    order[placed++] = root;
    for (uint32_t at = root;;) {
        uint32_t child = find_child(nodes, count, at);
        if (child < count) {
            nodes[child].placed = true;
            order[placed++] = child;
            at = child;
            continue;
        }
        nodes[at].end = placed;
        if (at == root)
            return placed;
        at = nodes[at].parent;
    }
}

static int arrange(struct examination *examination, struct error *err)
{
    uint32_t count = examination->count;
    struct node *nodes = examination->nodes;
    CLEANUP_FREE uint32_t *order = calloc(count + (size_t)1, sizeof(*order));
    CLEANUP_FREE uint32_t *position = calloc(count + (size_t)1, sizeof(*position));
    struct node *arranged = calloc(count + (size_t)1, sizeof(*arranged));
    examination->report.ids = calloc(count + (size_t)1, sizeof(*examination->report.ids));
    if (order == NULL || position == NULL || arranged == NULL || examination->report.ids == NULL) {
        free(arranged);
        return error_set(err, ENOMEM, "out of memory");
    }
    find_parents(nodes, count);
    uint32_t placed = 0;
    for (uint32_t root; (root = find_child(nodes, count, NO_PARENT)) < count;)
        placed = place_tree(nodes, count, root, order, placed);
    for (uint32_t i = 0; i < count; i++) {
        if (nodes[i].placed)
            continue;
        nodes[i].parent = NO_PARENT; /* part of a circle, which is cut here */
        placed = place_tree(nodes, count, i, order, placed);
    }
    for (uint32_t i = 0; i < count; i++)
        position[order[i]] = i;
    for (uint32_t i = 0; i < count; i++) {
        arranged[i] = nodes[order[i]];
        if (arranged[i].parent != NO_PARENT)
            arranged[i].parent = position[arranged[i].parent];
        memcpy(examination->report.ids[i], arranged[i].id, sizeof(arranged[i].id));
    }
    free(nodes);
    examination->nodes = arranged;
    examination->report.count = count;
    return 0;
}

static bool descends(const struct examination *examination, uint32_t node, uint32_t from)
{
    return node >= from && node < examination->nodes[from].end;
}

/* ---- windows on an image ---- */

/* Bit i: page i of the window. Beyond the image's end nothing is mapped and everything inherited. */
struct window {
    uint64_t first;
    uint32_t pages;
    uint64_t mapped[WINDOW_WORDS];
    uint64_t inherited[WINDOW_WORDS];
};

/* A snapshot's image next to its parent's. */
struct pair {
    const struct snapshot *snapshot;
    const struct image_map *map;
    const struct snapshot *parent; /* NULL: none */
    const struct image_map *parent_map;
};

static void set_bits(uint64_t words[WINDOW_WORDS], uint32_t from, uint32_t end)
{
    for (uint32_t i = from; i < end; i++)
        words[i / WORD_PAGES] |= UINT64_C(1) << (i % WORD_PAGES);
}

static bool has_any(const uint64_t words[WINDOW_WORDS], uint32_t from, uint32_t count)
{
    bool any = false;
    if (count < WORD_PAGES)
        return (words[from / WORD_PAGES] >> (from % WORD_PAGES) & ((UINT64_C(1) << count) - 1)) != 0;
    for (uint32_t i = from / WORD_PAGES; i < (from + count) / WORD_PAGES; i++)
        any = any || words[i] != 0;
    return any;
}

static bool has_all(const uint64_t words[WINDOW_WORDS], uint32_t from, uint32_t count)
{
    uint64_t inverted[WINDOW_WORDS];
    for (uint32_t i = 0; i < WINDOW_WORDS; i++)
        inverted[i] = ~words[i];
    return !has_any(inverted, from, count);
}

static const struct map_extent *find_extent(const struct image_map *map, uint64_t page, uint64_t *end)
{
    if (map == NULL || page >= map->pages)
        return NULL;
    uint64_t next;
    const struct map_extent *extent = image_map_find(map, page, &next);
    *end = MIN(*end, next);
    return extent;
}

static bool is_same_page(const struct pair *pair, const struct map_extent *own, const struct map_extent *parents,
                         uint64_t page)
{
    if (own == NULL || parents == NULL)
        return own == parents;
    return own->slot + (page - own->page) == parents->slot + (page - parents->page) &&
           strcmp(pair->snapshot->layers[own->layer].id, pair->parent->layers[parents->layer].id) == 0;
}

static void look_at_window(const struct pair *pair, uint64_t first, struct window *ret)
{
    uint64_t end = MIN(first + WINDOW_PAGES, pair->map->pages);
    *ret = (struct window){.first = first, .pages = (uint32_t)(end - first)};
    for (uint64_t page = first, next; page < end; page = next) {
        next = end;
        const struct map_extent *own = find_extent(pair->map, page, &next);
        const struct map_extent *parents = find_extent(pair->parent_map, page, &next);
        uint32_t from = (uint32_t)(page - first);
        uint32_t until = (uint32_t)(next - first);
        if (own != NULL)
            set_bits(ret->mapped, from, until);
        if (pair->parent != NULL && is_same_page(pair, own, parents, page))
            set_bits(ret->inherited, from, until);
    }
    set_bits(ret->inherited, ret->pages, WINDOW_PAGES);
}

enum block_kind { BLOCK_ZERO, BLOCK_INHERITED, BLOCK_FRESH };

static enum block_kind classify(const struct window *window, uint32_t page, uint32_t pages)
{
    if (!has_any(window->mapped, page, pages))
        return BLOCK_ZERO;
    return has_all(window->inherited, page, pages) ? BLOCK_INHERITED : BLOCK_FRESH;
}

static uint32_t block_length(const struct window *window, uint32_t page, uint32_t pages)
{
    return MIN(pages, window->pages - page) * IMAGE_PAGE_BYTES;
}

static void count_window(const struct window *window, struct dedup_image *image)
{
    for (size_t size = 0; size < DEDUP_SIZES; size++) {
        uint32_t pages = dedup_block_bytes[size] / IMAGE_PAGE_BYTES;
        struct dedup_row *row = &image->rows[size];
        for (uint32_t page = 0; page < window->pages; page += pages) {
            enum block_kind kind = classify(window, page, pages);
            row->zero_blocks += kind == BLOCK_ZERO;
            row->inherited_blocks += kind == BLOCK_INHERITED;
            if (kind == BLOCK_FRESH) {
                row->fresh.count++;
                row->fresh.bytes += block_length(window, page, pages);
            }
        }
    }
}

/* ---- the table of blocks ---- */

/* The block's entry; a new one has no stored_bytes yet. NULL: another pass's. */
static struct entry *find_entry(struct examination *examination, XXH128_hash_t digest, bool *ret_full)
{
    *ret_full = false;
    if (digest.high64 % examination->report.passes != examination->pass)
        return NULL;
    for (size_t slot = digest.low64 & (examination->slots - 1);; slot = (slot + 1) & (examination->slots - 1)) {
        struct entry *entry = &examination->table[slot];
        if (entry->stored_bytes == 0) {
            *ret_full = examination->filled >= TABLE_FILL(examination->slots);
            if (*ret_full)
                return NULL;
            examination->filled++;
            entry->digest[0] = digest.low64;
            entry->digest[1] = digest.high64;
            return entry;
        }
        if (entry->digest[0] == digest.low64 && entry->digest[1] == digest.high64)
            return entry;
    }
}

static void add_block(struct dedup_blocks *blocks, uint32_t length, uint32_t stored_bytes)
{
    blocks->count++;
    blocks->bytes += length;
    blocks->compressed_bytes += stored_bytes;
}

/* `seed` keeps blocks of different sizes and images apart. */
static int note_block(struct examination *examination, uint32_t node, const void *block, uint32_t length,
                      uint64_t seed, struct dedup_row *row, struct error *err)
{
    bool full;
    struct entry *entry = find_entry(examination, XXH3_128bits_withSeed(block, length, seed), &full);
    if (full)
        return error_set(err, E2BIG,
                         "there are more distinct blocks than the snapshots had when they were counted");
    if (entry == NULL)
        return 0;
    if (entry->stored_bytes == 0) {
        const void *stored;
        size_t stored_length;
        codec_encode(examination->encoder, block, length, examination->compressed, &stored, &stored_length);
        entry->stored_bytes = (uint32_t)stored_length;
        entry->holder = node;
        add_block(&row->all, length, entry->stored_bytes);
        add_block(&row->chain, length, entry->stored_bytes);
    } else if (!descends(examination, node, entry->holder)) {
        entry->holder = node;
        add_block(&row->chain, length, entry->stored_bytes);
    }
    row->fresh.compressed_bytes += entry->stored_bytes;
    return 0;
}

static int note_window(struct examination *examination, uint32_t node, enum image_kind kind,
                       const struct window *window, struct error *err)
{
    for (size_t size = 0; size < DEDUP_SIZES; size++) {
        uint32_t pages = dedup_block_bytes[size] / IMAGE_PAGE_BYTES;
        for (uint32_t page = 0; page < window->pages; page += pages) {
            if (classify(window, page, pages) != BLOCK_FRESH)
                continue;
            int r = note_block(examination, node, examination->window + (size_t)page * IMAGE_PAGE_BYTES,
                               block_length(window, page, pages), kind * DEDUP_SIZES + size,
                               &examination->report.images[kind].rows[size], err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* ---- walks ---- */

static int load(const struct examination *examination, uint32_t node, struct snapshot *ret, struct error *err)
{
    CLEANUP_FREE char *path = manifest_path(examination, examination->nodes[node].id);
    int r = path != NULL ? manifest_read(path, MANIFEST_ALL, ret, err) : error_set(err, ENOMEM, "out of memory");
    return r < 0 ? error_wrap(err, r, "snapshot %s", examination->nodes[node].id) : 0;
}

/* A snapshot and its parent; with `open`, its images. A map moves into the image when that is opened. */
struct visit {
    struct snapshot snapshot;
    struct snapshot parent;
    struct image *images[IMAGE_KINDS];
};

static void end_visit(struct visit *visit)
{
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        image_close(visit->images[kind]);
    snapshot_done(&visit->snapshot);
    snapshot_done(&visit->parent);
    *visit = (struct visit){0};
}

static int try_visit(const struct examination *examination, uint32_t node, bool open, struct visit *ret,
                     struct error *err)
{
    struct visit visit = {0};
    int r = load(examination, node, &visit.snapshot, err);
    if (r == 0 && examination->nodes[node].parent != NO_PARENT)
        r = load(examination, examination->nodes[node].parent, &visit.parent, err);
    for (enum image_kind kind = 0; open && r == 0 && kind < IMAGE_KINDS; kind++)
        if (visit.snapshot.maps[kind].pages > 0)
            r = image_open(examination->layers_fd, &visit.snapshot, kind, &visit.images[kind], err);
    if (r < 0)
        end_visit(&visit);
    else
        *ret = visit;
    return r;
}

/* Compaction and gc may take a layer's name between the reading of the manifest and the opening: then again. */
static int begin_visit(const struct examination *examination, uint32_t node, bool open, struct visit *ret,
                       struct error *err)
{
    int r = -ENOENT;
    for (unsigned i = 0; r == -ENOENT && i < LOAD_RETRIES; i++)
        r = try_visit(examination, node, open, ret, err);
    return r;
}

static struct pair make_pair(const struct examination *examination, uint32_t node, const struct visit *visit,
                             enum image_kind kind)
{
    bool has_parent = examination->nodes[node].parent != NO_PARENT;
    const struct image *image = visit->images[kind];
    return (struct pair){
        .snapshot = &visit->snapshot,
        .map = image != NULL ? image_map(image) : &visit->snapshot.maps[kind],
        .parent = has_parent ? &visit->parent : NULL,
        .parent_map = has_parent ? &visit->parent.maps[kind] : NULL,
    };
}

static int count_node(struct examination *examination, uint32_t node, struct error *err)
{
    struct visit visit;
    int r = begin_visit(examination, node, false, &visit, err);
    if (r < 0)
        return r;
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++) {
        struct pair pair = make_pair(examination, node, &visit, kind);
        struct dedup_image *image = &examination->report.images[kind];
        struct window window;
        image->bytes += pair.map->pages * IMAGE_PAGE_BYTES;
        for (uint64_t first = 0; first < pair.map->pages; first += WINDOW_PAGES) {
            look_at_window(&pair, first, &window);
            count_window(&window, image);
        }
    }
    end_visit(&visit);
    return 0;
}

static int read_image(struct examination *examination, uint32_t node, const struct visit *visit,
                      enum image_kind kind, struct error *err)
{
    struct pair pair = make_pair(examination, node, visit, kind);
    struct window window;
    int r = 0;
    for (uint64_t first = 0; r == 0 && first < pair.map->pages; first += WINDOW_PAGES) {
        look_at_window(&pair, first, &window);
        if (classify(&window, 0, WINDOW_PAGES) != BLOCK_FRESH)
            continue;
        r = image_read(visit->images[kind], first, window.pages, examination->frame, examination->window, err);
        if (r == 0)
            r = note_window(examination, node, kind, &window, err);
    }
    return r;
}

static int read_node(struct examination *examination, uint32_t node, struct error *err)
{
    struct visit visit;
    int r = begin_visit(examination, node, true, &visit, err);
    if (r < 0)
        return r;
    for (enum image_kind kind = 0; r == 0 && kind < IMAGE_KINDS; kind++)
        r = read_image(examination, node, &visit, kind, err);
    end_visit(&visit);
    return r < 0 ? error_wrap(err, r, "snapshot %s", examination->nodes[node].id) : 0;
}

/* ---- what the store holds now ---- */

struct layer_use {
    struct snapshot_layer layer;
    enum image_kind kind;
};

static int compare_uses(const void *a, const void *b)
{
    return strcmp(((const struct layer_use *)a)->layer.id, ((const struct layer_use *)b)->layer.id);
}

static int collect_uses(struct examination *examination, struct layer_use **uses, size_t *count, struct error *err)
{
    for (uint32_t node = 0; node < examination->count; node++) {
        CLEANUP(snapshot_done) struct snapshot snapshot = {0};
        int r = load(examination, node, &snapshot, err);
        if (r < 0)
            return r;
        struct layer_use *larger = realloc(*uses, (*count + snapshot.layer_count + (size_t)1) * sizeof(*larger));
        if (larger == NULL)
            return error_set(err, ENOMEM, "out of memory");
        *uses = larger;
        for (uint32_t i = 0; i < snapshot.layer_count; i++)
            larger[*count + i] = (struct layer_use){snapshot.layers[i], IMAGE_DISK};
        for (size_t i = 0; i < snapshot.maps[IMAGE_MEMORY].count; i++)
            larger[*count + snapshot.maps[IMAGE_MEMORY].extents[i].layer].kind = IMAGE_MEMORY;
        *count += snapshot.layer_count;
    }
    return 0;
}

static int measure_layers(struct examination *examination, struct error *err)
{
    CLEANUP_FREE struct layer_use *uses = NULL;
    size_t count = 0;
    int r = collect_uses(examination, &uses, &count, err);
    if (r < 0 || count == 0)
        return r;
    qsort(uses, count, sizeof(*uses), compare_uses);
    for (size_t i = 0; i < count; i++) {
        struct layer *layer;
        if (i > 0 && strcmp(uses[i].layer.id, uses[i - 1].layer.id) == 0)
            continue;
        r = layer_open(examination->layers_fd, uses[i].layer.id, uses[i].layer.bytes, &layer, err);
        if (r < 0)
            return r;
        struct dedup_image *image = &examination->report.images[uses[i].kind];
        image->stored_bytes += uses[i].layer.bytes;
        image->stored_pages += layer_page_count(layer);
        layer_close(layer);
    }
    return 0;
}

/* ---- all of it ---- */

static uint64_t count_fresh(const struct dedup_report *report)
{
    uint64_t fresh = 0;
    for (enum image_kind kind = 0; kind < IMAGE_KINDS; kind++)
        for (size_t size = 0; size < DEDUP_SIZES; size++)
            fresh += report->images[kind].rows[size].fresh.count;
    return fresh;
}

/* Digests fall into the passes evenly, but not exactly so. */
static int make_table(struct examination *examination, uint64_t memory_limit, struct error *err)
{
    uint64_t fresh = count_fresh(&examination->report);
    size_t most = 1024;
    while (2 * most * sizeof(struct entry) <= memory_limit)
        most *= 2;
    examination->slots = 1024;
    while (examination->slots < most && TABLE_FILL(examination->slots) < fresh)
        examination->slots *= 2;
    uint64_t each = TABLE_FILL(examination->slots) / 16 * 15;
    uint64_t passes = fresh <= TABLE_FILL(examination->slots) ? 1 : fresh / each + 1;
    if (passes > PASSES_MAX) {
        error_set(err, E2BIG, "%llu blocks don't fit into %llu MiB", (unsigned long long)fresh,
                  (unsigned long long)(memory_limit >> 20));
        error_hint(err, "give more with --memory, or name fewer snapshots");
        return -E2BIG;
    }
    examination->report.passes = (unsigned)passes;
    examination->table = calloc(examination->slots, sizeof(*examination->table));
    examination->window = malloc((size_t)WINDOW_PAGES * IMAGE_PAGE_BYTES);
    examination->compressed = malloc((size_t)WINDOW_PAGES * IMAGE_PAGE_BYTES);
    examination->encoder = codec_encoder_new(LAYER_CODEC_ZSTD);
    if (examination->table == NULL || examination->window == NULL || examination->compressed == NULL ||
        examination->encoder == NULL)
        return error_set(err, ENOMEM, "out of memory");
    return frame_buffer_new(&examination->frame, err);
}

static int read_all(struct examination *examination, struct error *err)
{
    int r = 0;
    for (examination->pass = 0; r == 0 && examination->pass < examination->report.passes; examination->pass++) {
        memset(examination->table, 0, examination->slots * sizeof(*examination->table));
        examination->filled = 0;
        for (uint32_t node = 0; r == 0 && node < examination->count; node++)
            r = read_node(examination, node, err);
    }
    return r;
}

static int open_layers(struct examination *examination, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/layers", examination->data_directory) < 0)
        return error_set(err, ENOMEM, "out of memory");
    examination->layers_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return examination->layers_fd < 0 ? error_errno(err, "cannot open %s", path) : 0;
}

static void end_examination(struct examination *examination)
{
    cleanup_close(&examination->layers_fd);
    codec_encoder_free(examination->encoder);
    if (examination->frame != NULL)
        frame_buffer_free(examination->frame);
    free(examination->window);
    free(examination->compressed);
    free(examination->table);
    free(examination->nodes);
    dedup_report_done(&examination->report);
}

static int try_examine(const char *data_directory, char *const *ids, size_t id_count, uint64_t memory_limit,
                       struct dedup_report *ret, struct error *err)
{
    struct examination examination = {.data_directory = data_directory, .layers_fd = -1};
    int r;
    if ((r = choose_snapshots(&examination, ids, id_count, err)) == 0 &&
        (r = open_layers(&examination, err)) == 0 && (r = arrange(&examination, err)) == 0)
        for (uint32_t node = 0; r == 0 && node < examination.count; node++)
            r = count_node(&examination, node, err);
    if (r == 0 && (r = measure_layers(&examination, err)) == 0 &&
        (r = make_table(&examination, memory_limit, err)) == 0)
        r = read_all(&examination, err);
    if (r == 0) {
        *ret = examination.report;
        examination.report = (struct dedup_report){0};
    } else if (r == -ENOENT && examination.report.count > 0) {
        r = -EAGAIN; /* one that has been found is gone */
    }
    end_examination(&examination);
    return r;
}

int dedup_examine(const char *data_directory, char *const *ids, size_t id_count, uint64_t memory_limit,
                  struct dedup_report *ret, struct error *err)
{
    int r = -EAGAIN;
    for (unsigned i = 0; r == -EAGAIN && i < EXAMINE_RETRIES; i++)
        r = try_examine(data_directory, ids, id_count, memory_limit, ret, err);
    if (r == -EAGAIN)
        error_hint(err,
                   "it was removed meanwhile, or is damaged: name those that stay, or look with dormouse store "
                   "verify");
    return r;
}
