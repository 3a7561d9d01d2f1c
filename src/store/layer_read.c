/*
 * Reads a layer.
 *
 * Opening reads header and trailer only. The frame table comes in pieces when a frame is first wanted; a piece,
 * once read, stays where it is until the layer is closed, so readers find it without a lock. Two that miss the same
 * piece both read it and one result is thrown away. The file is never mapped: a failing disk must be an error, not
 * a signal.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/io.h"
#include "store/codec.h"
#include "store/layer_format.h"

#define PIECE_FRAMES (4096u / sizeof(struct layer_frame))

#define FRAME_BYTES_MAX ((size_t)LAYER_FRAME_PAGES_MAX * IMAGE_PAGE_BYTES)

struct layer {
    int fd;
    char id[LAYER_ID_BYTES]; /* padded with NUL */
    unsigned frame_pages;
    uint32_t frames;
    uint64_t pages;
    uint64_t table_offset;
    uint64_t table_checksum;
    uint64_t file_bytes;
    _Atomic(struct layer_frame *) *pieces;
};

struct frame_buffer {
    struct codec_decoder *decoder;
    void *stored;
    void *pages;
};

static int damaged(const struct layer *layer, struct error *err, const char *what)
{
    return error_set(err, EBADMSG, "layer %s is damaged: %s", layer->id, what);
}

static int damaged_frame(const struct layer *layer, uint32_t frame, struct error *err, const char *what)
{
    return error_set(err, EBADMSG, "frame %" PRIu32 " of layer %s is damaged: %s", frame, layer->id, what);
}

static int read_exactly(const struct layer *layer, void *to, size_t length, uint64_t offset, struct error *err)
{
    ssize_t n = io_pread_full(layer->fd, to, length, (off_t)offset);
    if (n < 0)
        return error_code(err, (int)n, "cannot read layer %s at %" PRIu64, layer->id, offset);
    return (size_t)n == length ? 0 : damaged(layer, err, "it is cut short");
}

static int check_header(struct layer *layer, struct error *err)
{
    struct layer_header header;
    int r = read_exactly(layer, &header, sizeof(header), 0, err);
    if (r < 0)
        return r;
    if (memcmp(header.magic, LAYER_MAGIC, sizeof(header.magic)) != 0)
        return damaged(layer, err, "it doesn't begin as a layer does");
    if (header.checksum != layer_block_checksum(&header))
        return damaged(layer, err, "wrong checksum of its header");
    if (header.incompatible != 0)
        return error_set(err, EPROTONOSUPPORT,
                         "layer %s was written by a later version of dormouse (features %" PRIx32 ")", layer->id,
                         header.incompatible);
    if (memcmp(header.id, layer->id, sizeof(header.id)) != 0)
        return damaged(layer, err, "it is another layer, under this name");
    if (header.page_bytes != IMAGE_PAGE_BYTES)
        return damaged(layer, err, "unknown size of pages");
    if (header.frame_pages == 0 || header.frame_pages > LAYER_FRAME_PAGES_MAX ||
        (header.frame_pages & (header.frame_pages - 1)) != 0)
        return damaged(layer, err, "impossible size of frames");
    layer->frame_pages = header.frame_pages;
    return 0;
}

static int check_trailer(struct layer *layer, struct error *err)
{
    struct layer_trailer trailer;
    uint64_t end = layer->file_bytes - sizeof(trailer);
    int r = read_exactly(layer, &trailer, sizeof(trailer), end, err);
    if (r < 0)
        return r;
    if (memcmp(trailer.magic, LAYER_TRAILER_MAGIC, sizeof(trailer.magic)) != 0)
        return damaged(layer, err, "it doesn't end as a layer does");
    if (trailer.checksum != layer_block_checksum(&trailer))
        return damaged(layer, err, "wrong checksum of its trailer");
    uint64_t slots = (uint64_t)trailer.frames * layer->frame_pages;
    if (trailer.frames > LAYER_FRAMES_MAX || slots > LAYER_SLOTS_MAX)
        return damaged(layer, err, "too many frames");
    if (trailer.pages < trailer.frames || trailer.pages > slots)
        return damaged(layer, err, "impossible number of pages");
    uint64_t table_bytes = trailer.frames * sizeof(struct layer_frame);
    if (trailer.table_offset < sizeof(struct layer_header) || trailer.table_offset > end ||
        end - trailer.table_offset != table_bytes)
        return damaged(layer, err, "its frame table is not where it belongs");
    layer->frames = trailer.frames;
    layer->pages = trailer.pages;
    layer->table_offset = trailer.table_offset;
    layer->table_checksum = trailer.table_checksum;
    return 0;
}

