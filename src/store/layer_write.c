/*
 * Writes a layer.
 *
 * Threads that add frames meet only where a frame gets its number and its place in the file; they compress before
 * and write after. So the table has to stay where it is while it grows: it is a list of chunks. A frame that was
 * given a place but could not be written leaves a hole, and the layer can't be finished any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/encode.h"
#include "base/io.h"
#include "store/codec.h"
#include "store/layer_format.h"

#define CHUNK_FRAMES (1u << 16)
#define CHUNKS       (LAYER_FRAMES_MAX / CHUNK_FRAMES)

/* Writing to the disk begins after so many bytes, so that little is left for the fsync in the end. */
#define WRITEBACK_BYTES (4u << 20)

#define TEMPORARY_PREFIX "tmp."

struct layer_writer {
    int layers_fd;
    int fd;
    char id[LAYER_ID_BYTES]; /* padded with NUL */
    char temporary[sizeof(TEMPORARY_PREFIX) + LAYER_ID_BYTES];
    enum layer_codec codec;
    unsigned frame_pages;
    uint32_t frames_max;
    atomic_int failure; /* negative errno of a frame that could not be written */

    pthread_mutex_t lock; /* guards what follows */
    struct layer_frame *chunks[CHUNKS];
    uint32_t frames;
    /* Read without the lock, for figures. */
    _Atomic uint64_t pages;
    _Atomic uint64_t offset; /* of the next frame */
};

struct frame_encoder {
    struct codec_encoder *codec;
};

static int out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "no memory for a layer");
}

/* Frees what belongs to the writer in memory; the file keeps its name. */
static void writer_free(struct layer_writer *writer)
{
    for (size_t i = 0; i < CHUNKS && writer->chunks[i] != NULL; i++)
        free(writer->chunks[i]);
    if (writer->fd >= 0)
        close(writer->fd);
    pthread_mutex_destroy(&writer->lock);
    free(writer);
}

void layer_writer_abort(struct layer_writer *writer)
{
    if (writer == NULL)
        return;
    unlinkat(writer->layers_fd, writer->temporary, 0);
    writer_free(writer);
}

