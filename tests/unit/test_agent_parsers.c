#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/auth.h"
#include "agent/connect.h"
#include "agent/environment.h"
#include "agent/multipart.h"
#include "agent/path.h"
#include "agent/proto.h"
#include "agent/users.h"
#include "unit.h"

/* ---- multipart ---- */

/* Writes what the parser tells: "[name|filename]content;" */
static int record_begin(void *owner, const char *name, const char *filename, struct error *err)
{
    (void)err;
    strbuf_printf(owner, "[%s|%s]", name != NULL ? name : "-", filename != NULL ? filename : "-");
    return 0;
}

static int record_content(void *owner, const char *bytes, size_t length, struct error *err)
{
    strbuf_append(owner, bytes, length);
    return memchr(bytes, '!', length) != NULL ? error_set(err, ENOSPC, "stopped") : 0;
}

static int record_end(void *owner, struct error *err)
{
    (void)err;
    strbuf_puts(owner, ";");
    return 0;
}

static const struct multipart_callbacks recorder = {record_begin, record_content, record_end};

/* Feeds in pieces of `piece` bytes; 0 and the record, or the error. */
static int parse_multipart(const char *body, size_t length, size_t piece, struct strbuf *record, struct error *err)
{
    struct multipart *parser;
    int r = multipart_new("multipart/form-data; charset=x; Boundary=\"b-1\"", &recorder, record, &parser, err);
    assert_int_equal(r, 0);
    for (size_t at = 0; at < length && r == 0; at += piece)
        r = multipart_feed(parser, body + at, MIN(piece, length - at), err);
    if (r == 0)
        r = multipart_finish(parser, err);
    multipart_free(parser);
    return r;
}

static void expect_multipart(const char *body, int expected, const char *record)
{
    for (size_t piece = 1; piece <= strlen(body); piece++) {
        CLEANUP_STRBUF struct strbuf found = STRBUF_INIT;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(parse_multipart(body, strlen(body), piece, &found, &err), expected);
        if (record != NULL)
            assert_string_equal(strbuf_text(&found), record);
    }
}

static void multipart_parts_arrive_in_pieces_of_any_size(void **state)
{
    (void)state;
    expect_multipart("preamble\r\n--b-1\r\n"
                     "content-disposition: form-data; name=\"file\"; filename=\"/a \\\"b\\\";c\"\r\n"
                     "Content-Type: x\r\n\r\n"
                     "one\r\n--b-\r\r\n--b-1 \r\n"
                     "Content-Disposition: form-data; name=other\r\n\r\n"
                     "\r\n--b-1--\r\nepilogue --b-1",
                     0, "[file|/a \"b\";c]one\r\n--b-\r;[other|-];");
    expect_multipart("--b-1\r\nContent-Disposition: form-data\r\n\r\n\r\n--b-1--", 0, "[-|-];");
    expect_multipart("--b-1--\r\n", 0, "");
    expect_multipart("--b-1--and so on\r\n\r\n", 0, "");
}

static void multipart_refuses_what_is_damaged(void **state)
{
    (void)state;
    expect_multipart("", -EINVAL, NULL);
    expect_multipart("no boundary at all", -EINVAL, "");
    expect_multipart("--b-1\r\nContent-Disposition: form-data; name=a\r\n\r\ntruncated", -EINVAL, "[a|-]truncated");
    expect_multipart("--b-1\r\nContent-Type: x\r\n\r\nno disposition\r\n--b-1--", -EINVAL, "");
    expect_multipart("--b-1xyz\r\nContent-Disposition: form-data\r\n\r\n\r\n--b-1--", -EINVAL, "");
    expect_multipart("--b-1\r\nContent-Disposition: form-data; name=a\r\n\r\nstop!\r\n--b-1--", -ENOSPC, NULL);
    CLEANUP_STRBUF struct strbuf found = STRBUF_INIT;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(parse_multipart("--b-1\r\nA: \0\r\n", 13, 13, &found, &err), -EINVAL);
}

static void multipart_bounds_the_headers_of_a_part(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf body = STRBUF_INIT;
    CLEANUP_STRBUF struct strbuf found = STRBUF_INIT;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    strbuf_puts(&body, "--b-1\r\nContent-Disposition: form-data\r\n");
    while (body.length < 2 * MULTIPART_HEADERS_MAX)
        strbuf_puts(&body, "X-Filler: ......................\r\n");
    strbuf_puts(&body, "\r\n\r\n--b-1--");
    assert_int_equal(parse_multipart(body.data, body.length, 1000, &found, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "larger"));
}

