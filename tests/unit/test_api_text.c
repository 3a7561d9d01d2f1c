/* What takes apart text from clients: URIs, times, JSON bodies, UTF-8. */
#include "unit.h"

#include <errno.h>

#include "api/body.h"
#include "api/string_map.h"
#include "api/uri.h"
#include "base/timestamp.h"
#include "base/utf8.h"

static void check_decode(const char *text, bool form, const char *expected)
{
    char *decoded = NULL;
    int r = uri_decode(text, strlen(text), form, &decoded);
    if (expected == NULL) {
        assert_int_equal(r, -EINVAL);
        return;
    }
    assert_int_equal(r, 0);
    assert_string_equal(decoded, expected);
    free(decoded);
}

static void test_uri_decode(void **state)
{
    (void)state;
    check_decode("", false, "");
    check_decode("a%20b%2Fc%2fd", false, "a b/c/d");
    check_decode("a+b", false, "a+b");
    check_decode("a+b%2B", true, "a b+");
    check_decode("%ff", false, "\xff");
    check_decode("%", false, NULL);
    check_decode("%4", false, NULL);
    check_decode("a%zz", false, NULL);
    check_decode("%00", false, NULL);
}

static void test_uri_query(void **state)
{
    (void)state;
    struct uri_query query;
    assert_int_equal(uri_query_parse("a=1&&b=x%26y&c&a=2&=v", &query), 0);
    assert_int_equal(query.count, 5);
    assert_string_equal(uri_query_get(&query, "a"), "1");
    assert_string_equal(uri_query_get(&query, "b"), "x&y");
    assert_string_equal(uri_query_get(&query, "c"), "");
    assert_string_equal(query.parameters[3].value, "2");
    assert_null(uri_query_get(&query, "d"));
    uri_query_done(&query);

    assert_int_equal(uri_query_parse("", &query), 0);
    assert_int_equal(query.count, 0);
    assert_int_equal(uri_query_parse("a=1&b=%", &query), -EINVAL);

    char many[3 * (URI_PARAMETERS_MAX + 1) + 1];
    for (int i = 0; i <= URI_PARAMETERS_MAX; i++)
        memcpy(many + 3 * (size_t)i, "a=&", 4);
    assert_int_equal(uri_query_parse(many, &query), -E2BIG);
    many[3 * URI_PARAMETERS_MAX] = '\0';
    assert_int_equal(uri_query_parse(many, &query), 0);
    uri_query_done(&query);
}

static void check_match(const char *pattern, const char *path, int expected, const char *capture)
{
    char *captures[2] = {NULL, NULL};
    assert_int_equal(uri_match(pattern, path, captures, 2), expected);
    if (expected == 1 && capture != NULL)
        assert_string_equal(captures[0], capture);
    else
        assert_null(captures[0]);
    free(captures[0]);
    free(captures[1]);
}

static void test_uri_match(void **state)
{
    (void)state;
    check_match("/sandboxes", "/sandboxes", 1, NULL);
    check_match("/sandboxes", "/sandboxes/", 0, NULL);
    check_match("/sandboxes", "/sandboxe", 0, NULL);
    check_match("/sandboxes", "/sandboxess", 0, NULL);
    check_match("/sandboxes/{}", "/sandboxes/abc", 1, "abc");
    check_match("/sandboxes/{}", "/sandboxes/a%2Fb", 1, "a/b");
    check_match("/sandboxes/{}", "/sandboxes/", 0, NULL);
    check_match("/sandboxes/{}", "/sandboxes/a/b", 0, NULL);
    check_match("/sandboxes/{}/pause", "/sandboxes/a/paused", 0, NULL);
    check_match("/sandboxes/{}/pause", "/sandboxes/a/pause", 1, "a");
    check_match("/sandboxes/{}", "/sandboxes/%zz", -EINVAL, NULL);
    check_match("/{}/{}", "/a/%", -EINVAL, NULL);
    check_match("/sandboxes", "", 0, NULL);
}

static void check_normal(const char *path, const char *expected)
{
    char *normal = NULL;
    assert_int_equal(uri_normalize_path(path, &normal), 0);
    assert_string_equal(normal, expected);
    free(normal);
}

