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
#include <sys/uio.h>
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
    uint8_t *out; /* compressed frames, each with as much room as before */
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

static unsigned pages_at_once(const struct layer_writer *writer)
{
    return MAX(writer->frame_pages, LAYER_ADD_PAGES);
}

int frame_encoder_new(const struct layer_writer *writer, struct frame_encoder **ret, struct error *err)
{
    struct frame_encoder *encoder = calloc(1, sizeof(*encoder));
    if (encoder == NULL)
        return out_of_memory(err);
    encoder->codec = codec_encoder_new(writer->codec);
    encoder->out = malloc((size_t)pages_at_once(writer) * IMAGE_PAGE_BYTES);
    if (encoder->codec == NULL || encoder->out == NULL) {
        frame_encoder_free(encoder);
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
    free(encoder->out);
    free(encoder);
}

/* The entry of a frame that has a number. */
static struct layer_frame *table_entry(struct layer_writer *writer, uint32_t number)
{
    return &writer->chunks[number / CHUNK_FRAMES][number % CHUNK_FRAMES];
}

/* The lock is held. */
static int extend_table(struct layer_writer *writer, uint32_t frames, struct error *err)
{
    if (frames > writer->frames_max)
        return error_set(err, E2BIG, "layer %s is full", writer->id);
    struct layer_frame **chunk = &writer->chunks[(frames - 1) / CHUNK_FRAMES];
    if (*chunk == NULL)
        *chunk = malloc(CHUNK_FRAMES * sizeof(**chunk));
    return *chunk == NULL ? out_of_memory(err) : 0;
}

/* Gives frames numbers and a place, one after the other. Their entries in the table are nobody else's. */
static int allot(struct layer_writer *writer, struct layer_frame *frames, uint32_t count, uint32_t *ret_number,
                 struct error *err)
{
    pthread_mutex_lock(&writer->lock);
    int r = extend_table(writer, writer->frames + count, err);
    if (r == 0) {
        *ret_number = writer->frames;
        writer->frames += count;
        for (uint32_t i = 0; i < count; i++) {
            frames[i].offset = writer->offset;
            writer->offset += frames[i].stored_bytes;
            writer->pages += frames[i].pages;
        }
    }
    pthread_mutex_unlock(&writer->lock);
    return r;
}

/* Whoever passes the end of a window has the window before it written, which others have most likely filled by now.
 */
static void begin_writeback(const struct layer_writer *writer, uint64_t start, uint64_t end)
{
    uint64_t window = start / WRITEBACK_BYTES;
    if (window > 0 && end / WRITEBACK_BYTES > window)
        sync_file_range(writer->fd, (off_t)((window - 1) * WRITEBACK_BYTES), WRITEBACK_BYTES,
                        SYNC_FILE_RANGE_WRITE);
}

static int write_frames(const struct layer_writer *writer, const struct layer_frame *frames,
                        const struct iovec *stored, uint32_t count)
{
    uint64_t end = frames[count - 1].offset + frames[count - 1].stored_bytes;
    ssize_t n = pwritev(writer->fd, stored, (int)count, (off_t)frames[0].offset);
    int r = 0;
    /* What hinders one write of them all is met again by one of the single ones. */
    for (uint32_t i = 0; n != (ssize_t)(end - frames[0].offset) && i < count && r == 0; i++)
        r = io_pwrite_full(writer->fd, stored[i].iov_base, stored[i].iov_len, (off_t)frames[i].offset);
    if (r == 0)
        begin_writeback(writer, frames[0].offset, end);
    return r;
}

/* Returns how many frames the pages are. */
static uint32_t encode_frames(const struct layer_writer *writer, struct frame_encoder *encoder,
                              const uint8_t *pages, unsigned count, struct layer_frame *frames,
                              struct iovec *stored)
{
    uint32_t frame_count = 0;
    for (unsigned done = 0; done < count; frame_count++) {
        size_t at = (size_t)done * IMAGE_PAGE_BYTES;
        unsigned frame_pages = MIN(count - done, writer->frame_pages);
        const void *bytes;
        size_t length;
        enum layer_codec codec = codec_encode(encoder->codec, pages + at, (size_t)frame_pages * IMAGE_PAGE_BYTES,
                                              encoder->out + at, &bytes, &length);
        frames[frame_count] = (struct layer_frame){
            .stored_bytes = (uint32_t)length, .pages = (uint16_t)frame_pages, .codec = (uint16_t)codec};
        stored[frame_count] = (struct iovec){(void *)bytes, length};
        done += frame_pages;
    }
    return frame_count;
}

int layer_writer_add_frames(struct layer_writer *writer, struct frame_encoder *encoder, const void *pages,
                            unsigned count, uint32_t *ret_slot, struct error *err)
{
    if (count == 0 || count > pages_at_once(writer))
        return error_set(err, EINVAL, "%u pages to be added at once", count);
    struct layer_frame frames[LAYER_ADD_PAGES];
    struct iovec stored[LAYER_ADD_PAGES];
    uint32_t frame_count = encode_frames(writer, encoder, pages, count, frames, stored);
    uint32_t number = 0;
    int r = allot(writer, frames, frame_count, &number, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < frame_count; i++) {
        frames[i].checksum = layer_frame_checksum(&frames[i], writer->id, number + i, stored[i].iov_base);
        *table_entry(writer, number + i) = frames[i];
    }
    r = write_frames(writer, frames, stored, frame_count);
    if (r < 0) {
        atomic_store(&writer->failure, r);
        return error_code(err, r, "cannot write layer %s", writer->id);
    }
    *ret_slot = number * writer->frame_pages;
    return 0;
}

int layer_writer_add(struct layer_writer *writer, struct frame_encoder *encoder, const void *pages, unsigned count,
                     uint32_t *ret_slot, struct error *err)
{
    if (count > writer->frame_pages)
        return error_set(err, EINVAL, "%u pages for a frame of %u", count, writer->frame_pages);
    return layer_writer_add_frames(writer, encoder, pages, count, ret_slot, err);
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
