/* docs/api.yaml and the tables of routes name the same paths and methods. */
#include "unit.h"

#include "api/api.h"

#define DOCUMENT_ENV "API_YAML"

/* "/sandboxes/{sandboxID}/pause" as "/sandboxes/{}/pause". */
static void append_pattern(struct strbuf *out, const char *path, size_t length)
{
    bool named = false;
    for (size_t i = 0; i < length; i++) {
        named = named && path[i] != '}';
        if (!named)
            strbuf_append(out, path + i, 1);
        named = named || path[i] == '{';
    }
}

static bool is_method(const char *word, size_t length)
{
    static const char *const methods[] = {"get", "post", "put", "patch", "delete"};
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if (strlen(methods[i]) == length && strncmp(word, methods[i], length) == 0)
            return true;
    return false;
}

/* One line "METHOD pattern" for each operation in the document, whose layout is two spaces a level. */
static size_t read_operations(const char *yaml, struct strbuf *out)
{
    CLEANUP_STRBUF struct strbuf pattern = STRBUF_INIT;
    size_t count = 0;
    strbuf_puts(out, "\n");
    for (const char *line = yaml, *end; line != NULL; line = end != NULL ? end + 1 : NULL) {
        end = strchr(line, '\n');
        size_t length = strcspn(line, ":\n");
        if (strncmp(line, "  /", 3) == 0) {
            strbuf_consume(&pattern, pattern.length);
            append_pattern(&pattern, line + 2, length - 2);
        } else if (strncmp(line, "    ", 4) == 0 && is_method(line + 4, length - 4)) {
            for (size_t i = 4; i < length; i++)
                strbuf_printf(out, "%c", line[i] - 'a' + 'A');
            strbuf_printf(out, " %s\n", strbuf_text(&pattern));
            count++;
        }
    }
    return count;
}

static void test_documented(void **state)
{
    (void)state;
    CLEANUP_FREE char *yaml = NULL;
    assert_int_equal(io_read_file(getenv(DOCUMENT_ENV), 1 << 20, &yaml, NULL), 0);
    CLEANUP_STRBUF struct strbuf operations = STRBUF_INIT;
    size_t documented = read_operations(yaml, &operations);

    const struct api_route *const tables[] = {native_sandbox_routes, native_template_routes, native_store_routes,
                                              e2b_sandbox_routes, e2b_template_routes};
    size_t served = 0;
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        for (const struct api_route *route = tables[i]; route->method != NULL; route++) {
            char line[256];
            snprintf(line, sizeof(line), "\n%s %s\n", route->method, route->pattern);
            if (strstr(operations.data, line) == NULL)
                fail_msg("not documented:%s", line);
            served++;
        }
    }
    assert_int_equal(documented, served); /* so nothing is documented that isn't served */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_documented)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
