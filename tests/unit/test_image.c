/* Copies of image files. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/clone.h"
#include "unit.h"

static void clones_keep_holes(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *from_path = unit_path(*state, "from");
    CLEANUP_FREE char *to_path = unit_path(*state, "to");
    CLEANUP_CLOSE int from = open(from_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(from, 1 << 30), 0);
    assert_int_equal(io_pwrite_full(from, "start", 5, 0), 0);
    assert_int_equal(io_pwrite_full(from, "middle", 6, (1 << 29) + 3), 0);
    CLEANUP_CLOSE int to = image_clone_to(from, to_path, &err);
    assert_true(to >= 0);
    struct stat status;
    assert_int_equal(fstat(to, &status), 0);
    assert_int_equal(status.st_size, 1 << 30);
    assert_true(status.st_blocks * 512 < 1 << 20);
    char text[7] = "";
    assert_int_equal(pread(to, text, 6, (1 << 29) + 3), 6);
    assert_string_equal(text, "middle");
    assert_int_equal(image_clone_to(from, to_path, &err), -EEXIST);
}

static void a_full_disk_leaves_no_clone(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *from_path = unit_path(*state, "from");
    CLEANUP_CLOSE int from = open(from_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CLEANUP_FREE char *data = calloc(1, 2 << 20);
    memset(data, 'x', 2 << 20);
    assert_int_equal(io_pwrite_full(from, data, 2 << 20, 0), 0);
    CLEANUP_FREE char *small = unit_path(*state, "small");
    assert_int_equal(io_make_directories(small, 0700), 0);
    if (geteuid() != 0 || mount("small", small, "tmpfs", 0, "size=1m") < 0) {
        print_message("skipped: mounting a small file system needs root\n");
        skip();
    }
    CLEANUP_FREE char *to_path = unit_path(small, "to");
    int r = image_clone_to(from, to_path, &err);
    int left = access(to_path, F_OK);
    assert_int_equal(umount2(small, MNT_DETACH), 0);
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(left, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT_TEST(clones_keep_holes),
        UNIT_TEST(a_full_disk_leaves_no_clone),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
