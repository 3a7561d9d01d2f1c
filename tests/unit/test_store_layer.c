#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "store/layer_format.h"
#include "unit.h"

#define FRAMES_MAX 400

/* What a frame was written with: its pages follow from the seed. */
struct written {
    uint32_t slot;
    unsigned pages;
    uint32_t seed;
};

struct sample {
    char id[LAYER_ID_LENGTH + 1];
    uint64_t bytes;
    unsigned frame_pages;
    size_t count;
    struct written frames[FRAMES_MAX];
};

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Pages of every kind: random, text, zero, and half of each. */
static void fill(uint8_t *pages, unsigned count, uint32_t seed)
{
    uint32_t state = seed;
    size_t bytes = (size_t)count * IMAGE_PAGE_BYTES;
    unsigned kind = seed % 4;
    for (size_t i = 0; i < bytes; i++) {
        bool random = kind == 0 || (kind == 3 && i < bytes / 2);
        if (random)
            pages[i] = (uint8_t)next_random(&state);
        else
            pages[i] = (uint8_t)(kind == 1 ? "slow dormouse "[(i * seed) % 14] : 0);
    }
    memcpy(pages, &seed, sizeof(seed));
}

static int open_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static struct layer_writer *open_writer(int directory, enum layer_codec codec, unsigned frame_pages)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct layer_writer *writer = NULL;
    if (layer_writer_open(directory, codec, frame_pages, &writer, &err) < 0)
        fail_msg("%s", error_message(&err));
    return writer;
}

static void add(struct layer_writer *writer, struct frame_encoder *encoder, struct written *frame)
{
    CLEANUP_FREE uint8_t *pages = malloc((size_t)frame->pages * IMAGE_PAGE_BYTES);
    assert_non_null(pages);
    fill(pages, frame->pages, frame->seed);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (layer_writer_add(writer, encoder, pages, frame->pages, &frame->slot, &err) < 0)
        fail_msg("%s", error_message(&err));
}

static void finish(struct layer_writer *writer, struct sample *sample)
{
    memcpy(sample->id, layer_writer_id(writer), sizeof(sample->id));
    uint64_t stored = layer_writer_stored_bytes(writer);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (layer_writer_finish(writer, &sample->bytes, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_true(sample->bytes == stored + 128 + sample->count * sizeof(struct layer_frame));
}

static struct sample *write_sample(int directory, enum layer_codec codec, unsigned frame_pages, size_t count)
{
    struct sample *sample = calloc(1, sizeof(*sample));
    assert_non_null(sample);
    sample->frame_pages = frame_pages;
    sample->count = count;
    struct layer_writer *writer = open_writer(directory, codec, frame_pages);
    struct frame_encoder *encoder = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        sample->frames[i].seed = (uint32_t)i + 1;
        sample->frames[i].pages = 1 + (unsigned)(i * 7) % frame_pages;
        add(writer, encoder, &sample->frames[i]);
    }
    frame_encoder_free(encoder);
    finish(writer, sample);
    return sample;
}

/* Right bytes, or an error that says something. */
static int read_written(struct layer *layer, struct frame_buffer *buffer, const struct written *frame)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const uint8_t *pages = NULL;
    int r = layer_read_frame(layer, frame->slot / layer_frame_pages(layer), buffer, &pages, &err);
    if (r < 0) {
        assert_non_null(err.message);
        return r;
    }
    assert_int_equal(r, frame->pages);
    CLEANUP_FREE uint8_t *expected = malloc((size_t)frame->pages * IMAGE_PAGE_BYTES);
    assert_non_null(expected);
    fill(expected, frame->pages, frame->seed);
    assert_memory_equal(pages, expected, (size_t)frame->pages * IMAGE_PAGE_BYTES);
    return 0;
}

