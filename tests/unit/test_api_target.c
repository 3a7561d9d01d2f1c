/* Which guest a request is for, what may reach it, and signed file URLs. */
#include "unit.h"

#include <errno.h>

#include "api/proxy_target.h"
#include "api/signature.h"

static void check_target(const char *host, const char *id, const char *port, const char *expected_id,
                         unsigned expected_port)
{
    struct proxy_target target;
    assert_int_equal(proxy_target_parse(host, id, port, &target), 1);
    assert_string_equal(target.sandbox_id, expected_id);
    assert_int_equal(target.port, expected_port);
}

static void test_target(void **state)
{
    (void)state;
    check_target("localhost:7878", "abc1", NULL, "abc1", 49983);
    check_target("127.0.0.1:7878", "abc1", "3000", "abc1", 3000);
    check_target(NULL, "abc1-client", "49999", "abc1", 49999);
    check_target("3000-abc1.localhost:7878", NULL, NULL, "abc1", 3000);
    check_target("3000-abc1-client.example.org", "other", "1", "abc1", 3000);

    struct proxy_target target;
    assert_int_equal(proxy_target_parse(NULL, NULL, NULL, &target), 0);
    assert_int_equal(proxy_target_parse("localhost:7878", NULL, "3000", &target), 0);
    assert_int_equal(proxy_target_parse("10-20", NULL, NULL, &target), 0);
    assert_int_equal(proxy_target_parse("10-20:80", NULL, NULL, &target), 0);
    assert_int_equal(proxy_target_parse("sandbox.example.org", NULL, NULL, &target), 0);
    static const struct {
        const char *host, *id, *port;
    } wrong[] = {
        {NULL, "", NULL},
        {NULL, "ABC", NULL},
        {NULL, "a/b", NULL},
        {NULL, "-client", NULL},
        {NULL, "abc", ""},
        {NULL, "abc", "0"},
        {NULL, "abc", "65536"},
        {NULL, "abc", "99999999999"},
        {NULL, "abc", "-1"},
        {NULL, "abc", "80x"},
        {"70000-abc.localhost", NULL, NULL},
        {"80-.localhost", NULL, NULL},
        {"80-aBc.localhost", NULL, NULL},
        {NULL, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_int_equal(proxy_target_parse(wrong[i].host, wrong[i].id, wrong[i].port, &target), -EINVAL);
}

static void test_host_only(void **state)
{
    (void)state;
    static const char *const refused[] = {"/init",   "/freeze", "/unfreeze",    "/collapse",  "/fsfreeze",
                                          "/fsthaw", "//init",  "/%69nit",      "/x/../init", "/init/",
                                          "/./init", "/INIT",   "/x%2f../init", "/%"};
    static const char *const served[] = {"/", "/health", "/files", "/initial", "/init/x", "/x/init", "/metrics"};
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
        assert_true(proxy_target_host_only(refused[i]));
    for (size_t i = 0; i < ARRAY_SIZE(served); i++)
        assert_false(proxy_target_host_only(served[i]));
}

static void test_headers(void **state)
{
    (void)state;
    assert_true(proxy_header_stays("connection", NULL));
    assert_true(proxy_header_stays("Transfer-Encoding", NULL));
    assert_true(proxy_header_stays("x-api-key", NULL));
    assert_true(proxy_header_stays("X-Mine", "close, x-mine"));
    assert_false(proxy_header_stays("X-Mine", "x-min, x-mine2"));
    assert_false(proxy_header_stays("X-Access-Token", NULL));
    assert_false(proxy_header_stays("Host", "keep-alive"));
    assert_true(proxy_list_has("keep-alive, Upgrade", "upgrade"));
    assert_false(proxy_list_has("", "upgrade"));
    assert_false(proxy_list_has(" , ,upgrades", "upgrade"));
}

/* Made by the npm package e2b 2.51.0: downloadUrl("/tmp/api/x.txt", {useSignatureExpiration}). */
#define SIGNED_TOKEN "token0123456789"
#define SIGNED_QUERY                                                                                               \
    "path=%2Ftmp%2Fapi%2Fx.txt&signature=v1_vdRDrS%2F4yvuK6TL6Bz0UWBF9zXsv1q%2B9BL5Aj4VJZ%2B4"                     \
    "&signature_expiration=1795260707"

static bool fits(const char *text, const char *method, const char *token)
{
    struct uri_query query;
    assert_int_equal(uri_query_parse(text, &query), 0);
    bool result = signature_fits(&query, method, token);
    uri_query_done(&query);
    return result;
}

static void test_signature(void **state)
{
    (void)state;
    assert_true(fits(SIGNED_QUERY, "GET", SIGNED_TOKEN));
    assert_false(fits(SIGNED_QUERY, "POST", SIGNED_TOKEN));
    assert_false(fits(SIGNED_QUERY, "GET", "token0123456780"));
    assert_false(fits(SIGNED_QUERY, "GET", ""));
    assert_false(fits(SIGNED_QUERY "&x=1&username=root", "GET", SIGNED_TOKEN));
    assert_false(fits(SIGNED_QUERY "8", "GET", SIGNED_TOKEN));
    assert_false(fits("path=%2Ftmp", "GET", SIGNED_TOKEN));
    assert_false(fits("path=%2Ftmp&signature=", "GET", SIGNED_TOKEN));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_target),
        cmocka_unit_test(test_host_only),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_signature),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
