/* The control plane over real sockets: keys, routes, shapes, and input that is not what it should be. */
#include "unit.h"

#include <jansson.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "api/http.h"
#include "api_world.h"
#include "fake_manager.h"

#define KEY_HEADER "X-API-KEY: " FAKE_API_KEY "\r\n"

/* Sends a request by TCP with the key; checks the status; the body as JSON, NULL when it is none. */
static json_t *call(const char *method, const char *path, const char *body, int status)
{
    CLEANUP_FREE char *reply = world_request(false, method, path, KEY_HEADER, body);
    if (world_status(reply) != status)
        fail_msg("%s %s: %s", method, path, reply);
    return json_loads(world_body(reply), 0, NULL);
}

static void expect(const char *method, const char *path, const char *body, int status)
{
    json_t *json = call(method, path, body, status);
    if (status >= 400) {
        assert_int_equal(json_integer_value(json_object_get(json, "code")), status);
        assert_true(json_string_length(json_object_get(json, "message")) > 0);
    }
    json_decref(json);
}

static void assert_text(json_t *json, const char *key, const char *expected)
{
    const char *text = json_string_value(json_object_get(json, key));
    assert_non_null(text);
    assert_string_equal(text, expected);
}

static char *path_of(const char *format, const char *id)
{
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    const char *mark = strchr(format, '$');
    strbuf_printf(&path, "%.*s%s%s", (int)(mark - format), format, id, mark + 1);
    return strbuf_take(&path);
}

static void expect_on(const char *method, const char *format, const char *id, const char *body, int status)
{
    CLEANUP_FREE char *path = path_of(format, id);
    expect(method, path, body, status);
}

static void test_key(void **state)
{
    (void)state;
    static const struct {
        bool trusted;
        const char *path;
        const char *headers;
        int status;
    } cases[] = {
        {false, "/sandboxes", NULL, 401},
        {false, "/dormouse/v1/sandboxes", NULL, 401},
        {false, "/no/such/path", NULL, 401},
        {false, "/sandboxes", "X-API-KEY: e2b_00\r\n", 401},
        {false, "/sandboxes", "X-API-KEY: " FAKE_API_KEY "0\r\n", 401},
        {false, "/sandboxes", "X-API-KEY: e2b_0123456789abcdef0123456789abcdef01234568\r\n", 401},
        {false, "/sandboxes", "X-API-KEY:\r\n", 401},
        {false, "/sandboxes", KEY_HEADER, 200},
        {false, "/health", NULL, 204},
        {false, "/dormouse/v1/health", NULL, 401},
        {false, "/dormouse/v1/env", KEY_HEADER, 404},
        {true, "/dormouse/v1/env", NULL, 200},
        {true, "/sandboxes", NULL, 200},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_FREE char *reply = world_request(cases[i].trusted, "GET", cases[i].path, cases[i].headers, NULL);
        if (world_status(reply) != cases[i].status)
            fail_msg("case %zu: %s", i, reply);
    }
}

static void test_token_stays_local(void **state)
{
    (void)state;
    CLEANUP_FREE char *id = world_sandbox();
    CLEANUP_FREE char *path = path_of("/dormouse/v1/sandboxes/$", id);
    CLEANUP_FREE char *local = world_request(true, "GET", path, NULL, NULL);
    assert_non_null(strstr(local, "\"access_token\":\"" FAKE_TOKEN_PREFIX));
    CLEANUP_FREE char *remote = world_request(false, "GET", path, KEY_HEADER, NULL);
    assert_int_equal(world_status(remote), 200);
    assert_null(strstr(remote, FAKE_TOKEN_PREFIX));
    expect("POST", "/dormouse/v1/templates", "{\"name\":\"x\",\"rootfs\":\"/etc\"}", 400);
}