static void multipart_needs_a_valid_boundary(void **state)
{
    (void)state;
    static const char *const types[] = {
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=1234567890123456789012345678901234567890123456789012345678901234567890x",
    };
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        struct multipart *parser = NULL;
        assert_int_equal(multipart_new(types[i], &recorder, NULL, &parser, NULL), -EINVAL);
        assert_null(parser);
    }
}

/* ---- Connect ---- */

static void connect_frames_are_what_clients_read(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf frame = STRBUF_INIT;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    connect_append_frame(&frame, CONNECT_MESSAGE, "{}", 2);
    connect_append_end(&frame, NULL);
    assert_int_equal(frame.length, 14);
    assert_memory_equal(frame.data, "\0\0\0\0\2{}\2\0\0\0\2{}", 14);
    frame.length = 0;
    error_set(&err, ESRCH, "no \"x\"");
    connect_append_end(&frame, &err);
    static const char expected[] = "{\"error\":{\"code\":\"not_found\",\"message\":\"no \\\"x\\\"\"}}";
    assert_int_equal(frame.data[4], strlen(expected));
    assert_string_equal(frame.data + 5, expected);
}

static void connect_errors_without_utf8_keep_their_code(void **state)
{
    (void)state;
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    error_set(&err, EEXIST, "\xff");
    connect_append_error(&text, &err);
    assert_string_equal(strbuf_text(&text), "{\"code\":\"already_exists\"}");
    assert_int_equal(connect_http_status(ENOSYS), 501);
    assert_string_equal(connect_code(ENOSYS), "unimplemented");
    assert_string_equal(connect_code(12345), "internal");
}

static void connect_requests_are_one_frame(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        size_t length;
        int result;
    } cases[] = {
        {"\0\0\0\0\2{}", 7, 0},
        {"\0\0\0\0\2{}\2\0\0\0\2{}", 14, 0},
        {"", 0, -EINVAL},
        {"\0\0\0\0", 4, -EINVAL},
        {"\0\0\0\0\3{}", 7, -EINVAL},
        {"\0\xff\xff\xff\xff{}", 7, -EINVAL},
        {"\1\0\0\0\2{}", 7, -ENOSYS},
        {"\2\0\0\0\2{}", 7, -EINVAL},
        {"\0\0\0\0\2{}\0\0\0\0\2{}", 14, -EINVAL},
        {"\0\0\0\0\2{}x", 8, -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *message = NULL;
        size_t length = 0;
        assert_int_equal(connect_parse_request(cases[i].body, cases[i].length, &message, &length, NULL),
                         cases[i].result);
        if (cases[i].result < 0)
            continue;
        assert_int_equal(length, 2);
        assert_memory_equal(message, "{}", 2);
    }
}

static void proto_members_are_checked(void **state)
{
    (void)state;
    json_t *m = json_loads(
        "{\"n\":7,\"t\":\"8\",\"neg\":-1,\"big\":4294967296,\"null\":null,\"b\":\"_-8\",\"bad\":\"a!\"}", 0, NULL);
    CLEANUP_STRBUF struct strbuf bytes = STRBUF_INIT;
    uint32_t number = 0;
    const char *text = "";
    bool flag = false;
    assert_int_equal(proto_uint32(m, "n", &number, NULL), 0);
    assert_int_equal(number, 7);
    assert_int_equal(proto_uint32(m, "t", &number, NULL), 0);
    assert_int_equal(number, 8);
    assert_int_equal(proto_uint32(m, "null", &number, NULL), 0);
    assert_int_equal(number, 0);
    assert_int_equal(proto_uint32(m, "neg", &number, NULL), -EINVAL);
    assert_int_equal(proto_uint32(m, "big", &number, NULL), -EINVAL);
    assert_int_equal(proto_text(m, "n", &text, NULL), -EINVAL);
    assert_int_equal(proto_text(m, "absent", &text, NULL), 0);
    assert_null(text);
    assert_int_equal(proto_bool(m, "absent", true, &flag, NULL), 0);
    assert_true(flag);
    assert_int_equal(proto_bool(m, "n", true, &flag, NULL), -EINVAL);
    assert_int_equal(proto_bytes(m, "b", &bytes, &flag, NULL), 0);
    assert_int_equal(bytes.length, 2);
    assert_memory_equal(bytes.data, "\xff\xef", 2);
    assert_int_equal(proto_bytes(m, "bad", &bytes, &flag, NULL), -EINVAL);
    json_decref(m);
}

/* ---- users ---- */

static void write_text(const char *path, const char *text)
{
    assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0644), 0);
}

static struct user_database load(const char *directory, const char *passwd_text, const char *group_text)
{
    CLEANUP_FREE char *passwd = unit_path(directory, "passwd");
    CLEANUP_FREE char *group = unit_path(directory, "group");
    struct user_database database;
    write_text(passwd, passwd_text);
    write_text(group, group_text);
    assert_int_equal(users_load_from(passwd, group, &database, NULL), 0);
    return database;
}

