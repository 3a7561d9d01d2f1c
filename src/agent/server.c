#include "agent/server.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "agent/control_channel.h"
#include "agent/init.h"
#include "agent/rest.h"
#include "agent/rpc.h"
#include "base/io.h"

#define LARGE_ALLOCATION (128 * 1024)

static struct agent agent;
static struct control_channel control;

/* What is neither is answered with 404 by the HTTP server. */
static void begin(struct http_connection *connection, void *context)
{
    (void)context;
    if (!rest_begin(connection))
        rpc_begin(connection);
}

/* Whoever was connected from outside before a resume or a fork is gone. */
static void applied(void *owner)
{
    (void)owner;
    http_drop_outside(&agent.http);
}

static void power_off(void *owner)
{
    (void)owner;
    kill(getppid(), INIT_POWER_OFF_SIGNAL);
}

static int server_open(struct identity *identity, uint16_t port, bool on_host, struct error *err)
{
    signal(SIGPIPE, SIG_IGN);
    /* What a large request took goes back to the kernel, and so into no snapshot; left alone, malloc raises both.
     */
    mallopt(M_MMAP_THRESHOLD, LARGE_ALLOCATION);
    mallopt(M_TRIM_THRESHOLD, LARGE_ALLOCATION);
    int r = loop_init(&agent.loop, err);
    if (r < 0)
        return r;
    agent.identity = identity;
    agent.on_host = on_host;
    agent.commands.loop = &agent.loop;
    agent.http.begin = begin;
    agent.http.context = &agent;
    return http_server_open(&agent.http, &agent.loop, port, on_host, err);
}

/* Without it the guest could be talked to no more; a process that uses up the memory can be started again. */
static void forbid_out_of_memory_kill(void)
{
    CLEANUP_CLOSE int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        io_write_full(fd, "-1000", strlen("-1000"));
}

int server_run_in_guest(struct identity *identity, struct error *err)
{
    prctl(PR_SET_NAME, "dormouse-agent");
    forbid_out_of_memory_kill();
    int r = server_open(identity, SERVER_PORT, false, err);
    if (r < 0)
        return r;
    /* After the HTTP service listens: an acknowledged guest can be talked to. */
    control.identity = identity;
    control.applied = applied;
    control.power_off = power_off;
    r = control_channel_open(&control, &agent.loop, err);
    return r < 0 ? r : loop_run(&agent.loop, err);
}

int server_run_on_host(uint16_t port, struct error *err)
{
    static struct identity identity;
    int r = server_open(&identity, port, true, err);
    return r < 0 ? r : loop_run(&agent.loop, err);
}