static void test_native_life(void **state)
{
    (void)state;
    json_t *info = call("POST", "/dormouse/v1/sandboxes",
                        "{\"template\":\"base\",\"memory_mib\":256,\"cpus\":2,\"timeout_s\":0,\"on_timeout\":"
                        "\"pause\",\"auto_resume\":true,"
                        "\"egress\":false,\"env\":{\"A\":\"1\"},\"metadata\":{\"k\":\"v\"}}",
                        201);
    CLEANUP_FREE char *id = strdup(json_string_value(json_object_get(info, "id")));
    assert_text(info, "state", "running");
    assert_text(info, "template", "base");
    assert_text(info, "snapshot", "s0base");
    assert_text(info, "on_timeout", "pause");
    assert_true(json_is_true(json_object_get(info, "auto_resume")));
    assert_int_equal(json_integer_value(json_object_get(info, "memory_mib")), 256);
    assert_int_equal(json_integer_value(json_object_get(info, "cpus")), 2);
    assert_true(json_is_false(json_object_get(info, "egress")));
    assert_true(json_is_null(json_object_get(info, "expires_at")));
    assert_true(json_is_null(json_object_get(info, "parent")));
    assert_text(json_object_get(info, "env"), "A", "1");
    assert_text(json_object_get(info, "metadata"), "k", "v");
    json_decref(info);

    char prefix[5];
    snprintf(prefix, sizeof(prefix), "%.4s", id);
    expect_on("GET", "/dormouse/v1/sandboxes/$", prefix, NULL, 200);
    expect_on("POST", "/dormouse/v1/sandboxes/$/timeout", id, "{\"timeout_s\":60}", 204);
    expect_on("POST", "/dormouse/v1/sandboxes/$/timeout", id, "{}", 400);
    expect_on("POST", "/dormouse/v1/sandboxes/$/pause", id, NULL, 200);
    expect_on("POST", "/dormouse/v1/sandboxes/$/pause", id, NULL, 409);
    expect_on("GET", "/dormouse/v1/sandboxes/$/stats", id, NULL, 409);
    expect_on("POST", "/dormouse/v1/sandboxes/$/resume", id, "{}", 200);
    CLEANUP_FREE char *fork_path = path_of("/dormouse/v1/sandboxes/$/fork", id);
    json_t *forks = call("POST", fork_path, "{\"count\":3}", 201);
    json_t *results = json_object_get(forks, "results");
    assert_int_equal(json_array_size(results), 3);
    assert_text(json_object_get(json_array_get(results, 2), "sandbox"), "parent", id);
    json_decref(forks);
    expect_on("POST", "/dormouse/v1/sandboxes/$/fork", id, "{\"count\":0}", 400);
    expect_on("POST", "/dormouse/v1/sandboxes/$/fork", id, "{\"count\":101}", 400);
    expect_on("GET", "/dormouse/v1/sandboxes/$/logs?limit=0", id, NULL, 400);
    expect_on("GET", "/dormouse/v1/sandboxes/$/logs", id, NULL, 200);
    expect_on("GET", "/dormouse/v1/sandboxes/$/stats", id, NULL, 200);
    expect_on("DELETE", "/dormouse/v1/sandboxes/$", id, NULL, 204);
    expect_on("DELETE", "/dormouse/v1/sandboxes/$", id, NULL, 404);
}

static void test_native_input(void **state)
{
    (void)state;
    static const char *const wrong[] = {"{",
                                        "[]",
                                        "{\"template\":1}",
                                        "{\"memory\":1}",
                                        "{\"memory_mib\":-1}",
                                        "{\"memory_mib\":1e3}",
                                        "{\"memory_mib\":99999999999}",
                                        "{\"timeout_s\":2678401}",
                                        "{\"on_timeout\":\"explode\"}",
                                        "{\"egress\":\"no\"}",
                                        "{\"env\":{\"A\":1}}",
                                        "{\"env\":[]}",
                                        "{\"metadata\":\"x\"}"};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        expect("POST", "/dormouse/v1/sandboxes", wrong[i], 400);
    expect("POST", "/dormouse/v1/sandboxes", "{\"template\":\"none\"}", 404);
    expect("GET", "/dormouse/v1/sandboxes/none", NULL, 404);
    expect("GET", "/dormouse/v1/sandboxes/%", NULL, 400);
    expect("GET", "/dormouse/v1/sandboxes?a=%", NULL, 400);
    expect("PATCH", "/dormouse/v1/sandboxes", "{}", 405);
    expect("GET", "/dormouse/v2", NULL, 404);
    expect("DELETE", "/dormouse/v1/snapshots/s0base", NULL, 409);
    expect("GET", "/dormouse/v1/snapshots/s0", NULL, 200);
    expect("DELETE", "/dormouse/v1/templates/none", NULL, 404);
}

