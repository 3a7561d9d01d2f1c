/* The data proxy: what reaches a guest, what comes back, and guests and clients that misbehave. */
#include "unit.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api_world.h"
#include "fake_manager.h"

/* A client and the guest's end of what it asked for. */
struct exchange {
    char *id;
    int listener;
    unsigned port;
    int client;
    int guest;
    struct strbuf sent;  /* what the guest has received */
    struct strbuf reply; /* what the client has received */
};

/* Sends a request for the guest: request line without the version, further header lines, body. */
static void begin(struct exchange *x, bool trusted, const char *line, const char *headers, const char *body)
{
    *x = (struct exchange){.guest = -1, .sent = STRBUF_INIT, .reply = STRBUF_INIT};
    x->id = world_sandbox();
    x->listener = world_guest_listen(&x->port);
    x->client = world_connect(trusted);
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text,
                  "%s HTTP/1.1\r\nHost: localhost:1\r\nE2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: %u\r\n%s\r\n%s",
                  line, x->id, x->port, headers, body);
    world_send(x->client, text.data);
}

static void accept_guest(struct exchange *x, const char *until)
{
    x->guest = world_guest_accept(x->listener);
    world_receive_until(x->guest, until, &x->sent);
}

static void hang_up(int *fd)
{
    close(*fd);
    *fd = -1;
}

static void end(struct exchange *x)
{
    cleanup_close(&x->client);
    cleanup_close(&x->guest);
    cleanup_close(&x->listener);
    strbuf_done(&x->sent);
    strbuf_done(&x->reply);
    free(x->id);
}

static void assert_has(const struct strbuf *text, const char *part)
{
    if (strstr(strbuf_text(text), part) == NULL)
        fail_msg("\"%s\" is missing in: %s", part, strbuf_text(text));
}

static void assert_lacks(const struct strbuf *text, const char *part)
{
    if (strstr(strbuf_text(text), part) != NULL)
        fail_msg("\"%s\" is in: %s", part, strbuf_text(text));
}

static void test_request_as_sent(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "PATCH /a%2Fb/../c?q=%20+&%zz",
          "X-API-KEY: " FAKE_API_KEY
          "\r\nX-Hop: 1\r\nConnection: X-Hop\r\nTE: trailers\r\nX-Empty:\r\nX-Kept: a, b\r\n"
          "Cookie: c=1\r\nContent-Length: 5\r\n",
          "hello");
    accept_guest(&x, "\r\n\r\nhello");
    assert_has(&x.sent, "PATCH /a%2Fb/../c?q=%20+&%zz HTTP/1.1\r\n");
    assert_has(&x.sent, "Host: localhost:1\r\n");
    assert_has(&x.sent, "X-Empty:");
    assert_has(&x.sent, "X-Kept: a, b\r\n");
    assert_has(&x.sent, "Cookie: c=1\r\n");
    assert_has(&x.sent, "Content-Length: 5\r\n");
    assert_lacks(&x.sent, "X-Hop");
    assert_lacks(&x.sent, "TE:");
    assert_lacks(&x.sent, FAKE_API_KEY);
    assert_lacks(&x.sent, "E2b-Sandbox-Id");
    assert_lacks(&x.sent, "Accept:"); /* nothing is added */
    assert_lacks(&x.sent, "Expect:");
    world_send(x.guest,
               "HTTP/1.1 299 Odd\r\nX-One: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: x-two\r\n"
               "X-Two: 2\r\nContent-Length: 4\r\n\r\nbody");
    world_receive_until(x.client, "\r\n\r\nbody", &x.reply);
    assert_int_equal(world_status(x.reply.data), 299);
    assert_has(&x.reply, "X-One: 1\r\n");
    assert_has(&x.reply, "Set-Cookie: a=1\r\n");
    assert_has(&x.reply, "Set-Cookie: b=2\r\n");
    assert_has(&x.reply, "Content-Length: 4\r\n");
    assert_lacks(&x.reply, "X-Two");
    end(&x);
}

/* Each part is sent only when the other end has the one before: nothing may wait for the end of a body. */
static void test_streams_both_ways(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "POST /stream", "Transfer-Encoding: chunked\r\n", "5\r\nfirst\r\n");
    accept_guest(&x, "first");
    assert_has(&x.sent, "Transfer-Encoding: chunked\r\n");
    world_send(x.client, "6\r\nsecond\r\n");
    world_receive_until(x.guest, "second", &x.sent);
    world_send(x.client, "0\r\n\r\n");
    world_receive_until(x.guest, "0\r\n\r\n", &x.sent);

    world_send(x.guest, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    world_receive_until(x.client, "\r\n\r\n", &x.reply); /* the head alone */
    world_send(x.guest, "4\r\nthis\r\n");
    world_receive_until(x.client, "this", &x.reply);
    world_send(x.guest, "4\r\nthat\r\n0\r\nX-Trailer: 1\r\n\r\n");
    world_receive_until(x.client, "0\r\n\r\n", &x.reply);
    assert_has(&x.reply, "that");
    assert_lacks(&x.reply, "X-Trailer");
    end(&x);
}

