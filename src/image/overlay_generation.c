#include "image/overlay_generation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/macro.h"

#define NAME_MAX_BYTES 48
#define LOAD_BYTES     (64u << 10)

enum file_kind { FILE_DATA, FILE_MAP, FILE_MAP_UNNAMED, FILE_KINDS };

static const char *const suffixes[FILE_KINDS] = {".data", ".map", ".map.tmp"};

struct name {
    char text[NAME_MAX_BYTES];
};

static struct name file_name(uint64_t number, enum file_kind kind)
{
    struct name name;
    snprintf(name.text, sizeof(name.text), "overlay.%" PRIu64 "%s", number, suffixes[kind]);
    return name;
}

/* Exactly the names that file_name makes. */
static bool parse_name(const char *text, uint64_t *ret_number, enum file_kind *ret_kind)
{
    if (strncmp(text, "overlay.", strlen("overlay.")) != 0)
        return false;
    uint64_t number = strtoull(text + strlen("overlay."), NULL, 10);
    for (enum file_kind kind = 0; kind < FILE_KINDS; kind++) {
        if (number == 0 || number == UINT64_MAX || strcmp(file_name(number, kind).text, text) != 0)
            continue;
        *ret_number = number;
        *ret_kind = kind;
        return true;
    }
    return false;
}

void bounce_pool_init(struct bounce_pool *pool)
{
    pthread_mutex_init(&pool->mutex, NULL);
    pool->count = 0;
}

void bounce_pool_done(struct bounce_pool *pool)
{
    while (pool->count > 0)
        free(pool->kept[--pool->count]);
    pthread_mutex_destroy(&pool->mutex);
}

static void *bounce_take(struct bounce_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    void *buffer = pool->count > 0 ? pool->kept[--pool->count] : NULL;
    pthread_mutex_unlock(&pool->mutex);
    return buffer != NULL ? buffer : aligned_alloc(OVERLAY_BLOCK_BYTES, BOUNCE_BYTES);
}

static void bounce_give(struct bounce_pool *pool, void *buffer)
{
    pthread_mutex_lock(&pool->mutex);
    if (pool->count < BOUNCE_KEPT)
        pool->kept[pool->count++] = TAKE_PTR(buffer);
    pthread_mutex_unlock(&pool->mutex);
    free(buffer);
}

static void close_directory(DIR **directory)
{
    if (*directory != NULL)
        closedir(*directory);
}

/* A stream of its own, from the beginning. */
static DIR *open_listing(int directory_fd)
{
    int fd = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd < 0 ? NULL : fdopendir(fd);
    if (listing == NULL && fd >= 0)
        close(fd);
    return listing;
}

static int compare_numbers(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

int generation_list(int directory_fd, uint64_t newest, uint64_t **ret, size_t *ret_count, struct error *err)
{
    CLEANUP(close_directory) DIR *listing = open_listing(directory_fd);
    if (listing == NULL)
        return error_errno(err, "listing the overlay's directory");
    CLEANUP_FREE uint64_t *numbers = calloc(OVERLAY_GENERATIONS_MAX, sizeof(*numbers));
    if (numbers == NULL)
        return error_set(err, ENOMEM, "out of memory");
    size_t count = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(listing);
        if (entry == NULL && errno != 0)
            return error_errno(err, "listing the overlay's directory");
        if (entry == NULL)
            break;
        uint64_t number;
        enum file_kind kind;
        if (!parse_name(entry->d_name, &number, &kind) || kind != FILE_MAP || number > newest)
            continue;
        if (count == OVERLAY_GENERATIONS_MAX)
            return error_set(err, E2BIG, "the overlay has more than %u generations", OVERLAY_GENERATIONS_MAX);
        numbers[count++] = number;
    }
    qsort(numbers, count, sizeof(*numbers), compare_numbers);
    *ret = TAKE_PTR(numbers);
    *ret_count = count;
    return 0;
}

static bool is_unsynced(int directory_fd, uint64_t number, enum file_kind kind)
{
    struct stat status;
    return kind == FILE_MAP_UNNAMED ||
           (kind == FILE_DATA &&
            fstatat(directory_fd, file_name(number, FILE_MAP).text, &status, AT_SYMLINK_NOFOLLOW) < 0 &&
            errno == ENOENT);
}

int generation_remove_unsynced(int directory_fd, struct error *err)
{
    CLEANUP(close_directory) DIR *listing = open_listing(directory_fd);
    if (listing == NULL)
        return error_errno(err, "listing the overlay's directory");
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(listing);
        if (entry == NULL)
            return errno != 0 ? error_errno(err, "listing the overlay's directory") : 0;
        uint64_t number;
        enum file_kind kind;
        if (!parse_name(entry->d_name, &number, &kind) || !is_unsynced(directory_fd, number, kind))
            continue;
        if (unlinkat(directory_fd, entry->d_name, 0) < 0 && errno != ENOENT)
            return error_errno(err, "removing %s", entry->d_name);
    }
}

