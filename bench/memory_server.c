/*
 * memory-server: the least that a FUSE file can cost: one thread that answers reads of a file `memory` by copying
 * from memory. FILE is its content, read at the start. Serves until the end of standard input; prints "ready" when
 * it does.
 *
 * Usage: memory-server FILE DIRECTORY
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

#define FILE_INODE ((fuse_ino_t)2)
#define FOREVER    1e9

struct content {
    char *bytes;
    size_t length;
};

static void attributes(const struct content *content, fuse_ino_t inode, struct stat *ret)
{
    *ret = (struct stat){.st_ino = inode, .st_mode = S_IFDIR | 0755, .st_nlink = 2};
    if (inode == FILE_INODE)
        *ret = (struct stat){
            .st_ino = inode, .st_mode = S_IFREG | 0444, .st_nlink = 1, .st_size = (off_t)content->length};
}

static void answer_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = FILE_INODE, .attr_timeout = FOREVER, .entry_timeout = FOREVER};
    attributes(fuse_req_userdata(request), FILE_INODE, &entry.attr);
    if (parent != FUSE_ROOT_ID || strcmp(name, "memory") != 0)
        fuse_reply_err(request, ENOENT);
    else
        fuse_reply_entry(request, &entry);
}

static void answer_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    struct stat status;
    attributes(fuse_req_userdata(request), inode, &status);
    fuse_reply_attr(request, &status, FOREVER);
}

static void answer_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)inode;
    file->keep_cache = 1;
    fuse_reply_open(request, file);
}

static void answer_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                        struct fuse_file_info *file)
{
    (void)inode;
    (void)file;
    const struct content *content = fuse_req_userdata(request);
    size_t at = MIN((size_t)offset, content->length);
    fuse_reply_buf(request, content->bytes + at, MIN(size, content->length - at));
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = answer_lookup,
    .getattr = answer_getattr,
    .open = answer_open,
    .read = answer_read,
};

static int load(const char *path, struct content *ret)
{
    struct stat status;
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return -errno;
    ret->length = (size_t)status.st_size;
    ret->bytes = mmap(NULL, ret->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ret->bytes == MAP_FAILED)
        return -errno;
    return io_read_full(fd, ret->bytes, ret->length) == status.st_size ? 0 : -EIO;
}

static void *wait_for_end_of_input(void *session)
{
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    fuse_session_unmount(session);
    return NULL;
}

int main(int argc, char **argv)
{
    struct content content;
    if (argc != 3) {
        fputs("Usage: memory-server FILE DIRECTORY\n", stderr);
        return 2;
    }
    int r = load(argv[1], &content);
    if (r < 0) {
        fprintf(stderr, "memory-server: cannot read %s: %s\n", argv[1], strerror(-r));
        return 1;
    }
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    if (fuse_opt_add_arg(&args, argv[0]) != 0 || fuse_opt_add_arg(&args, "-oro,fsname=memory") != 0)
        return 1;
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof(operations), &content);
    fuse_opt_free_args(&args);
    if (session == NULL || fuse_session_mount(session, argv[2]) != 0)
        return 1;
    pthread_t waiting;
    int failed = pthread_create(&waiting, NULL, wait_for_end_of_input, session);
    if (failed == 0) {
        puts("ready");
        fflush(stdout);
        fuse_session_loop(session);
        pthread_join(waiting, NULL);
    } else {
        fuse_session_unmount(session);
    }
    fuse_session_destroy(session);
    return failed == 0 ? 0 : 1;
}