static void users_come_with_their_groups(void **state)
{
    CLEANUP_USER_DATABASE struct user_database database = load(
        *state, "root:x:0:0:root:/root:/bin/sh\nuse:x:9:9::/:\nuser:x:1000:100::/home/user:/bin/sh",
        "root:x:0:\nusers:x:100:user\na:x:1:x,user\nb:x:2:user,x\nc:x:3:users\nbad:x:-4:user\nd:x:5\ne:x:6:abcd\n");
    CLEANUP_USER struct user user = {0};
    assert_int_equal(users_find(&database, "user", &user, NULL), 0);
    assert_int_equal(user.uid, 1000);
    assert_int_equal(user.gid, 100);
    assert_string_equal(user.home, "/home/user");
    assert_int_equal(user.group_count, 3);
    assert_int_equal(user.groups[0], 100);
    assert_int_equal(user.groups[1], 1);
    assert_int_equal(user.groups[2], 2);
    CLEANUP_STRBUF struct strbuf names = STRBUF_INIT;
    users_append_owner(&database, 9, &names);
    users_append_owner(&database, 77, &names);
    users_append_group(&database, 3, &names);
    assert_string_equal(strbuf_text(&names), "use77c");
}

static void damaged_users_are_refused(void **state)
{
    CLEANUP_USER_DATABASE struct user_database database = load(
        *state, "\n::\nshort:x:1\nneg:x:-1:1::/:\nbig:x:4294967295:1::/:\nlong:x:99999999999999999999:1::/:\n", "");
    static const char *const names[] = {"", "nobody", "short", "neg", "big", "long"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        struct user user;
        assert_int_equal(users_find(&database, names[i], &user, NULL), -EKEYREJECTED);
    }
}

static void an_image_without_users_has_root(void **state)
{
    CLEANUP_FREE char *absent = unit_path(*state, "absent");
    CLEANUP_USER_DATABASE struct user_database database = {0};
    CLEANUP_USER struct user user = {0};
    assert_int_equal(users_load_from(absent, absent, &database, NULL), 0);
    int r = users_default(&database, &user, NULL);
    if (geteuid() != 0) {
        assert_int_equal(r, -EKEYREJECTED);
        return;
    }
    assert_int_equal(r, 0);
    assert_int_equal(user.uid, 0);
    assert_string_equal(user.home, "/");
}

/* ---- paths ---- */

static void paths_resolve_to_the_home(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"/a//b/./c/", "/a/b/c"},  {"/a/../../b", "/b"},   {"/", "/"},          {"/..", "/"},  {"~", "/home/u"},
        {"~/x/../y", "/home/u/y"}, {"x", "/home/u/x"},     {"../x", "/home/x"}, {"", "/work"}, {".", "/home/u"},
        {"/a/~/b", "/a/~/b"},      {"...", "/home/u/..."},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_FREE char *path = NULL;
        assert_int_equal(path_resolve(cases[i][0], "/home/u", "/work/", &path, NULL), 0);
        assert_string_equal(path, cases[i][1]);
    }
    CLEANUP_FREE char *home = NULL;
    assert_int_equal(path_resolve("", "/home/u", "", &home, NULL), 0);
    assert_string_equal(home, "/home/u");
}

static void impossible_paths_are_refused(void **state)
{
    (void)state;
    char *path = NULL;
    assert_int_equal(path_resolve("~other/x", "/home/u", "", &path, NULL), -EINVAL);
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    for (int i = 0; i < 5000; i++)
        strbuf_puts(&text, "/x");
    assert_int_equal(path_resolve(text.data, "/home/u", "", &path, NULL), -ENAMETOOLONG);
    assert_null(path);
    assert_string_equal(path_name("/a/b"), "b");
    assert_string_equal(path_name("/"), "/");
}

static void missing_directories_are_made(void **state)
{
    CLEANUP_FREE char *deep = unit_path(*state, "a/b/c");
    CLEANUP_FREE char *file = unit_path(*state, "a/file");
    CLEANUP_FREE char *below = unit_path(*state, "a/file/x");
    assert_int_equal(path_make_parents(deep, geteuid(), getegid(), NULL), 0);
    assert_int_equal(access(deep, F_OK), -1);
    assert_int_equal(path_make_directories(deep, geteuid(), getegid(), NULL), 0);
    assert_int_equal(path_make_directories(deep, geteuid(), getegid(), NULL), -EEXIST);
    write_text(file, "");
    assert_int_equal(path_make_directories(file, geteuid(), getegid(), NULL), -ENOTDIR);
    assert_int_equal(path_make_parents(below, geteuid(), getegid(), NULL), -ENOTDIR);
}