static void expect_all(int directory, const struct sample *sample)
{
    struct layer *layer = NULL;
    struct frame_buffer *buffer = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (layer_open(directory, sample->id, sample->bytes, &layer, &err) < 0)
        fail_msg("%s", error_message(&err));
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    assert_int_equal(layer_frame_count(layer), sample->count);
    assert_int_equal(layer_frame_pages(layer), sample->frame_pages);
    assert_true(layer_file_bytes(layer) == sample->bytes);
    assert_string_equal(layer_id(layer), sample->id);
    uint64_t pages = 0;
    /* Not in the order of writing. */
    for (size_t i = sample->count; i-- > 0;) {
        assert_int_equal(sample->frames[i].slot % sample->frame_pages, 0);
        assert_int_equal(read_written(layer, buffer, &sample->frames[i]), 0);
        unsigned frame_pages;
        uint32_t stored;
        assert_int_equal(
            layer_frame_info(layer, sample->frames[i].slot / sample->frame_pages, &frame_pages, &stored, NULL), 0);
        assert_int_equal(frame_pages, sample->frames[i].pages);
        pages += frame_pages;
    }
    assert_true(layer_page_count(layer) == pages);
    if (layer_verify(layer, &err) < 0)
        fail_msg("%s", error_message(&err));
    const uint8_t *none;
    assert_int_equal(layer_read_frame(layer, (uint32_t)sample->count, buffer, &none, NULL), -EBADMSG);
    frame_buffer_free(buffer);
    layer_close(layer);
}

static size_t count_names(const char *directory)
{
    DIR *dir = opendir(directory);
    assert_non_null(dir);
    size_t count = 0;
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count - 2;
}

static void what_was_written_is_read(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    static const unsigned frame_pages[] = {1, 4, 16, 512};
    for (enum layer_codec codec = LAYER_CODEC_NONE; codec <= LAYER_CODEC_ZSTD; codec++)
        for (size_t i = 0; i < ARRAY_SIZE(frame_pages); i++) {
            CLEANUP_FREE struct sample *sample =
                write_sample(directory, codec, frame_pages[i], frame_pages[i] > 16 ? 5 : FRAMES_MAX);
            expect_all(directory, sample);
        }
    CLEANUP_FREE struct sample *empty = write_sample(directory, LAYER_CODEC_ZSTD, 4, 0);
    expect_all(directory, empty);
    assert_int_equal(empty->bytes, 128);
}

/* Stored size of one full frame of the kind. */
static uint32_t stored_size(int directory, enum layer_codec codec, uint32_t kind)
{
    struct sample sample = {.frame_pages = 16, .count = 1, .frames = {{.pages = 16, .seed = kind}}};
    struct layer_writer *writer = open_writer(directory, codec, 16);
    struct frame_encoder *encoder = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    add(writer, encoder, &sample.frames[0]);
    assert_int_equal(layer_writer_page_bytes(writer), 16 * IMAGE_PAGE_BYTES);
    frame_encoder_free(encoder);
    uint32_t stored = (uint32_t)layer_writer_stored_bytes(writer);
    finish(writer, &sample);
    expect_all(directory, &sample);
    return stored;
}

static void only_what_shrinks_is_compressed(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    static const enum layer_codec codecs[] = {LAYER_CODEC_LZ4, LAYER_CODEC_ZSTD};
    for (size_t i = 0; i < ARRAY_SIZE(codecs); i++) {
        assert_int_equal(stored_size(directory, codecs[i], 4), 16 * IMAGE_PAGE_BYTES);
        assert_true(stored_size(directory, codecs[i], 5) < 1000);
        assert_true(stored_size(directory, codecs[i], 6) < 400);
        assert_in_range(stored_size(directory, codecs[i], 7), 1, 9 * IMAGE_PAGE_BYTES);
    }
}

static void what_grows_is_stored_as_it_is(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    struct layer_writer *writer = open_writer(directory, LAYER_CODEC_LZ4, 4);
    struct frame_encoder *encoder = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    /* Not random enough to be told beforehand, but without repetitions. */
    uint8_t pages[4 * IMAGE_PAGE_BYTES];
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof(pages); i++)
        pages[i] = next_random(&random) & 63;
    uint32_t slot = 0;
    assert_int_equal(layer_writer_add(writer, encoder, pages, 4, &slot, NULL), 0);
    assert_int_equal(layer_writer_stored_bytes(writer), sizeof(pages));
    frame_encoder_free(encoder);
    layer_writer_abort(writer);
}

