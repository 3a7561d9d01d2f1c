#include <errno.h>

#include "random.h"
#include "store/map.h"
#include "unit.h"

#define PAGES  512u
#define LAYERS 3u

/* A place in a layer for each page; layer MAP_LAYER_ZERO: zero. */
struct place {
    uint32_t layer;
    uint32_t slot;
};

static uint64_t random_state = 88172645463325252u;

static uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(random_next(&random_state) >> 32) % bound;
}

static void check_form(const struct image_map *map)
{
    for (size_t i = 1; i < map->count; i++) {
        const struct map_extent *last = &map->extents[i - 1];
        const struct map_extent *next = &map->extents[i];
        assert_true(next->page >= last->page + last->count);
        assert_false(next->page == last->page + last->count && next->layer == last->layer &&
                     next->slot == last->slot + last->count);
    }
}

static void check_against(const struct image_map *map, const struct place *places)
{
    check_form(map);
    for (uint64_t page = 0; page < map->pages; page++) {
        uint64_t next = 0;
        const struct map_extent *extent = image_map_find(map, page, &next);
        if (extent == NULL) {
            assert_int_equal(places[page].layer, MAP_LAYER_ZERO);
        } else {
            assert_int_equal(places[page].layer, extent->layer);
            assert_int_equal(places[page].slot, extent->slot + (page - extent->page));
        }
        assert_true(next > page && next <= map->pages);
        assert_ptr_equal(image_map_find(map, next - 1, NULL), extent);
        if (next < map->pages)
            assert_ptr_not_equal(image_map_find(map, next, NULL), extent);
    }
}

/* Changes at random, in the order of pages; applied to the model, too. */
static size_t make_changes(struct map_extent *changes, struct place *places, uint32_t pages)
{
    size_t count = 0;
    for (uint32_t page = random_below(8); page < pages;) {
        struct map_extent change = {
            .page = page,
            .count = MIN(1 + random_below(20), pages - page),
            .layer = random_below(4) == 0 ? MAP_LAYER_ZERO : random_below(LAYERS),
            .slot = random_below(40),
        };
        /* Often one that continues the one before. */
        if (count > 0 && random_below(3) == 0 && changes[count - 1].layer != MAP_LAYER_ZERO) {
            change.layer = changes[count - 1].layer;
            change.slot = changes[count - 1].slot + (page - changes[count - 1].page);
        }
        for (uint32_t i = 0; i < change.count; i++)
            places[page + i] = (struct place){change.layer, change.slot + i};
        changes[count++] = change;
        page += change.count + (random_below(2) == 0 ? 0 : random_below(60));
    }
    return count;
}

static void shuffle(struct map_extent *changes, size_t count)
{
    for (size_t i = count; i > 1; i--) {
        size_t other = random_below((uint32_t)i);
        struct map_extent taken = changes[i - 1];
        changes[i - 1] = changes[other];
        changes[other] = taken;
    }
}

static void applied_changes_agree_with_a_model_of_pages(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        struct place places[PAGES];
        for (size_t i = 0; i < PAGES; i++)
            places[i] = (struct place){MAP_LAYER_ZERO, 0};
        struct image_map map = {0};
        uint32_t pages = PAGES - random_below(100);
        for (int depth = 0; depth < 8; depth++) {
            /* Images may grow and shrink. */
            uint32_t next_pages = random_below(4) == 0 ? PAGES - random_below(100) : pages;
            for (uint32_t page = MIN(pages, next_pages); page < PAGES; page++)
                places[page] = (struct place){MAP_LAYER_ZERO, 0};
            pages = next_pages;
            struct map_extent changes[PAGES];
            size_t count = make_changes(changes, places, pages);
            shuffle(changes, count);
            count = map_changes_sort(changes, count);
            struct image_map next = {0};
            assert_int_equal(image_map_apply(depth == 0 ? NULL : &map, pages, changes, count, &next, NULL), 0);
            image_map_done(&map);
            map = next;
            check_against(&map, places);
        }
        struct image_map decoded = {0};
        assert_int_equal(
            image_map_decode(map.extents, map.count * sizeof(*map.extents), map.pages, LAYERS, &decoded, NULL), 0);
        check_against(&decoded, places);
        assert_int_equal(decoded.count, map.count);
        image_map_done(&decoded);
        image_map_done(&map);
    }
}