static void test_build_stream(void **state)
{
    (void)state;
    CLEANUP_FREE char *good = world_request(true, "POST", "/dormouse/v1/templates", NULL, "{\"name\":\"x\"}");
    assert_int_equal(world_status(good), 200);
    assert_non_null(strstr(good, "{\"progress\":\"making the root file system\"}\n"));
    assert_non_null(strstr(good, "{\"template\":{"));
    CLEANUP_FREE char *bad = world_request(true, "POST", "/dormouse/v1/templates", NULL, "{\"name\":\"broken\"}");
    assert_non_null(strstr(bad, "{\"error\":{\"code\":504,"));
    assert_non_null(strstr(bad, "\"hint\":\"look at the console\""));
    expect("POST", "/dormouse/v1/templates", "{}", 400);

    /* Hanging up cancels it; that the server can be stopped afterwards is the proof. */
    CLEANUP_CLOSE int fd = world_connect(true);
    world_send(
        fd, "POST /dormouse/v1/templates HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"name\":\"endless\"}");
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    world_receive_until(fd, "progress", &reply);
}

static void test_e2b_life(void **state)
{
    (void)state;
    json_t *made =
        call("POST", "/v2/sandboxes",
             "{\"templateID\":\"base\",\"metadata\":{\"k\":\"v\"},\"envVars\":{\"A\":\"1\"},\"timeout\":61,"
             "\"allow_internet_access\":false,\"autoPause\":true,\"harmless\":[1]}",
             201);
    CLEANUP_FREE char *id = strdup(json_string_value(json_object_get(made, "sandboxID")));
    assert_text(made, "envdVersion", "0.6.13");
    assert_text(made, "domain", "localhost:1");
    assert_non_null(json_object_get(made, "clientID"));
    const char *token = json_string_value(json_object_get(made, "envdAccessToken"));
    assert_int_equal(strncmp(token, FAKE_TOKEN_PREFIX, strlen(FAKE_TOKEN_PREFIX)), 0);
    json_decref(made);

    CLEANUP_FREE char *path = path_of("/sandboxes/$-client", id);
    json_t *detail = call("GET", path, NULL, 200);
    assert_text(detail, "state", "running");
    assert_text(json_object_get(detail, "lifecycle"), "onTimeout", "pause");
    assert_true(json_is_false(json_object_get(detail, "allowInternetAccess")));
    assert_text(json_object_get(detail, "metadata"), "k", "v");
    json_decref(detail);

    CLEANUP_FREE char *prefix = strndup(id, 8);
    expect_on("GET", "/sandboxes/$", prefix, NULL, 404); /* prefixes are for people */
    expect_on("POST", "/v2/sandboxes/$/connect", id, NULL, 200);
    expect_on("POST", "/sandboxes/$/resume", id, "{}", 409);
    expect_on("POST", "/sandboxes/$/refreshes", id, "{\"duration\":10}", 204);
    expect_on("POST", "/sandboxes/$/timeout", id, "{\"timeout\":0}", 204);
    expect_on("POST", "/sandboxes/$/timeout", id, "{}", 400);
    expect_on("PUT", "/sandboxes/$/network", id, "{\"allow_internet_access\":true}", 204);
    expect_on("GET", "/sandboxes/$/logs", id, NULL, 200);
    expect_on("POST", "/sandboxes/$/pause", id, "{\"memory\":5}", 400);
    expect_on("POST", "/sandboxes/$/pause", id, "{}", 204);
    expect_on("POST", "/sandboxes/$/pause", id, "{}", 409);
    expect_on("POST", "/sandboxes/$/fork", id, "{}", 409);
    expect_on("GET", "/sandboxes/$/metrics", id, NULL, 200);
    expect_on("POST", "/sandboxes/$/connect", id, "{\"timeout\":5,\"memory\":0}", 400);
    expect_on("POST", "/sandboxes/$/connect", id, "{\"timeout\":5}", 201);
    expect_on("POST", "/sandboxes/$/fork", id, "{\"count\":2}", 201);
    expect_on("POST", "/sandboxes/$/fork", id, "{\"count\":0}", 400);
    expect_on("POST", "/sandboxes/$/snapshots", id, "{\"name\":\"x\"}", 201);
    expect_on("POST", "/sandboxes/$/snapshots", id, NULL, 201);
    expect_on("POST", "/sandboxes/$/snapshots", id, "{\"name\":5}", 400);
    expect_on("POST", "/sandboxes/$/snapshots", id, "{\"name\":\"taken\"}", 409);
    expect_on("POST", "/sandboxes/$/snapshots", prefix, "{}", 404);
    expect_on("POST", "/dormouse/v1/sandboxes/$/checkpoint", id, "{\"name\":\"x:y\"}", 201);
    expect_on("POST", "/dormouse/v1/sandboxes/$/checkpoint", id, "{\"tag\":\"y\"}", 400);
    expect("GET", "/snapshots?limit=0", NULL, 400);
    expect("GET", "/snapshots?nextToken=5", NULL, 400);
    expect("GET", "/snapshots?name=x&sandboxID=y&limit=5&nextToken=5-a", NULL, 200);
    json_t *snapshot = call("POST", "/sandboxes/none/snapshots", "{}", 404);
    json_decref(snapshot);
    expect_on("DELETE", "/sandboxes/$", id, NULL, 204);
    expect_on("DELETE", "/sandboxes/$", id, NULL, 404);
}

