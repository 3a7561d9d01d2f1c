#include "cli/format.h"
#include "unit.h"

#define NOW_NS ((int64_t)1767268800 * 1000000000) /* 2026-01-01T12:00:00Z */

static void values(void **state)
{
    (void)state;
    static const struct {
        const char *json; /* of the field "f" */
        enum format_kind kind;
        const char *text;
    } cases[] = {
        {"\"text\"", FORMAT_TEXT, "text"},
        {"\"\"", FORMAT_TEXT, "-"},
        {"null", FORMAT_TEXT, "-"},
        {"7", FORMAT_TEXT, "7"},
        {"true", FORMAT_TEXT, "yes"},
        {"[]", FORMAT_TEXT, "-"},
        {"[\"a:b\", \"c\"]", FORMAT_TEXT, "a:b,c"},
        {"[1]", FORMAT_TEXT, "?"},
        {"\"a\\u001b[2Jb\\u009bc\\u007f\\n\"", FORMAT_TEXT, "a?[2Jb??c??"},
        {"\"süß\"", FORMAT_TEXT, "süß"},
        {"\"abcdefghijklmnop\"", FORMAT_SHORT_ID, "abcdefghijkl"},
        {"512", FORMAT_MIB, "512 MiB"},
        {"2048", FORMAT_MIB, "2.0 GiB"},
        {"1023", FORMAT_BYTES, "1023 B"},
        {"1536", FORMAT_BYTES, "1.5 KiB"},
        {"9223372036854775807", FORMAT_BYTES, "8192 PiB"},
        {"0", FORMAT_MICROSECONDS, "-"},
        {"850", FORMAT_MICROSECONDS, "850 us"},
        {"12345", FORMAT_MICROSECONDS, "12.3 ms"},
        {"4560000", FORMAT_MICROSECONDS, "4.56 s"},
        {"4560000000", FORMAT_NANOSECONDS, "4.56 s"},
        {"\"2026-01-01T11:59:15.500Z\"", FORMAT_AGE, "44s"},
        {"\"2026-01-01T11:48:00Z\"", FORMAT_AGE, "12m"},
        {"\"2026-01-01T09:00:00Z\"", FORMAT_AGE, "3h"},
        {"\"2025-12-23T12:00:00Z\"", FORMAT_AGE, "9d"},
        {"\"2026-01-01T12:00:09Z\"", FORMAT_AGE, "0s"},
        {"\"no time\"", FORMAT_AGE, "no time"},
        {"null", FORMAT_AGE, "-"},
        {"\"2026-01-01T12:01:00Z\"", FORMAT_UNTIL, "60s"},
        {"null", FORMAT_UNTIL, "never"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        json_t *object = json_object();
        json_t *value = json_loads(cases[i].json, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        json_object_set_new(object, "f", value);
        const struct format_field field = {"F", "f", cases[i].kind};
        char buffer[FORMAT_SIZE];
        assert_string_equal(format_value(object, &field, NOW_NS, buffer), cases[i].text);
        json_decref(object);
    }
}

static void long_text_is_cut(void **state)
{
    (void)state;
    char text[2 * FORMAT_SIZE];
    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    json_t *object = json_pack("{s:s}", "f", text);
    const struct format_field field = {"F", "f", FORMAT_TEXT};
    char buffer[FORMAT_SIZE];
    assert_int_equal(strlen(format_value(object, &field, NOW_NS, buffer)), FORMAT_SIZE - 1);
    json_decref(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(values), cmocka_unit_test(long_text_is_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
