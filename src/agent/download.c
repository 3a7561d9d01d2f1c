#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/path.h"
#include "agent/rest.h"
#include "base/io.h"

#define FILE_TYPE   "application/octet-stream"
#define READ_SIZE   (16 * 1024)
#define UNSIZED_MAX (4 * 1024 * 1024) /* of a file in /proc and the like, bytes */

static int open_file(const char *path, int *ret_fd, struct stat *ret_status, struct error *err)
{
    /* Non-blocking, so that a pipe does not stop the agent before it is seen to be one. */
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return error_set(err, ENOENT, "path '%s' does not exist", path);
    if (fd < 0 || fstat(fd, ret_status) < 0)
        return error_errno(err, "cannot open '%s'", path);
    if (S_ISDIR(ret_status->st_mode))
        return error_set(err, EISDIR, "path '%s' is a directory", path);
    if (!S_ISREG(ret_status->st_mode))
        return error_set(err, EINVAL, "path '%s' is not a regular file", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* RFC 5987's form, which any byte fits in. */
static void append_disposition(struct strbuf *headers, const char *name)
{
    strbuf_puts(headers, "Content-Disposition: inline; filename*=UTF-8''");
    for (; *name != '\0'; name++) {
        bool plain = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') ||
                     (*name >= '0' && *name <= '9') || strchr("-._~", *name) != NULL;
        if (plain)
            strbuf_append(headers, name, 1);
        else
            strbuf_printf(headers, "%%%02X", (unsigned char)*name);
    }
    strbuf_puts(headers, "\r\n");
}

/* The files of /proc say that they are empty, so their content is read first. */
static int respond_unsized(struct http_connection *connection, int fd, const char *headers, struct error *err)
{
    CLEANUP_STRBUF struct strbuf content = STRBUF_INIT;
    char piece[READ_SIZE];
    ssize_t n;
    do {
        n = io_read_full(fd, piece, sizeof(piece));
        if (n < 0)
            return error_code(err, (int)n, "cannot read the file");
        strbuf_append(&content, piece, (size_t)n);
        if (content.failed || content.length > UNSIZED_MAX)
            return error_set(err, EFBIG, "the file has more than %d bytes, but no size", UNSIZED_MAX);
    } while (n == sizeof(piece));
    http_respond(connection, 200, FILE_TYPE, headers, content.data, content.length);
    return 0;
}

static int download(struct http_connection *connection, struct error *err)
{
    CLEANUP(rest_file_done) struct rest_file file = {0};
    CLEANUP_STRBUF struct strbuf headers = STRBUF_INIT;
    CLEANUP_CLOSE int fd = -1;
    struct stat status;
    int r = rest_file_of(connection, "read", &file, err);
    if (r < 0)
        return r;
    if (file.path == NULL)
        return error_set(err, EINVAL, "the query parameter 'path' is missing");
    r = open_file(file.path, &fd, &status, err);
    if (r < 0)
        return r;
    append_disposition(&headers, path_name(file.path));
    if (status.st_size == 0)
        return respond_unsized(connection, fd, strbuf_text(&headers), err);
    http_respond_file(connection, strbuf_text(&headers), TAKE_FD(fd), (uint64_t)status.st_size);
    return 0;
}

void rest_download(struct http_connection *connection)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (download(connection, &err) < 0)
        rest_fail(connection, &err);
}
