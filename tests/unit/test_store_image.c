#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "random.h"
#include "store/image.h"
#include "unit.h"

#define PAGES       600u
#define LAYERS      3u
#define FRAME_PAGES 4u

static uint64_t random_state = 88172645463325252u;

static uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(random_next(&random_state) >> 32) % bound;
}

/* An image whose every page begins with a number of its own, 0 where it is zero. */
struct world {
    int directory;
    struct snapshot snapshot;
    uint32_t content[PAGES];
};

static void fill_page(uint8_t *page, uint32_t content)
{
    memset(page, content == 0 ? 0 : (int)(content % 255 + 1), IMAGE_PAGE_BYTES);
    memcpy(page, &content, sizeof(content));
}

/* Adds a frame with one to four pages of the image near `page`, ascending; some that are in it are overwritten. */
static size_t add_frame(struct world *world, struct layer_writer *writer, struct frame_encoder *encoder,
                        uint32_t layer, uint32_t *page, struct map_extent *changes)
{
    static uint32_t last_content;
    uint8_t pages[FRAME_PAGES * IMAGE_PAGE_BYTES];
    uint32_t chosen[FRAME_PAGES];
    unsigned count = 0;
    while (count < FRAME_PAGES && *page < PAGES) {
        fill_page(pages + count * IMAGE_PAGE_BYTES, ++last_content);
        world->content[*page] = last_content;
        chosen[count++] = *page;
        *page += 1 + (random_below(2) == 0 ? 0 : random_below(6));
        if (random_below(8) == 0)
            break;
    }
    uint32_t slot = 0;
    assert_int_equal(layer_writer_add(writer, encoder, pages, count, &slot, NULL), 0);
    for (unsigned i = 0; i < count; i++)
        changes[i] = (struct map_extent){chosen[i], 1, layer, slot + i};
    return count;
}

static void add_layer(struct world *world)
{
    struct layer_writer *writer = NULL;
    struct frame_encoder *encoder = NULL;
    assert_int_equal(layer_writer_open(world->directory, LAYER_CODEC_LZ4, FRAME_PAGES, &writer, NULL), 0);
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    uint32_t layer = 0;
    assert_int_equal(snapshot_add_layer(&world->snapshot, layer_writer_id(writer), 0, &layer, NULL), 0);
    struct map_extent changes[2 * PAGES];
    size_t count = 0;
    for (uint32_t page = random_below(20); page < PAGES; page += random_below(30)) {
        if (random_below(5) == 0) {
            changes[count++] = (struct map_extent){page, 1, MAP_LAYER_ZERO, 0};
            world->content[page++] = 0;
        } else {
            count += add_frame(world, writer, encoder, layer, &page, &changes[count]);
        }
    }
    frame_encoder_free(encoder);
    assert_int_equal(layer_writer_finish(writer, &world->snapshot.layers[layer].bytes, NULL), 0);
    struct image_map next = {0};
    struct image_map *map = &world->snapshot.maps[IMAGE_DISK];
    count = map_changes_sort(changes, count);
    assert_int_equal(image_map_apply(map, PAGES, changes, count, &next, NULL), 0);
    image_map_done(map);
    *map = next;
}

