/*
 * copy-private-pages: writes the private pages of ranges of a process to a file, one after the other: what a
 * capture of it would look at. The process may run meanwhile.
 *
 * Usage: copy-private-pages PID FILE START-END…     (hexadecimal, as in /proc/PID/maps)
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/io.h"
#include "image/pages.h"

#define BLOCK_BYTES ((size_t)1 << 20)

static int copy_run(pid_t pid, struct page_run run, void *block, int to, struct error *err)
{
    while (run.length > 0) {
        size_t length = MIN((size_t)run.length, BLOCK_BYTES);
        struct iovec local = {block, length};
        struct iovec remote = {(void *)(uintptr_t)run.address, length};
        if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)length)
            return error_errno(err, "cannot read the memory of process %d", (int)pid);
        int r = io_write_full(to, block, length);
        if (r < 0)
            return error_code(err, r, "cannot write the pages");
        run.address += length;
        run.length -= length;
    }
    return 0;
}

static int copy_range(pid_t pid, const char *text, void *block, int to, struct error *err)
{
    uint64_t start;
    uint64_t end;
    if (sscanf(text, "%" SCNx64 "-%" SCNx64, &start, &end) != 2 || end <= start)
        return error_set(err, EINVAL, "%s is not a range", text);
    CLEANUP_CLOSE int pagemap = page_map_open(pid, err);
    if (pagemap < 0)
        return pagemap;
    struct page_walk walk;
    page_walk_init(&walk, pagemap, PAGES_PRIVATE, page_scan_supported(pagemap), start, end - start);
    struct page_run run;
    int r;
    while ((r = page_walk_next(&walk, &run, err)) == 1) {
        int copied = copy_run(pid, run, block, to, err);
        if (copied < 0)
            return copied;
    }
    return r;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fputs("Usage: copy-private-pages PID FILE START-END…\n", stderr);
        return 2;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE void *block = malloc(BLOCK_BYTES);
    CLEANUP_CLOSE int to = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int r = block == NULL ? error_set(&err, ENOMEM, "out of memory")
            : to < 0      ? error_errno(&err, "cannot make %s", argv[2])
                          : 0;
    for (int i = 3; r == 0 && i < argc; i++)
        r = copy_range((pid_t)atoi(argv[1]), argv[i], block, to, &err);
    if (r == 0)
        return 0;
    fprintf(stderr, "copy-private-pages: %s\n", error_message(&err));
    return 1;
}
