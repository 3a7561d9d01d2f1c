/* Trees to tar and back, and the archives that a hostile guest could send. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "cli/tree.h"
#include "unit.h"

struct bytes {
    struct strbuf data;
    size_t at;
    int fail_at_end; /* an errno instead of the end */
};

static ssize_t read_bytes(void *context, void *buffer, size_t size, struct error *err)
{
    struct bytes *bytes = context;
    size_t n = MIN(size, bytes->data.length - bytes->at);
    if (n == 0 && bytes->fail_at_end != 0)
        return error_set(err, bytes->fail_at_end, "the source broke");
    memcpy(buffer, bytes->data.data + bytes->at, n);
    bytes->at += n;
    return (ssize_t)n;
}

static int extract(const char *directory, struct bytes *bytes, struct tree_count *ret, struct error *err)
{
    bytes->at = 0;
    return tree_extract(directory, true, read_bytes, bytes, ret, err);
}

static void pack(const char *directory, bool with_root, struct bytes *bytes, struct tree_count *ret)
{
    CLEANUP_TREE_PACK struct tree_pack *tree = NULL;
    assert_int_equal(tree_pack_open(directory, with_root, &tree, NULL), 0);
    char block[777];
    ssize_t n;
    while ((n = tree_pack_read(tree, block, sizeof(block))) > 0)
        strbuf_append(&bytes->data, block, (size_t)n);
    assert_int_equal(n, 0);
    *ret = *tree_pack_count(tree);
}

static void write_text(const char *directory, const char *name, const char *text, mode_t mode)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
    assert_int_equal(fchmod(fd, mode), 0);
}

static void assert_text(const char *directory, const char *name, const char *text)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    CLEANUP_FREE char *data = NULL;
    size_t length;
    assert_int_equal(io_read_file(path, 1 << 20, &data, &length), 0);
    assert_string_equal(data, text);
}

static mode_t mode_of(const char *directory, const char *name)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode;
}

static bool exists(const char *directory, const char *name)
{
    CLEANUP_FREE char *path = unit_path(directory, name);
    return access(path, F_OK) == 0;
}

static char *make_directory(const char *directory, const char *name, mode_t mode)
{
    char *path = unit_path(directory, name);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, mode), 0);
    return path;
}

static void tree_comes_back_as_it_was(void **state)
{
    CLEANUP_FREE char *source = make_directory(*state, "source", 0750);
    CLEANUP_FREE char *target = make_directory(*state, "target", 0700);
    CLEANUP_FREE char *sub = make_directory(source, "sub", 0711);
    free(make_directory(source, "empty", 0755));
    CLEANUP_FREE char *link = unit_path(source, "link");
    CLEANUP_FREE char *fifo = unit_path(source, "fifo");
    char long_name[201];
    memset(long_name, 'n', 200);
    long_name[200] = '\0';
    write_text(source, "file", "contents", 0640);
    write_text(source, "setuid", "x", 04755);
    write_text(sub, long_name, "long", 0644);
    write_text(sub, "ünï cöde\n", "odd", 0644);
    assert_int_equal(symlink("../file", link), 0);
    assert_int_equal(mkfifo(fifo, 0600), 0);

    struct bytes bytes = {.data = STRBUF_INIT};
    struct tree_count packed;
    struct tree_count extracted;
    pack(source, true, &bytes, &packed);
    assert_int_equal(extract(target, &bytes, &extracted, NULL), 0);
    strbuf_done(&bytes.data);
    CLEANUP_FREE char *target_sub = unit_path(target, "sub");
    assert_text(target, "file", "contents");
    assert_text(target_sub, long_name, "long");
    assert_text(target_sub, "ünï cöde\n", "odd");
    assert_int_equal(mode_of(target, ".") & 07777, 0750);
    assert_int_equal(mode_of(target, "file") & 07777, 0640);
    assert_int_equal(mode_of(target, "setuid") & 07777, 0755);
    assert_int_equal(mode_of(target, "sub") & 07777, 0711);
    assert_true(S_ISDIR(mode_of(target, "empty")));
    assert_true(S_ISLNK(mode_of(target, "link")));
    assert_false(exists(target, "fifo"));
    assert_int_equal(packed.files, 4);
    assert_int_equal(packed.bytes, 16);
    assert_int_equal(extracted.files, 4);
    assert_int_equal(extracted.bytes, 16);
    assert_int_equal(extracted.skipped, 1);
}