#define THREADS 4

struct team {
    struct layer_writer *writer;
    struct sample *sample;
    struct layer *layer;
    size_t first; /* frames first, first + THREADS, … */
    bool failed;
};

static void *add_frames(void *context)
{
    struct team *team = context;
    struct frame_encoder *encoder = NULL;
    uint8_t pages[4 * IMAGE_PAGE_BYTES];
    team->failed = frame_encoder_new(team->writer, &encoder, NULL) < 0;
    for (size_t i = team->first; i < team->sample->count && !team->failed; i += THREADS) {
        struct written *frame = &team->sample->frames[i];
        fill(pages, frame->pages, frame->seed);
        team->failed = layer_writer_add(team->writer, encoder, pages, frame->pages, &frame->slot, NULL) < 0;
    }
    frame_encoder_free(encoder);
    return NULL;
}

static void *read_frames(void *context)
{
    struct team *team = context;
    struct frame_buffer *buffer = NULL;
    uint8_t expected[4 * IMAGE_PAGE_BYTES];
    team->failed = frame_buffer_new(&buffer, NULL) < 0;
    for (size_t i = 0; i < team->sample->count && !team->failed; i++) {
        const struct written *frame = &team->sample->frames[(i * 7 + team->first) % team->sample->count];
        const uint8_t *pages = NULL;
        fill(expected, frame->pages, frame->seed);
        team->failed = layer_read_frame(team->layer, frame->slot / 4, buffer, &pages, NULL) < 0 ||
                       memcmp(pages, expected, (size_t)frame->pages * IMAGE_PAGE_BYTES) != 0;
    }
    frame_buffer_free(buffer);
    return NULL;
}

static void run_team(struct team teams[THREADS], const struct team *common, void *(*work)(void *))
{
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        teams[i] = *common;
        teams[i].first = i;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &teams[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_false(teams[i].failed);
    }
}

static void threads_write_and_read_together(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    static const enum layer_codec codecs[] = {LAYER_CODEC_NONE, LAYER_CODEC_LZ4, LAYER_CODEC_ZSTD};
    for (size_t c = 0; c < ARRAY_SIZE(codecs); c++) {
        CLEANUP_FREE struct sample *sample = calloc(1, sizeof(*sample));
        sample->frame_pages = 4;
        sample->count = FRAMES_MAX;
        for (size_t i = 0; i < sample->count; i++)
            sample->frames[i] = (struct written){.seed = (uint32_t)i + 1, .pages = 1 + i % 4};
        struct team teams[THREADS];
        struct team common = {.writer = open_writer(directory, codecs[c], 4), .sample = sample};
        run_team(teams, &common, add_frames);
        finish(common.writer, sample);
        expect_all(directory, sample);
        assert_int_equal(layer_open(directory, sample->id, 0, &common.layer, NULL), 0);
        run_team(teams, &common, read_frames);
        layer_close(common.layer);
    }
}

static uint8_t *load(int directory, const struct sample *sample)
{
    CLEANUP_CLOSE int fd = openat(directory, sample->id, O_RDONLY | O_CLOEXEC);
    uint8_t *bytes = malloc(sample->bytes);
    assert_true(fd >= 0 && bytes != NULL);
    assert_true(io_read_full(fd, bytes, sample->bytes) == (ssize_t)sample->bytes);
    return bytes;
}

static void store(int directory, const char *id, const uint8_t *bytes, size_t length)
{
    CLEANUP_CLOSE int fd = openat(directory, id, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, bytes, length), 0);
}

