/* An overlay that may occupy only so much of the disk. */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "overlay_world.h"

static int write_block(struct overlay *overlay, uint64_t block, uint8_t value)
{
    uint8_t bytes[OVERLAY_BLOCK_BYTES];
    memset(bytes, value, sizeof(bytes));
    return overlay_write(overlay, block * BLOCK, sizeof(bytes), bytes);
}

/* Blocks from 0 on, until one is refused. */
static unsigned write_until_full(struct overlay *overlay)
{
    for (unsigned block = 0; block < BLOCKS; block++) {
        int r = write_block(overlay, block, 1);
        if (r == -ENOSPC)
            return block;
        assert_int_equal(r, 0);
    }
    return BLOCKS;
}

static void test_limit(void **state)
{
    struct overlay *overlay = open_with(*state, DISK, read_numbers, NULL);
    overlay_set_limit(overlay, 100 * BLOCK);
    unsigned full = write_until_full(overlay);
    assert_in_range(full, 90, 100); /* a file system may need a block for itself */
    assert_true(overlay_used_bytes(overlay) <= 100 * BLOCK);
    uint8_t part = 9;
    assert_int_equal(overlay_write(overlay, full * BLOCK + 5, 1, &part), -ENOSPC);
    uint8_t bytes[OVERLAY_BLOCK_BYTES];
    uint64_t number;
    assert_int_equal(overlay_read(overlay, full * BLOCK, sizeof(bytes), bytes), 0);
    memcpy(&number, bytes, sizeof(number));
    assert_int_equal(number, full); /* the base's, still */
    /* What is there can be changed, and given back, which makes room. */
    for (unsigned block = 0; block < full; block++)
        assert_int_equal(write_block(overlay, block, 2), 0);
    assert_int_equal(overlay_write(overlay, 5, 1, &part), 0);
    assert_int_equal(overlay_zero(overlay, 0, 50 * BLOCK), 0);
    assert_int_equal(write_block(overlay, full, 3), 0);
    assert_int_equal(overlay_zero(overlay, 600 * BLOCK, BLOCK), 0);
    /* Frozen generations count. */
    overlay_set_limit(overlay, 100 * BLOCK);
    freeze(overlay);
    unsigned more = 0;
    while (more < 100 && write_block(overlay, 300 + more, 4) == 0)
        more++;
    assert_in_range(more, 35, 55);
    /* And so does what is found when it is opened. */
    assert_int_equal(overlay_flush(overlay), 0);
    overlay_close(overlay);
    overlay = open_with(*state, DISK, read_numbers, NULL);
    overlay_set_limit(overlay, 100 * BLOCK);
    assert_in_range(write_until_full(overlay), 0, 12);
    overlay_set_limit(overlay, 0);
    assert_int_equal(write_until_full(overlay), BLOCKS);
    overlay_close(overlay);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(test_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