static void test_large_bodies(void **state)
{
    (void)state;
    enum { LENGTH = 8 * 1024 * 1024, BLOCK = 64 * 1024 };
    static char block[BLOCK];
    struct exchange x;
    begin(&x, false, "PUT /large", "Content-Length: 8388608\r\n", "");
    size_t received = 0;
    for (size_t sent = 0; sent < LENGTH; sent += BLOCK) {
        memset(block, 'a' + (int)(sent / BLOCK % 26), BLOCK);
        world_send_bytes(x.client, block, BLOCK);
        if (sent == 0) {
            accept_guest(&x, "\r\n\r\n");
            received = x.sent.length - (size_t)(strstr(x.sent.data, "\r\n\r\n") + 4 - x.sent.data);
        }
        while (received < sent + BLOCK) {
            static char got[BLOCK];
            ssize_t n = recv(x.guest, got, sizeof(got), 0);
            assert_true(n > 0);
            received += (size_t)n;
            assert_int_equal(got[n - 1], 'a' + (int)((received - 1) / BLOCK % 26));
        }
    }
    assert_int_equal(received, LENGTH);

    /* Back, to a client that reads late: the guest is held up, nothing is lost. */
    world_send(x.guest, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8388608\r\n\r\n");
    size_t given = 0;
    struct pollfd writable = {.fd = x.guest, .events = POLLOUT};
    memset(block, 'x', sizeof(block));
    while (given < LENGTH && poll(&writable, 1, 200) == 1) {
        ssize_t n = send(x.guest, block, MIN((size_t)BLOCK, LENGTH - given), MSG_NOSIGNAL | MSG_DONTWAIT);
        given += n > 0 ? (size_t)n : 0;
    }
    assert_true(given < LENGTH);
    world_receive_until(x.client, "\r\n\r\n", &x.reply);
    size_t taken = x.reply.length - (size_t)(strstr(x.reply.data, "\r\n\r\n") + 4 - x.reply.data);
    while (taken < LENGTH) {
        struct pollfd fds[] = {{.fd = x.client, .events = POLLIN},
                               {.fd = given < LENGTH ? x.guest : -1, .events = POLLOUT}};
        assert_true(poll(fds, 2, WORLD_WAIT_MS) > 0);
        if (fds[1].revents != 0) {
            ssize_t n = send(x.guest, block, MIN((size_t)BLOCK, LENGTH - given), MSG_NOSIGNAL | MSG_DONTWAIT);
            given += n > 0 ? (size_t)n : 0;
        }
        if (fds[0].revents != 0) {
            ssize_t n = recv(x.client, block, sizeof(block), 0);
            assert_true(n > 0);
            taken += (size_t)n;
            memset(block, 'x', sizeof(block));
        }
    }
    assert_int_equal(taken, LENGTH);
    end(&x);
}

static void test_client_hangs_up(void **state)
{
    (void)state;
    /* before the guest has answered … */
    struct exchange x;
    begin(&x, false, "GET /never", "", "");
    accept_guest(&x, "\r\n\r\n");
    hang_up(&x.client);
    assert_true(world_is_closed(x.guest));
    end(&x);
    /* … and in the middle of the answer */
    begin(&x, false, "GET /forever", "", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nthis\r\n");
    world_receive_until(x.client, "this", &x.reply);
    hang_up(&x.client);
    assert_true(world_is_closed(x.guest));
    end(&x);
}

static void test_sandbox_goes(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "GET /forever", "", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nthis\r\n");
    world_receive_until(x.client, "this", &x.reply);
    char path[128];
    snprintf(path, sizeof(path), "/dormouse/v1/sandboxes/%s/pause", x.id);
    free(world_request(true, "POST", path, NULL, NULL));
    /* The guest is silent now and keeps its end open, as a frozen one does. */
    assert_true(world_is_closed(x.client));
    end(&x);
}

static void check_malformed(const char *answer)
{
    struct exchange x;
    begin(&x, false, "GET /", "Connection: close\r\n", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, answer);
    if (strstr(answer, " 101 ") == NULL) /* which is refused without waiting for more */
        shutdown(x.guest, SHUT_WR);
    world_receive_until(x.client, NULL, &x.reply);
    if (world_status(x.reply.data) != 502)
        fail_msg("\"%s\" was passed on: %s", answer, x.reply.data);
    assert_has(&x.reply, "\"code\":502");
    end(&x);
}

static void test_malformed_answers(void **state)
{
    (void)state;
    check_malformed("");
    check_malformed("garbage\r\n\r\n");
    check_malformed("HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n");
    check_malformed("HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n");
    check_malformed("HTTP/1.1 100 Continue\r\n\r\n");
    check_malformed("HTTP/1.1 200 OK\r\nX: 1\r\n");
}

static void test_endless_answer_head(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "GET /", "", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 200 OK\r\n");
    size_t sent = 0;
    static const char header[] = "X-Filler: 0123456789012345678901234567890123456789\r\n";
    while (send(x.guest, header, sizeof(header) - 1, MSG_NOSIGNAL) > 0 && sent < 64 * 1024 * 1024)
        sent += sizeof(header) - 1;
    assert_true(sent < 64 * 1024 * 1024);
    world_receive_until(x.client, "\"code\":502", &x.reply);
    end(&x);
}

static void test_interim_answers(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "GET /", "Connection: close\r\n", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest,
               "HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\nHTTP/1.0 200 OK\r\nX-Late: 1\r\n\r\nto the end");
    shutdown(x.guest, SHUT_WR);
    world_receive_until(x.client, NULL, &x.reply);
    assert_int_equal(world_status(x.reply.data), 200);
    assert_has(&x.reply, "X-Late: 1");
    assert_has(&x.reply, "to the end");
    assert_lacks(&x.reply, "X-Early");
    end(&x);
}

/* A body that ends too early must not look complete. */
static void test_short_body(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "GET /", "", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nthis\r\n");
    world_receive_until(x.client, "this", &x.reply);
    hang_up(&x.guest);
    world_receive_until(x.client, NULL, &x.reply);
    assert_lacks(&x.reply, "\r\n0\r\n");
    end(&x);
}

/* What a guest sends before it has been sent the whole request is held, but not without limit. */
static void test_early_answer(void **state)
{
    (void)state;
    static char block[64 * 1024];
    memset(block, 'x', sizeof(block));
    struct exchange x;
    begin(&x, false, "POST /", "Transfer-Encoding: chunked\r\n", "1\r\na\r\n");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    size_t given = 0;
    struct pollfd writable = {.fd = x.guest, .events = POLLOUT};
    while (given < 64 * sizeof(block) * 16 && poll(&writable, 1, 200) == 1) {
        ssize_t n = send(x.guest, block, sizeof(block), MSG_NOSIGNAL | MSG_DONTWAIT);
        given += n > 0 ? (size_t)n : 0;
        world_send(x.client, "1\r\na\r\n"); /* keeps the proxy moving */
    }
    assert_true(given < 64 * sizeof(block) * 16);
    /* Once the request is complete, all of it arrives. */
    world_send(x.client, "0\r\n\r\n");
    shutdown(x.guest, SHUT_WR);
    world_receive_until(x.client, "0\r\n\r\n", &x.reply);
    assert_true(x.reply.length > given);
    end(&x);
}

/* A target that is no path could make another host of the URL. */
static void test_target_is_a_path(void **state)
{
    (void)state;
    static const char *const targets[] = {"@127.0.0.1/", "http://127.0.0.1/", "*", "0/"};
    CLEANUP_FREE char *id = world_sandbox();
    char header[128];
    snprintf(header, sizeof(header), "E2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: 80\r\n", id);
    for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
        CLEANUP_FREE char *reply = world_request(false, "GET", targets[i], header, NULL);
        assert_int_equal(world_status(reply), 400);
    }
}

