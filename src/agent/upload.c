/*
 * POST /files: the body goes through up to three stages, piece by piece: decompression (Content-Encoding: gzip),
 * multipart/form-data (or none: application/octet-stream), the file. The first error is answered at once; what was
 * written until then stays, except when the disk is full.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "agent/entry.h"
#include "agent/multipart.h"
#include "agent/path.h"
#include "agent/rest.h"
#include "base/io.h"

#define INFLATE_CHUNK    (32 * 1024)
#define GZIP_WINDOW_BITS (MAX_WBITS + 16) /* zlib's way to say "gzip format only" */
#define FILES_MAX        10000            /* of one request */

struct upload {
    struct http_connection *connection;
    struct rest_file target; /* its path names the file, unless the parts do */
    struct multipart *multipart;
    z_stream *gzip; /* NULL: not compressed */
    bool gzip_ended;
    json_t *metadata; /* NULL: none */
    json_t *written;  /* the answer */
    int fd;           /* of the file being written, -1: none, or a part that is not a file */
};

static void upload_free(struct upload *upload)
{
    if (upload == NULL)
        return;
    cleanup_close(&upload->fd);
    multipart_free(upload->multipart);
    if (upload->gzip != NULL)
        inflateEnd(upload->gzip);
    free(upload->gzip);
    json_decref(upload->metadata);
    json_decref(upload->written);
    rest_file_done(&upload->target);
    free(upload);
}

static void cleanup_upload(struct upload **upload)
{
    upload_free(*upload);
}

/* ---- the file ---- */

static int open_target(const struct upload *upload, const char *path, struct error *err)
{
    struct stat status;
    int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    CLEANUP_CLOSE int fd = open(path, flags, 0666);
    if (fd < 0 && errno == EISDIR)
        return error_set(err, EISDIR, "path is a directory: %s", path);
    if (fd < 0 && errno == ENXIO) /* a pipe without a reader */
        return error_set(err, EINVAL, "path is not a regular file: %s", path);
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_errno(err, "cannot open '%s' for writing", path);
    if (!S_ISREG(status.st_mode))
        return error_set(err, EINVAL, "path is not a regular file: %s", path);
    if (fchown(fd, upload->target.user.uid, upload->target.user.gid) < 0)
        return error_errno(err, "cannot give '%s' to the user %s", path, upload->target.user.name);
    int r = entry_set_metadata(fd, upload->metadata, err);
    return r < 0 ? r : TAKE_FD(fd);
}

static bool is_written(const struct upload *upload, const char *path)
{
    size_t index;
    json_t *file;
    json_array_foreach (upload->written, index, file)
        if (strcmp(json_string_value(json_object_get(file, "path")), path) == 0)
            return true;
    return false;
}

static int open_file(struct upload *upload, const char *path, struct error *err)
{
    const struct user *user = &upload->target.user;
    if (json_array_size(upload->written) >= FILES_MAX)
        return error_set(err, EINVAL, "there are more than %d files in one request", FILES_MAX);
    if (is_written(upload, path))
        return error_set(err, EINVAL, "the path '%s' occurs twice; the first file was written", path);
    json_t *file = json_pack("{s:s, s:s, s:s, s:O*}", "path", path, "name", path_name(path), "type", "file",
                             "metadata", upload->metadata);
    if (file == NULL)
        return error_set(err, EINVAL, "the path is not UTF-8");
    json_array_append_new(upload->written, file);
    int r = path_make_parents(path, user->uid, user->gid, err);
    if (r == 0)
        r = open_target(upload, path, err);
    if (r < 0)
        return r;
    upload->fd = r;
    return 0;
}

static int write_file(void *owner, const char *bytes, size_t length, struct error *err)
{
    struct upload *upload = owner;
    if (upload->fd < 0)
        return 0;
    int r = io_write_full(upload->fd, bytes, length);
    if (r == -ENOSPC || r == -EDQUOT) {
        (void)!ftruncate(upload->fd, 0); /* a useless half must not keep the disk full */
        return error_set(err, -r, "not enough disk space available");
    }
    return r < 0 ? error_code(err, r, "cannot write the file") : 0;
}

static int close_file(void *owner, struct error *err)
{
    struct upload *upload = owner;
    if (upload->fd >= 0 && close(TAKE_FD(upload->fd)) < 0)
        return error_errno(err, "cannot write the file");
    return 0;
}

/* ---- parts ---- */

static int begin_part(void *owner, const char *name, const char *filename, struct error *err)
{
    struct upload *upload = owner;
    if (name == NULL || strcmp(name, "file") != 0) /* other fields are not the agent's */
        return 0;
    if (upload->target.path != NULL)
        return open_file(upload, upload->target.path, err);
    if (filename == NULL || *filename == '\0')
        return error_set(err, EINVAL, "a part has no filename, and the request no 'path'");
    CLEANUP_FREE char *path = NULL;
    int r = rest_resolve(upload->connection, &upload->target.user, filename, &path, err);
    return r < 0 ? r : open_file(upload, path, err);
}

static const struct multipart_callbacks part_callbacks = {
    .begin = begin_part,
    .content = write_file,
    .end = close_file,
};

