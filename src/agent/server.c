#include "agent/server.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "agent/control_channel.h"
#include "agent/http.h"
#include "agent/init.h"

struct server {
    struct loop loop;
    struct identity identity;
    struct control_channel control;
    struct http_server http;
};

static void begin(struct http_connection *connection, void *context)
{
    (void)context;
    if (strcmp(http_path(connection), "/health") == 0)
        http_respond(connection, 204, NULL, "", NULL, 0);
}

static void applied(void *owner)
{
    struct server *server = owner;
    http_drop_outside(&server->http);
}

static void power_off(void *owner)
{
    (void)owner;
    kill(getppid(), INIT_POWER_OFF_SIGNAL);
}

static int server_open(struct server *server, uint16_t port, bool loopback_only, struct error *err)
{
    signal(SIGPIPE, SIG_IGN);
    int r = loop_init(&server->loop, err);
    if (r < 0)
        return r;
    server->http.begin = begin;
    server->http.context = server;
    return http_server_open(&server->http, &server->loop, port, loopback_only, err);
}

int server_run_in_guest(struct error *err)
{
    static struct server server;
    prctl(PR_SET_NAME, "dormouse-agent");
    int r = server_open(&server, SERVER_PORT, false, err);
    if (r < 0)
        return r;
    /* After the HTTP service listens: an acknowledged guest can be talked to. */
    server.control.identity = &server.identity;
    server.control.applied = applied;
    server.control.power_off = power_off;
    server.control.owner = &server;
    r = control_channel_open(&server.control, &server.loop, err);
    return r < 0 ? r : loop_run(&server.loop, err);
}

int server_run_on_host(uint16_t port, struct error *err)
{
    static struct server server;
    int r = server_open(&server, port, true, err);
    return r < 0 ? r : loop_run(&server.loop, err);
}