static void check_reply(const char *headers, const char *path, int status, const char *part)
{
    CLEANUP_FREE char *reply = world_request(false, "GET", path, headers, NULL);
    assert_int_equal(world_status(reply), status);
    if (strstr(reply, part) == NULL)
        fail_msg("\"%s\" is missing in: %s", part, reply);
}

static void test_refusals(void **state)
{
    (void)state;
    CLEANUP_FREE char *id = world_sandbox();
    char headers[256];
    check_reply("E2b-Sandbox-Id: nosuchone\r\n", "/health", 502,
                "{\"sandboxId\":\"nosuchone\",\"message\":\"The sandbox was not found\",\"code\":502}");
    check_reply("E2b-Sandbox-Id: NO/ID\r\n", "/health", 400, "\"code\":400");
    snprintf(headers, sizeof(headers), "E2b-Sandbox-Id: %.8s\r\n", id);
    check_reply(headers, "/health", 502, "The sandbox was not found"); /* a prefix is no id */
    snprintf(headers, sizeof(headers), "E2b-Sandbox-Id: %s\r\n", id);
    check_reply(headers, "/init", 403, "\"code\":403");
    check_reply(headers, "//x/..%2fini%74", 403, "\"code\":403");
    snprintf(headers, sizeof(headers), "E2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: 1\r\n", id);
    check_reply(headers, "/", 502, "The sandbox is running but port is not open");
    check_reply(NULL, "/files?path=/x&signature=v1_x", 401, "\"code\":401");
    check_reply(NULL, "/files?path=/x", 401, "\"code\":401");

    char path[128];
    snprintf(path, sizeof(path), "/dormouse/v1/sandboxes/%s/pause", id);
    free(world_request(true, "POST", path, NULL, NULL));
    check_reply(headers, "/", 502, "The sandbox was not found");
}