static size_t piece_count(const struct layer *layer)
{
    return (layer->frames + PIECE_FRAMES - 1) / PIECE_FRAMES;
}

static int open_file(int layers_fd, struct layer *layer, uint64_t expected_bytes, struct error *err)
{
    /* Whatever lies under that name, opening it mustn't block. */
    layer->fd = openat(layers_fd, layer->id, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (layer->fd < 0 && errno == ENOENT)
        return error_set(err, ENOENT, "layer %s is missing", layer->id);
    struct stat st;
    if (layer->fd < 0 || fstat(layer->fd, &st) < 0)
        return error_errno(err, "cannot open layer %s", layer->id);
    if (!S_ISREG(st.st_mode))
        return damaged(layer, err, "it is not a file");
    layer->file_bytes = (uint64_t)st.st_size;
    if (expected_bytes != 0 && layer->file_bytes != expected_bytes)
        return error_set(err, EBADMSG, "layer %s is damaged: it has %" PRIu64 " bytes instead of %" PRIu64,
                         layer->id, layer->file_bytes, expected_bytes);
    if (layer->file_bytes < sizeof(struct layer_header) + sizeof(struct layer_trailer))
        return damaged(layer, err, "it is cut short");
    /* What follows a frame in the file is seldom what is wanted next. */
    posix_fadvise(layer->fd, 0, 0, POSIX_FADV_RANDOM);
    return 0;
}

int layer_open(int layers_fd, const char *id, uint64_t expected_bytes, struct layer **ret, struct error *err)
{
    if (!layer_id_valid(id))
        return error_set(err, EINVAL, "\"%s\" is not the id of a layer", id);
    struct layer *layer = calloc(1, sizeof(*layer));
    if (layer == NULL)
        return error_set(err, ENOMEM, "no memory for layer %s", id);
    memcpy(layer->id, id, LAYER_ID_LENGTH);
    layer->fd = -1;
    int r = open_file(layers_fd, layer, expected_bytes, err);
    if (r == 0)
        r = check_header(layer, err);
    if (r == 0)
        r = check_trailer(layer, err);
    if (r == 0 && layer->frames > 0) {
        layer->pieces = calloc(piece_count(layer), sizeof(*layer->pieces));
        if (layer->pieces == NULL)
            r = error_set(err, ENOMEM, "no memory for layer %s", id);
    }
    if (r < 0) {
        layer_close(layer);
        return r;
    }
    *ret = layer;
    return 0;
}

void layer_close(struct layer *layer)
{
    if (layer == NULL)
        return;
    if (layer->pieces != NULL)
        for (size_t i = 0; i < piece_count(layer); i++)
            free(layer->pieces[i]);
    free((void *)layer->pieces);
    if (layer->fd >= 0)
        close(layer->fd);
    free(layer);
}

const char *layer_id(const struct layer *layer)
{
    return layer->id;
}

unsigned layer_frame_pages(const struct layer *layer)
{
    return layer->frame_pages;
}

uint32_t layer_frame_count(const struct layer *layer)
{
    return layer->frames;
}

uint64_t layer_page_count(const struct layer *layer)
{
    return layer->pages;
}

uint64_t layer_file_bytes(const struct layer *layer)
{
    return layer->file_bytes;
}

static size_t piece_bytes(const struct layer *layer, size_t piece)
{
    return MIN(layer->frames - piece * PIECE_FRAMES, PIECE_FRAMES) * sizeof(struct layer_frame);
}

static int load_piece(struct layer *layer, size_t piece, struct layer_frame **ret, struct error *err)
{
    size_t bytes = piece_bytes(layer, piece);
    CLEANUP_FREE struct layer_frame *loaded = malloc(bytes);
    if (loaded == NULL)
        return error_set(err, ENOMEM, "no memory for the frame table of layer %s", layer->id);
    int r = read_exactly(layer, loaded, bytes,
                         layer->table_offset + piece * PIECE_FRAMES * sizeof(struct layer_frame), err);
    if (r < 0)
        return r;
    struct layer_frame *present = NULL;
    if (atomic_compare_exchange_strong(&layer->pieces[piece], &present, loaded))
        present = TAKE_PTR(loaded);
    *ret = present;
    return 0;
}

/* The frame's entry, which is within all bounds but not yet known to be right: only the frame's checksum tells. */
static int find_frame(struct layer *layer, uint32_t frame, struct layer_frame *ret, struct error *err)
{
    if (frame >= layer->frames)
        return damaged_frame(layer, frame, err, "there is no such frame");
    struct layer_frame *piece = atomic_load_explicit(&layer->pieces[frame / PIECE_FRAMES], memory_order_acquire);
    if (piece == NULL) {
        int r = load_piece(layer, frame / PIECE_FRAMES, &piece, err);
        if (r < 0)
            return r;
    }
    struct layer_frame entry = piece[frame % PIECE_FRAMES];
    if (entry.pages == 0 || entry.pages > layer->frame_pages)
        return damaged_frame(layer, frame, err, "impossible number of pages");
    if (entry.stored_bytes == 0 || entry.stored_bytes > entry.pages * IMAGE_PAGE_BYTES)
        return damaged_frame(layer, frame, err, "impossible size");
    if (entry.offset < sizeof(struct layer_header) || entry.offset > layer->table_offset ||
        entry.stored_bytes > layer->table_offset - entry.offset)
        return damaged_frame(layer, frame, err, "it lies outside of the file's frames");
    *ret = entry;
    return 0;
}

int frame_buffer_new(struct frame_buffer **ret, struct error *err)
{
    struct frame_buffer *buffer = calloc(1, sizeof(*buffer));
    if (buffer != NULL) {
        /* As large as any frame, since a buffer serves all layers; what is never touched costs no memory. */
        buffer->stored = aligned_alloc(IMAGE_PAGE_BYTES, FRAME_BYTES_MAX);
        buffer->pages = aligned_alloc(IMAGE_PAGE_BYTES, FRAME_BYTES_MAX);
        buffer->decoder = codec_decoder_new();
    }
    if (buffer == NULL || buffer->stored == NULL || buffer->pages == NULL || buffer->decoder == NULL) {
        frame_buffer_free(buffer);
        return error_set(err, ENOMEM, "no memory to read frames into");
    }
    *ret = buffer;
    return 0;
}

void frame_buffer_free(struct frame_buffer *buffer)
{
    if (buffer == NULL)
        return;
    free(buffer->stored);
    free(buffer->pages);
    codec_decoder_free(buffer->decoder);
    free(buffer);
}

int layer_read_frame(struct layer *layer, uint32_t frame, struct frame_buffer *buffer, const uint8_t **ret_pages,
                     struct error *err)
{
    struct layer_frame entry;
    int r = find_frame(layer, frame, &entry, err);
    if (r < 0)
        return r;
    r = read_exactly(layer, buffer->stored, entry.stored_bytes, entry.offset, err);
    if (r < 0)
        return r;
    if (layer_frame_checksum(&entry, layer->id, frame, buffer->stored) != entry.checksum)
        return damaged_frame(layer, frame, err, "wrong checksum");
    size_t bytes = (size_t)entry.pages * IMAGE_PAGE_BYTES;
    if (entry.codec == LAYER_CODEC_NONE && entry.stored_bytes == bytes) {
        *ret_pages = buffer->stored;
        return entry.pages;
    }
    if (!codec_decode(buffer->decoder, entry.codec, buffer->stored, entry.stored_bytes, buffer->pages, bytes))
        return damaged_frame(layer, frame, err, "it doesn't decompress to its pages");
    *ret_pages = buffer->pages;
    return entry.pages;
}

/* Frames that were added one after the other lie so, but needn't. The range is widened to whole pages: only those
 * are dropped. */
static void advise(struct layer *layer, uint32_t first, uint32_t count, int advice)
{
    struct layer_frame begin;
    struct layer_frame end;
    if (count == 0 || find_frame(layer, first, &begin, NULL) < 0 ||
        find_frame(layer, first + count - 1, &end, NULL) < 0)
        return;
    uint64_t from = begin.offset / IMAGE_PAGE_BYTES * IMAGE_PAGE_BYTES;
    uint64_t to = ROUND_UP(end.offset + end.stored_bytes, (uint64_t)IMAGE_PAGE_BYTES);
    if (from < to && to - from <= (count + UINT64_C(1)) * layer->frame_pages * IMAGE_PAGE_BYTES)
        posix_fadvise(layer->fd, (off_t)from, (off_t)(to - from), advice);
}

void layer_will_read(struct layer *layer, uint32_t first, uint32_t count)
{
    advise(layer, first, count, POSIX_FADV_WILLNEED);
}

void layer_have_read(struct layer *layer, uint32_t first, uint32_t count)
{
    advise(layer, first, count, POSIX_FADV_DONTNEED);
}

int layer_frame_info(struct layer *layer, uint32_t frame, unsigned *ret_pages, uint32_t *ret_stored_bytes,
                     struct error *err)
{
    struct layer_frame entry;
    int r = find_frame(layer, frame, &entry, err);
    if (r < 0)
        return r;
    *ret_pages = entry.pages;
    *ret_stored_bytes = entry.stored_bytes;
    return 0;
}

static int verify_table(struct layer *layer, struct error *err)
{
    XXH3_state_t *checksum = XXH3_createState();
    if (checksum == NULL)
        return error_set(err, ENOMEM, "no memory to verify layer %s", layer->id);
    XXH3_64bits_reset(checksum);
    int r = 0;
    for (size_t i = 0; i < piece_count(layer) && r == 0; i++) {
        struct layer_frame *piece = atomic_load(&layer->pieces[i]);
        if (piece == NULL)
            r = load_piece(layer, i, &piece, err);
        if (r == 0)
            XXH3_64bits_update(checksum, piece, piece_bytes(layer, i));
    }
    uint64_t digest = XXH3_64bits_digest(checksum);
    XXH3_freeState(checksum);
    if (r == 0 && digest != layer->table_checksum)
        r = damaged(layer, err, "wrong checksum of its frame table");
    return r;
}

static int verify_frames(struct layer *layer, struct frame_buffer *buffer, struct error *err)
{
    uint64_t pages = 0;
    for (uint32_t frame = 0; frame < layer->frames; frame++) {
        const uint8_t *content;
        int r = layer_read_frame(layer, frame, buffer, &content, err);
        layer_have_read(layer, frame, 1);
        if (r < 0)
            return r;
        pages += (uint64_t)r;
    }
    return pages == layer->pages ? 0 : damaged(layer, err, "its frames have another number of pages than it says");
}

int layer_verify(struct layer *layer, struct error *err)
{
    int r = check_header(layer, err);
    if (r == 0)
        r = verify_table(layer, err);
    if (r < 0)
        return r;
    struct frame_buffer *buffer;
    r = frame_buffer_new(&buffer, err);
    if (r < 0)
        return r;
    r = verify_frames(layer, buffer, err);
    frame_buffer_free(buffer);
    return r;
}
