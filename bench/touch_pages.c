/*
 * touch-pages: what page faults on a file cost, mapped privately as a VMM maps a guest's memory. A subject and a
 * reference of the same content take turns. Figures are ns per page, one for each pass or page:
 *
 *     touch-pages hot SUBJECT REFERENCE PASSES
 *         Every page of the files, which are in the page cache, by a process new in each pass: read in order, read
 * in scattered order, written.
 *         {"pages": …, "in_order": {"subject": […], "reference": […]}, "scattered": …, "written": …}
 *
 *     touch-pages cold SUBJECT REFERENCE CONTENT LAYER COUNT [random]
 *         One page at a time that isn't in the page cache, COUNT pages at random, of those that are not zero in
 *         CONTENT. LAYER is read at random with O_DIRECT, so much at a time as a frame of eight pages takes on
 * disk: what the disk's own part is. With `random` the mapping is told so (MADV_RANDOM).
 *         {"subject": […], "reference": […], "disk": […]}
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/io.h"

#define PAGE       ((size_t)4096)
#define DISK_READ  ((size_t)16384)
#define SCATTER    ((uint64_t)7919) /* prime, so that every page is reached once */
#define PASSES_MAX 1000
#define COUNT_MAX  100000
/* Pages that are touched one after the other lie further apart than anything reads ahead. */
#define APART ((uint64_t)1024)

struct mapped {
    const char *path;
    int fd;
    uint64_t pages;
    volatile uint8_t *bytes;
};

