#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/tree.h"

#define BLOCK_SIZE      65536
#define PERMISSION_BITS 0777
#define EXTRACT_FLAGS                                                                                              \
    (ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_SECURE_SYMLINKS |                               \
     ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS)

struct extraction {
    tree_source source;
    void *source_context;
    struct archive *tar;
    struct archive *disk;
    bool with_root;
    struct tree_count count;
    struct error source_error; /* of `source`, which libarchive can't carry */
    char block[BLOCK_SIZE];
};

static la_ssize_t read_source(struct archive *tar, void *context, const void **ret_block)
{
    (void)tar;
    struct extraction *extraction = context;
    *ret_block = extraction->block;
    return extraction->source(extraction->source_context, extraction->block, sizeof(extraction->block),
                              &extraction->source_error);
}

static int extract_failure(struct extraction *extraction, struct archive *archive, struct archive_entry *entry,
                           struct error *err)
{
    if (extraction->source_error.code != 0) {
        int code = extraction->source_error.code;
        error_move(err, &extraction->source_error);
        return -code;
    }
    const char *path = entry != NULL ? archive_entry_pathname(entry) : NULL;
    const char *why = archive_error_string(archive);
    int code = archive_errno(archive) == ENOSPC ? ENOSPC : EIO;
    if (path == NULL)
        return error_set(err, code, "the sandbox's archive is damaged: %s", why != NULL ? why : "unknown reason");
    return error_set(err, code, "cannot write %s: %s", path, why != NULL ? why : "unknown reason");
}

static bool is_root(const char *path)
{
    return path[strspn(path, "./")] == '\0' && strstr(path, "..") == NULL;
}

static bool is_wanted(const struct extraction *extraction, struct archive_entry *entry)
{
    const char *path = archive_entry_pathname(entry);
    if (path == NULL || (is_root(path) && !extraction->with_root))
        return false;
    mode_t type = archive_entry_filetype(entry);
    return archive_entry_hardlink(entry) != NULL || type == S_IFREG || type == S_IFDIR || type == S_IFLNK;
}

static int extract_data(struct extraction *extraction, struct archive_entry *entry, struct error *err)
{
    for (;;) {
        const void *block;
        size_t length;
        la_int64_t offset;
        int r = archive_read_data_block(extraction->tar, &block, &length, &offset);
        if (r == ARCHIVE_EOF)
            return 0;
        if (r != ARCHIVE_OK)
            return extract_failure(extraction, extraction->tar, entry, err);
        if (archive_write_data_block(extraction->disk, block, length, offset) != ARCHIVE_OK)
            return extract_failure(extraction, extraction->disk, entry, err);
        extraction->count.bytes += length;
    }
}

static int extract_entry(struct extraction *extraction, struct archive_entry *entry, struct error *err)
{
    if (!is_wanted(extraction, entry)) {
        extraction->count.skipped += archive_entry_filetype(entry) != S_IFDIR;
        return 0;
    }
    archive_entry_set_perm(entry, archive_entry_perm(entry) & PERMISSION_BITS);
    if (archive_write_header(extraction->disk, entry) != ARCHIVE_OK)
        return extract_failure(extraction, extraction->disk, entry, err);
    extraction->count.files += archive_entry_filetype(entry) == S_IFREG;
    int r = archive_entry_size(entry) > 0 ? extract_data(extraction, entry, err) : 0;
    if (r == 0 && archive_write_finish_entry(extraction->disk) != ARCHIVE_OK)
        return extract_failure(extraction, extraction->disk, entry, err);
    return r;
}

static int extract_all(struct extraction *extraction, struct error *err)
{
    if (archive_read_support_format_tar(extraction->tar) != ARCHIVE_OK ||
        archive_write_disk_set_options(extraction->disk, EXTRACT_FLAGS) != ARCHIVE_OK)
        return error_set(err, ENOMEM, "cannot prepare an archive");
    if (archive_read_open(extraction->tar, extraction, NULL, read_source, NULL) != ARCHIVE_OK)
        return extract_failure(extraction, extraction->tar, NULL, err);
    for (;;) {
        struct archive_entry *entry;
        int r = archive_read_next_header(extraction->tar, &entry);
        if (r == ARCHIVE_EOF)
            break;
        if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
            return extract_failure(extraction, extraction->tar, NULL, err);
        r = extract_entry(extraction, entry, err);
        if (r < 0)
            return r;
    }
    return archive_write_close(extraction->disk) == ARCHIVE_OK
               ? 0
               : extract_failure(extraction, extraction->disk, NULL, err);
}

int tree_extract(const char *directory, bool with_root, tree_source source, void *context, struct tree_count *ret,
                 struct error *err)
{
    /* libarchive refuses unsafe paths only relative to the working directory. */
    if (chdir(directory) < 0)
        return error_errno(err, "cannot enter %s", directory);
    CLEANUP_FREE struct extraction *extraction = calloc(1, sizeof(*extraction));
    if (extraction == NULL)
        return error_set(err, ENOMEM, "out of memory");
    extraction->source = source;
    extraction->source_context = context;
    extraction->with_root = with_root;
    extraction->tar = archive_read_new();
    extraction->disk = archive_write_disk_new();
    int r = extraction->tar != NULL && extraction->disk != NULL ? extract_all(extraction, err)
                                                                : error_set(err, ENOMEM, "out of memory");
    archive_write_free(extraction->disk);
    archive_read_free(extraction->tar);
    error_done(&extraction->source_error);
    if (r == 0)
        *ret = extraction->count;
    return r;
}