static void test_e2b_refusals(void **state)
{
    (void)state;
    static const char *const refused[] = {"\"volumeMounts\":[{\"name\":\"a\",\"path\":\"/b\"}]",
                                          "\"network\":{\"allowOut\":[\"8.8.8.8\"]}",
                                          "\"network\":{\"denyOut\":[\"8.8.8.8\"]}",
                                          "\"network\":{\"denyOut\":[1]}",
                                          "\"network\":{\"rules\":{\"a\":[]}}",
                                          "\"network\":{\"allowPublicTraffic\":false}",
                                          "\"network\":{\"maskRequestHost\":\"a\"}",
                                          "\"network\":{\"httpsPorts\":[1]}",
                                          "\"autoPauseMemory\":false",
                                          "\"timeout\":-1",
                                          "\"timeout\":\"1\"",
                                          "\"iam\":{\"a\":1}"};
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        char body[256];
        snprintf(body, sizeof(body), "{\"templateID\":\"base\",%s}", refused[i]);
        expect("POST", "/v2/sandboxes", body, 400);
        expect("POST", "/sandboxes", body, 400);
    }
    expect("POST", "/sandboxes", "{}", 400);
    expect("POST", "/sandboxes", "{\"templateID\":\"base\",\"autoResume\":{\"enabled\":1}}", 400);
    expect("POST", "/sandboxes", "{\"templateID\":\"base\",\"autoPause\":true,\"autoPauseMemory\":false}", 201);
    expect("POST", "/sandboxes",
           "{\"templateID\":\"base\",\"network\":{\"denyOut\":[\"0.0.0.0/0\"],\"allowOut\":[],\"rules\":{}}}", 201);
    json_t *none = call("GET", "/sandboxes?metadata=k%3Dv", NULL, 200);
    assert_int_equal(json_array_size(none), 0);
    json_decref(none);
}