/* Opens, reads every frame that was written, verifies. The first failure; 0 only if everything is right. */
static int check_all(int directory, const struct sample *sample, uint64_t expected_bytes)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct layer *layer = NULL;
    struct frame_buffer *buffer = NULL;
    int r = layer_open(directory, sample->id, expected_bytes, &layer, &err);
    if (r < 0) {
        assert_non_null(err.message);
        assert_null(layer);
        return r;
    }
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    int first = 0;
    for (size_t i = 0; i < sample->count; i++) {
        r = read_written(layer, buffer, &sample->frames[i]);
        first = first == 0 ? r : first;
    }
    r = layer_verify(layer, &err);
    assert_true(r < 0 || first == 0);
    frame_buffer_free(buffer);
    layer_close(layer);
    return first == 0 ? r : first;
}

static void a_flipped_byte_never_gives_wrong_pages(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    static const enum layer_codec codecs[] = {LAYER_CODEC_LZ4, LAYER_CODEC_ZSTD};
    for (size_t c = 0; c < ARRAY_SIZE(codecs); c++) {
        CLEANUP_FREE struct sample *sample = write_sample(directory, codecs[c], 1, 3);
        CLEANUP_FREE uint8_t *bytes = load(directory, sample);
        CLEANUP_CLOSE int fd = openat(directory, sample->id, O_WRONLY | O_CLOEXEC);
        assert_int_equal(check_all(directory, sample, sample->bytes), 0);
        for (size_t i = 0; i < sample->bytes; i++) {
            /* A random page in the middle is long and dull. */
            if (i > 4 * 64 && i + 4 * 64 < sample->bytes && i % 16 != 0)
                continue;
            uint8_t flipped = bytes[i] ^ (uint8_t)(1u << (i % 8));
            assert_int_equal(io_pwrite_full(fd, &flipped, 1, (off_t)i), 0);
            assert_int_equal(check_all(directory, sample, sample->bytes), -EBADMSG);
            assert_int_equal(io_pwrite_full(fd, &bytes[i], 1, (off_t)i), 0);
        }
        assert_int_equal(check_all(directory, sample, sample->bytes), 0);
    }
}

static void a_file_of_another_size_is_refused(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_ZSTD, 4, 6);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    assert_int_equal(check_all(directory, sample, sample->bytes + 1), -EBADMSG);
    for (size_t length = 0; length < sample->bytes; length += length < 200 ? 1 : 97) {
        store(directory, sample->id, bytes, length);
        assert_int_equal(check_all(directory, sample, 0), -EBADMSG);
    }
    CLEANUP_FREE uint8_t *longer = calloc(1, sample->bytes + 1);
    memcpy(longer, bytes, sample->bytes);
    store(directory, sample->id, longer, sample->bytes + 1);
    assert_int_equal(check_all(directory, sample, 0), -EBADMSG);
}

static void only_its_own_name_opens_a_layer(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_ZSTD, 4, 6);
    static const char other[] = "a2345678901234567890";
    struct layer *layer = NULL;
    assert_int_equal(layer_open(directory, other, 0, &layer, NULL), -ENOENT);
    assert_int_equal(renameat(directory, sample->id, directory, other), 0);
    assert_int_equal(layer_open(directory, other, 0, &layer, NULL), -EBADMSG);
    assert_int_equal(mkdirat(directory, sample->id, 0700), 0);
    assert_int_equal(layer_open(directory, sample->id, 0, &layer, NULL), -EBADMSG);
    static const char *const bad[] = {
        "", ".", "../layers", "tmp.678901234567890", "A2345678901234567890", "a23456789012345678901"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(layer_open(directory, bad[i], 0, &layer, NULL), -EINVAL);
    assert_null(layer);
}

/* A small layer in memory, to be damaged with checksums that agree. Arrays, for being used like pointers. */
struct forged {
    uint8_t *bytes;
    struct layer_header header[1];
    struct layer_frame table[8];
    struct layer_trailer trailer[1];
};

static uint64_t end_offset(const struct sample *sample)
{
    return sample->bytes - sizeof(struct layer_trailer) - sample->count * sizeof(struct layer_frame);
}

