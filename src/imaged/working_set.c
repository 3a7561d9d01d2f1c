#include "imaged/working_set.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/io.h"

#define MAGIC "DORMWSET"

/* As on disk. */
struct file_header {
    char magic[8];
    uint32_t count;
    uint32_t reserved;
    uint64_t checksum;
};

struct file_run {
    uint32_t page;
    uint32_t count;
};

void working_set_done(struct working_set *set)
{
    free(set->runs);
    *set = (struct working_set){0};
}

int working_set_add(struct working_set *set, struct page_run run)
{
    if (run.count == 0)
        return 0;
    if (set->count == WORKING_SET_RUNS_MAX || run.count > WORKING_SET_PAGES_MAX - set->pages)
        return -ENOSPC;
    if (set->count == set->capacity) {
        size_t capacity = set->capacity == 0 ? 64 : set->capacity * 2;
        struct page_run *runs = reallocarray(set->runs, capacity, sizeof(*runs));
        if (runs == NULL)
            return -ENOMEM;
        set->runs = runs;
        set->capacity = capacity;
    }
    set->runs[set->count++] = run;
    set->pages += run.count;
    return 0;
}

static int compare_runs(const void *left, const void *right)
{
    const struct page_run *a = left;
    const struct page_run *b = right;
    return a->page < b->page ? -1 : a->page > b->page;
}

void working_set_join(struct working_set *set)
{
    if (set->count == 0)
        return;
    qsort(set->runs, set->count, sizeof(*set->runs), compare_runs);
    size_t last = 0;
    for (size_t i = 1; i < set->count; i++) {
        struct page_run *to = &set->runs[last];
        const struct page_run *from = &set->runs[i];
        if (from->page <= to->page + to->count)
            to->count = MAX(to->page + to->count, from->page + from->count) - to->page;
        else
            set->runs[++last] = *from;
    }
    set->count = last + 1;
    set->pages = 0;
    for (size_t i = 0; i < set->count; i++)
        set->pages += set->runs[i].count;
}

int working_set_read(const char *path, uint64_t pages, struct working_set *set, struct error *err)
{
    CLEANUP_FREE char *data = NULL;
    size_t length;
    int r = io_read_file(path, sizeof(struct file_header) + WORKING_SET_RUNS_MAX * sizeof(struct file_run), &data,
                         &length);
    if (r < 0)
        return error_code(err, r == -EFBIG ? -EBADMSG : r, "cannot read %s", path);
    struct file_header header;
    if (length < sizeof(header))
        return error_set(err, EBADMSG, "%s is too short", path);
    memcpy(&header, data, sizeof(header));
    size_t count = le32toh(header.count);
    const char *runs = data + sizeof(header);
    if (memcmp(header.magic, MAGIC, sizeof(header.magic)) != 0 || header.reserved != 0 ||
        length - sizeof(header) != count * sizeof(struct file_run) ||
        XXH3_64bits(runs, length - sizeof(header)) != le64toh(header.checksum))
        return error_set(err, EBADMSG, "%s is damaged", path);
    for (size_t i = 0; i < count; i++) {
        struct file_run run;
        memcpy(&run, runs + i * sizeof(run), sizeof(run));
        struct page_run added = {le32toh(run.page), le32toh(run.count)};
        if (added.page + added.count > pages)
            return error_set(err, EBADMSG, "%s has pages beyond the image", path);
        r = working_set_add(set, added);
        if (r == -ENOSPC)
            break;
        if (r < 0)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

int working_set_write(const char *path, const struct working_set *set, struct error *err)
{
    size_t length = set->count * sizeof(struct file_run);
    CLEANUP_FREE char *data = malloc(sizeof(struct file_header) + length);
    if (data == NULL)
        return error_set(err, ENOMEM, "out of memory");
    char *runs = data + sizeof(struct file_header);
    for (size_t i = 0; i < set->count; i++) {
        struct file_run run = {htole32((uint32_t)set->runs[i].page), htole32((uint32_t)set->runs[i].count)};
        memcpy(runs + i * sizeof(run), &run, sizeof(run));
    }
    struct file_header header = {.count = htole32((uint32_t)set->count),
                                 .checksum = htole64(XXH3_64bits(runs, length))};
    memcpy(header.magic, MAGIC, sizeof(header.magic));
    memcpy(data, &header, sizeof(header));
    int r = io_write_file_atomic(path, data, sizeof(header) + length, 0600);
    return r < 0 ? error_code(err, r, "cannot write %s", path) : 0;
}