static void use_direct(struct generation *generation)
{
    generation->alignment = OVERLAY_BLOCK_BYTES;
    struct statx status;
    if (statx(generation->data_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
        (status.stx_mask & STATX_DIOALIGN) != 0) {
        if (status.stx_dio_mem_align == 0 || status.stx_dio_mem_align > OVERLAY_BLOCK_BYTES ||
            status.stx_dio_offset_align > OVERLAY_BLOCK_BYTES)
            return;
        generation->alignment = status.stx_dio_mem_align;
    }
    int flags = fcntl(generation->data_fd, F_GETFL);
    if (flags >= 0 && fcntl(generation->data_fd, F_SETFL, flags | O_DIRECT) == 0)
        atomic_store(&generation->direct, true);
}

static struct generation *generation_new(uint64_t number, uint64_t disk_bytes, struct bounce_pool *pool)
{
    struct generation *generation = calloc(1, sizeof(*generation));
    if (generation == NULL)
        return NULL;
    *generation =
        (struct generation){.number = number, .disk_bytes = disk_bytes, .data_fd = -1, .map_fd = -1, .pool = pool};
    return generation;
}

void generation_close(struct generation *generation)
{
    if (generation == NULL)
        return;
    cleanup_close(&generation->data_fd);
    cleanup_close(&generation->map_fd);
    free(generation);
}

static int create_file(int directory_fd, uint64_t number, enum file_kind kind, uint64_t bytes, int *ret_fd)
{
    struct name name = file_name(number, kind);
    CLEANUP_CLOSE int fd =
        openat(directory_fd, name.text, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0) {
        int r = -errno;
        unlinkat(directory_fd, name.text, 0);
        return r;
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int generation_create(int directory_fd, uint64_t number, uint64_t disk_bytes, struct bounce_pool *pool,
                      struct generation **ret)
{
    struct generation *generation = generation_new(number, disk_bytes, pool);
    if (generation == NULL)
        return -ENOMEM;
    int r = create_file(directory_fd, number, FILE_DATA, disk_bytes, &generation->data_fd);
    if (r < 0) {
        generation_close(generation);
        return r;
    }
    r = create_file(directory_fd, number, FILE_MAP_UNNAMED, disk_bytes / OVERLAY_BLOCK_BYTES, &generation->map_fd);
    if (r < 0) {
        unlinkat(directory_fd, file_name(number, FILE_DATA).text, 0);
        generation_close(generation);
        return r;
    }
    use_direct(generation);
    *ret = generation;
    return 0;
}

/* A regular file of exactly `bytes`. */
static int open_file(int directory_fd, uint64_t number, enum file_kind kind, uint64_t bytes, int *ret_fd,
                     struct error *err)
{
    struct name name = file_name(number, kind);
    /* Opening a FIFO that somebody put there would wait. */
    CLEANUP_CLOSE int fd = openat(directory_fd, name.text, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ELOOP))
        return error_set(err, EBADMSG, "%s is missing or a symbolic link", name.text);
    if (fd < 0)
        return error_errno(err, "cannot open %s", name.text);
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_errno(err, "cannot stat %s", name.text);
    if (!S_ISREG(status.st_mode))
        return error_set(err, EBADMSG, "%s is not a regular file", name.text);
    if ((uint64_t)status.st_size != bytes)
        return error_set(err, EBADMSG, "%s has %jd bytes, expected %" PRIu64, name.text, (intmax_t)status.st_size,
                         bytes);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* Refuses bytes that mean nothing; returns 0 or -EBADMSG. */
static int merge_bytes(const uint8_t *bytes, size_t length, uint64_t block, uint64_t number, unsigned slot,
                       struct overlay_map *map, struct error *err)
{
    for (size_t i = 0; i < length;) {
        size_t end = i + 1;
        while (end < length && bytes[end] == bytes[i])
            end++;
        if (bytes[i] > OVERLAY_ZERO)
            return error_set(err, EBADMSG, "%s is damaged: block %" PRIu64 " has the unknown kind %u",
                             file_name(number, FILE_MAP).text, block + i, bytes[i]);
        if (bytes[i] != OVERLAY_ABSENT)
            overlay_map_set(map, block + i, end - i, overlay_entry(slot, bytes[i]));
        i = end;
    }
    return 0;
}

static int merge_map(int directory_fd, uint64_t number, unsigned slot, struct overlay_map *map, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = open_file(directory_fd, number, FILE_MAP, map->blocks, &fd, err);
    if (r < 0)
        return r;
    CLEANUP_FREE uint8_t *bytes = malloc(LOAD_BYTES);
    if (bytes == NULL)
        return error_set(err, ENOMEM, "out of memory");
    /* Only what was written is there; the rest are holes. */
    for (uint64_t at = 0; at < map->blocks;) {
        off_t data = lseek(fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0)
            return error_errno(err, "reading %s", file_name(number, FILE_MAP).text);
        at = (uint64_t)data;
        size_t length = (size_t)MIN(map->blocks - at, (uint64_t)LOAD_BYTES);
        ssize_t n = io_read_full(fd, bytes, length);
        if (n < 0 || (size_t)n < length)
            return error_code(err, n < 0 ? (int)n : -EIO, "reading %s", file_name(number, FILE_MAP).text);
        r = merge_bytes(bytes, length, at, number, slot, map, err);
        if (r < 0)
            return r;
        at += length;
    }
    return 0;
}

int generation_open(int directory_fd, uint64_t number, uint64_t disk_bytes, unsigned slot, struct overlay_map *map,
                    struct bounce_pool *pool, struct generation **ret, struct error *err)
{
    struct generation *generation = generation_new(number, disk_bytes, pool);
    if (generation == NULL)
        return error_set(err, ENOMEM, "out of memory");
    generation->map_named = true;
    int r = open_file(directory_fd, number, FILE_DATA, disk_bytes, &generation->data_fd, err);
    if (r == 0)
        r = merge_map(directory_fd, number, slot, map, err);
    if (r < 0) {
        generation_close(generation);
        return r;
    }
    use_direct(generation);
    *ret = generation;
    return 0;
}

int generation_remove(int directory_fd, uint64_t number)
{
    static const enum file_kind order[] = {FILE_MAP, FILE_DATA};
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        if (unlinkat(directory_fd, file_name(number, order[i]).text, 0) < 0 && errno != ENOENT)
            return -errno;
    }
    return 0;
}

/* Reads into `to`, or writes `from`. */
static int transfer(struct generation *generation, uint64_t offset, size_t length, uint8_t *to, const uint8_t *from)
{
    int fd = generation->data_fd;
    for (size_t done = 0; done < length;) {
        off_t at = (off_t)(offset + done);
        ssize_t n =
            to != NULL ? pread(fd, to + done, length - done, at) : pwrite(fd, from + done, length - done, at);
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0) {
            return -EIO; /* the end of a file that somebody else made shorter */
        } else if (errno == EINVAL && atomic_exchange(&generation->direct, false)) {
            /* A file system that takes O_DIRECT, but not for blocks as small. */
            int flags = fcntl(fd, F_GETFL);
            if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0)
                return -errno;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static bool needs_bounce(struct generation *generation, const void *bytes)
{
    return atomic_load(&generation->direct) && (uintptr_t)bytes % generation->alignment != 0;
}

int generation_read(struct generation *generation, uint64_t offset, size_t length, void *to)
{
    if (!needs_bounce(generation, to))
        return transfer(generation, offset, length, to, NULL);
    uint8_t *buffer = bounce_take(generation->pool);
    if (buffer == NULL)
        return -ENOMEM;
    int r = 0;
    for (size_t done = 0; r == 0 && done < length;) {
        size_t part = MIN(length - done, (size_t)BOUNCE_BYTES);
        r = transfer(generation, offset + done, part, buffer, NULL);
        if (r == 0)
            memcpy((uint8_t *)to + done, buffer, part);
        done += part;
    }
    bounce_give(generation->pool, buffer);
    return r;
}

int generation_write(struct generation *generation, uint64_t offset, size_t length, const void *from)
{
    if (!needs_bounce(generation, from))
        return transfer(generation, offset, length, NULL, from);
    uint8_t *buffer = bounce_take(generation->pool);
    if (buffer == NULL)
        return -ENOMEM;
    int r = 0;
    for (size_t done = 0; r == 0 && done < length;) {
        size_t part = MIN(length - done, (size_t)BOUNCE_BYTES);
        memcpy(buffer, (const uint8_t *)from + done, part);
        r = transfer(generation, offset + done, part, NULL, buffer);
        done += part;
    }
    bounce_give(generation->pool, buffer);
    return r;
}

void generation_punch(struct generation *generation, uint64_t offset, uint64_t length)
{
    /* Not all file systems can; the map says already that nothing is here. */
    (void)fallocate(generation->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
}

int generation_sync_data(struct generation *generation)
{
    return fdatasync(generation->data_fd) < 0 ? -errno : 0;
}

int generation_write_map(struct generation *generation, uint64_t offset, size_t length, const void *from)
{
    return io_pwrite_full(generation->map_fd, from, length, (off_t)offset);
}

int generation_sync_map(struct generation *generation, int directory_fd)
{
    if (fdatasync(generation->map_fd) < 0)
        return -errno;
    if (generation->map_named)
        return 0;
    struct name unnamed = file_name(generation->number, FILE_MAP_UNNAMED);
    struct name name = file_name(generation->number, FILE_MAP);
    if (renameat(directory_fd, unnamed.text, directory_fd, name.text) < 0)
        return -errno;
    if (fsync(directory_fd) < 0)
        return -errno;
    generation->map_named = true;
    return 0;
}

uint64_t generation_used_bytes(const struct generation *generation)
{
    struct stat status;
    return fstat(generation->data_fd, &status) < 0 ? 0 : (uint64_t)status.st_blocks * 512;
}