static void world_init(struct world *world, const char *directory)
{
    *world = (struct world){.directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    assert_true(world->directory >= 0);
    for (uint32_t i = 0; i < LAYERS; i++)
        add_layer(world);
}

static void world_done(struct world *world)
{
    snapshot_done(&world->snapshot);
    close(world->directory);
}

static struct image *open_image(struct world *world)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image *image = NULL;
    if (image_open(world->directory, &world->snapshot, IMAGE_DISK, &image, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_int_equal(world->snapshot.maps[IMAGE_DISK].count, 0);
    assert_int_equal(image_pages(image), PAGES);
    return image;
}

static void expect_pages(const struct world *world, uint64_t page, size_t count, const uint8_t *bytes)
{
    uint8_t expected[IMAGE_PAGE_BYTES];
    for (size_t i = 0; i < count; i++) {
        fill_page(expected, world->content[page + i]);
        assert_memory_equal(bytes + i * IMAGE_PAGE_BYTES, expected, IMAGE_PAGE_BYTES);
    }
}

static void every_range_reads_as_it_was_written(void **state)
{
    struct world world;
    world_init(&world, *state);
    struct image *image = open_image(&world);
    struct frame_buffer *buffer = NULL;
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    CLEANUP_FREE uint8_t *bytes = malloc((size_t)PAGES * IMAGE_PAGE_BYTES);
    for (int i = 0; i < 500; i++) {
        uint64_t page = i == 0 ? 0 : random_below(PAGES);
        size_t count = i == 0 ? PAGES : random_below((uint32_t)MIN(PAGES - page, 70u) + 1);
        memset(bytes, 0x5a, count * IMAGE_PAGE_BYTES);
        assert_int_equal(image_read(image, page, count, buffer, bytes, NULL), 0);
        expect_pages(&world, page, count, bytes);
    }
    assert_int_equal(image_read(image, PAGES - 1, 2, buffer, bytes, NULL), -EINVAL);
    assert_int_equal(image_read(image, UINT64_MAX, 2, buffer, bytes, NULL), -EINVAL);
    frame_buffer_free(buffer);
    image_close(image);
    world_done(&world);
}

static void places_and_mates_lead_to_the_pages(void **state)
{
    struct world world;
    world_init(&world, *state);
    struct image *image = open_image(&world);
    struct frame_buffer *buffer = NULL;
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    size_t with_mates = 0;
    for (uint64_t page = 0; page < PAGES; page++) {
        struct image_place place;
        struct image_mate mates[LAYER_FRAME_PAGES_MAX];
        image_locate(image, page, &place);
        size_t count = image_frame_mates(image, page, mates);
        assert_true(place.count > 0 && page + place.count <= PAGES);
        assert_true(place.zero == (world.content[page] == 0));
        assert_true(place.zero == (count == 0));
        if (place.zero) {
            for (uint64_t i = 0; i < place.count; i++)
                assert_int_equal(world.content[page + i], 0);
            assert_true(page + place.count == PAGES || world.content[page + place.count] != 0);
            continue;
        }
        const uint8_t *pages = NULL;
        assert_true(layer_read_frame(place.layer, place.frame, buffer, &pages, NULL) > 0);
        expect_pages(&world, page, place.count, pages + place.index * IMAGE_PAGE_BYTES);
        bool self = false;
        for (size_t i = 0; i < count; i++) {
            assert_true(i == 0 || mates[i].page > mates[i - 1].page);
            expect_pages(&world, mates[i].page, 1, pages + mates[i].index * IMAGE_PAGE_BYTES);
            self |= mates[i].page == page && mates[i].index == place.index;
        }
        assert_true(self);
        with_mates += count > 1;

        /* All that are in that frame: nothing here is far away. */
        size_t all = 0;
        for (uint64_t other = 0; other < PAGES; other++) {
            struct image_place there;
            image_locate(image, other, &there);
            all += !there.zero && there.layer == place.layer && there.frame == place.frame;
        }
        assert_int_equal(count, all);
    }
    assert_true(with_mates > 10);
    frame_buffer_free(buffer);
    image_close(image);
    world_done(&world);
}

static void an_open_image_outlives_the_names_of_its_layers(void **state)
{
    struct world world;
    world_init(&world, *state);
    struct image *image = open_image(&world);
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_int_equal(unlinkat(world.directory, world.snapshot.layers[i].id, 0), 0);
    struct frame_buffer *buffer = NULL;
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    CLEANUP_FREE uint8_t *bytes = malloc((size_t)PAGES * IMAGE_PAGE_BYTES);
    assert_int_equal(image_read(image, 0, PAGES, buffer, bytes, NULL), 0);
    expect_pages(&world, 0, PAGES, bytes);
    frame_buffer_free(buffer);
    image_close(image);
    world_done(&world);
}

static void expect_refusal(struct world *world, enum image_kind kind, int expected, const char *named)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image *image = NULL;
    size_t extents = world->snapshot.maps[kind].count;
    assert_int_equal(image_open(world->directory, &world->snapshot, kind, &image, &err), expected);
    assert_null(image);
    assert_non_null(strstr(error_message(&err), named));
    assert_int_equal(world->snapshot.maps[kind].count, extents);
}

static void an_image_needs_its_layers(void **state)
{
    struct world world;
    world_init(&world, *state);
    expect_refusal(&world, IMAGE_MEMORY, -ENODATA, "memory");
    struct snapshot_layer *layer = &world.snapshot.layers[1];
    layer->bytes++;
    expect_refusal(&world, IMAGE_DISK, -EBADMSG, layer->id);
    layer->bytes--;
    struct map_extent *last = &world.snapshot.maps[IMAGE_DISK].extents[world.snapshot.maps[IMAGE_DISK].count - 1];
    uint32_t slot = last->slot;
    last->slot = UINT32_MAX - last->count + 1;
    expect_refusal(&world, IMAGE_DISK, -EBADMSG, world.snapshot.layers[last->layer].id);
    last->slot = slot;
    assert_int_equal(unlinkat(world.directory, layer->id, 0), 0);
    expect_refusal(&world, IMAGE_DISK, -ENOENT, layer->id);
    world_done(&world);
}

static void a_page_that_its_frame_lacks_is_an_error(void **state)
{
    struct world world = {.directory = open(*state, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    struct layer_writer *writer = NULL;
    struct frame_encoder *encoder = NULL;
    uint8_t pages[2 * IMAGE_PAGE_BYTES] = {1};
    uint32_t slot;
    uint32_t layer;
    assert_int_equal(layer_writer_open(world.directory, LAYER_CODEC_ZSTD, FRAME_PAGES, &writer, NULL), 0);
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    assert_int_equal(layer_writer_add(writer, encoder, pages, 2, &slot, NULL), 0);
    frame_encoder_free(encoder);
    assert_int_equal(snapshot_add_layer(&world.snapshot, layer_writer_id(writer), 0, &layer, NULL), 0);
    assert_int_equal(layer_writer_finish(writer, &world.snapshot.layers[0].bytes, NULL), 0);
    static const struct map_extent extent = {5, 3, 0, 0};
    assert_int_equal(image_map_apply(NULL, PAGES, &extent, 1, &world.snapshot.maps[IMAGE_DISK], NULL), 0);
    struct image *image = open_image(&world);
    struct frame_buffer *buffer = NULL;
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    uint8_t out[3 * IMAGE_PAGE_BYTES];
    assert_int_equal(image_read(image, 5, 2, buffer, out, NULL), 0);
    assert_memory_equal(out, pages, sizeof(pages));
    assert_int_equal(image_read(image, 5, 3, buffer, out, NULL), -EBADMSG);
    assert_int_equal(image_read(image, 7, 1, buffer, out, NULL), -EBADMSG);
    frame_buffer_free(buffer);
    image_close(image);
    world_done(&world);
}

static void mates_stay_within_their_room(void **state)
{
    /* Every page of a large image lies in the same slots. */
    struct world world = {.directory = open(*state, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    struct layer_writer *writer = NULL;
    struct frame_encoder *encoder = NULL;
    CLEANUP_FREE uint8_t *pages = calloc(LAYER_FRAME_PAGES_MAX, IMAGE_PAGE_BYTES);
    uint32_t slot;
    uint32_t layer;
    assert_int_equal(layer_writer_open(world.directory, LAYER_CODEC_ZSTD, LAYER_FRAME_PAGES_MAX, &writer, NULL), 0);
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    assert_int_equal(layer_writer_add(writer, encoder, pages, LAYER_FRAME_PAGES_MAX, &slot, NULL), 0);
    frame_encoder_free(encoder);
    assert_int_equal(snapshot_add_layer(&world.snapshot, layer_writer_id(writer), 0, &layer, NULL), 0);
    assert_int_equal(layer_writer_finish(writer, &world.snapshot.layers[0].bytes, NULL), 0);
    struct map_extent changes[6];
    for (uint32_t i = 0; i < 6; i++)
        changes[i] = (struct map_extent){i * 100, 100, 0, 7};
    assert_int_equal(image_map_apply(NULL, PAGES, changes, 6, &world.snapshot.maps[IMAGE_DISK], NULL), 0);
    struct image *image = open_image(&world);
    for (uint64_t page = 0; page < PAGES; page += 33) {
        struct image_mate mates[LAYER_FRAME_PAGES_MAX];
        size_t count = image_frame_mates(image, page, mates);
        assert_in_range(count, 100, LAYER_FRAME_PAGES_MAX);
        bool self = false;
        for (size_t i = 0; i < count; i++)
            self |= mates[i].page == page;
        assert_true(self);
    }
    image_close(image);
    world_done(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(every_range_reads_as_it_was_written),
        UNIT_TEST(places_and_mates_lead_to_the_pages),
        UNIT_TEST(an_open_image_outlives_the_names_of_its_layers),
        UNIT_TEST(an_image_needs_its_layers),
        UNIT_TEST(a_page_that_its_frame_lacks_is_an_error),
        UNIT_TEST(mates_stay_within_their_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