static int take_plain(struct upload *upload, const char *bytes, size_t length, struct error *err)
{
    if (upload->multipart != NULL)
        return multipart_feed(upload->multipart, bytes, length, err);
    return write_file(upload, bytes, length, err);
}

static int take_compressed(struct upload *upload, const char *bytes, size_t length, struct error *err)
{
    z_stream *gzip = upload->gzip;
    gzip->next_in = (Bytef *)(uintptr_t)bytes;
    gzip->avail_in = (uInt)length;
    bool more = true;
    while (more && !upload->gzip_ended) {
        char plain[INFLATE_CHUNK];
        gzip->next_out = (Bytef *)plain;
        gzip->avail_out = sizeof(plain);
        int z = inflate(gzip, Z_NO_FLUSH);
        if (z != Z_OK && z != Z_STREAM_END && z != Z_BUF_ERROR)
            return error_set(err, EINVAL, "the body is not valid gzip: %s",
                             gzip->msg != NULL ? gzip->msg : "damaged");
        upload->gzip_ended = z == Z_STREAM_END;
        more = gzip->avail_in > 0 || gzip->avail_out == 0;
        int r = take_plain(upload, plain, sizeof(plain) - gzip->avail_out, err);
        if (r < 0)
            return r;
    }
    if (gzip->avail_in > 0)
        return error_set(err, EINVAL, "the body goes on behind the end of its gzip stream");
    return 0;
}

/* ---- the request ---- */

static void upload_body(struct http_connection *connection, const char *bytes, size_t length)
{
    struct upload *upload = http_owner(connection);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = upload->gzip != NULL ? take_compressed(upload, bytes, length, &err)
                                 : take_plain(upload, bytes, length, &err);
    if (r < 0)
        rest_fail(connection, &err);
}

static int finish(struct upload *upload, struct error *err)
{
    if (upload->gzip != NULL && !upload->gzip_ended)
        return error_set(err, EINVAL, "the body ends inside its gzip stream");
    return upload->multipart != NULL ? multipart_finish(upload->multipart, err) : close_file(upload, err);
}

static void upload_complete(struct http_connection *connection)
{
    struct upload *upload = http_owner(connection);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (finish(upload, &err) < 0)
        rest_fail(connection, &err);
    else
        rest_respond(connection, 200, upload->written);
}

static void upload_gone(struct http_connection *connection)
{
    upload_free(http_owner(connection));
}

static void add_metadata(void *context, const char *key, const char *value)
{
    struct upload *upload = context;
    if (upload->metadata == NULL)
        upload->metadata = json_object();
    char lower[128];
    size_t length = strlen(key);
    if (length == 0 || length >= sizeof(lower))
        return;
    for (size_t i = 0; i <= length; i++)
        lower[i] = (char)(key[i] >= 'A' && key[i] <= 'Z' ? key[i] | 0x20 : key[i]);
    json_object_set_new(upload->metadata, lower, json_string(value));
}

static int choose_decompression(struct upload *upload, struct error *err)
{
    const char *encoding = http_header(upload->connection, "Content-Encoding");
    if (encoding == NULL || *encoding == '\0' || strcasecmp(encoding, "identity") == 0)
        return 0;
    if (strcasecmp(encoding, "gzip") != 0)
        return error_set(err, EINVAL, "the Content-Encoding '%.32s' is not supported; gzip is", encoding);
    upload->gzip = calloc(1, sizeof(*upload->gzip));
    if (upload->gzip == NULL || inflateInit2(upload->gzip, GZIP_WINDOW_BITS) != Z_OK)
        return error_set(err, ENOMEM, "no memory for an upload");
    return 0;
}

static int choose_format(struct upload *upload, struct error *err)
{
    static const char raw[] = "application/octet-stream";
    const char *type = http_header(upload->connection, "Content-Type");
    if (type == NULL)
        return error_set(err, EINVAL, "the request has no Content-Type");
    if (strncasecmp(type, raw, strlen(raw)) != 0)
        return multipart_new(type, &part_callbacks, upload, &upload->multipart, err);
    if (upload->target.path == NULL)
        return error_set(err, EINVAL, "the query parameter 'path' is missing");
    return open_file(upload, upload->target.path, err);
}

static int begin_upload(struct http_connection *connection, struct upload **ret, struct error *err)
{
    CLEANUP(cleanup_upload) struct upload *upload = calloc(1, sizeof(*upload));
    if (upload == NULL)
        return error_set(err, ENOMEM, "no memory for an upload");
    upload->fd = -1;
    upload->connection = connection;
    upload->written = json_array();
    http_each_header(connection, "X-Metadata-", add_metadata, upload);
    int r = rest_file_of(connection, "write", &upload->target, err);
    if (r == 0)
        r = choose_decompression(upload, err);
    if (r == 0)
        r = choose_format(upload, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(upload);
    return 0;
}

void rest_upload(struct http_connection *connection)
{
    static const struct http_handler handler = {
        .body = upload_body,
        .complete = upload_complete,
        .gone = upload_gone,
    };
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct upload *upload = NULL;
    if (begin_upload(connection, &upload, &err) < 0)
        rest_fail(connection, &err);
    else
        http_handle(connection, &handler, upload);
}