static struct forged forge(const struct sample *sample, uint8_t *bytes)
{
    struct forged forged = {.bytes = bytes};
    size_t table_bytes = sample->count * sizeof(struct layer_frame);
    memcpy(forged.header, bytes, sizeof(forged.header));
    memcpy(forged.table, bytes + end_offset(sample), table_bytes);
    memcpy(forged.trailer, bytes + end_offset(sample) + table_bytes, sizeof(forged.trailer));
    return forged;
}

static int check_forged(int directory, const struct sample *sample, struct forged *forged)
{
    size_t table_bytes = sample->count * sizeof(struct layer_frame);
    forged->trailer->table_checksum = XXH3_64bits(forged->table, table_bytes);
    forged->trailer->checksum = layer_block_checksum(forged->trailer);
    forged->header->checksum = layer_block_checksum(forged->header);
    memcpy(forged->bytes, forged->header, sizeof(forged->header));
    memcpy(forged->bytes + end_offset(sample), forged->table, table_bytes);
    memcpy(forged->bytes + end_offset(sample) + table_bytes, forged->trailer, sizeof(forged->trailer));
    store(directory, sample->id, forged->bytes, sample->bytes);
    return check_all(directory, sample, sample->bytes);
}

#define FORGERY(field, value, expected)                                                                            \
    do {                                                                                                           \
        CLEANUP_FREE uint8_t *copy = malloc(sample->bytes);                                                        \
        memcpy(copy, bytes, sample->bytes);                                                                        \
        struct forged forged = forge(sample, copy);                                                                \
        (field) = (value);                                                                                         \
        assert_int_equal(check_forged(directory, sample, &forged), expected);                                      \
    } while (0)

static void headers_and_trailers_are_not_believed(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_ZSTD, 4, 6);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    FORGERY(forged.header->compatible, 1, 0);
    FORGERY(forged.header->incompatible, 1u << 31, -EPROTONOSUPPORT);
    FORGERY(forged.header->page_bytes, 8192, -EBADMSG);
    FORGERY(forged.header->frame_pages, 0, -EBADMSG);
    FORGERY(forged.header->frame_pages, 3, -EBADMSG);
    FORGERY(forged.header->frame_pages, 1024, -EBADMSG);
    FORGERY(forged.header->frame_pages, UINT32_MAX, -EBADMSG);
    FORGERY(forged.trailer->frames, 5, -EBADMSG);
    FORGERY(forged.trailer->frames, UINT32_MAX, -EBADMSG);
    FORGERY(forged.trailer->frames, LAYER_FRAMES_MAX + 1, -EBADMSG);
    FORGERY(forged.trailer->table_offset, 0, -EBADMSG);
    FORGERY(forged.trailer->table_offset, UINT64_MAX - 8, -EBADMSG);
    FORGERY(forged.trailer->table_offset, sample->bytes, -EBADMSG);
    FORGERY(forged.trailer->pages, forged.trailer->pages + 1, -EBADMSG);
    FORGERY(forged.trailer->pages, UINT64_MAX, -EBADMSG);
    FORGERY(forged.trailer->pages, 0, -EBADMSG);
}

static void sign(struct forged *forged, uint32_t frame)
{
    struct layer_frame *entry = &forged->table[frame];
    entry->checksum = layer_frame_checksum(entry, forged->header->id, frame, forged->bytes + entry->offset);
}

static void entries_of_the_table_are_not_believed(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_ZSTD, 4, 6);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    FORGERY(forged.table[2].offset, 0, -EBADMSG);
    FORGERY(forged.table[2].offset, UINT64_MAX, -EBADMSG);
    FORGERY(forged.table[2].offset, forged.trailer->table_offset - 1, -EBADMSG);
    FORGERY(forged.table[2].stored_bytes, 0, -EBADMSG);
    FORGERY(forged.table[2].stored_bytes, UINT32_MAX, -EBADMSG);
    FORGERY(forged.table[2].stored_bytes, forged.table[2].pages * IMAGE_PAGE_BYTES + 1, -EBADMSG);
    FORGERY(forged.table[2].pages, 0, -EBADMSG);
    FORGERY(forged.table[2].pages, 5, -EBADMSG);
    FORGERY(forged.table[2].codec, LAYER_CODEC_NONE, -EBADMSG);
}