static void contents_leave_the_directory_itself_alone(void **state)
{
    CLEANUP_FREE char *source = make_directory(*state, "source", 0700);
    CLEANUP_FREE char *target = make_directory(*state, "target", 0755);
    write_text(source, "file", "x", 0600);
    struct bytes bytes = {.data = STRBUF_INIT};
    struct tree_count count;
    pack(source, false, &bytes, &count);
    assert_int_equal(extract(target, &bytes, &count, NULL), 0);
    strbuf_done(&bytes.data);
    assert_text(target, "file", "x");
    assert_int_equal(mode_of(target, ".") & 07777, 0755);
}

static void big_sparse_file_streams(void **state)
{
    CLEANUP_FREE char *source = make_directory(*state, "source", 0700);
    CLEANUP_FREE char *path = unit_path(source, "sparse");
    write_text(source, "sparse", "begin", 0600);
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    CLEANUP_TREE_PACK struct tree_pack *tree = NULL;
    assert_int_equal(tree_pack_open(source, false, &tree, NULL), 0);
    char block[65536];
    for (int i = 0; i < 100; i++)
        assert_int_equal(tree_pack_read(tree, block, sizeof(block)) > 0, 1);
    /* Closing in the middle must neither pad the file to its end nor keep it in memory. */
}

static void source_that_fails(void **state)
{
    CLEANUP_TREE_PACK struct tree_pack *tree = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *absent = unit_path(*state, "absent");
    assert_int_equal(tree_pack_open(absent, true, &tree, &err), -ENOENT);
    CLEANUP_FREE char *source = make_directory(*state, "source", 0700);
    CLEANUP_FREE char *target = make_directory(*state, "target", 0700);
    write_text(source, "file", "x", 0600);
    struct bytes bytes = {.data = STRBUF_INIT, .fail_at_end = ECANCELED};
    struct tree_count count;
    pack(source, false, &bytes, &count);
    bytes.data.length = 600; /* in the middle of the file */
    assert_int_equal(extract(target, &bytes, &count, &err), -ECANCELED);
    assert_string_equal(err.message, "the source broke");
    bytes.fail_at_end = 0;
    assert_int_equal(extract(target, &bytes, &count, &err), -EIO);
    strbuf_done(&bytes.data);
}

/* ---- hostile archives ---- */

struct hostile {
    const char *path;
    mode_t type;
    const char *link; /* of a symbolic or (type 0) a hard link */
    const char *text;
};

static la_ssize_t append_bytes(struct archive *tar, void *context, const void *block, size_t length)
{
    (void)tar;
    strbuf_append(context, block, length);
    return (la_ssize_t)length;
}

static void make_archive(const struct hostile *entries, size_t count, struct bytes *bytes)
{
    struct archive *tar = archive_write_new();
    archive_write_set_format_gnutar(tar);
    archive_write_open(tar, &bytes->data, NULL, append_bytes, NULL);
    for (size_t i = 0; i < count; i++) {
        struct archive_entry *entry = archive_entry_new();
        size_t length = entries[i].text != NULL ? strlen(entries[i].text) : 0;
        archive_entry_copy_pathname(entry, entries[i].path);
        archive_entry_set_filetype(entry, entries[i].type != 0 ? entries[i].type : S_IFREG);
        archive_entry_set_perm(entry, 07777);
        archive_entry_set_size(entry, (la_int64_t)length);
        archive_entry_set_rdev(entry, 0x103);
        if (entries[i].type == S_IFLNK)
            archive_entry_copy_symlink(entry, entries[i].link);
        else if (entries[i].link != NULL)
            archive_entry_copy_hardlink(entry, entries[i].link);
        assert_int_equal(archive_write_header(tar, entry), ARCHIVE_OK);
        if (length > 0)
            assert_int_equal(archive_write_data(tar, entries[i].text, length), (int)length);
        archive_entry_free(entry);
    }
    archive_write_free(tar);
}

/* Extracts in DIRECTORY/target; what must not be touched is DIRECTORY/victim. */
static int extract_hostile(const char *directory, const struct hostile *entries, size_t count)
{
    CLEANUP_FREE char *target = make_directory(directory, "target", 0700);
    write_text(directory, "victim", "untouched", 0600);
    struct bytes bytes = {.data = STRBUF_INIT};
    struct tree_count ignored;
    make_archive(entries, count, &bytes);
    int r = extract(target, &bytes, &ignored, NULL);
    strbuf_done(&bytes.data);
    assert_text(directory, "victim", "untouched");
    assert_int_equal(mode_of(directory, "victim") & 07777, 0600);
    return r;
}

