/*
 * codec.h: compresses and decompresses one frame. Pure.
 *
 * A context belongs to one thread at a time. Decompression trusts nothing: it writes at most the bytes wanted and
 * fails unless it gets exactly those from exactly the input.
 */
#ifndef DORMOUSE_STORE_CODEC_H
#define DORMOUSE_STORE_CODEC_H

#include <stdbool.h>
#include <stddef.h>

#include "store/layer.h"

struct codec_encoder;
struct codec_encoder *codec_encoder_new(enum layer_codec codec);
void codec_encoder_free(struct codec_encoder *encoder);

/*
 * Returns the codec the frame is best stored with: LAYER_CODEC_NONE when compression doesn't pay. *ret_stored is
 * the input itself then, else `to`, which has room for `length` bytes.
 */
enum layer_codec codec_encode(struct codec_encoder *encoder, const void *bytes, size_t length, void *to,
                              const void **ret_stored, size_t *ret_stored_length);

struct codec_decoder;
struct codec_decoder *codec_decoder_new(void);
void codec_decoder_free(struct codec_decoder *decoder);

/* False for what isn't compressed, too: that needs no copy. */
bool codec_decode(struct codec_decoder *decoder, enum layer_codec codec, const void *stored, size_t stored_length,
                  void *to, size_t length);

#endif