/* With a checksum that agrees, decompressing is what refuses a wrong codec, number of pages, or size. */
static void a_frame_decompresses_to_exactly_its_pages(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    for (enum layer_codec written = LAYER_CODEC_NONE; written <= LAYER_CODEC_ZSTD; written++) {
        CLEANUP_FREE struct sample *sample = write_sample(directory, written, 4, 6);
        CLEANUP_FREE uint8_t *bytes = load(directory, sample);
        for (unsigned i = 0; i < 4 * 4 * 2; i++) {
            CLEANUP_FREE uint8_t *copy = malloc(sample->bytes);
            memcpy(copy, bytes, sample->bytes);
            struct forged forged = forge(sample, copy);
            struct layer_frame *entry = &forged.table[4];
            uint16_t codec = i % 4;
            uint16_t pages = (uint16_t)(1 + i / 4 % 4);
            bool same = codec == entry->codec && pages == entry->pages && i < 16;
            forged.trailer->pages += (uint64_t)pages - entry->pages;
            entry->codec = codec;
            entry->pages = pages;
            entry->stored_bytes -= i / 16;
            sign(&forged, 4);
            assert_int_equal(check_forged(directory, sample, &forged), same ? 0 : -EBADMSG);
        }
    }
}

static void frames_lie_between_header_and_table(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_NONE, 1, 2);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    /* Over the header, and over the first entry of the table: bytes that have the checksum the entry says. */
    const uint64_t offsets[] = {0, end_offset(sample) - IMAGE_PAGE_BYTES + sizeof(struct layer_frame)};
    for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
        CLEANUP_FREE uint8_t *copy = malloc(sample->bytes);
        memcpy(copy, bytes, sample->bytes);
        struct forged forged = forge(sample, copy);
        forged.table[1].offset = offsets[i];
        sign(&forged, 1);
        assert_int_equal(check_forged(directory, sample, &forged), -EBADMSG);
    }
}

static void verifying_checks_the_table_itself(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_ZSTD, 4, 6);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    struct layer_trailer trailer;
    memcpy(&trailer, bytes + sample->bytes - sizeof(trailer), sizeof(trailer));
    trailer.table_checksum ^= 1;
    trailer.checksum = layer_block_checksum(&trailer);
    memcpy(bytes + sample->bytes - sizeof(trailer), &trailer, sizeof(trailer));
    store(directory, sample->id, bytes, sample->bytes);
    assert_int_equal(check_all(directory, sample, 0), -EBADMSG);
}

/* Opens a file whose table is a hole. */
static int open_sparse(int directory, unsigned frame_pages, uint32_t frames)
{
    static const char id[LAYER_ID_BYTES] = "sparse78901234567890";
    struct layer_header header = {.magic = LAYER_MAGIC, .page_bytes = IMAGE_PAGE_BYTES, .frame_pages = frame_pages};
    memcpy(header.id, id, sizeof(id));
    header.checksum = layer_block_checksum(&header);
    struct layer_trailer trailer = {
        .magic = LAYER_TRAILER_MAGIC, .table_offset = sizeof(header), .frames = frames, .pages = frames};
    trailer.checksum = layer_block_checksum(&trailer);
    store(directory, id, (const uint8_t *)&header, sizeof(header));
    CLEANUP_CLOSE int fd = openat(directory, id, O_WRONLY | O_CLOEXEC);
    off_t end = (off_t)(sizeof(header) + frames * sizeof(struct layer_frame));
    assert_int_equal(io_pwrite_full(fd, &trailer, sizeof(trailer), end), 0);
    struct layer *layer = NULL;
    int r = layer_open(directory, id, 0, &layer, NULL);
    layer_close(layer);
    return r;
}

static void frames_and_slots_are_bounded(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    assert_int_equal(open_sparse(directory, 1, LAYER_FRAMES_MAX), 0);
    assert_int_equal(open_sparse(directory, 1, LAYER_FRAMES_MAX + 1), -EBADMSG);
    assert_int_equal(open_sparse(directory, 512, 1u << 23), 0);
    assert_int_equal(open_sparse(directory, 512, (1u << 23) + 1), -EBADMSG);
}

