#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

ssize_t io_read_full(int fd, void *buffer, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = read(fd, (char *)buffer + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

ssize_t io_pread_full(int fd, void *buffer, size_t length, off_t offset)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = pread(fd, (char *)buffer + done, length - done, offset + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int io_write_full(int fd, const void *buffer, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = write(fd, (const char *)buffer + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

int io_pwrite_full(int fd, const void *buffer, size_t length, off_t offset)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = pwrite(fd, (const char *)buffer + done, length - done, offset + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

int io_read_file(const char *path, size_t limit, char **ret_data, size_t *ret_length)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return -errno;
    size_t capacity = 4096;
    size_t length = 0;
    CLEANUP_FREE char *data = malloc(capacity);
    if (data == NULL)
        return -ENOMEM;
    for (;;) {
        ssize_t n = io_read_full(fd, data + length, capacity - 1 - length);
        if (n < 0)
            return (int)n;
        length += (size_t)n;
        if (length > limit)
            return -EFBIG;
        if (length < capacity - 1)
            break;
        char *larger = realloc(data, capacity * 2);
        if (larger == NULL)
            return -ENOMEM;
        data = larger;
        capacity *= 2;
    }
    data[length] = '\0';
    *ret_data = TAKE_PTR(data);
    if (ret_length != NULL)
        *ret_length = length;
    return 0;
}

char *io_path(const char *directory, const char *name, struct error *err)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) >= 0)
        return path;
    error_set(err, ENOMEM, "out of memory");
    return NULL;
}

int io_fsync_path(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return fsync(fd) < 0 ? -errno : 0;
}

static int fsync_parent(const char *path)
{
    CLEANUP_FREE char *directory = strdup(path);
    if (directory == NULL)
        return -ENOMEM;
    char *slash = strrchr(directory, '/');
    if (slash == NULL)
        return io_fsync_path(".");
    slash[slash == directory] = '\0';
    return io_fsync_path(directory);
}

static int write_and_sync(const char *path, const void *data, size_t length, mode_t mode)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return -errno;
    int r = io_write_full(fd, data, length);
    if (r < 0)
        return r;
    return fsync(fd) < 0 ? -errno : 0;
}

int io_write_file_atomic(const char *path, const void *data, size_t length, mode_t mode)
{
    CLEANUP_FREE char *temporary = NULL;
    if (asprintf(&temporary, "%s.tmp", path) < 0) {
        temporary = NULL;
        return -ENOMEM;
    }
    int r = write_and_sync(temporary, data, length, mode);
    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0) {
        unlink(temporary);
        return r;
    }
    return fsync_parent(path);
}

int io_make_directories(const char *path, mode_t mode)
{
    CLEANUP_FREE char *partial = strdup(path);
    if (partial == NULL)
        return -ENOMEM;
    for (char *slash = strchr(partial + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(partial, mode) < 0 && errno != EEXIST)
            return -errno;
        *slash = '/';
    }
    if (mkdir(partial, mode) < 0 && errno != EEXIST)
        return -errno;
    return 0;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status;
    (void)kind;
    (void)walk;
    return remove(path) < 0 && errno != ENOENT ? -errno : 0;
}

int io_remove_tree(const char *path)
{
    int r = nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (r == -1)
        return errno == ENOENT ? 0 : -errno;
    return r;
}

int io_set_cloexec(int fd, int on)
{
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0)
        return -errno;
    flags = on ? flags | FD_CLOEXEC : flags & ~FD_CLOEXEC;
    return fcntl(fd, F_SETFD, flags) < 0 ? -errno : 0;
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t clock_realtime_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}