/* Bodies of refused requests are read to their end, so that the client gets to read the answer. */
static void test_refused_upload(void **state)
{
    (void)state;
    size_t length = 4 * 1024 * 1024;
    char *body = malloc(length + 1);
    assert_non_null(body);
    memset(body, 'x', length);
    body[length] = '\0';
    CLEANUP_FREE char *reply = world_request(false, "POST", "/files?path=x", "E2b-Sandbox-Id: nosuchone\r\n", body);
    assert_int_equal(world_status(reply), 502);
    free(body);
}

static void test_token_is_added_locally(void **state)
{
    (void)state;
    static const struct {
        bool trusted;
        const char *header;
        const char *expected; /* NULL: none */
    } cases[] = {{true, "", "X-Access-Token: " FAKE_TOKEN_PREFIX},
                 {true, "X-Access-Token: mine\r\n", "X-Access-Token: mine\r\n"},
                 {false, "", NULL}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP_FREE char *id = world_sandbox();
        CLEANUP_CLOSE int listener = world_guest_listen_at(49983);
        CLEANUP_CLOSE int client = world_connect(cases[i].trusted);
        CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
        strbuf_printf(&text, "GET /envs HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: %s\r\n%s\r\n", id, cases[i].header);
        world_send(client, text.data);
        CLEANUP_CLOSE int guest = world_guest_accept(listener);
        CLEANUP_STRBUF struct strbuf sent = STRBUF_INIT;
        world_receive_until(guest, "\r\n\r\n", &sent);
        if (cases[i].expected != NULL)
            assert_has(&sent, cases[i].expected);
        else
            assert_lacks(&sent, "X-Access-Token");
    }
}

static void test_metrics(void **state)
{
    (void)state;
    CLEANUP_FREE char *id = world_sandbox();
    CLEANUP_CLOSE int listener = world_guest_listen_at(49983);
    CLEANUP_CLOSE int client = world_connect(true);
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "GET /sandboxes/%s/metrics HTTP/1.1\r\nHost: x\r\n\r\n", id);
    world_send(client, text.data);
    CLEANUP_CLOSE int guest = world_guest_accept(listener);
    CLEANUP_STRBUF struct strbuf sent = STRBUF_INIT;
    world_receive_until(guest, "\r\n\r\n", &sent);
    assert_has(&sent, "GET /metrics HTTP/1.1\r\n");
    assert_has(&sent, "X-Access-Token: " FAKE_TOKEN_PREFIX);
    world_send(guest, "HTTP/1.1 200 OK\r\nContent-Length: 37\r\n\r\n{\"cpu_count\":2,\"mem_used\":\"a string\"}");
    CLEANUP_STRBUF struct strbuf reply = STRBUF_INIT;
    world_receive_until(client, "}]", &reply);
    assert_has(&reply, "\"cpuCount\":2");
    assert_has(&reply, "\"memUsed\":0");
}

static void test_upgrade(void **state)
{
    (void)state;
    struct exchange x;
    begin(&x, false, "GET /chat", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-API-KEY: secret\r\n",
          "");
    accept_guest(&x, "\r\n\r\n");
    assert_has(&x.sent, "Connection: Upgrade\r\n");
    assert_has(&x.sent, "Upgrade: websocket\r\n");
    assert_lacks(&x.sent, "secret");
    world_send(x.guest,
               "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello");
    world_receive_until(x.client, "hello", &x.reply);
    world_send(x.client, "from the client");
    world_receive_until(x.guest, "from the client", &x.sent);
    world_send(x.guest, "bye");
    hang_up(&x.guest);
    world_receive_until(x.client, NULL, &x.reply);
    assert_has(&x.reply, "bye");
    end(&x);

    begin(&x, false, "GET /chat", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "");
    accept_guest(&x, "\r\n\r\n");
    world_send(x.guest, "HTTP/1.1 403 No\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno");
    world_receive_until(x.client, "no", &x.reply);
    assert_has(&x.reply, "Connection: close\r\n");
    assert_lacks(&x.reply, "keep-alive");
    world_send(x.client, "GET /sandboxes HTTP/1.1\r\nX-API-KEY: secret\r\n\r\n");
    shutdown(x.client, SHUT_WR);
    assert_true(world_is_closed(x.guest)); /* it got nothing more */
    end(&x);
}