static void test_uri_normalize(void **state)
{
    (void)state;
    check_normal("/", "/");
    check_normal("//", "/");
    check_normal("/init", "/init");
    check_normal("//init/", "/init");
    check_normal("/%69ni%74", "/init");
    check_normal("/a/../init", "/init");
    check_normal("/a%2f..%2finit", "/init");
    check_normal("/../../init", "/init");
    check_normal("/./init/.", "/init");
    check_normal("/a/b/..", "/a");
    check_normal("/..a/b.", "/..a/b.");
    char *normal = NULL;
    assert_int_equal(uri_normalize_path("init", &normal), -EINVAL);
    assert_int_equal(uri_normalize_path("/%", &normal), -EINVAL);
}

static void check_format(int64_t ns, const char *expected)
{
    char text[TIMESTAMP_LENGTH + 1];
    timestamp_format(ns, text);
    assert_string_equal(text, expected);
}

static void check_parse(const char *text, int64_t expected)
{
    int64_t ns;
    assert_int_equal(timestamp_parse(text, &ns), 0);
    assert_true(ns == expected);
}

static void test_timestamp(void **state)
{
    (void)state;
    check_format(0, "1970-01-01T00:00:00.000Z");
    check_format(INT64_C(1767323045678999999), "2026-01-02T03:04:05.678Z");
    check_format(-1, "1969-12-31T23:59:59.999Z");
    check_format(INT64_MAX, "2262-04-11T23:47:16.854Z");
    check_format(INT64_MIN, "1677-09-21T00:12:43.145Z");

    check_parse("2026-01-02T03:04:05.678Z", INT64_C(1767323045678000000));
    check_parse("2026-01-02T03:04:05Z", INT64_C(1767323045000000000));
    check_parse("2026-01-02T05:04:05.0000000019+02:00", INT64_C(1767323045000000001));
    check_parse("2024-02-29t00:00:00z", INT64_C(1709164800000000000));
    static const char *const wrong[] = {
        "",
        "2026",
        "2026-01-02",
        "2026-01-02T03:04:05",
        "2026-01-02T03:04:05.Z",
        "2026-01-02 03:04:05Z",
        "2026-13-02T03:04:05Z",
        "2026-02-30T03:04:05Z",
        "2026-01-02T24:04:05Z",
        "2026-01-02T03:04:05+2:00",
        "2026-01-02T03:04:05Zx",
        "9999-01-02T03:04:05Z",
        "-026-01-02T03:04:05Z",
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        int64_t ns = 7;
        assert_int_equal(timestamp_parse(wrong[i], &ns), -EINVAL);
        assert_true(ns == 7);
    }
}

static void check_utf8(const char *bytes, const char *expected)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    utf8_append(&text, bytes, strlen(bytes));
    assert_string_equal(strbuf_text(&text), expected);
    json_t *json = json_string(strbuf_text(&text));
    assert_non_null(json); /* jansson agrees that it is valid */
    json_decref(json);
}

#define REPLACED "\xef\xbf\xbd"

static void test_utf8(void **state)
{
    (void)state;
    check_utf8("", "");
    check_utf8("a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z", "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z");
    check_utf8("a\xff z", "a" REPLACED " z");
    check_utf8("\xc3", REPLACED);
    check_utf8("\xe2\x82", REPLACED REPLACED);
    check_utf8("\xe0\x80\xaf", REPLACED REPLACED REPLACED);
    check_utf8("\xf0\x80\x80\xaf", REPLACED REPLACED REPLACED REPLACED);
    check_utf8("\xc0\xaf", REPLACED REPLACED);                           /* overlong */
    check_utf8("\xed\xa0\x80", REPLACED REPLACED REPLACED);              /* a surrogate */
    check_utf8("\xf4\x90\x80\x80", REPLACED REPLACED REPLACED REPLACED); /* beyond U+10FFFF */
    json_t *json = utf8_json("a\0b", 3);
    assert_int_equal(json_string_length(json), 5);
    json_decref(json);
}

static json_t *parse(const char *text)
{
    json_t *json = NULL;
    assert_int_equal(body_parse(text, strlen(text), &json, NULL), 0);
    return json;
}

static void test_body_parse(void **state)
{
    (void)state;
    json_t *json = parse("");
    assert_int_equal(json_object_size(json), 0);
    json_decref(json);
    static const char *const wrong[] = {"[]",
                                        "1",
                                        "{",
                                        "{}x",
                                        "{\"a\":1e999}",
                                        "{\"a\":99999999999999999999}",
                                        "{\"a\":1,\"a\":2}",
                                        "{\"a\":\"\\u0000\"}",
                                        "\xff"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(body_parse(wrong[i], strlen(wrong[i]), &json, &err), -EINVAL);
        assert_non_null(strstr(error_message(&err), "JSON"));
    }
    size_t depth = 500000;
    char *deep = malloc(depth);
    assert_non_null(deep);
    memset(deep, '[', depth);
    assert_int_equal(body_parse(deep, depth, &json, NULL), -EINVAL);
    free(deep);
}

