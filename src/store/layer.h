/*
 * layer.h: an immutable file of pages in compressed frames (docs/snapshot-format.md).
 *
 * Writing: layer_writer_open; layer_writer_add or _add_frames from any number of threads at once;
 * layer_writer_finish makes it durable and gives it its name, or layer_writer_abort leaves nothing.
 * Reading: layer_open; layer_read_frame from any number of threads, each with a frame_buffer of its own;
 * layer_close.
 *
 * Nothing is believed: a frame is checked against its checksum before it is decompressed and must decompress to
 * exactly its pages. Memory: the frame table, read in pieces when first needed (24 bytes a frame). Errors: -EBADMSG
 * a damaged file (with its name, the frame and what is wrong), -EPROTONOSUPPORT a later version, -EIO.
 */
#ifndef DORMOUSE_STORE_LAYER_H
#define DORMOUSE_STORE_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "store/map.h"

/* An id is 20 characters of a-z0-9. */
#define LAYER_ID_LENGTH 20
bool layer_id_valid(const char *id);

#define LAYER_FRAME_PAGES_MAX 512u

/* From measurement (docs/architecture.md). */
#define LAYER_FRAME_PAGES_MEMORY 8u
#define LAYER_FRAME_PAGES_DISK   16u

enum layer_codec { LAYER_CODEC_NONE = 0, LAYER_CODEC_LZ4 = 1, LAYER_CODEC_ZSTD = 2 };

struct layer_writer;

/* A new layer with a new id in the directory `layers_fd`, which must outlive the writer. */
int layer_writer_open(int layers_fd, enum layer_codec codec, unsigned frame_pages, struct layer_writer **ret,
                      struct error *err);
const char *layer_writer_id(const struct layer_writer *writer);
unsigned layer_writer_frame_pages(const struct layer_writer *writer);

/* What a thread that adds frames needs: compression state and output buffer. */
struct frame_encoder;
int frame_encoder_new(const struct layer_writer *writer, struct frame_encoder **ret, struct error *err);
void frame_encoder_free(struct frame_encoder *encoder);

/*
 * Compresses and appends up to frame_pages pages; *ret_slot is the slot of the first, the others follow. -ENOSPC
 * when the disk is full.
 */
int layer_writer_add(struct layer_writer *writer, struct frame_encoder *encoder, const void *pages, unsigned count,
                     uint32_t *ret_slot, struct error *err);

/*
 * The same for up to LAYER_ADD_PAGES pages (or one frame, if that is more), as frames that are full but for the
 * last. Their slots follow each other, so pages that are neighbours need one extent of a map, and one write stores
 * them all.
 */
#define LAYER_ADD_PAGES 64u
int layer_writer_add_frames(struct layer_writer *writer, struct frame_encoder *encoder, const void *pages,
                            unsigned count, uint32_t *ret_slot, struct error *err);

/* Bytes of frames so far, stored and before compression. */
uint64_t layer_writer_stored_bytes(const struct layer_writer *writer);
uint64_t layer_writer_page_bytes(const struct layer_writer *writer);

/*
 * Table, trailer, fsync, rename, fsync of the directory. Frees the writer; on failure nothing is left. *ret_bytes
 * is the size of the file. A layer without a frame is allowed.
 */
int layer_writer_finish(struct layer_writer *writer, uint64_t *ret_bytes, struct error *err);
void layer_writer_abort(struct layer_writer *writer);

struct layer;

/* `expected_bytes`: what the manifest says its size is; 0: unknown. */
int layer_open(int layers_fd, const char *id, uint64_t expected_bytes, struct layer **ret, struct error *err);
void layer_close(struct layer *layer);
const char *layer_id(const struct layer *layer);
unsigned layer_frame_pages(const struct layer *layer);
uint32_t layer_frame_count(const struct layer *layer);
uint64_t layer_page_count(const struct layer *layer);
uint64_t layer_file_bytes(const struct layer *layer);

/* A thread's room for one frame: stored bytes, decompressed pages, decompression state. */
struct frame_buffer;
int frame_buffer_new(struct frame_buffer **ret, struct error *err);
void frame_buffer_free(struct frame_buffer *buffer);

/*
 * Reads, checks and decompresses frame `frame`. *ret_pages points into the buffer until its next use; returns the
 * number of pages.
 */
int layer_read_frame(struct layer *layer, uint32_t frame, struct frame_buffer *buffer, const uint8_t **ret_pages,
                     struct error *err);

/*
 * Hints for a run of frames: the disk can fetch them all at once; and their bytes may leave the page cache, since
 * what was decompressed is cached elsewhere. Best together: neighbours in the file share a page, which is read
 * again if it left with only one of them.
 */
void layer_will_read(struct layer *layer, uint32_t first, uint32_t count);
void layer_have_read(struct layer *layer, uint32_t first, uint32_t count);

/* Where a frame's bytes are, without reading them: for statistics. */
int layer_frame_info(struct layer *layer, uint32_t frame, unsigned *ret_pages, uint32_t *ret_stored_bytes,
                     struct error *err);

/* Checks header, table and every frame. */
int layer_verify(struct layer *layer, struct error *err);

#endif
