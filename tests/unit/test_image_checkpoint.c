/*
 * One memory captured again and again while it goes on changing. This process is its own guest: what it captures is
 * a private mapping of a parent image, changed between the copying and the storing, too. Each capture's image must
 * be what the memory held when it was copied, and its layer no more than what changed since the capture before.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image/capture.h"
#include "random.h"
#include "store/layer.h"
#include "unit.h"

#define PAGE        ((size_t)IMAGE_PAGE_BYTES)
#define PAGES       3000u
#define GENERATIONS 12u

#define PARENT_LAYER 0u /* that of generation G is G + 1 */

struct world {
    int layers;
    int parent_fd;
    uint8_t *parent; /* its content */
    struct image_map parent_map;
    size_t pages;
    uint8_t *memory;
    struct vmm_ram_range range;
    char layer_ids[GENERATIONS][LAYER_ID_LENGTH + 1];
    uint64_t layer_bytes[GENERATIONS];
    struct image_map last_map;
    struct page_digests *digests;
};

/* Every other 16 pages of the parent hold something. */
static void world_open(const char *directory, size_t pages, uint64_t *random, struct world *ret)
{
    CLEANUP_FREE char *layers = unit_path(directory, "layers");
    CLEANUP_FREE char *path = unit_path(directory, "parent");
    *ret = (struct world){.pages = pages, .parent_map = {.pages = pages}};
    assert_int_equal(io_make_directories(layers, 0700), 0);
    ret->layers = open(layers, O_DIRECTORY | O_CLOEXEC);
    ret->parent_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(ret->layers >= 0 && ret->parent_fd >= 0);
    assert_int_equal(ftruncate(ret->parent_fd, (off_t)(pages * PAGE)), 0);
    ret->parent = calloc(pages, PAGE);
    ret->parent_map.extents = calloc(pages, sizeof(struct map_extent));
    assert_true(ret->parent != NULL && ret->parent_map.extents != NULL);
    for (uint32_t page = 0; page + 16 <= pages; page += 32) {
        random_fill(ret->parent + page * PAGE, 16 * PAGE, random);
        ret->parent_map.extents[ret->parent_map.count++] = (struct map_extent){page, 16, PARENT_LAYER, page};
    }
    assert_int_equal(io_pwrite_full(ret->parent_fd, ret->parent, pages * PAGE, 0), 0);
    ret->memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, ret->parent_fd, 0);
    assert_true(ret->memory != MAP_FAILED);
    ret->range = (struct vmm_ram_range){(uintptr_t)ret->memory, pages * PAGE, 0};
}

static void world_close(struct world *world)
{
    munmap(world->memory, world->pages * PAGE);
    close(world->layers);
    close(world->parent_fd);
    free(world->parent);
    image_map_done(&world->parent_map);
    image_map_done(&world->last_map);
    page_digests_free(world->digests);
}

static struct capture_memory source_of(const struct world *world, struct page_digests *record)
{
    return (struct capture_memory){
        .pid = getpid(),
        .ranges = &world->range,
        .range_count = 1,
        .parent = {&world->parent_map, world->parent_fd},
        .record = record,
    };
}

/* What happens to a few pages; `old` is what the memory once held. */
static void change(struct world *world, const uint8_t *old, uint64_t *random)
{
    for (unsigned i = 0; i < 40; i++) {
        size_t first = random_next(random) % world->pages;
        size_t count = MIN(1 + random_next(random) % 30, world->pages - first);
        uint8_t *at = world->memory + first * PAGE;
        switch (random_next(random) % 6) {
        case 0:
            random_fill(at, count * PAGE, random);
            break;
        case 1:
            memset(at, 0, count * PAGE);
            break;
        case 2: /* it is the parent's again, and no page of ours */
            madvise(at, count * PAGE, MADV_DONTNEED);
            break;
        case 3:
            memcpy(at, old + first * PAGE, count * PAGE);
            break;
        case 4:
            memcpy(at, world->parent + first * PAGE, count * PAGE);
            break;
        default:
            at[random_next(random) % PAGE]++;
            break;
        }
    }
}

