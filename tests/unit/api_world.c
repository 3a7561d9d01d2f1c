#include "api_world.h"

#include "unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/api.h"
#include "api/guest.h"
#include "api/http.h"
#include "api/listen.h"
#include "base/unix_socket.h"
#include "fake_manager.h"
#include "net/net.h"

static struct {
    struct api api;
    struct http_server *server;
    char *socket_path;
    uint16_t port;
} world;

bool world_enter(void)
{
    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
        return false;
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    struct ifreq address = {.ifr_name = "lo:guest"};
    struct sockaddr_in *in = (struct sockaddr_in *)&address.ifr_addr;
    in->sin_family = AF_INET;
    inet_pton(AF_INET, NET_GUEST_ADDRESS, &in->sin_addr);
    return fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &up) == 0 && ioctl(fd, SIOCSIFADDR, &address) == 0 &&
           guest_global_init(NULL) == 0;
}

static int start_server(void **state, unsigned request_seconds)
{
    if (unit_make_directory(state) < 0)
        return -1;
    world.socket_path = unit_path(*state, "socket");
    int sockets[2] = {listen_tcp("127.0.0.1:0", &world.port, NULL), listen_unix(world.socket_path, NULL)};
    assert_true(sockets[0] >= 0 && sockets[1] >= 0);
    world.api = (struct api){.url = (char *)"http://127.0.0.1:1", .domain = (char *)"localhost:1"};
    assert_int_equal(manager_open(NULL, &world.api.manager, NULL), 0);
    struct http_handlers handlers = api_handlers(&world.api);
    handlers.request_seconds = request_seconds;
    return http_server_start(sockets, 2, 1, &handlers, &world.server, NULL);
}

int world_start(void **state)
{
    return start_server(state, 0);
}

int world_start_impatient(void **state)
{
    return start_server(state, 1);
}

int world_stop(void **state)
{
    http_server_stop(world.server);
    manager_close(world.api.manager);
    free(world.socket_path);
    return unit_remove_directory(state);
}

int world_connect(bool trusted)
{
    if (trusted) {
        int fd = unix_socket_connect(world.socket_path, NULL);
        assert_true(fd >= 0);
        return fd;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(world.port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

void world_send_bytes(int fd, const void *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = send(fd, (const char *)bytes + done, length - done, MSG_NOSIGNAL);
        assert_true(n > 0);
        done += (size_t)n;
    }
}

void world_send(int fd, const char *text)
{
    world_send_bytes(fd, text, strlen(text));
}

static ssize_t receive_some(int fd, char *buffer, size_t size)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&readable, 1, WORLD_WAIT_MS), 1);
    ssize_t n = recv(fd, buffer, size, 0);
    return n < 0 && errno == ECONNRESET ? 0 : n;
}

void world_receive_until(int fd, const char *text, struct strbuf *out)
{
    while (text == NULL || strstr(strbuf_text(out), text) == NULL) {
        char buffer[4096];
        ssize_t n = receive_some(fd, buffer, sizeof(buffer));
        assert_true(n >= 0);
        if (n == 0)
            break;
        strbuf_append(out, buffer, (size_t)n);
    }
    if (text != NULL)
        assert_non_null(strstr(strbuf_text(out), text));
}

bool world_is_closed(int fd)
{
    char byte;
    return receive_some(fd, &byte, 1) == 0;
}

char *world_request(bool trusted, const char *method, const char *path, const char *headers, const char *body)
{
    CLEANUP_CLOSE int fd = world_connect(trusted);
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s", method, path,
                  headers != NULL ? headers : "");
    if (body != NULL)
        strbuf_printf(&text, "Content-Length: %zu\r\n", strlen(body));
    strbuf_printf(&text, "\r\n%s", body != NULL ? body : "");
    world_send(fd, text.data);
    struct strbuf reply = STRBUF_INIT;
    world_receive_until(fd, NULL, &reply);
    return strbuf_take(&reply);
}

int world_status(const char *reply)
{
    int status = 0;
    assert_int_equal(sscanf(reply, "HTTP/1.1 %d", &status), 1);
    return status;
}

const char *world_body(const char *reply)
{
    const char *blank = strstr(reply, "\r\n\r\n");
    assert_non_null(blank);
    return blank + 4;
}

char *world_sandbox(void)
{
    CLEANUP_FREE char *reply = world_request(true, "POST", "/dormouse/v1/sandboxes", NULL, "{}");
    assert_int_equal(world_status(reply), 201);
    json_t *json = json_loads(world_body(reply), 0, NULL);
    char *id = strdup(json_string_value(json_object_get(json, "id")));
    json_decref(json);
    return id;
}

int world_guest_listen_at(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, NET_GUEST_ADDRESS, &address.sin_addr);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

int world_guest_listen(unsigned *ret_port)
{
    int fd = world_guest_listen_at(0);
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

int world_guest_accept(int listener)
{
    struct pollfd readable = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&readable, 1, WORLD_WAIT_MS), 1);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}