static void test_e2b_pages(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++)
        free(world_sandbox());
    CLEANUP_FREE char *first = world_request(false, "GET", "/v2/sandboxes?limit=2", KEY_HEADER, NULL);
    const char *header = strstr(first, "X-Next-Token: ");
    assert_non_null(header);
    header += strlen("X-Next-Token: ");
    CLEANUP_FREE char *token = strndup(header, strcspn(header, "\r"));
    char path[128];
    snprintf(path, sizeof(path), "/v2/sandboxes?limit=2&nextToken=%s", token);
    CLEANUP_FREE char *second = world_request(false, "GET", path, KEY_HEADER, NULL);
    assert_null(strstr(second, "X-Next-Token"));
    json_t *rest = json_loads(world_body(second), 0, NULL);
    assert_int_equal(json_array_size(rest), 1);
    json_decref(rest);
}

/* ---- input that is not HTTP, or too much of it ---- */

static void test_garbage(void **state)
{
    (void)state;
    static const char *const inputs[] = {
        "\r\n\r\n\r\n",
        "garbage\r\n\r\n",
        "GET\r\n\r\n",
        "GET /sandboxes HTTP/9.9\r\n\r\n",
        "GET /sandboxes HTTP/1.1\r\n\r\n", /* no Host */
        "GET http://elsewhere/sandboxes HTTP/1.1\r\nHost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST /sandboxes HTTP/1.1\r\nHost: x\r\n" KEY_HEADER "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    };
    for (size_t i = 0; i < ARRAY_SIZE(inputs); i++) {
        CLEANUP_CLOSE int fd = world_connect(false);
        world_send(fd, inputs[i]);
        assert_int_equal(shutdown(fd, SHUT_WR), 0);
        CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
        world_receive_until(fd, NULL, &reply);
        if (reply.length > 0 && world_status(reply.data) < 400)
            fail_msg("input %zu was accepted: %s", i, reply.data);
    }
    expect("GET", "/sandboxes", NULL, 200);
}

/* Sends what the server takes of an endless header; the reply. */
static void send_endless_header(int fd, struct strbuf *reply)
{
    char block[4096];
    memset(block, 'x', sizeof(block));
    world_send(fd, "GET /sandboxes HTTP/1.1\r\nHost: x\r\nX-Long: ");
    size_t sent = 0;
    while (sent < 64 * (size_t)HTTP_HEAD_MAX) {
        ssize_t n = send(fd, block, sizeof(block), MSG_NOSIGNAL);
        if (n <= 0)
            break;
        sent += (size_t)n;
    }
    assert_true(sent < 64 * (size_t)HTTP_HEAD_MAX); /* it stopped reading long before */
    world_receive_until(fd, NULL, reply);
}

static void test_endless_header(void **state)
{
    (void)state;
    CLEANUP_CLOSE int fd = world_connect(false);
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    send_endless_header(fd, &reply);
    expect("GET", "/sandboxes", NULL, 200);
}

static void test_large_bodies(void **state)
{
    (void)state;
    size_t length = HTTP_BODY_MAX + 1;
    char *body = malloc(length + 1);
    assert_non_null(body);
    memset(body, ' ', length);
    body[length] = '\0';
    expect("POST", "/sandboxes", body, 413);
    memcpy(body, "{\"templateID\":\"base\"", 20);
    body[length - 2] = '}';
    body[length - 1] = '\0';
    expect("POST", "/sandboxes", body, 201); /* exactly the limit */

    /* The same by chunks, which announce nothing. */
    CLEANUP_CLOSE int fd = world_connect(false);
    world_send(fd, "POST /sandboxes HTTP/1.1\r\nHost: x\r\n" KEY_HEADER
                   "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; i++) {
        char head[16];
        snprintf(head, sizeof(head), "%zx\r\n", length - 1);
        world_send(fd, head);
        world_send_bytes(fd, body, length - 1);
        world_send(fd, "\r\n");
    }
    world_send(fd, "0\r\n\r\n");
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    world_receive_until(fd, NULL, &reply);
    assert_int_equal(world_status(reply.data), 413);
    free(body);

    /* Announced as enormous: refused before it is sent. */
    CLEANUP_CLOSE int other = world_connect(false);
    world_send(other, "POST /sandboxes HTTP/1.1\r\nHost: x\r\n" KEY_HEADER "Content-Length: 10000000000\r\n\r\n");
    CLEANUP_STRBUF struct strbuf refusal = STRBUF_INIT;
    world_receive_until(other, "\r\n\r\n", &refusal);
    assert_int_equal(world_status(refusal.data), 413);
}

/* Clients that send nothing, or a byte at a time for ever, are cut off; one that waits for its answer is not. */
static void test_slow_clients(void **state)
{
    (void)state;
    static const struct {
        const char *begin;
        const char *drop; /* sent again and again */
    } cases[] = {
        {"", ""},
        {"GET /health HTTP/1.1\r\nHost: x\r\nX: ", "a"},
        {"GET /health HTTP/1.1\r\nHost: x\r\n", "A: b\r\n"},
        {"POST /sandboxes HTTP/1.1\r\nHost: x\r\n" KEY_HEADER "Content-Length: 1000000\r\n\r\n", "a"},
        {"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", "a"}, /* refused already */
    };
    struct pollfd clients[ARRAY_SIZE(cases)];
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        clients[i] = (struct pollfd){.fd = world_connect(false), .events = POLLIN};
        world_send(clients[i].fd, cases[i].begin);
    }
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        while (poll(&clients[i], 1, 50) == 0)
            for (size_t j = i; j < ARRAY_SIZE(cases); j++)
                (void)send(clients[j].fd, cases[j].drop, strlen(cases[j].drop), MSG_NOSIGNAL);
        assert_true(world_is_closed(clients[i].fd));
        close(clients[i].fd);
    }
    CLEANUP_CLOSE int fd = world_connect(true);
    world_send(
        fd, "POST /dormouse/v1/templates HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"name\":\"endless\"}");
    int64_t end_ns = clock_monotonic_ns() + INT64_C(2500000000);
    while (clock_monotonic_ns() < end_ns) {
        CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
        world_receive_until(fd, "progress", &reply);
    }
}