static void read_pages(struct world *world, const struct map_extent *extent, uint8_t *to)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    unsigned generation = extent->layer - 1;
    struct layer *layer;
    struct frame_buffer *buffer;
    if (layer_open(world->layers, world->layer_ids[generation], world->layer_bytes[generation], &layer, &err) < 0 ||
        frame_buffer_new(&buffer, &err) < 0)
        fail_msg("%s", error_message(&err));
    for (uint32_t i = 0; i < extent->count; i++) {
        const uint8_t *pages;
        uint32_t slot = extent->slot + i;
        unsigned frame_pages = layer_frame_pages(layer);
        int count = layer_read_frame(layer, slot / frame_pages, buffer, &pages, &err);
        assert_true(count > (int)(slot % frame_pages));
        memcpy(to + i * PAGE, pages + slot % frame_pages * PAGE, PAGE);
    }
    frame_buffer_free(buffer);
    layer_close(layer);
}

static uint8_t *read_image(struct world *world, const struct image_map *map)
{
    uint8_t *content = calloc(world->pages, PAGE);
    assert_non_null(content);
    for (size_t i = 0; i < map->count; i++) {
        const struct map_extent *extent = &map->extents[i];
        uint8_t *to = content + extent->page * PAGE;
        if (extent->layer == PARENT_LAYER)
            memcpy(to, world->parent + extent->page * PAGE, extent->count * PAGE);
        else
            read_pages(world, extent, to);
    }
    return content;
}

/* Pages that are neither what they were at the last capture nor the parent's nor zero. */
static size_t count_new(const struct world *world, const uint8_t *now, const uint8_t *last)
{
    static const uint8_t zeros[IMAGE_PAGE_BYTES];
    size_t count = 0;
    for (size_t page = 0; page < world->pages; page++) {
        const uint8_t *content = now + page * PAGE;
        count += memcmp(content, last + page * PAGE, PAGE) != 0 && memcmp(content, zeros, PAGE) != 0 &&
                 memcmp(content, world->parent + page * PAGE, PAGE) != 0;
    }
    return count;
}

static void check_image(struct world *world, const struct image_map *map, const uint8_t *expected)
{
    CLEANUP_FREE uint8_t *image = read_image(world, map);
    for (size_t page = 0; page < world->pages; page++)
        if (memcmp(image + page * PAGE, expected + page * PAGE, PAGE) != 0)
            fail_msg("page %zu differs", page);
}

/* One capture; `changer` (may be NULL) is called between copying and storing. Returns pages in its layer. */
static size_t capture_once(struct world *world, unsigned generation, void (*changer)(struct world *, void *),
                           void *context, struct image_map *ret_map)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct page_digests *record;
    struct layer_writer *writer;
    struct capture_copy *copy;
    struct capture_result result;
    assert_int_equal(page_digests_new(world->pages, world->digests, &record, &err), 0);
    assert_int_equal(layer_writer_open(world->layers, LAYER_CODEC_ZSTD, 4, &writer, &err), 0);
    memcpy(world->layer_ids[generation], layer_writer_id(writer), LAYER_ID_LENGTH + 1);
    struct capture_memory source = source_of(world, record);
    struct capture_last last = {world->digests, &world->last_map};
    source.last = generation > 0 ? &last : NULL;
    if (capture_copy_new(&source, &copy, &err) < 0 || capture_memory_copy(copy, writer, generation + 1, &err) < 0)
        fail_msg("%s", error_message(&err));
    if (changer != NULL)
        changer(world, context);
    if (capture_memory_store(copy, &result, &err) < 0)
        fail_msg("%s", error_message(&err));
    capture_copy_free(copy);
    size_t stored = layer_writer_page_bytes(writer) / PAGE;
    assert_int_equal(layer_writer_finish(writer, &world->layer_bytes[generation], &err), 0);
    assert_int_equal(
        image_map_apply(&world->parent_map, world->pages, result.changes, result.change_count, ret_map, &err), 0);
    capture_result_done(&result);
    image_map_done(&world->last_map);
    page_digests_free(world->digests);
    world->digests = record;
    return stored;
}

struct changing {
    const uint8_t *old;
    uint64_t *random;
};

static void change_meanwhile(struct world *world, void *context)
{
    const struct changing *changing = context;
    change(world, changing->old, changing->random);
}