static void no_way_up(void **state)
{
    const struct hostile entries[] = {{"../victim", S_IFREG, NULL, "overwritten"}};
    assert_int_equal(extract_hostile(*state, entries, 1), -EIO);
}

static void no_way_up_in_the_middle(void **state)
{
    const struct hostile entries[] = {{"./a/", S_IFDIR, NULL, NULL}, {"./a/../../victim", S_IFREG, NULL, "bad"}};
    assert_int_equal(extract_hostile(*state, entries, 2), -EIO);
}

static void no_absolute_path(void **state)
{
    CLEANUP_FREE char *victim = unit_path(*state, "victim");
    const struct hostile entries[] = {{victim, S_IFREG, NULL, "overwritten"}};
    assert_int_equal(extract_hostile(*state, entries, 1), -EIO);
}

static void no_way_through_a_link(void **state)
{
    const struct hostile entries[] = {{"link", S_IFLNK, "..", NULL}, {"link/victim", S_IFREG, NULL, "overwritten"}};
    assert_int_equal(extract_hostile(*state, entries, 2), -EIO);
}

static void no_writing_to_what_a_link_names(void **state)
{
    const struct hostile entries[] = {{"link", S_IFLNK, "../victim", NULL}, {"link", S_IFREG, NULL, "replaced"}};
    assert_int_equal(extract_hostile(*state, entries, 2), 0);
    CLEANUP_FREE char *target = unit_path(*state, "target");
    assert_true(S_ISREG(mode_of(target, "link")));
    assert_text(target, "link", "replaced");
}

static void no_hard_link_out(void **state)
{
    const struct hostile entries[] = {{"mine", 0, "../victim", NULL}, {"mine", S_IFREG, NULL, "overwritten"}};
    assert_true(extract_hostile(*state, entries, 2) < 0);
}

static void no_hard_link_through_a_link(void **state)
{
    const struct hostile entries[] = {{"up", S_IFLNK, "..", NULL}, {"mine", 0, "up/victim", NULL}};
    assert_true(extract_hostile(*state, entries, 2) < 0);
}

static void no_mode_by_a_link(void **state)
{
    const struct hostile entries[] = {{"link", S_IFLNK, "../victim", NULL}, {"link/", S_IFDIR, NULL, NULL}};
    extract_hostile(*state, entries, 2); /* refused, or the link replaced: the victim's mode tells */
}

static void no_special_files_and_no_setuid(void **state)
{
    const struct hostile entries[] = {{"device", S_IFCHR, NULL, NULL},
                                      {"block", S_IFBLK, NULL, NULL},
                                      {"fifo", S_IFIFO, NULL, NULL},
                                      {"program", S_IFREG, NULL, "x"},
                                      {"dir/", S_IFDIR, NULL, NULL}};
    assert_int_equal(extract_hostile(*state, entries, ARRAY_SIZE(entries)), 0);
    CLEANUP_FREE char *target = unit_path(*state, "target");
    assert_false(exists(target, "device"));
    assert_false(exists(target, "block"));
    assert_false(exists(target, "fifo"));
    assert_int_equal(mode_of(target, "program") & 07777, 0777);
    assert_int_equal(mode_of(target, "dir") & 07777, 0777);
}

static void garbage(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct bytes bytes = {.data = STRBUF_INIT};
    struct tree_count count;
    for (int i = 0; i < 4096; i++)
        strbuf_append(&bytes.data, &(char){(char)(i * 7)}, 1);
    assert_int_equal(extract(*state, &bytes, &count, &err), -EIO);
    assert_non_null(err.message);
    strbuf_done(&bytes.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(tree_comes_back_as_it_was),
        UNIT_TEST(contents_leave_the_directory_itself_alone),
        UNIT_TEST(big_sparse_file_streams),
        UNIT_TEST(source_that_fails),
        UNIT_TEST(no_way_up),
        UNIT_TEST(no_way_up_in_the_middle),
        UNIT_TEST(no_absolute_path),
        UNIT_TEST(no_way_through_a_link),
        UNIT_TEST(no_writing_to_what_a_link_names),
        UNIT_TEST(no_hard_link_out),
        UNIT_TEST(no_hard_link_through_a_link),
        UNIT_TEST(no_mode_by_a_link),
        UNIT_TEST(no_special_files_and_no_setuid),
        UNIT_TEST(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