static void two_zstd_frames_are_not_one(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    /* Two frames of a page each lie side by side; the first entry then claims both for itself. */
    struct sample sample = {.frame_pages = 4, .count = 2, .frames = {{0, 1, 5}, {0, 1, 9}}};
    struct layer_writer *writer = open_writer(directory, LAYER_CODEC_ZSTD, 4);
    struct frame_encoder *encoder = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    add(writer, encoder, &sample.frames[0]);
    add(writer, encoder, &sample.frames[1]);
    frame_encoder_free(encoder);
    finish(writer, &sample);
    CLEANUP_FREE uint8_t *bytes = load(directory, &sample);
    struct forged forged = forge(&sample, bytes);
    forged.table[0].stored_bytes += forged.table[1].stored_bytes;
    forged.table[0].pages = 2;
    forged.trailer->pages++;
    sign(&forged, 0);
    assert_int_equal(check_forged(directory, &sample, &forged), -EBADMSG);
}

static void frames_are_not_taken_for_each_other(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    /* Entries swapped: both frames are whole, in the wrong places. */
    CLEANUP_FREE struct sample *sample = write_sample(directory, LAYER_CODEC_NONE, 1, 2);
    CLEANUP_FREE uint8_t *bytes = load(directory, sample);
    struct forged forged = forge(sample, bytes);
    struct layer_frame first = forged.table[0];
    forged.table[0] = forged.table[1];
    forged.table[1] = first;
    assert_int_equal(check_forged(directory, sample, &forged), -EBADMSG);

    /* Everything but the header from another layer of the same shape. */
    CLEANUP_FREE struct sample *here = write_sample(directory, LAYER_CODEC_NONE, 1, 2);
    CLEANUP_FREE struct sample *there = write_sample(directory, LAYER_CODEC_NONE, 1, 2);
    CLEANUP_FREE uint8_t *own = load(directory, here);
    CLEANUP_FREE uint8_t *foreign = load(directory, there);
    memcpy(foreign, own, sizeof(struct layer_header));
    store(directory, here->id, foreign, here->bytes);
    assert_int_equal(check_all(directory, here, here->bytes), -EBADMSG);
}

