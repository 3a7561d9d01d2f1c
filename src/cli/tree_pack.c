#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/strbuf.h"
#include "cli/tree.h"

#define BLOCK_SIZE      65536
#define PERMISSION_BITS 07777

/* libarchive pushes what it packs; `packed` holds what was not yet asked for. */
struct tree_pack {
    struct archive *disk;
    struct archive *tar;
    struct archive_entry *entry;
    size_t root_length; /* of the directory's path, with which all paths begin */
    bool with_root;
    bool in_file; /* the data of `entry` is being packed */
    bool finished;
    bool closing; /* what libarchive still wants to write, up to the end of an unfinished file, is refused */
    struct strbuf packed;
    size_t consumed; /* of packed */
    struct tree_count count;
    struct error error;
};

static la_ssize_t take_packed(struct archive *tar, void *context, const void *bytes, size_t length)
{
    (void)tar;
    struct tree_pack *pack = context;
    if (pack->closing)
        return -1;
    strbuf_append(&pack->packed, bytes, length);
    return pack->packed.failed ? -1 : (la_ssize_t)length;
}

int tree_pack_open(const char *directory, bool with_root, struct tree_pack **ret, struct error *err)
{
    CLEANUP_TREE_PACK struct tree_pack *pack = calloc(1, sizeof(*pack));
    if (pack == NULL)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP_FREE char *root = realpath(directory, NULL);
    if (root == NULL)
        return error_errno(err, "cannot read %s", directory);
    pack->root_length = strlen(root);
    pack->with_root = with_root;
    pack->entry = archive_entry_new();
    pack->disk = archive_read_disk_new();
    pack->tar = archive_write_new();
    if (pack->entry == NULL || pack->disk == NULL || pack->tar == NULL ||
        archive_read_disk_set_symlink_physical(pack->disk) != ARCHIVE_OK ||
        archive_read_disk_set_behavior(pack->disk, ARCHIVE_READDISK_NO_XATTR | ARCHIVE_READDISK_NO_ACL |
                                                       ARCHIVE_READDISK_NO_FFLAGS) != ARCHIVE_OK ||
        archive_write_set_format_gnutar(pack->tar) != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(pack->tar, 0) != ARCHIVE_OK ||
        archive_write_open(pack->tar, pack, NULL, take_packed, NULL) != ARCHIVE_OK)
        return error_set(err, ENOMEM, "cannot prepare an archive");
    if (archive_read_disk_open(pack->disk, root) != ARCHIVE_OK)
        return error_set(err, EIO, "cannot read %s: %s", directory, archive_error_string(pack->disk));
    *ret = TAKE_PTR(pack);
    return 0;
}

static int pack_failure(struct tree_pack *pack, struct archive *archive)
{
    const char *path = archive_entry_pathname(pack->entry);
    const char *why = archive_error_string(archive);
    error_set(&pack->error, EIO, "cannot pack %s: %s", path != NULL ? path : "the directory",
              why != NULL ? why : "unknown reason");
    return -EIO;
}

/* "" (the root) becomes "./", "/a/b" becomes "./a/b". */
static int rename_entry(struct tree_pack *pack)
{
    CLEANUP_STRBUF struct strbuf name = STRBUF_INIT;
    const char *inside = archive_entry_pathname(pack->entry) + pack->root_length;
    inside += strspn(inside, "/");
    strbuf_printf(&name, "./%s", inside);
    if (name.failed)
        return error_set(&pack->error, ENOMEM, "out of memory");
    archive_entry_copy_pathname(pack->entry, strbuf_text(&name));
    return 0;
}

static bool is_packed_type(mode_t type)
{
    return type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFIFO;
}

static int pack_header(struct tree_pack *pack)
{
    int r = archive_read_next_header2(pack->disk, pack->entry);
    if (r == ARCHIVE_EOF) {
        pack->finished = true;
        return archive_write_close(pack->tar) == ARCHIVE_OK ? 0 : pack_failure(pack, pack->tar);
    }
    if (r != ARCHIVE_OK)
        return pack_failure(pack, pack->disk);
    if (archive_read_disk_can_descend(pack->disk) && archive_read_disk_descend(pack->disk) != ARCHIVE_OK)
        return pack_failure(pack, pack->disk);
    bool is_root = strlen(archive_entry_pathname(pack->entry)) <= pack->root_length;
    if (is_root && !pack->with_root)
        return 0;
    if (!is_packed_type(archive_entry_filetype(pack->entry))) {
        pack->count.skipped++;
        return 0;
    }
    r = rename_entry(pack);
    if (r < 0)
        return r;
    archive_entry_set_uid(pack->entry, 0);
    archive_entry_set_gid(pack->entry, 0);
    archive_entry_set_uname(pack->entry, NULL);
    archive_entry_set_gname(pack->entry, NULL);
    archive_entry_set_perm(pack->entry, archive_entry_perm(pack->entry) & PERMISSION_BITS);
    archive_entry_sparse_clear(pack->entry);
    if (archive_write_header(pack->tar, pack->entry) != ARCHIVE_OK)
        return pack_failure(pack, pack->tar);
    pack->in_file = archive_entry_filetype(pack->entry) == S_IFREG;
    pack->count.files += pack->in_file;
    return 0;
}

/* A file that shrinks meanwhile is padded with zeros to the size in its header, one that grows is cut. */
static int pack_data(struct tree_pack *pack)
{
    char block[BLOCK_SIZE];
    la_ssize_t n = archive_read_data(pack->disk, block, sizeof(block));
    if (n < 0)
        return pack_failure(pack, pack->disk);
    if (n == 0) {
        pack->in_file = false;
        return archive_write_finish_entry(pack->tar) == ARCHIVE_OK ? 0 : pack_failure(pack, pack->tar);
    }
    if (archive_write_data(pack->tar, block, (size_t)n) < 0)
        return pack_failure(pack, pack->tar);
    pack->count.bytes += (uint64_t)n;
    return 0;
}

ssize_t tree_pack_read(void *context, char *buffer, size_t size)
{
    struct tree_pack *pack = context;
    if (pack->consumed == pack->packed.length) {
        strbuf_consume(&pack->packed, pack->consumed);
        pack->consumed = 0;
    }
    while (pack->packed.length == 0 && !pack->finished) {
        int r = pack->in_file ? pack_data(pack) : pack_header(pack);
        if (r < 0)
            return r;
    }
    size_t n = MIN(size, pack->packed.length - pack->consumed);
    if (n > 0)
        memcpy(buffer, pack->packed.data + pack->consumed, n);
    pack->consumed += n;
    return (ssize_t)n;
}

int tree_pack_error(struct tree_pack *pack, struct error *err)
{
    int code = pack->error.code;
    if (code != 0)
        error_move(err, &pack->error);
    return -code;
}

const struct tree_count *tree_pack_count(const struct tree_pack *pack)
{
    return &pack->count;
}

void tree_pack_close(struct tree_pack **pack)
{
    struct tree_pack *p = TAKE_PTR(*pack);
    if (p == NULL)
        return;
    archive_read_free(p->disk);
    p->closing = true;
    archive_write_free(p->tar);
    archive_entry_free(p->entry);
    strbuf_done(&p->packed);
    error_done(&p->error);
    free(p);
}