static int map_file(const char *path, bool writable, struct mapped *ret, struct error *err)
{
    struct stat status;
    *ret = (struct mapped){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (ret->fd < 0 || fstat(ret->fd, &status) < 0)
        return error_errno(err, "cannot open %s", path);
    ret->pages = (uint64_t)status.st_size / PAGE;
    void *bytes = mmap(NULL, ret->pages * PAGE, PROT_READ | (writable ? PROT_WRITE : 0),
                       MAP_PRIVATE | MAP_NORESERVE, ret->fd, 0);
    if (bytes == MAP_FAILED)
        return error_errno(err, "cannot map %s", path);
    ret->bytes = bytes;
    return 0;
}

static void unmap(struct mapped *file)
{
    if (file->bytes != NULL)
        munmap((void *)file->bytes, file->pages * PAGE);
    cleanup_close(&file->fd);
}

enum way { IN_ORDER, SCATTERED, WRITTEN, WAYS };
static const char *const way_names[WAYS] = {"in_order", "scattered", "written"};

static int64_t touch_all(const struct mapped *file, enum way way)
{
    int64_t begun_ns = clock_monotonic_ns();
    for (uint64_t i = 0; i < file->pages; i++) {
        uint64_t page = way == SCATTERED ? i * SCATTER % file->pages : i;
        if (way == WRITTEN)
            file->bytes[page * PAGE] = 1;
        else
            (void)file->bytes[page * PAGE];
    }
    return clock_monotonic_ns() - begun_ns;
}

/* In a process of its own, with empty page tables. */
static int touch_in_child(const char *path, enum way way, double *ret_ns, struct error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_errno(err, "cannot make a pipe");
    pid_t child = fork();
    if (child == 0) {
        struct mapped file;
        double ns = -1;
        if (map_file(path, way == WRITTEN, &file, err) == 0)
            ns = (double)touch_all(&file, way) / (double)file.pages;
        _exit(io_write_full(ends[1], &ns, sizeof(ns)) == 0 && ns >= 0 ? 0 : 1);
    }
    close(ends[1]);
    bool done =
        child > 0 && io_read_full(ends[0], ret_ns, sizeof(*ret_ns)) == (ssize_t)sizeof(*ret_ns) && *ret_ns >= 0;
    close(ends[0]);
    if (child > 0)
        waitpid(child, NULL, 0);
    return done ? 0 : error_set(err, EIO, "cannot touch the pages of %s", path);
}

static void print_list(const char *name, const double *values, size_t count, const char *end)
{
    printf("\"%s\": [", name);
    for (size_t i = 0; i < count; i++)
        printf("%s%.1f", i == 0 ? "" : ", ", values[i]);
    printf("]%s", end);
}

static int measure_hot(const char *const paths[2], size_t passes, struct error *err)
{
    static double figures[2][PASSES_MAX];
    struct stat status;
    if (stat(paths[0], &status) < 0)
        return error_errno(err, "cannot open %s", paths[0]);
    printf("{\"pages\": %lld", (long long)(status.st_size / (off_t)PAGE));
    for (enum way way = 0; way < WAYS; way++) {
        /* The first pass is what the first child pays: it fills the page cache. */
        for (size_t pass = 0; pass <= passes; pass++)
            for (size_t turn = 0; turn < 2; turn++) {
                size_t which = (turn + pass) % 2;
                int r = touch_in_child(paths[which], way, &figures[which][pass == 0 ? 0 : pass - 1], err);
                if (r < 0)
                    return r;
            }
        printf(", \"%s\": {", way_names[way]);
        print_list("subject", figures[0], passes, ", ");
        print_list("reference", figures[1], passes, "}");
    }
    puts("}");
    return 0;
}

static uint64_t random_number(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static bool is_zero(const volatile uint8_t *page)
{
    static const uint8_t zeros[PAGE];
    return memcmp((const void *)page, zeros, PAGE) == 0;
}

/* A page that isn't zero, far from the one before. */
static uint64_t choose_page(const struct mapped *content)
{
    static uint64_t last;
    for (;;) {
        uint64_t page = random_number() % content->pages;
        if ((page > last ? page - last : last - page) < APART || is_zero(content->bytes + page * PAGE))
            continue;
        last = page;
        return page;
    }
}

static bool is_cached(const struct mapped *file, uint64_t page)
{
    unsigned char resident = 1;
    return mincore((void *)(file->bytes + page * PAGE), PAGE, &resident) < 0 || (resident & 1) != 0;
}

static double touch_one(const struct mapped *file, uint64_t page)
{
    int64_t begun_ns = clock_monotonic_ns();
    (void)file->bytes[page * PAGE];
    return (double)(clock_monotonic_ns() - begun_ns);
}

static int drop(const struct mapped *file, bool random, struct error *err)
{
    void *bytes = (void *)file->bytes;
    if (madvise(bytes, file->pages * PAGE, MADV_DONTNEED) < 0 ||
        madvise(bytes, file->pages * PAGE, random ? MADV_RANDOM : MADV_NORMAL) < 0)
        return error_errno(err, "cannot give advice on %s", file->path);
    int code = posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
    return code == 0 ? 0 : error_set(err, code, "cannot drop %s from the page cache", file->path);
}

static int read_layer(int fd, uint64_t bytes, double *ret_ns, struct error *err)
{
    static _Alignas(4096) uint8_t buffer[DISK_READ];
    uint64_t at = random_number() % (bytes / PAGE - DISK_READ / PAGE) * PAGE;
    int64_t begun_ns = clock_monotonic_ns();
    if (pread(fd, buffer, sizeof(buffer), (off_t)at) != (ssize_t)sizeof(buffer))
        return error_errno(err, "cannot read the layer");
    *ret_ns = (double)(clock_monotonic_ns() - begun_ns);
    return 0;
}

static int touch_cold(const struct mapped *files, const struct mapped *content, int layer, uint64_t layer_bytes,
                      size_t count, struct error *err)
{
    static double figures[3][COUNT_MAX];
    size_t done = 0;
    /* What is in the page cache by now, since it came with another page, is passed over. */
    for (size_t attempt = 0; done < count; attempt++) {
        uint64_t page = choose_page(content);
        if (attempt > 20 * count)
            return error_set(err, EIO, "most pages come into the page cache by themselves");
        if (is_cached(&files[0], page) || is_cached(&files[1], page))
            continue;
        for (size_t turn = 0; turn < 2; turn++) {
            size_t which = (turn + done) % 2;
            figures[which][done] = touch_one(&files[which], page);
        }
        int r = read_layer(layer, layer_bytes, &figures[2][done], err);
        if (r < 0)
            return r;
        done++;
    }
    fputs("{", stdout);
    print_list("subject", figures[0], count, ", ");
    print_list("reference", figures[1], count, ", ");
    print_list("disk", figures[2], count, "}\n");
    return 0;
}

static int measure_cold(const char *const paths[4], size_t count, bool random, struct error *err)
{
    struct mapped files[3] = {{.fd = -1}, {.fd = -1}, {.fd = -1}};
    struct stat status;
    int r = 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(files); i++)
        r = map_file(paths[i], false, &files[i], err);
    CLEANUP_CLOSE int layer = r == 0 ? open(paths[3], O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
    if (r == 0 && (layer < 0 || fstat(layer, &status) < 0))
        r = error_errno(err, "cannot open %s", paths[3]);
    if (r == 0 && ((uint64_t)status.st_size < 2 * DISK_READ || files[0].pages != files[2].pages ||
                   files[1].pages != files[2].pages || files[2].pages < 4 * APART))
        r = error_set(err, EINVAL, "the files are too small or differ in size");
    for (size_t i = 0; r == 0 && i < 2; i++)
        r = drop(&files[i], random, err);
    if (r == 0)
        r = touch_cold(files, &files[2], layer, (uint64_t)status.st_size, count, err);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        unmap(&files[i]);
    return r;
}

int main(int argc, char **argv)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    bool hot = argc == 5 && strcmp(argv[1], "hot") == 0;
    bool random = argc == 8 && strcmp(argv[7], "random") == 0;
    if (!hot && !random && (argc != 7 || strcmp(argv[1], "cold") != 0)) {
        fputs("Usage: touch-pages hot SUBJECT REFERENCE PASSES\n"
              "       touch-pages cold SUBJECT REFERENCE CONTENT LAYER COUNT [random]\n",
              stderr);
        return 2;
    }
    int number = atoi(argv[hot ? 4 : 6]);
    int r = number < 1 || number > (hot ? PASSES_MAX : COUNT_MAX)
                ? error_set(&err, EINVAL, "the number of passes or pages is out of range")
            : hot
                ? measure_hot((const char *[]){argv[2], argv[3]}, (size_t)number, &err)
                : measure_cold((const char *[]){argv[2], argv[3], argv[4], argv[5]}, (size_t)number, random, &err);
    if (r == 0)
        return 0;
    fprintf(stderr, "touch-pages: %s\n", error_message(&err));
    return 1;
}