/* ---- auth ---- */

static struct identity identity_with_token(const char *token)
{
    struct identity identity = {0};
    assert_int_equal(identity_set_token(&identity, token, strlen(token)), 0);
    return identity;
}

static void tokens_must_be_equal(void **state)
{
    (void)state;
    struct identity none = identity_with_token("");
    struct identity some = identity_with_token("secret");
    assert_int_equal(auth_check_token(&none, NULL), 0);
    assert_int_equal(auth_check_token(&some, "secret"), 0);
    assert_int_equal(auth_check_token(&some, NULL), -EKEYREJECTED);
    assert_int_equal(auth_check_token(&some, ""), -EKEYREJECTED);
    assert_int_equal(auth_check_token(&some, "secre"), -EKEYREJECTED);
    assert_int_equal(auth_check_token(&some, "secretx"), -EKEYREJECTED);
    assert_int_equal(auth_check_token(&some, "secreT"), -EKEYREJECTED);
}

/* The expected signatures are those of the npm package e2b 2.51.0. */
static void signatures_are_the_clients(void **state)
{
    (void)state;
    struct identity identity = identity_with_token("tok");
    struct auth_signature given = {
        .path = "/a b",
        .operation = "read",
        .user = "",
        .signature = "v1_dgCJhR1eFbOEacKLrakWIrQZDgxJ2zP38eGtFIbZ9+8",
    };
    assert_int_equal(auth_check_signature(&identity, &given, 1000, NULL), 0);
    given.operation = "write";
    assert_int_equal(auth_check_signature(&identity, &given, 1000, NULL), -EKEYREJECTED);
    given = (struct auth_signature){
        .path = "f",
        .operation = "write",
        .user = "user",
        .signature = "v1_euaR6XFhbfA7didi5TKoKHfEXIpygBg5uPHtLzkpjTM",
        .expires = "2000",
    };
    assert_int_equal(auth_check_signature(&identity, &given, 2000, NULL), 0);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(auth_check_signature(&identity, &given, 2001, &err), -EKEYREJECTED);
    assert_string_equal(error_message(&err), "signature is already expired");
    given.expires = "9999";
    assert_int_equal(auth_check_signature(&identity, &given, 2001, NULL), -EKEYREJECTED);
    given.signature = NULL;
    assert_int_equal(auth_check_signature(&identity, &given, 2001, NULL), -EKEYREJECTED);
}

/* ---- environment ---- */

static void later_variables_replace_earlier_ones(void **state)
{
    (void)state;
    CLEANUP_ENVIRONMENT struct environment environment = {0};
    for (int i = 0; i < 100; i++) {
        char name[16];
        int length = snprintf(name, sizeof(name), "N%d", i);
        environment_set(&environment, name, (size_t)length, "old");
    }
    environment_set(&environment, "N99", 3, "new=1");
    environment_set(&environment, "N9", 2, "");
    assert_false(environment.failed);
    assert_int_equal(environment.count, 100);
    assert_string_equal(environment.items[99], "N99=new=1");
    assert_string_equal(environment.items[9], "N9=");
    assert_null(environment.items[100]);
    for (int i = 0; i < ENVIRONMENT_MAX; i++) {
        char name[16];
        int length = snprintf(name, sizeof(name), "M%d", i);
        environment_set(&environment, name, (size_t)length, "");
    }
    assert_true(environment.failed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multipart_parts_arrive_in_pieces_of_any_size),
        cmocka_unit_test(multipart_refuses_what_is_damaged),
        cmocka_unit_test(multipart_bounds_the_headers_of_a_part),
        cmocka_unit_test(multipart_needs_a_valid_boundary),
        cmocka_unit_test(connect_frames_are_what_clients_read),
        cmocka_unit_test(connect_errors_without_utf8_keep_their_code),
        cmocka_unit_test(connect_requests_are_one_frame),
        cmocka_unit_test(proto_members_are_checked),
        UNIT_TEST(users_come_with_their_groups),
        UNIT_TEST(damaged_users_are_refused),
        UNIT_TEST(an_image_without_users_has_root),
        cmocka_unit_test(paths_resolve_to_the_home),
        cmocka_unit_test(impossible_paths_are_refused),
        UNIT_TEST(missing_directories_are_made),
        cmocka_unit_test(tokens_must_be_equal),
        cmocka_unit_test(signatures_are_the_clients),
        cmocka_unit_test(later_variables_replace_earlier_ones),
    };
    return cmocka_run_group_tests_name("agent parsers", tests, NULL, NULL);
}
