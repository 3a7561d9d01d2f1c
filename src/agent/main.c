#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/init.h"
#include "agent/server.h"

static const char usage[] =
    "usage: dormouse-agent serve --port PORT\n"
    "\n"
    "The agent that runs inside Dormouse's guests. As process 1 it takes no arguments and boots the guest;\n"
    "`serve` offers its HTTP service on 127.0.0.1 of any Linux host, for tests.\n";

static int parse_port(const char *text, uint16_t *ret)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > UINT16_MAX)
        return -EINVAL;
    *ret = (uint16_t)value;
    return 0;
}

int main(int argc, char **argv)
{
    if (getpid() == 1)
        init_main();
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    uint16_t port;
    if (argc != 4 || strcmp(argv[1], "serve") != 0 || strcmp(argv[2], "--port") != 0 ||
        parse_port(argv[3], &port) < 0) {
        fputs(usage, stderr);
        return 2;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    server_run_on_host(port, &err);
    fprintf(stderr, "dormouse-agent: %s\n", error_message(&err));
    return EXIT_FAILURE;
}
