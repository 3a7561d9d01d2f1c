/* Which sandboxes a list request picks, in which order and pages. */
#include "unit.h"

#include <errno.h>

#include "api/list_filter.h"

static void parse_filter(const char *text, struct uri_query *query, struct list_filter *filter)
{
    assert_int_equal(uri_query_parse(text, query), 0);
    assert_int_equal(list_filter_parse(query, filter, NULL), 0);
}

static void test_metadata(void **state)
{
    (void)state;
    struct string_list list = {0};
    /* What remains of the SDK's metadata=a%252520b%3Dc%252526d after the query was decoded. */
    assert_int_equal(list_filter_metadata("a%2520b=c%2526d", &list), 0);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[0], "a b");
    assert_string_equal(list.items[1], "c&d");
    string_list_done(&list);

    assert_int_equal(list_filter_metadata("k=v&x=y", &list), 0);
    assert_int_equal(list.count, 4);
    assert_string_equal(list.items[3], "y");
    string_list_done(&list);

    assert_int_equal(list_filter_metadata("", &list), 0);
    assert_int_equal(list.count, 0);
    assert_int_equal(list_filter_metadata("k=%", &list), -EINVAL);
    assert_int_equal(list_filter_metadata("k=%25", &list), -EINVAL);
    string_list_done(&list);
}

static void test_parameters(void **state)
{
    (void)state;
    struct uri_query query;
    struct list_filter filter;
    parse_filter("", &query, &filter);
    assert_true(filter.running && filter.paused && !filter.ascending);
    assert_int_equal(filter.limit, LIST_PAGE_MAX);
    list_filter_done(&filter);
    uri_query_done(&query);

    parse_filter("state=paused&order=asc&limit=7&template=t&unknown=1", &query, &filter);
    assert_true(!filter.running && filter.paused && filter.ascending);
    assert_int_equal(filter.limit, 7);
    assert_string_equal(filter.template, "t");
    list_filter_done(&filter);
    uri_query_done(&query);

    static const char *const wrong[] = {"state=lost",  "state=running,x", "limit=0",       "limit=101",
                                        "limit=-1",    "limit=1x",        "limit=",        "order=up",
                                        "nextToken=x", "nextToken=",      "nextToken=5_a", "startedAfter=1",
                                        "metadata=%25"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        assert_int_equal(uri_query_parse(wrong[i], &query), 0);
        assert_int_equal(list_filter_parse(&query, &filter, &err), -EINVAL);
        list_filter_done(&filter);
        uri_query_done(&query);
    }
}

#define ITEMS 5

static void make_items(struct sandbox_info *items)
{
    static char *metadata[] = {(char *)"k", (char *)"v"};
    static const char *const ids[ITEMS] = {"e", "d", "c", "b", "a"};
    static const enum sandbox_state states[ITEMS] = {SANDBOX_RUNNING, SANDBOX_PAUSED, SANDBOX_RUNNING, SANDBOX_LOST,
                                                     SANDBOX_RUNNING};
    for (int i = 0; i < ITEMS; i++)
        items[i] = (struct sandbox_info){.id = (char *)ids[i],
                                         .state = states[i],
                                         .template_id = (char *)(i == 0 ? "t1" : "t2"),
                                         .template_name = (char *)"base",
                                         /* "c" and "a" started at the same time */
                                         .started_ns = i == 4 ? 3000000000 : (i + 1) * INT64_C(1000000000),
                                         .metadata = {metadata, i == 2 ? 2 : 0}};
}

/* The ids of the page, in a row; *ret_token as from list_filter_page. */
static void check_page(const char *query_text, const char *expected, char **ret_token)
{
    struct sandbox_info items[ITEMS];
    make_items(items);
    struct uri_query query;
    struct list_filter filter;
    parse_filter(query_text, &query, &filter);
    const struct sandbox_info *page[LIST_PAGE_MAX];
    char *token = NULL;
    int count = list_filter_page(&filter, items, ITEMS, page, &token);
    char ids[ITEMS + 1] = "";
    for (int i = 0; i < count; i++)
        ids[i] = page[i]->id[0];
    assert_string_equal(ids, expected);
    if (ret_token != NULL)
        *ret_token = token;
    else
        assert_null(token);
    list_filter_done(&filter);
    uri_query_done(&query);
}

static void test_filtering(void **state)
{
    (void)state;
    check_page("", "cade", NULL);
    check_page("order=asc", "edac", NULL);
    check_page("state=running", "cae", NULL);
    check_page("state=paused", "d", NULL);
    check_page("state=running&state=paused", "cade", NULL);
    check_page("metadata=k%3Dv", "c", NULL);
    check_page("metadata=k%3Dw", "", NULL);
    check_page("metadata=k%3Dv%26x%3Dy", "", NULL);
    check_page("template=t1", "e", NULL);
    check_page("template=base", "cade", NULL);
    check_page("startedAfter=1970-01-01T00:00:02Z", "ca", NULL);
}

static void test_paging(void **state)
{
    (void)state;
    static const struct {
        const char *order;
        const char *pages[4];
    } cases[] = {{"desc", {"c", "a", "d", "e"}}, {"asc", {"e", "d", "a", "c"}}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *token = NULL;
        for (int page = 0; page < 4; page++) {
            char query[128];
            snprintf(query, sizeof(query), "limit=1&order=%s%s%s", cases[i].order,
                     token != NULL ? "&nextToken=" : "", token != NULL ? token : "");
            free(token);
            token = NULL;
            check_page(query, cases[i].pages[page], &token);
            assert_true((token == NULL) == (page == 3));
        }
    }
    /* Filtered before it is cut into pages: the second running one is on the second page. */
    char *token = NULL;
    check_page("limit=2&state=running", "ca", &token);
    assert_non_null(token);
    free(token);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_filtering),
        cmocka_unit_test(test_paging),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
