/*
 * guest-work: runs in guests (static, no library) and changes their memory by way of files in a tmpfs, fast enough
 * for an emulated guest:
 *
 *     guest-work random FILE MIB SEED         writes random bytes, which nothing can compress
 *     guest-work text FILE MIB SEED           writes words
 *     guest-work scatter FILE PAGES SEED      overwrites so many pages of 4 KiB at random places with random bytes
 *     guest-work scatter-text FILE PAGES SEED the same with words
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE  ((size_t)4096)
#define BLOCK ((size_t)1 << 20)
#define WORDS 4096

static uint64_t state;

static uint64_t random_number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void fill_random(uint8_t *to, size_t length)
{
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
        uint64_t number = random_number();
        memcpy(to + i, &number, sizeof(number));
    }
}

/* Words of a made-up language, the first ones far more often than the last: about as compressible as prose. */
static void fill_text(uint8_t *to, size_t length)
{
    static char words[WORDS][12];
    if (words[0][0] == '\0') {
        uint64_t seed = state;
        state = 1;
        for (size_t i = 0; i < WORDS; i++) {
            size_t letters = 2 + random_number() % 8;
            for (size_t k = 0; k < letters; k++)
                words[i][k] = (char)('a' + random_number() % 26);
            words[i][letters] = ' ';
        }
        state = seed;
    }
    for (size_t at = 0; at < length;) {
        uint64_t number = random_number();
        size_t index = (number & 0xfff) * (number >> 12 & 0xfff) * (number >> 24 & 0xfff) >> 24;
        const char *word = words[index];
        size_t n = strlen(word);
        if (n > length - at)
            n = length - at;
        memcpy(to + at, word, n);
        at += n;
    }
}

static void fill(uint8_t *to, size_t length, int text)
{
    if (text)
        fill_text(to, length);
    else
        fill_random(to, length);
}

static int fail(const char *path)
{
    perror(path);
    return 1;
}

static int write_file(const char *path, size_t mebibytes, int text)
{
    static uint8_t block[BLOCK];
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    if (fd < 0)
        return fail(path);
    for (size_t i = 0; i < mebibytes; i++) {
        fill(block, BLOCK, text);
        if (write(fd, block, BLOCK) != (ssize_t)BLOCK)
            return fail(path);
    }
    return 0;
}

static int scatter(const char *path, size_t pages, int text)
{
    static uint8_t page[PAGE];
    struct stat status;
    int fd = open(path, O_WRONLY);
    if (fd < 0 || fstat(fd, &status) < 0 || status.st_size < (off_t)PAGE)
        return fail(path);
    uint64_t total = (uint64_t)status.st_size / PAGE;
    for (size_t i = 0; i < pages; i++) {
        fill(page, PAGE, text);
        if (pwrite(fd, page, PAGE, (off_t)(random_number() % total * PAGE)) != (ssize_t)PAGE)
            return fail(path);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fputs("Usage: guest-work random|text|scatter|scatter-text FILE AMOUNT SEED\n", stderr);
        return 2;
    }
    size_t amount = strtoul(argv[3], NULL, 10);
    state = 0x9e3779b97f4a7c15 * (strtoull(argv[4], NULL, 10) + 1);
    if (strcmp(argv[1], "scatter") == 0 || strcmp(argv[1], "scatter-text") == 0)
        return scatter(argv[2], amount, argv[1][strlen("scatter")] != '\0');
    return write_file(argv[2], amount, strcmp(argv[1], "text") == 0);
}