/* Several frames with one call: the last one may be short, and what doesn't shrink is in between. */
static void frames_added_at_once_follow_each_other(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    struct layer_writer *writer = open_writer(directory, LAYER_CODEC_ZSTD, 4);
    struct frame_encoder *encoder = NULL;
    struct frame_buffer *buffer = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    assert_int_equal(frame_buffer_new(&buffer, NULL), 0);
    uint8_t *pages = calloc(LAYER_ADD_PAGES + 1, IMAGE_PAGE_BYTES);
    for (unsigned i = 0; i < LAYER_ADD_PAGES; i++)
        fill(pages + (size_t)i * IMAGE_PAGE_BYTES, 1, i % 8 < 4 ? 1 : i);
    uint32_t random = 1;
    for (size_t i = 8 * IMAGE_PAGE_BYTES; i < 12 * IMAGE_PAGE_BYTES; i++)
        pages[i] = (uint8_t)((random = random * 1664525 + 1013904223) >> 24);
    uint32_t slot;
    assert_int_equal(layer_writer_add_frames(writer, encoder, pages, LAYER_ADD_PAGES + 1, &slot, NULL), -EINVAL);
    static const unsigned counts[] = {LAYER_ADD_PAGES, 1, 4, 31, LAYER_ADD_PAGES - 1};
    uint32_t slots[ARRAY_SIZE(counts)];
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
        assert_int_equal(layer_writer_add_frames(writer, encoder, pages, counts[i], &slots[i], NULL), 0);
    char id[LAYER_ID_LENGTH + 1];
    snprintf(id, sizeof(id), "%s", layer_writer_id(writer));
    uint64_t bytes;
    assert_int_equal(layer_writer_finish(writer, &bytes, NULL), 0);
    struct layer *layer = NULL;
    assert_int_equal(layer_open(directory, id, bytes, &layer, NULL), 0);
    assert_int_equal(layer_verify(layer, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        for (unsigned page = 0; page < counts[i]; page += 4) {
            const uint8_t *read;
            int n = layer_read_frame(layer, (slots[i] + page) / 4, buffer, &read, NULL);
            assert_int_equal(n, MIN(counts[i] - page, 4u));
            assert_memory_equal(read, pages + (size_t)page * IMAGE_PAGE_BYTES, (size_t)n * IMAGE_PAGE_BYTES);
        }
    }
    layer_close(layer);
    frame_buffer_free(buffer);
    frame_encoder_free(encoder);
    free(pages);
}

static void an_aborted_layer_leaves_nothing(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    struct layer_writer *writer = open_writer(directory, LAYER_CODEC_LZ4, 4);
    assert_int_equal(count_names(*state), 1);
    struct layer *layer = NULL;
    assert_int_equal(layer_open(directory, layer_writer_id(writer), 0, &layer, NULL), -ENOENT);
    layer_writer_abort(writer);
    assert_int_equal(count_names(*state), 0);
    assert_int_equal(layer_writer_open(directory, LAYER_CODEC_LZ4, 3, &writer, NULL), -EINVAL);
    assert_int_equal(layer_writer_open(directory, LAYER_CODEC_LZ4, 1024, &writer, NULL), -EINVAL);
    assert_int_equal(count_names(*state), 0);
}

static void a_frame_that_was_not_written_fails_the_layer(void **state)
{
    CLEANUP_CLOSE int directory = open_directory(*state);
    struct layer_writer *writer = open_writer(directory, LAYER_CODEC_NONE, 4);
    struct frame_encoder *encoder = NULL;
    assert_int_equal(frame_encoder_new(writer, &encoder, NULL), 0);
    uint8_t pages[2 * IMAGE_PAGE_BYTES];
    fill(pages, 2, 1);
    uint32_t slot;
    assert_int_equal(layer_writer_add(writer, encoder, pages, 0, &slot, NULL), -EINVAL);
    assert_int_equal(layer_writer_add(writer, encoder, pages, 5, &slot, NULL), -EINVAL);

    struct rlimit whole;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &whole), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit small = {IMAGE_PAGE_BYTES, whole.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = layer_writer_add(writer, encoder, pages, 2, &slot, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &whole), 0);
    assert_int_equal(r, -EFBIG);
    assert_int_equal(layer_writer_add(writer, encoder, pages, 2, &slot, NULL), 0);
    uint64_t bytes = 0;
    assert_int_equal(layer_writer_finish(writer, &bytes, &err), -EFBIG);
    assert_int_equal(bytes, 0);
    frame_encoder_free(encoder);
    assert_int_equal(count_names(*state), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(what_was_written_is_read),
        UNIT_TEST(only_what_shrinks_is_compressed),
        UNIT_TEST(what_grows_is_stored_as_it_is),
        UNIT_TEST(threads_write_and_read_together),
        UNIT_TEST(a_flipped_byte_never_gives_wrong_pages),
        UNIT_TEST(a_file_of_another_size_is_refused),
        UNIT_TEST(only_its_own_name_opens_a_layer),
        UNIT_TEST(headers_and_trailers_are_not_believed),
        UNIT_TEST(entries_of_the_table_are_not_believed),
        UNIT_TEST(a_frame_decompresses_to_exactly_its_pages),
        UNIT_TEST(frames_lie_between_header_and_table),
        UNIT_TEST(verifying_checks_the_table_itself),
        UNIT_TEST(frames_and_slots_are_bounded),
        UNIT_TEST(two_zstd_frames_are_not_one),
        UNIT_TEST(frames_are_not_taken_for_each_other),
        UNIT_TEST(frames_added_at_once_follow_each_other),
        UNIT_TEST(an_aborted_layer_leaves_nothing),
        UNIT_TEST(a_frame_that_was_not_written_fails_the_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
