#include "capture_world.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "random.h"
#include "unit.h"

void capture_make_parent(const char *directory, uint64_t *random, struct parent *ret)
{
    CLEANUP_FREE char *path = unit_path(directory, "parent");
    ret->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(ret->fd >= 0);
    assert_int_equal(ftruncate(ret->fd, (off_t)(PAGES * PAGE)), 0);
    ret->content = calloc(PAGES, PAGE);
    ret->map = (struct image_map){.extents = calloc(PAGES, sizeof(struct map_extent)), .pages = PAGES};
    assert_non_null(ret->content);
    assert_non_null(ret->map.extents);
    uint32_t slot = 5;
    for (uint32_t page = 0; page < BARE_START;) {
        page += (uint32_t)(random_next(random) % 40);
        uint32_t count = 1 + (uint32_t)(random_next(random) % (random_next(random) % 8 == 0 ? 300 : 6));
        if (page + count > BARE_START)
            break;
        random_fill(ret->content + page * PAGE, count * PAGE, random);
        assert_int_equal(io_pwrite_full(ret->fd, ret->content + page * PAGE, count * PAGE, (off_t)(page * PAGE)),
                         0);
        ret->map.extents[ret->map.count++] = (struct map_extent){page, count, PARENT_LAYER, slot};
        page += count;
        slot += count + (uint32_t)(random_next(random) % 3);
    }
}

void capture_drop_parent(struct parent *parent)
{
    close(parent->fd);
    free(parent->content);
    free(parent->map.extents);
}

int capture_make_layers(const char *directory)
{
    CLEANUP_FREE char *path = unit_path(directory, "layers");
    assert_int_equal(io_make_directories(path, 0700), 0);
    int fd = open(path, O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

int try_capture(int layers, const struct subject *subject, unsigned frame_pages, struct captured *ret,
                struct error *err)
{
    struct layer_writer *writer;
    int r = layer_writer_open(layers, LAYER_CODEC_ZSTD, frame_pages, &writer, err);
    if (r < 0)
        return r;
    snprintf(ret->layer_id, sizeof(ret->layer_id), "%s", layer_writer_id(writer));
    r = subject->memory != NULL ? capture_memory(subject->memory, writer, NEW_LAYER, &ret->result, err)
        : subject->disk != NULL
            ? capture_disk(subject->disk, writer, NEW_LAYER, &ret->result, err)
            : capture_file(subject->file, subject->file_bytes, writer, NEW_LAYER, &ret->result, err);
    if (r < 0) {
        layer_writer_abort(writer);
        return r;
    }
    return layer_writer_finish(writer, &ret->layer_bytes, err);
}

void capture(int layers, const struct subject *subject, unsigned frame_pages, struct captured *ret)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (try_capture(layers, subject, frame_pages, ret, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void read_extent(struct layer *layer, struct frame_buffer *buffer, const struct map_extent *extent,
                        uint8_t *to)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    unsigned frame_pages = layer_frame_pages(layer);
    for (uint32_t i = 0; i < extent->count; i++) {
        const uint8_t *pages;
        uint32_t slot = extent->slot + i;
        int count = layer_read_frame(layer, slot / frame_pages, buffer, &pages, &err);
        if (count < 0)
            fail_msg("%s", error_message(&err));
        assert_true((int)(slot % frame_pages) < count);
        memcpy(to + i * PAGE, pages + slot % frame_pages * PAGE, PAGE);
    }
}

uint8_t *capture_read_image(int layers, const struct parent *parent, uint64_t pages,
                            const struct captured *captured)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct image_map map;
    assert_int_equal(image_map_apply(parent != NULL ? &parent->map : NULL, pages, captured->result.changes,
                                     captured->result.change_count, &map, &err),
                     0);
    struct layer *layer;
    struct frame_buffer *buffer;
    if (layer_open(layers, captured->layer_id, captured->layer_bytes, &layer, &err) < 0 ||
        frame_buffer_new(&buffer, &err) < 0)
        fail_msg("%s", error_message(&err));
    uint8_t *content = calloc(pages, PAGE);
    assert_non_null(content);
    for (size_t i = 0; i < map.count; i++) {
        const struct map_extent *extent = &map.extents[i];
        uint8_t *to = content + extent->page * PAGE;
        if (extent->layer == NEW_LAYER)
            read_extent(layer, buffer, extent, to);
        else if (parent != NULL)
            memcpy(to, parent->content + extent->page * PAGE, extent->count * PAGE);
    }
    frame_buffer_free(buffer);
    layer_close(layer);
    image_map_done(&map);
    return content;
}

void capture_check_thrift(int layers, const struct captured *captured, const uint8_t *before, const uint8_t *after)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    uint64_t stored = 0;
    uint64_t changed = 0;
    for (size_t i = 0; i < captured->result.change_count; i++) {
        const struct map_extent *change = &captured->result.changes[i];
        for (size_t page = change->page; page < change->page + change->count; page++)
            assert_memory_not_equal(before + page * PAGE, after + page * PAGE, PAGE);
        changed += change->count;
        if (change->layer == NEW_LAYER)
            stored += change->count;
    }
    assert_int_equal(captured->result.changed_bytes, changed * PAGE);
    assert_true(captured->result.private_bytes >= captured->result.changed_bytes);
    struct layer *layer;
    assert_int_equal(layer_open(layers, captured->layer_id, captured->layer_bytes, &layer, &err), 0);
    assert_int_equal(layer_page_count(layer), stored);
    unsigned frame_pages = layer_frame_pages(layer);
    assert_int_equal(layer_frame_count(layer), (stored + frame_pages - 1) / frame_pages);
    assert_int_equal(layer_verify(layer, &err), 0);
    layer_close(layer);
}