static void sorting_joins_what_continues(void **state)
{
    (void)state;
    struct map_extent changes[] = {
        {20, 5, MAP_LAYER_ZERO, 7}, {10, 5, 1, 100}, {15, 5, 1, 105}, {25, 5, MAP_LAYER_ZERO, 0}, {30, 1, 1, 110},
    };
    assert_int_equal(map_changes_sort(changes, ARRAY_SIZE(changes)), 3);
    assert_int_equal(changes[0].page, 10);
    assert_int_equal(changes[0].count, 10);
    assert_int_equal(changes[1].page, 20);
    assert_int_equal(changes[1].count, 10);
    assert_int_equal(changes[2].page, 30);
    assert_int_equal(map_changes_sort(changes, 0), 0);
}

static int decode(const struct map_extent *extents, size_t count, uint64_t pages)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP(image_map_done) struct image_map map = {0};
    int r = image_map_decode(extents, count * sizeof(*extents), pages, LAYERS, &map, &err);
    assert_true((r < 0) == (err.message != NULL));
    return r;
}

static void bad_extents_are_refused(void **state)
{
    (void)state;
    static const struct map_extent good[] = {{0, 4, 0, 0}, {4, 4, 1, 9}, {100, 28, 2, UINT32_MAX - 27}};
    assert_int_equal(decode(good, ARRAY_SIZE(good), 128), 0);
    assert_int_equal(decode(good, ARRAY_SIZE(good), 127), -EBADMSG);
    assert_int_equal(decode(NULL, 0, 128), 0);
    static const struct map_extent bad[][2] = {
        {{0, 4, 0, 0}, {3, 4, 1, 0}},                     /* overlapping */
        {{4, 4, 0, 0}, {0, 4, 1, 0}},                     /* descending */
        {{4, 4, 0, 0}, {8, 0, 1, 0}},                     /* empty */
        {{4, 4, 0, 0}, {8, 1, LAYERS, 0}},                /* no such layer */
        {{4, 4, 0, 0}, {8, 1, MAP_LAYER_ZERO, 0}},        /* zero is not stored */
        {{4, 4, 0, 0}, {8, 5, 1, UINT32_MAX - 3}},        /* slots beyond the last */
        {{4, UINT32_MAX, 0, 0}, {8, 1, 1, 0}},            /* beyond the end */
        {{UINT32_MAX, UINT32_MAX, 0, 0}, {8, 120, 1, 0}}, /* no wrapping */
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(decode(bad[i], 2, 128), -EBADMSG);
    struct image_map map = {0};
    assert_int_equal(image_map_decode(good, sizeof(good) - 1, 128, LAYERS, &map, NULL), -EBADMSG);
}

static void too_many_extents_are_refused(void **state)
{
    (void)state;
    size_t count = IMAGE_MAP_EXTENTS_MAX + (size_t)1;
    struct map_extent *extents = malloc(count * sizeof(*extents));
    assert_non_null(extents);
    for (size_t i = 0; i < count; i++)
        extents[i] = (struct map_extent){(uint32_t)i * 2, 1, 0, 0};
    assert_int_equal(decode(extents, count, UINT32_MAX), -EBADMSG);
    struct image_map map = {0};
    assert_int_equal(image_map_apply(NULL, UINT32_MAX, extents, count, &map, NULL), -E2BIG);
    assert_int_equal(decode(extents, count - 1, UINT32_MAX), 0);
    free(extents);
}

static void the_largest_image_has_its_last_page(void **state)
{
    (void)state;
    uint64_t pages = UINT64_C(1) << 32;
    static const struct map_extent extents[] = {{UINT32_MAX, 1, 0, UINT32_MAX}};
    CLEANUP(image_map_done) struct image_map map = {0};
    assert_int_equal(image_map_decode(extents, sizeof(extents), pages, 1, &map, NULL), 0);
    uint64_t next = 0;
    assert_non_null(image_map_find(&map, UINT32_MAX, &next));
    assert_true(next == pages);
    assert_null(image_map_find(&map, 0, &next));
    assert_true(next == UINT32_MAX);
    assert_null(image_map_find(&map, pages, NULL));
}

static void changes_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    static const struct map_extent bad[][2] = {
        {{0, 4, 0, 0}, {3, 4, 0, 0}}, {{0, 4, 0, 0}, {4, 0, 0, 0}}, {{0, 4, 0, 0}, {100, 29, 0, 0}}};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct image_map map = {0};
        assert_int_equal(image_map_apply(NULL, 128, bad[i], 2, &map, NULL), -EINVAL);
        assert_null(map.extents);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(applied_changes_agree_with_a_model_of_pages),
        cmocka_unit_test(sorting_joins_what_continues),
        cmocka_unit_test(bad_extents_are_refused),
        cmocka_unit_test(too_many_extents_are_refused),
        cmocka_unit_test(the_largest_image_has_its_last_page),
        cmocka_unit_test(changes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