static void each_capture_is_what_was_copied(void **state)
{
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct world world;
        uint64_t random = seed * 7919;
        world_open(*state, PAGES, &random, &world);
        CLEANUP_FREE uint8_t *first = malloc(PAGES * PAGE);
        CLEANUP_FREE uint8_t *last = calloc(PAGES, PAGE);
        CLEANUP_FREE uint8_t *now = malloc(PAGES * PAGE);
        assert_true(first != NULL && last != NULL && now != NULL);
        change(&world, world.parent, &random);
        memcpy(first, world.memory, PAGES * PAGE);
        struct changing changing = {first, &random};
        for (unsigned generation = 0; generation < GENERATIONS; generation++) {
            change(&world, first, &random);
            memcpy(now, world.memory, PAGES * PAGE);
            size_t wanted = count_new(&world, now, last);
            struct image_map map;
            size_t stored = capture_once(&world, generation, change_meanwhile, &changing, &map);
            check_image(&world, &map, now);
            assert_true(stored >= wanted);
            /* A page that is private again after it wasn't is unknown again: few are. */
            assert_true(generation == 0 || stored <= wanted + PAGES / 4);
            world.last_map = map;
            memcpy(last, now, PAGES * PAGE);
        }
        world_close(&world);
    }
}

static void what_did_not_change_is_not_stored_again(void **state)
{
    struct world world;
    uint64_t random = 5;
    world_open(*state, PAGES, &random, &world);
    random_fill(world.memory, PAGES * PAGE, &random);
    struct image_map map;
    assert_int_equal(capture_once(&world, 0, NULL, NULL, &map), PAGES);
    world.last_map = map;
    world.memory[1234 * PAGE + 17]++;
    assert_int_equal(capture_once(&world, 1, NULL, NULL, &map), 1);
    CLEANUP_FREE uint8_t *now = malloc(PAGES * PAGE);
    assert_non_null(now);
    memcpy(now, world.memory, PAGES * PAGE);
    check_image(&world, &map, now);
    image_map_done(&map);
    world_close(&world);
}

static void scribble(struct world *world, void *context)
{
    (void)context;
    memset(world->memory, 0x55, world->pages * PAGE);
}

/* What finds no room aside is stored at once, and is as right. */
static void more_than_there_is_room_for(void **state)
{
    struct world world;
    uint64_t random = 11;
    size_t pages = (CAPTURE_ASIDE_MAX + (24u << 20)) / PAGE;
    world_open(*state, pages, &random, &world);
    /* Cheap to compress; each page is another. */
    for (size_t page = 0; page < pages; page++)
        memset(world.memory + page * PAGE, (int)(1 + page % 255), PAGE - page % 1000);
    CLEANUP_FREE uint8_t *now = malloc(pages * PAGE);
    assert_non_null(now);
    memcpy(now, world.memory, pages * PAGE);
    struct image_map map;
    assert_int_equal(capture_once(&world, 0, scribble, NULL, &map), pages);
    check_image(&world, &map, now);
    image_map_done(&map);
    world_close(&world);
}

static void digests_differ_from_secret_to_secret(void **state)
{
    (void)state;
    static const uint8_t page[IMAGE_PAGE_BYTES] = {1};
    static const uint8_t other[IMAGE_PAGE_BYTES] = {2};
    struct page_digests *first;
    struct page_digests *second;
    struct page_digests *like;
    assert_int_equal(page_digests_new(10, NULL, &first, NULL), 0);
    assert_int_equal(page_digests_new(10, NULL, &second, NULL), 0);
    assert_int_equal(page_digests_new(10, first, &like, NULL), 0);
    struct page_digest digest = page_digest_of(first, page);
    assert_false(page_digests_match(first, 3, digest));
    page_digests_set(first, 3, digest);
    assert_true(page_digests_match(first, 3, page_digest_of(like, page)));
    assert_false(page_digests_match(first, 3, page_digest_of(second, page)));
    assert_false(page_digests_match(first, 3, page_digest_of(first, other)));
    assert_false(page_digests_match(first, 4, digest));
    page_digests_set(first, 10, digest); /* beyond the end: never known */
    assert_false(page_digests_match(first, 10, digest));
    page_digests_free(first);
    page_digests_free(second);
    page_digests_free(like);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(each_capture_is_what_was_copied),
        UNIT_TEST(what_did_not_change_is_not_stored_again),
        UNIT_TEST(more_than_there_is_room_for),
        UNIT_TEST(digests_differ_from_secret_to_secret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
