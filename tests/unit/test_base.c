#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/json.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "unit.h"

static void error_gathers_context(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    errno = ENOENT;
    int r = error_errno(&err, "cannot open %s", "x");
    assert_int_equal(r, -ENOENT);
    r = error_wrap(&err, r, "starting %d", 7);
    assert_int_equal(r, -ENOENT);
    assert_string_equal(error_message(&err), "starting 7: cannot open x: No such file or directory");
    error_hint(&err, "inner");
    error_hint(&err, "outer");
    assert_string_equal(err.hint, "inner");
    struct error moved = ERROR_INIT;
    error_move(&moved, &err);
    assert_null(err.message);
    assert_int_equal(moved.code, ENOENT);
    error_done(&moved);
    assert_int_equal(error_set(NULL, EIO, "nobody listens"), -EIO);
}

static void error_without_message_names_the_errno(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(error_wrap(&err, -ENOSPC, "writing"), -ENOSPC);
    assert_string_equal(error_message(&err), "writing: No space left on device");
}

static void strbuf_keeps_binary_and_consumes(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf buf = STRBUF_INIT;
    assert_string_equal(strbuf_text(&buf), "");
    strbuf_append(&buf, "a\0b", 3);
    strbuf_printf(&buf, "%03d", 7);
    assert_int_equal(buf.length, 6);
    assert_memory_equal(buf.data, "a\0b007", 7);
    strbuf_consume(&buf, 3);
    assert_string_equal(strbuf_text(&buf), "007");
    for (int i = 0; i < 10000; i++)
        strbuf_puts(&buf, "x");
    assert_int_equal(buf.length, 10003);
    assert_false(buf.failed);
    strbuf_append(&buf, "", SIZE_MAX / 2);
    assert_true(buf.failed);
    assert_null(strbuf_take(&buf));
}

static void base64_round_trip(void **state)
{
    (void)state;
    uint8_t bytes[700];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 37 + i / 256);
    for (size_t length = 0; length <= sizeof(bytes); length += length < 10 ? 1 : 69) {
        CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
        CLEANUP_STRBUF struct strbuf back = STRBUF_INIT;
        base64_encode(&text, bytes, length);
        assert_int_equal(text.length, (length + 2) / 3 * 4);
        assert_int_equal(base64_decode(&back, strbuf_text(&text), text.length), 0);
        assert_int_equal(back.length, length);
        assert_memory_equal(strbuf_text(&back), bytes, length);
    }
}

static void base64_refuses_everything_else(void **state)
{
    (void)state;
    static const char *const wrong[] = {"A",    "AA",   "AAA",  "AA=A",     "====", "AAA*",
                                        "A===", "AB==", "AAB=", "AA==AAAA", "AA\nA"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        CLEANUP_STRBUF struct strbuf out = STRBUF_INIT;
        strbuf_puts(&out, "kept");
        assert_int_equal(base64_decode(&out, wrong[i], strlen(wrong[i])), -EINVAL);
        assert_string_equal(strbuf_text(&out), "kept");
    }
}

static void random_names_differ(void **state)
{
    (void)state;
    char a[21];
    char b[21];
    assert_int_equal(random_name(a, 20), 0);
    assert_int_equal(random_name(b, 20), 0);
    assert_string_not_equal(a, b);
    assert_int_equal(strspn(a, "abcdefghijklmnopqrstuvwxyz0123456789"), 20);
    assert_true(a[0] >= 'a' && a[0] <= 'z');
    char hex[9];
    assert_int_equal(random_hex(hex, 4), 0);
    assert_int_equal(strspn(hex, "0123456789abcdef"), 8);
}

static void files_are_replaced_whole(void **state)
{
    CLEANUP_FREE char *path = unit_path(*state, "file");
    assert_int_equal(io_write_file_atomic(path, "old", 3, 0600), 0);
    assert_int_equal(io_write_file_atomic(path, "newer", 5, 0600), 0);
    CLEANUP_FREE char *text = NULL;
    size_t length;
    assert_int_equal(io_read_file(path, 5, &text, &length), 0);
    assert_int_equal(length, 5);
    assert_string_equal(text, "newer");
    CLEANUP_FREE char *too_large = NULL;
    assert_int_equal(io_read_file(path, 4, &too_large, NULL), -EFBIG);
    assert_null(too_large);
    CLEANUP_FREE char *temporary = unit_path(*state, "file.tmp");
    assert_int_equal(access(temporary, F_OK), -1);
    /* A directory in the way: the old content stays. */
    assert_int_equal(mkdir(temporary, 0700), 0);
    assert_true(io_write_file_atomic(path, "x", 1, 0600) < 0);
    CLEANUP_FREE char *again = NULL;
    assert_int_equal(io_read_file(path, 5, &again, NULL), 0);
    assert_string_equal(again, "newer");
}