static int create_file(struct layer_writer *writer, struct error *err)
{
    int r = random_name(writer->id, LAYER_ID_LENGTH);
    if (r < 0)
        return error_code(err, r, "no random numbers");
    snprintf(writer->temporary, sizeof(writer->temporary), TEMPORARY_PREFIX "%s", writer->id);
    writer->fd =
        openat(writer->layers_fd, writer->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (writer->fd < 0)
        return error_errno(err, "cannot create layer %s", writer->id);
    struct layer_header header = {
        .magic = LAYER_MAGIC, .page_bytes = IMAGE_PAGE_BYTES, .frame_pages = writer->frame_pages};
    memcpy(header.id, writer->id, sizeof(header.id));
    header.checksum = layer_block_checksum(&header);
    r = io_pwrite_full(writer->fd, &header, sizeof(header), 0);
    if (r < 0) {
        unlinkat(writer->layers_fd, writer->temporary, 0);
        return error_code(err, r, "cannot write layer %s", writer->id);
    }
    writer->offset = sizeof(header);
    return 0;
}

int layer_writer_open(int layers_fd, enum layer_codec codec, unsigned frame_pages, struct layer_writer **ret,
                      struct error *err)
{
    if (frame_pages == 0 || frame_pages > LAYER_FRAME_PAGES_MAX || (frame_pages & (frame_pages - 1)) != 0)
        return error_set(err, EINVAL, "%u pages in a frame: not a power of two up to %u", frame_pages,
                         LAYER_FRAME_PAGES_MAX);
    struct layer_writer *writer = calloc(1, sizeof(*writer));
    if (writer == NULL)
        return out_of_memory(err);
    writer->layers_fd = layers_fd;
    writer->fd = -1;
    writer->codec = codec;
    writer->frame_pages = frame_pages;
    writer->frames_max = (uint32_t)MIN(LAYER_SLOTS_MAX / frame_pages, (uint64_t)LAYER_FRAMES_MAX);
    pthread_mutex_init(&writer->lock, NULL);
    int r = create_file(writer, err);
    if (r < 0) {
        writer_free(writer);
        return r;
    }
    *ret = writer;
    return 0;
}

const char *layer_writer_id(const struct layer_writer *writer)
{
    return writer->id;
}

unsigned layer_writer_frame_pages(const struct layer_writer *writer)
{
    return writer->frame_pages;
}

int frame_encoder_new(const struct layer_writer *writer, struct frame_encoder **ret, struct error *err)
{
    struct frame_encoder *encoder = malloc(sizeof(*encoder));
    if (encoder == NULL)
        return out_of_memory(err);
    encoder->codec = codec_encoder_new(writer->codec, (size_t)writer->frame_pages * IMAGE_PAGE_BYTES);
    if (encoder->codec == NULL) {
        free(encoder);
        return out_of_memory(err);
    }
    *ret = encoder;
    return 0;
}

void frame_encoder_free(struct frame_encoder *encoder)
{
    if (encoder == NULL)
        return;
    codec_encoder_free(encoder->codec);
    free(encoder);
}

/* Gives the frame a number and a place. *ret_entry is its entry in the table, which nobody else touches. */
static int allot(struct layer_writer *writer, struct layer_frame *frame, uint32_t *ret_number,
                 struct layer_frame **ret_entry, struct error *err)
{
    pthread_mutex_lock(&writer->lock);
    uint32_t number = writer->frames;
    if (number == writer->frames_max) {
        pthread_mutex_unlock(&writer->lock);
        return error_set(err, E2BIG, "layer %s is full", writer->id);
    }
    struct layer_frame **chunk = &writer->chunks[number / CHUNK_FRAMES];
    if (*chunk == NULL)
        *chunk = malloc(CHUNK_FRAMES * sizeof(**chunk));
    if (*chunk == NULL) {
        pthread_mutex_unlock(&writer->lock);
        return out_of_memory(err);
    }
    frame->offset = writer->offset;
    writer->offset += frame->stored_bytes;
    writer->pages += frame->pages;
    writer->frames++;
    *ret_number = number;
    *ret_entry = &(*chunk)[number % CHUNK_FRAMES];
    pthread_mutex_unlock(&writer->lock);
    return 0;
}

/* Whoever passes the end of a window has the window before it written, which others have most likely filled by now.
 */
static void begin_writeback(const struct layer_writer *writer, const struct layer_frame *frame)
{
    uint64_t window = frame->offset / WRITEBACK_BYTES;
    if (window > 0 && (frame->offset + frame->stored_bytes) / WRITEBACK_BYTES > window)
        sync_file_range(writer->fd, (off_t)((window - 1) * WRITEBACK_BYTES), WRITEBACK_BYTES,
                        SYNC_FILE_RANGE_WRITE);
}

int layer_writer_add(struct layer_writer *writer, struct frame_encoder *encoder, const void *pages, unsigned count,
                     uint32_t *ret_slot, struct error *err)
{
    if (count == 0 || count > writer->frame_pages)
        return error_set(err, EINVAL, "%u pages for a frame of %u", count, writer->frame_pages);
    const void *stored;
    size_t stored_bytes;
    struct layer_frame frame = {.pages = (uint16_t)count};
    frame.codec =
        (uint16_t)codec_encode(encoder->codec, pages, (size_t)count * IMAGE_PAGE_BYTES, &stored, &stored_bytes);
    frame.stored_bytes = (uint32_t)stored_bytes;
    uint32_t number = 0;
    struct layer_frame *entry = NULL;
    int r = allot(writer, &frame, &number, &entry, err);
    if (r < 0)
        return r;
    frame.checksum = layer_frame_checksum(&frame, writer->id, number, stored);
    *entry = frame;
    r = io_pwrite_full(writer->fd, stored, stored_bytes, (off_t)frame.offset);
    if (r < 0) {
        atomic_store(&writer->failure, r);
        return error_code(err, r, "cannot write layer %s", writer->id);
    }
    begin_writeback(writer, &frame);
    *ret_slot = number * writer->frame_pages;
    return 0;
}

uint64_t layer_writer_stored_bytes(const struct layer_writer *writer)
{
    return writer->offset - sizeof(struct layer_header);
}

uint64_t layer_writer_page_bytes(const struct layer_writer *writer)
{
    return writer->pages * IMAGE_PAGE_BYTES;
}

static int write_table(struct layer_writer *writer, struct layer_trailer *trailer)
{
    XXH3_state_t *checksum = XXH3_createState();
    if (checksum == NULL)
        return -ENOMEM;
    XXH3_64bits_reset(checksum);
    int r = 0;
    for (uint32_t first = 0; first < writer->frames && r == 0; first += CHUNK_FRAMES) {
        const struct layer_frame *chunk = writer->chunks[first / CHUNK_FRAMES];
        size_t bytes = MIN(writer->frames - first, CHUNK_FRAMES) * sizeof(*chunk);
        XXH3_64bits_update(checksum, chunk, bytes);
        r = io_pwrite_full(writer->fd, chunk, bytes,
                           (off_t)(trailer->table_offset + first * sizeof(struct layer_frame)));
    }
    trailer->table_checksum = XXH3_64bits_digest(checksum);
    XXH3_freeState(checksum);
    return r;
}

static int write_end(struct layer_writer *writer, uint64_t *ret_bytes)
{
    struct layer_trailer trailer = {.magic = LAYER_TRAILER_MAGIC,
                                    .table_offset = writer->offset,
                                    .frames = writer->frames,
                                    .pages = writer->pages};
    int r = write_table(writer, &trailer);
    if (r < 0)
        return r;
    trailer.checksum = layer_block_checksum(&trailer);
    uint64_t offset = trailer.table_offset + trailer.frames * sizeof(struct layer_frame);
    r = io_pwrite_full(writer->fd, &trailer, sizeof(trailer), (off_t)offset);
    if (r < 0)
        return r;
    *ret_bytes = offset + sizeof(trailer);
    return fsync(writer->fd) < 0 ? -errno : 0;
}

static int publish(struct layer_writer *writer)
{
    if (renameat(writer->layers_fd, writer->temporary, writer->layers_fd, writer->id) < 0)
        return -errno;
    if (fsync(writer->layers_fd) < 0) {
        int r = -errno;
        unlinkat(writer->layers_fd, writer->id, 0);
        return r;
    }
    return 0;
}

int layer_writer_finish(struct layer_writer *writer, uint64_t *ret_bytes, struct error *err)
{
    uint64_t bytes = 0;
    int r = atomic_load(&writer->failure);
    if (r == 0)
        r = write_end(writer, &bytes);
    if (r == 0)
        r = publish(writer);
    if (r < 0) {
        error_code(err, r, "cannot write layer %s", writer->id);
        layer_writer_abort(writer);
        return r;
    }
    writer_free(writer);
    *ret_bytes = bytes;
    return 0;
}