static void test_body_fields(void **state)
{
    (void)state;
    CLEANUP_JSON json_t *json =
        parse("{\"s\":\"text\",\"i\":5,\"b\":true,\"n\":null,\"r\":1.5,\"o\":{},\"l\":[],\"m\":-1}");
    const char *text = "preset";
    int64_t number = 1;
    unsigned count = 3;
    bool flag = false;
    json_t *part = NULL;
    assert_int_equal(body_string(json, "s", &text, NULL), 0);
    assert_string_equal(text, "text");
    assert_int_equal(body_string(json, "n", &text, NULL), 0);
    assert_int_equal(body_string(json, "absent", &text, NULL), 0);
    assert_string_equal(text, "text");
    assert_int_equal(body_string(json, "i", &text, NULL), -EINVAL);
    assert_int_equal(body_integer(json, "i", 0, 5, &number, NULL), 0);
    assert_int_equal(number, 5);
    assert_int_equal(body_integer(json, "i", 0, 4, &number, NULL), -EINVAL);
    assert_int_equal(body_integer(json, "i", 6, 9, &number, NULL), -EINVAL);
    assert_int_equal(body_integer(json, "r", 0, 9, &number, NULL), -EINVAL);
    assert_int_equal(body_integer(json, "b", 0, 9, &number, NULL), -EINVAL);
    assert_int_equal(body_unsigned(json, "absent", &count, NULL), 0);
    assert_int_equal(body_unsigned(json, "m", &count, NULL), -EINVAL);
    assert_int_equal(count, 3);
    assert_int_equal(body_boolean(json, "b", &flag, NULL), 0);
    assert_true(flag);
    assert_int_equal(body_boolean(json, "i", &flag, NULL), -EINVAL);
    assert_int_equal(body_object(json, "l", &part, NULL), -EINVAL);
    assert_int_equal(body_array(json, "o", &part, NULL), -EINVAL);
    assert_null(part);
    assert_int_equal(body_object(json, "o", &part, NULL), 0);
    assert_ptr_equal(part, json_object_get(json, "o"));

    static const char *const known[] = {"s", "i", "b", "n", "r", "o", "l", NULL};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(body_known(json, known, &err), -EINVAL);
    assert_string_equal(error_message(&err), "there is no field \"m\"");
    json_object_del(json, "m");
    assert_int_equal(body_known(json, known, NULL), 0);
}

static void test_string_maps(void **state)
{
    (void)state;
    CLEANUP_JSON json_t *object = parse("{\"A\":\"1=2\",\"B\":\"\"}");
    struct string_list list = {0};
    assert_int_equal(string_map_environment(object, "env", &list, NULL), 0);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[0], "A=1=2");
    json_t *back = string_map_environment_json(&list);
    assert_true(json_equal(object, back));
    json_decref(back);
    string_list_done(&list);

    assert_int_equal(string_map_metadata(object, "metadata", &list, NULL), 0);
    assert_string_equal(string_map_metadata_get(&list, "A"), "1=2");
    assert_null(string_map_metadata_get(&list, "1=2"));
    back = string_map_metadata_json(&list);
    assert_true(json_equal(object, back));
    json_decref(back);
    string_list_done(&list);

    assert_int_equal(string_map_environment(NULL, "env", &list, NULL), 0);
    static const char *const wrong[] = {"{\"A\":1}", "{\"\":\"x\"}", "{\"A=B\":\"x\"}", "{\"A\":null}"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        json_t *bad = parse(wrong[i]);
        assert_int_equal(string_map_environment(bad, "env", &list, NULL), -EINVAL);
        json_decref(bad);
        string_list_done(&list);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uri_decode),  cmocka_unit_test(test_uri_query),
        cmocka_unit_test(test_uri_match),   cmocka_unit_test(test_uri_normalize),
        cmocka_unit_test(test_timestamp),   cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_body_parse),  cmocka_unit_test(test_body_fields),
        cmocka_unit_test(test_string_maps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