static void paths_are_a_directory_and_a_name(void **state)
{
    (void)state;
    CLEANUP_FREE char *path = io_path("/a/directory", "name", NULL);
    assert_string_equal(path, "/a/directory/name");
}

static void trees_are_removed_without_following_links(void **state)
{
    CLEANUP_FREE char *outside = unit_path(*state, "outside");
    CLEANUP_FREE char *tree = unit_path(*state, "tree/a/b");
    CLEANUP_FREE char *link_path = unit_path(*state, "tree/a/link");
    CLEANUP_FREE char *top = unit_path(*state, "tree");
    assert_int_equal(io_make_directories(outside, 0700), 0);
    assert_int_equal(io_make_directories(tree, 0700), 0);
    assert_int_equal(symlink(outside, link_path), 0);
    assert_int_equal(io_remove_tree(top), 0);
    assert_int_equal(access(top, F_OK), -1);
    assert_int_equal(access(outside, F_OK), 0);
    assert_int_equal(io_remove_tree(top), 0);
}

static void json_members_are_checked(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    json_t *object = json_pack("{s:i, s:s, s:b}", "number", 5, "text", "t", "flag", 1);
    int64_t number = 0;
    assert_int_equal(json_read_integer(object, "number", 1, 5, 0, &number, &err), 0);
    assert_int_equal(number, 5);
    assert_int_equal(json_read_integer(object, "number", 1, 4, 0, &number, &err), -EINVAL);
    assert_string_equal(error_message(&err), "number must be from 1 to 4, not 5");
    assert_int_equal(json_read_integer(object, "text", 1, 4, 0, &number, &err), -EINVAL);
    assert_int_equal(json_read_integer(object, "absent", 1, 4, 9, &number, &err), 0);
    assert_int_equal(number, 9);
    CLEANUP_FREE char *text = NULL;
    assert_int_equal(json_read_text(object, "number", &text, &err), -EINVAL);
    assert_int_equal(json_read_text(object, "absent", &text, &err), 0);
    assert_string_equal(text, "");
    bool flag = false;
    assert_int_equal(json_read_bool(object, "flag", false, &flag, &err), 0);
    assert_true(flag);
    assert_int_equal(json_read_bool(object, "text", false, &flag, &err), -EINVAL);
    json_decref(object);
}

static void processes_are_told_by_their_start_time(void **state)
{
    (void)state;
    uint64_t start;
    assert_int_equal(process_start_time(getpid(), &start), 0);
    CLEANUP_CLOSE int fd = process_open(getpid(), start);
    assert_true(fd >= 0);
    assert_int_equal(process_open(getpid(), start + 1), -ESRCH);
    assert_true(process_open(INT32_MAX, start) < 0);
    int64_t cpu_ns;
    assert_int_equal(process_cpu_time(getpid(), &cpu_ns), 0);
}

static void a_failing_tool_explains_itself(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *good[] = {"true", NULL};
    assert_int_equal(process_run(good, &err), 0);
    const char *bad[] = {"sh", "-c", "seq 10000 >&2; echo the reason >&2; exit 3", NULL};
    assert_int_equal(process_run(bad, &err), -EREMOTEIO);
    assert_non_null(strstr(error_message(&err), "the reason"));
    assert_true(strlen(error_message(&err)) < 1200);
    const char *missing[] = {"/nonexistent/tool", NULL};
    assert_int_equal(process_run(missing, &err), -ENOENT);
}

static void unix_sockets_work_at_long_paths(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *directory =
        unit_path(*state, "a-directory-with-a-long-name-0123456789-0123456789-0123456789-0123456789-0123456789");
    assert_int_equal(io_make_directories(directory, 0700), 0);
    CLEANUP_FREE char *path = unit_path(directory, "socket");
    CLEANUP_CLOSE int listening = unix_socket_listen(path, &err);
    assert_true(listening >= 0);
    CLEANUP_CLOSE int connected = unix_socket_connect(path, &err);
    assert_true(connected >= 0);
    assert_int_equal(unix_socket_listen(path, &err), -EADDRINUSE);
    assert_true(fcntl(connected, F_GETFD) & FD_CLOEXEC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_gathers_context),
        cmocka_unit_test(error_without_message_names_the_errno),
        cmocka_unit_test(strbuf_keeps_binary_and_consumes),
        cmocka_unit_test(base64_round_trip),
        cmocka_unit_test(base64_refuses_everything_else),
        cmocka_unit_test(random_names_differ),
        UNIT_TEST(files_are_replaced_whole),
        cmocka_unit_test(paths_are_a_directory_and_a_name),
        UNIT_TEST(trees_are_removed_without_following_links),
        cmocka_unit_test(json_members_are_checked),
        cmocka_unit_test(processes_are_told_by_their_start_time),
        cmocka_unit_test(a_failing_tool_explains_itself),
        UNIT_TEST(unix_sockets_work_at_long_paths),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
