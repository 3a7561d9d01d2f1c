#include "clone.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

#define COPY_BUFFER (1u << 20)

/* For file systems that can't copy between each other within the kernel. */
static int copy_through_buffer(int from, int to, off_t offset, off_t end)
{
    CLEANUP_FREE char *buffer = malloc(COPY_BUFFER);
    if (buffer == NULL)
        return -ENOMEM;
    while (offset < end) {
        ssize_t n = pread(from, buffer, (size_t)MIN(end - offset, (off_t)COPY_BUFFER), offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        int r = io_pwrite_full(to, buffer, (size_t)n, offset);
        if (r < 0)
            return r;
        offset += n;
    }
    return 0;
}

/* Copies [offset, end) at the same offsets. */
static int copy_range(int from, int to, off_t offset, off_t end)
{
    while (offset < end) {
        off_t in = offset;
        off_t out = offset;
        ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(end - offset), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS))
            return copy_through_buffer(from, to, offset, end);
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO; /* the source got shorter: nobody may do that to an image */
        offset += n;
    }
    return 0;
}

static int copy_sparse(int from, int to, off_t size)
{
    for (off_t offset = 0; offset < size;) {
        off_t data = lseek(from, offset, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : -errno; /* ENXIO: only a hole is left */
        off_t hole = lseek(from, data, SEEK_HOLE);
        if (hole < 0)
            return -errno;
        int r = copy_range(from, to, data, hole);
        if (r < 0)
            return r;
        offset = hole;
    }
    return 0;
}

int image_clone(int from, int to, struct error *err)
{
    if (ioctl(to, FICLONE, from) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != EXDEV && errno != EINVAL && errno != ENOTTY && errno != ENOSYS)
        return error_errno(err, "cannot clone an image");
    struct stat status;
    if (fstat(from, &status) < 0 || ftruncate(to, status.st_size) < 0)
        return error_errno(err, "cannot size the copy of an image");
    int r = copy_sparse(from, to, status.st_size);
    return r < 0 ? error_code(err, r, "cannot copy an image") : 0;
}

int image_clone_to(int from, const char *path, struct error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, "cannot make %s", path);
    int r = image_clone(from, fd, err);
    if (r < 0) {
        unlink(path);
        return error_wrap(err, r, "%s", path);
    }
    return TAKE_FD(fd);
}