static void test_keep_alive(void **state)
{
    (void)state;
    CLEANUP_CLOSE int fd = world_connect(false);
    for (int i = 0; i < 3; i++) {
        world_send(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
        world_receive_until(fd, "\r\n\r\n", &reply);
        assert_int_equal(world_status(reply.data), 204);
    }
}

static void test_store(void **state)
{
    (void)state;
    json_t *json = call("GET", "/dormouse/v1/store", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "unreachable_bytes")), 99);
    json_t *server = json_object_get(json, "image_server");
    assert_int_equal(json_integer_value(json_object_get(server, "misses")), 5);
    json_decref(json);
    json = call("POST", "/dormouse/v1/store/gc", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "bytes_removed")), 99);
    json_decref(json);
    json = call("POST", "/dormouse/v1/store/verify", NULL, 200);
    json_t *damaged = json_object_get(json, "damaged");
    assert_int_equal(json_array_size(damaged), 1);
    assert_text(json_array_get(damaged, 0), "reason", "frame 3 of l1");
    json_decref(json);
    expect("GET", "/dormouse/v1/store/gc", NULL, 405);
}

static void test_snapshot_tools(void **state)
{
    (void)state;
    json_t *json = call("GET", "/dormouse/v1/snapshots/s0base/inspect", NULL, 200);
    assert_text(json_object_get(json, "snapshot"), "id", "s0base");
    json_t *sections = json_object_get(json_object_get(json, "manifest"), "sections");
    assert_text(json_array_get(sections, 0), "name", "description");
    assert_true(json_is_null(json_object_get(json_array_get(sections, 1), "name")));
    json_t *broken = json_array_get(json_object_get(json, "layers"), 1);
    assert_text(broken, "problem", "missing");
    assert_true(json_is_null(json_object_get(broken, "frames")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "working_set"), "pages")), 7);
    json_decref(json);

    json = call("POST", "/dormouse/v1/snapshots/s0base/verify", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(json, "damaged")), 0);
    json_decref(json);
    json = call("POST", "/dormouse/v1/snapshots/s0/compact", NULL, 200);
    assert_true(json_is_true(json_object_get(json, "compacted")));
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json, "layers"), 1)), 8);
    json_decref(json);

    json = call("GET", "/dormouse/v1/snapshots/s0/diff/s0base?ranges=5", NULL, 200);
    json_t *memory = json_object_get(json, "memory");
    assert_int_equal(json_integer_value(json_object_get(memory, "different_bytes")), 3 * 4096);
    json_t *range = json_array_get(json_object_get(memory, "ranges"), 0);
    assert_int_equal(json_integer_value(json_object_get(range, "page")), 2);
    assert_int_equal(json_integer_value(json_object_get(range, "count")), 3);
    json_decref(json);
    json = call("GET", "/dormouse/v1/snapshots/s0/diff/s0base", NULL, 200);
    assert_true(json_is_true(json_object_get(json_object_get(json, "memory"), "ranges_cut")));
    json_decref(json);
    expect("GET", "/dormouse/v1/snapshots/s0/diff/s0base?ranges=65537", NULL, 400);
    expect("GET", "/dormouse/v1/snapshots/s0/diff/other", NULL, 404);
    expect("GET", "/dormouse/v1/snapshots/other/inspect", NULL, 404);
    expect("POST", "/dormouse/v1/snapshots/other/verify", NULL, 404);
    expect("POST", "/dormouse/v1/snapshots/other/compact", NULL, 404);
}

