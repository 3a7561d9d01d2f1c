#include <errno.h>

#include "base/number.h"
#include "cli/copy_path.h"
#include "cli/parse.h"
#include "cli/suggest.h"
#include "unit.h"

static void counts(void **state)
{
    (void)state;
    uint64_t value = 99;
    assert_int_equal(number_parse("0", 0, 5, &value, NULL), 0);
    assert_int_equal(value, 0);
    assert_int_equal(number_parse("18446744073709551615", 0, UINT64_MAX, &value, NULL), 0);
    assert_true(value == UINT64_MAX);
    static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "0x1", "1.5", "6", "18446744073709551616"};
    value = 7;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(number_parse(bad[i], 0, 5, &value, NULL), -EINVAL);
    assert_int_equal(value, 7);
}

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t mib;
    } good[] = {{"512", 512},   {"512M", 512},       {"512MiB", 512}, {"512mb", 512}, {"2G", 2048},
                {"2gib", 2048}, {"1T", 1024 * 1024}, {"1", 1},        {"0064", 64}};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint32_t mib;
        assert_int_equal(number_parse_mib(good[i].text, &mib, NULL), 0);
        assert_int_equal(mib, good[i].mib);
    }
    static const char *const bad[] = {"", "M", "0", "0G", "1.5G", "512K", "2Gx", "2G ", "-1", "99999999T", "4096T"};
    uint32_t mib = 7;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(number_parse_mib(bad[i], &mib, &err), -EINVAL);
        assert_non_null(err.message);
    }
    assert_int_equal(mib, 7);
}

static void durations(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t seconds;
    } good[] = {{"0", 0},        {"90", 90},        {"90s", 90},         {"5m", 300},     {"1h", 3600},
                {"1h30m", 5400}, {"2d", 2 * 86400}, {"1d1h1m1s", 90061}, {"31d", 2678400}};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        int64_t seconds;
        assert_int_equal(parse_duration(good[i].text, &seconds, NULL), 0);
        assert_int_equal(seconds, good[i].seconds);
    }
    static const char *const bad[] = {"",
                                      "m",
                                      "-1",
                                      "1.5h",
                                      "5 m",
                                      "1h30",
                                      "10x",
                                      "32d",
                                      "31d1s",
                                      "9223372036854775807",
                                      "99999999999999999999s"};
    int64_t seconds = 7;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse_duration(bad[i], &seconds, NULL), -EINVAL);
    assert_int_equal(seconds, 7);
}

static void ids(void **state)
{
    (void)state;
    assert_int_equal(parse_id("a1b2", NULL), 0);
    assert_int_equal(parse_id("code-interpreter-v1", NULL), 0);
    assert_int_equal(parse_id("name:tag", NULL), 0);
    static const char *const bad[] = {"", "a/b", "..", ".", "../x", "a b", "a?b", "a%2fb", "a\nb", "\xc3\xbc"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse_id(bad[i], NULL), -EINVAL);
    char longest[130];
    memset(longest, 'a', sizeof(longest) - 1);
    longest[129] = '\0';
    assert_int_equal(parse_id(longest, NULL), -EINVAL);
    longest[128] = '\0';
    assert_int_equal(parse_id(longest, NULL), 0);
}

static void pairs(void **state)
{
    (void)state;
    CLEANUP_FREE char *key = NULL;
    const char *value;
    assert_int_equal(parse_pair("A=b=c", &key, &value, NULL), 0);
    assert_string_equal(key, "A");
    assert_string_equal(value, "b=c");
    static const char *const bad[] = {"", "A", "=b", "A\nB=c"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(parse_pair(bad[i], &key, &value, NULL), -EINVAL);
}

static void places(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *id;
        const char *path;
    } good[] = {
        {"abc:/etc/x", "abc", "/etc/x"},
        {"abc:x", "abc", "x"},
        {"abc:/a:b", "abc", "/a:b"},
        {"C:\\temp", "C", "\\temp"},
        {"/a:b", NULL, "/a:b"},
        {"./a:b", NULL, "./a:b"},
        {"../a:b", NULL, "../a:b"},
        {"dir/a:b", NULL, "dir/a:b"},
        {"notes 10:30", NULL, "notes 10:30"},
        {"plain", NULL, "plain"},
        {"-", NULL, "-"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        struct copy_place place;
        assert_int_equal(parse_copy_place(good[i].text, &place, NULL), 0);
        if (good[i].id == NULL)
            assert_null(place.id);
        else
            assert_string_equal(place.id, good[i].id);
        assert_string_equal(place.path, good[i].path);
        copy_place_done(&place);
    }
    struct copy_place place;
    assert_int_equal(parse_copy_place("", &place, NULL), -EINVAL);
    assert_int_equal(parse_copy_place("abc:", &place, NULL), -EINVAL);
    assert_int_equal(parse_copy_place(":/x", &place, NULL), -EINVAL);
}

static void paths(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *path;
        const char *name;
        bool must_be_dir;
        bool contents;
    } good[] = {
        {"/a/b", "/a/b", "b", false, false},  {"/a/b/", "/a/b", "b", true, false},
        {"/a/b/.", "/a/b", "b", true, true},  {"/a/b/./", "/a/b", "b", true, true},
        {"/a/b//", "/a/b", "b", true, false}, {"/", "/", "", true, true},
        {"//", "/", "", true, true},          {".", ".", "", true, true},
        {"./", ".", "", true, true},          {"a", "a", "a", false, false},
        {"/.", "/", "", true, true},          {"a..", "a..", "a..", false, false},
        {".a", ".a", ".a", false, false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        CLEANUP_COPY_PATH struct copy_path path = {0};
        assert_int_equal(copy_path_parse(good[i].text, &path, NULL), 0);
        assert_string_equal(path.path, good[i].path);
        assert_string_equal(copy_path_name(&path), good[i].name);
        assert_int_equal(path.must_be_dir, good[i].must_be_dir);
        assert_int_equal(path.contents, good[i].contents);
    }
    struct copy_path path;
    static const char *const bad[] = {"", "..", "a/..", "a/../", "a/../."};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(copy_path_parse(bad[i], &path, NULL), -EINVAL);
}

static void joined_paths(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"/a", "b", "/a/b"}, {"/", "b", "/b"}, {"/a", "", "/a"}, {".", "b", "./b"}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_FREE char *joined = copy_path_join(cases[i][0], cases[i][1]);
        assert_string_equal(joined, cases[i][2]);
    }
    static const char *const parents[][2] = {{"/a/b", "/a"}, {"/a", "/"}, {"a", "."}, {"a/b", "a"}};
    for (size_t i = 0; i < ARRAY_SIZE(parents); i++) {
        CLEANUP_FREE char *parent = copy_path_parent(parents[i][0]);
        assert_string_equal(parent, parents[i][1]);
    }
}

static void distances(void **state)
{
    (void)state;
    assert_int_equal(suggest_distance("run", "run"), 0);
    assert_int_equal(suggest_distance("rnu", "run"), 1);
    assert_int_equal(suggest_distance("pasue", "pause"), 1);
    assert_int_equal(suggest_distance("resum", "resume"), 1);
    assert_int_equal(suggest_distance("", "ls"), 2);
    assert_int_equal(suggest_distance("kitten", "sitting"), 3);
    assert_true(suggest_distance("an-endless-word-that-nobody-meant-to-type", "ls") == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts), cmocka_unit_test(sizes),        cmocka_unit_test(durations),
        cmocka_unit_test(ids),    cmocka_unit_test(pairs),        cmocka_unit_test(places),
        cmocka_unit_test(paths),  cmocka_unit_test(joined_paths), cmocka_unit_test(distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
