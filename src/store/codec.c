#include "store/codec.h"

#include <lz4.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/*
 * From measurement, guest memory (docs/architecture.md): level 3 saves 1 % of the bytes for half again the time. In
 * frames as small as ours, a table of matches that fits the first cache and no matches under six bytes save a sixth
 * of level 1's time for 1 % of the bytes.
 */
#define ZSTD_LEVEL     1
#define ZSTD_HASH_LOG  12
#define ZSTD_MIN_MATCH 6

/*
 * Random bytes, and what is compressed already, are told by how seldom a byte value repeats in a sample:
 * compressing them in vain costs twenty times as much as the sample, which costs the other frames 1 % of their
 * time. Of n uniform bytes, the squares of how often each value occurs sum up to n + n²/256, with a deviation of
 * n/11; whatever an entropy coder could shrink by more than a few per cent is above.
 */
#define SAMPLE_BYTES   256u
#define SAMPLE_PIECE   16u
#define SAMPLE_SQUARES (SAMPLE_BYTES + SAMPLE_BYTES * SAMPLE_BYTES / 256 + SAMPLE_BYTES * 3 / 8)

struct codec_encoder {
    enum layer_codec codec;
    ZSTD_CCtx *zstd;
    void *lz4;
};

/* NULL: no memory. */
static ZSTD_CCtx *new_zstd(void)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    if (context != NULL && (ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, ZSTD_LEVEL)) ||
                            ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_hashLog, ZSTD_HASH_LOG)) ||
                            ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_minMatch, ZSTD_MIN_MATCH)))) {
        ZSTD_freeCCtx(context);
        return NULL;
    }
    return context;
}

struct codec_encoder *codec_encoder_new(enum layer_codec codec)
{
    struct codec_encoder *encoder = calloc(1, sizeof(*encoder));
    if (encoder == NULL)
        return NULL;
    encoder->codec = codec;
    if (codec == LAYER_CODEC_ZSTD)
        encoder->zstd = new_zstd();
    else if (codec == LAYER_CODEC_LZ4)
        encoder->lz4 = malloc((size_t)LZ4_sizeofState());
    if ((codec == LAYER_CODEC_ZSTD && encoder->zstd == NULL) ||
        (codec == LAYER_CODEC_LZ4 && encoder->lz4 == NULL)) {
        codec_encoder_free(encoder);
        return NULL;
    }
    return encoder;
}

void codec_encoder_free(struct codec_encoder *encoder)
{
    if (encoder == NULL)
        return;
    ZSTD_freeCCtx(encoder->zstd);
    free(encoder->lz4);
    free(encoder);
}

static bool looks_random(const uint8_t *bytes, size_t length)
{
    if (length < SAMPLE_BYTES)
        return false;
    uint16_t seen[256] = {0};
    size_t step = length / (SAMPLE_BYTES / SAMPLE_PIECE);
    for (size_t piece = 0; piece < SAMPLE_BYTES / SAMPLE_PIECE; piece++)
        for (size_t i = 0; i < SAMPLE_PIECE; i++)
            seen[bytes[piece * step + i]]++;
    uint32_t squares = 0;
    for (size_t i = 0; i < ARRAY_SIZE(seen); i++)
        squares += (uint32_t)seen[i] * seen[i];
    return squares < SAMPLE_SQUARES;
}

/* 0 when it doesn't get smaller. */
static size_t compress(struct codec_encoder *encoder, const void *bytes, size_t length, void *to)
{
    size_t room = length - 1;
    if (encoder->codec == LAYER_CODEC_LZ4)
        return (size_t)LZ4_compress_fast_extState(encoder->lz4, bytes, to, (int)length, (int)room, 1);
    size_t stored = ZSTD_compress2(encoder->zstd, to, room, bytes, length);
    return ZSTD_isError(stored) ? 0 : stored;
}

enum layer_codec codec_encode(struct codec_encoder *encoder, const void *bytes, size_t length, void *to,
                              const void **ret_stored, size_t *ret_stored_length)
{
    if (encoder->codec != LAYER_CODEC_NONE && !looks_random(bytes, length)) {
        size_t stored = compress(encoder, bytes, length, to);
        if (stored > 0) {
            *ret_stored = to;
            *ret_stored_length = stored;
            return encoder->codec;
        }
    }
    *ret_stored = bytes;
    *ret_stored_length = length;
    return LAYER_CODEC_NONE;
}

struct codec_decoder {
    ZSTD_DCtx *zstd;
};

struct codec_decoder *codec_decoder_new(void)
{
    struct codec_decoder *decoder = calloc(1, sizeof(*decoder));
    if (decoder == NULL)
        return NULL;
    decoder->zstd = ZSTD_createDCtx();
    if (decoder->zstd == NULL) {
        free(decoder);
        return NULL;
    }
    return decoder;
}

void codec_decoder_free(struct codec_decoder *decoder)
{
    if (decoder == NULL)
        return;
    ZSTD_freeDCtx(decoder->zstd);
    free(decoder);
}

/* The library would also take several frames in a row, and formats older than the standard. */
static bool is_one_zstd_frame(const void *stored, size_t length)
{
    uint32_t magic;
    if (length < sizeof(magic))
        return false;
    memcpy(&magic, stored, sizeof(magic));
    return magic == ZSTD_MAGICNUMBER && ZSTD_findFrameCompressedSize(stored, length) == length;
}

bool codec_decode(struct codec_decoder *decoder, enum layer_codec codec, const void *stored, size_t stored_length,
                  void *to, size_t length)
{
    switch (codec) {
    case LAYER_CODEC_LZ4:
        return LZ4_decompress_safe(stored, to, (int)stored_length, (int)length) == (int)length;
    case LAYER_CODEC_ZSTD:
        /* An error is a number larger than any length. */
        return is_one_zstd_frame(stored, stored_length) &&
               ZSTD_decompressDCtx(decoder->zstd, to, length, stored, stored_length) == length;
    default:
        return false;
    }
}