/* Paths of the host are for those who can use them. */
static void test_snapshot_disk_stays_local(void **state)
{
    (void)state;
    expect("GET", "/dormouse/v1/snapshots/s0/disk", NULL, 404);
    CLEANUP_FREE char *reply = world_request(true, "GET", "/dormouse/v1/snapshots/s0/disk", NULL, NULL);
    assert_int_equal(world_status(reply), 200);
    assert_non_null(strstr(reply, "\"/data/images/disk/s0base\""));
}

static void await(sem_t *semaphore)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += WORLD_WAIT_MS / 1000;
    assert_int_equal(sem_timedwait(semaphore, &deadline), 0);
}

/* Whoever hangs up ends what takes long. */
static void test_hangup_cancels_verify(void **state)
{
    (void)state;
    sem_init(&fake_verifying, 0, 0);
    sem_init(&fake_cancelled, 0, 0);
    int fd = world_connect(true);
    world_send(fd, "POST /dormouse/v1/snapshots/" FAKE_ENDLESS_SNAPSHOT "/verify HTTP/1.1\r\nHost: x\r\n\r\n");
    await(&fake_verifying);
    close(fd);
    await(&fake_cancelled);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, world_start, world_stop)

int main(void)
{
    if (!world_enter())
        return 77; /* meson: skipped */
    const struct CMUnitTest tests[] = {
        TEST(test_key),
        TEST(test_token_stays_local),
        TEST(test_native_life),
        TEST(test_native_input),
        TEST(test_build_stream),
        TEST(test_e2b_life),
        TEST(test_e2b_refusals),
        TEST(test_e2b_pages),
        TEST(test_garbage),
        TEST(test_endless_header),
        TEST(test_large_bodies),
        TEST(test_keep_alive),
        TEST(test_store),
        TEST(test_snapshot_tools),
        TEST(test_snapshot_disk_stays_local),
        TEST(test_hangup_cancels_verify),
        cmocka_unit_test_setup_teardown(test_slow_clients, world_start_impatient, world_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