/* A sandbox that has been paused; the caller frees the id. */
static char *paused_sandbox(const char *spec)
{
    CLEANUP_FREE char *made = world_request(true, "POST", "/dormouse/v1/sandboxes", NULL, spec);
    assert_int_equal(world_status(made), 201);
    json_t *json = json_loads(world_body(made), 0, NULL);
    char *id = strdup(json_string_value(json_object_get(json, "id")));
    json_decref(json);
    char path[128];
    snprintf(path, sizeof(path), "/dormouse/v1/sandboxes/%s/pause", id);
    CLEANUP_FREE char *paused = world_request(true, "POST", path, NULL, "{}");
    assert_int_equal(world_status(paused), 200);
    return id;
}

/* Whether such a request finds it awake: nothing listens at its ports, which is then the answer. */
static bool wakes(const char *spec, bool trusted, unsigned port, const char *token_format)
{
    CLEANUP_FREE char *id = paused_sandbox(spec);
    char headers[512];
    int n = snprintf(headers, sizeof(headers), "E2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: %u\r\n", id, port);
    if (token_format != NULL)
        snprintf(headers + n, sizeof(headers) - (size_t)n, "X-Access-Token: %s%s\r\n", token_format, id);
    CLEANUP_FREE char *reply = world_request(trusted, "GET", "/", headers, NULL);
    assert_int_equal(world_status(reply), 502);
    bool gone = strstr(reply, "The sandbox was not found") != NULL;
    assert_true(gone || strstr(reply, "port is not open") != NULL);
    return !gone;
}

static void test_who_wakes_a_sandbox(void **state)
{
    (void)state;
    static const char waking[] = "{\"auto_resume\":true}";
    assert_false(wakes("{}", false, 3000, NULL));
    assert_false(wakes("{}", false, 49983, FAKE_TOKEN_PREFIX));
    assert_true(wakes(waking, false, 3000, NULL));
    assert_true(wakes(waking, true, 3000, NULL));
    assert_false(wakes(waking, false, 49983, NULL));
    assert_false(wakes(waking, false, 49983, "talker-"));
    assert_false(wakes(waking, false, 49983, "x" FAKE_TOKEN_PREFIX));
    assert_false(wakes(waking, true, 49983, "talker-"));
    assert_true(wakes(waking, false, 49983, FAKE_TOKEN_PREFIX));
    assert_true(wakes(waking, true, 49983, NULL));
}

/* A path that no client may use wakes nothing either. */
static void test_refused_paths_wake_nothing(void **state)
{
    (void)state;
    CLEANUP_FREE char *id = paused_sandbox("{\"auto_resume\":true}");
    char text[256];
    snprintf(text, sizeof(text),
             "E2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: 49983\r\nX-Access-Token: " FAKE_TOKEN_PREFIX "%s\r\n", id,
             id);
    CLEANUP_FREE char *reply = world_request(false, "POST", "/init", text, "{}");
    assert_int_equal(world_status(reply), 403);
    snprintf(text, sizeof(text), "/dormouse/v1/sandboxes/%s", id);
    CLEANUP_FREE char *info = world_request(true, "GET", text, NULL, NULL);
    assert_non_null(strstr(info, "\"paused\""));
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, world_start, world_stop)

int main(void)
{
    if (!world_enter())
        return 77; /* meson: skipped */
    const struct CMUnitTest tests[] = {
        TEST(test_request_as_sent),
        TEST(test_streams_both_ways),
        TEST(test_large_bodies),
        TEST(test_client_hangs_up),
        TEST(test_sandbox_goes),
        TEST(test_malformed_answers),
        TEST(test_endless_answer_head),
        TEST(test_interim_answers),
        TEST(test_short_body),
        TEST(test_refusals),
        TEST(test_refused_upload),
        TEST(test_token_is_added_locally),
        TEST(test_early_answer),
        TEST(test_target_is_a_path),
        TEST(test_metrics),
        TEST(test_who_wakes_a_sandbox),
        TEST(test_refused_paths_wake_nothing),
        TEST(test_upgrade),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
