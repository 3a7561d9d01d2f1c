/* A layer comes from a disk that anybody may have written: also one who knows how to make checksums. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/io.h"
#include "fuzz.h"
#include "store/layer_format.h"

static char directory_path[256];
static int directory = -1;

static void remove_directory(void)
{
    io_remove_tree(directory_path);
}

static void make_directory(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(directory_path, sizeof(directory_path), "%s/dormouse-fuzz-XXXXXX", base != NULL ? base : "/var/tmp");
    if (mkdtemp(directory_path) == NULL || atexit(remove_directory) != 0)
        abort();
    directory = open(directory_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        abort();
}

/* Reads every byte of every frame; whether all frames could be read. */
static bool read_frames(struct layer *layer)
{
    struct frame_buffer *buffer;
    if (frame_buffer_new(&buffer, NULL) < 0)
        abort();
    bool whole = true;
    for (uint32_t frame = 0; frame < layer_frame_count(layer); frame++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        const uint8_t *pages = NULL;
        int r = layer_read_frame(layer, frame, buffer, &pages, &err);
        if ((r < 0 && err.message == NULL) || r == 0 || (r > 0 && (unsigned)r > layer_frame_pages(layer)))
            abort();
        whole &= r > 0;
        for (size_t i = 0; r > 0 && i < (size_t)r * IMAGE_PAGE_BYTES; i++)
            (void)((const volatile uint8_t *)pages)[i];
    }
    frame_buffer_free(buffer);
    return whole;
}

static void read_layer(const uint8_t *data, size_t size, const char *id)
{
    int fd = openat(directory, id, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || io_write_full(fd, data, size) < 0)
        abort();
    close(fd);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct layer *layer = NULL;
    int r = layer_open(directory, id, 0, &layer, &err);
    unlinkat(directory, id, 0);
    if (r < 0) {
        if (err.message == NULL)
            abort();
        return;
    }
    bool whole = read_frames(layer);
    if (layer_verify(layer, &err) == 0 && !whole)
        abort();
    layer_close(layer);
}

static void sign_frame(uint8_t *data, size_t size, const char *id, uint8_t *at, uint32_t number)
{
    struct layer_frame frame;
    memcpy(&frame, at, sizeof(frame));
    if (frame.offset > size || frame.stored_bytes > size - frame.offset)
        return;
    frame.checksum = layer_frame_checksum(&frame, id, number, data + frame.offset);
    memcpy(at, &frame, sizeof(frame));
}

/* Gives the id and right checksums to whatever lies where it may, so that the fuzzer gets past them. */
static void sign(uint8_t *data, size_t size, const char id[LAYER_ID_BYTES])
{
    struct layer_header header;
    struct layer_trailer trailer;
    if (size < sizeof(header) + sizeof(trailer))
        return;
    memcpy(&header, data, sizeof(header));
    memcpy(header.id, id, sizeof(header.id));
    header.checksum = layer_block_checksum(&header);
    memcpy(data, &header, sizeof(header));

    size_t end = size - sizeof(trailer);
    memcpy(&trailer, data + end, sizeof(trailer));
    if (trailer.table_offset <= end) {
        size_t frames = (end - trailer.table_offset) / sizeof(struct layer_frame);
        for (uint32_t i = 0; i < frames; i++)
            sign_frame(data, size, id, data + trailer.table_offset + i * sizeof(struct layer_frame), i);
        trailer.table_checksum = XXH3_64bits(data + trailer.table_offset, frames * sizeof(struct layer_frame));
    }
    trailer.checksum = layer_block_checksum(&trailer);
    memcpy(data + end, &trailer, sizeof(trailer));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char any_id[LAYER_ID_BYTES] = "aaaaaaaaaaaaaaaaaaaa";
    char id[LAYER_ID_LENGTH + 1] = {0};
    if (directory < 0)
        make_directory();
    if (size >= sizeof(struct layer_header))
        memcpy(id, data + offsetof(struct layer_header, id), LAYER_ID_LENGTH);
    read_layer(data, size, layer_id_valid(id) ? id : any_id);
    CLEANUP_FREE uint8_t *copy = malloc(size + (size == 0));
    if (copy == NULL)
        abort();
    memcpy(copy, data, size);
    sign(copy, size, any_id);
    read_layer(copy, size, any_id);
    return 0;
}
