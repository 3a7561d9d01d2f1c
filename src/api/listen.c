#include "api/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/unix_socket.h"

#define BACKLOG   256
#define LOCALHOST "127.0.0.1"

/* Cuts "host:port" or "[host]:port"; the caller frees both. */
static int split_address(const char *address, char **ret_host, char **ret_port)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address)
        return -EINVAL;
    size_t length = (size_t)(colon - address);
    if (address[0] == '[' && colon[-1] == ']') {
        address++;
        length -= 2;
    }
    CLEANUP_FREE char *host = strndup(address, length);
    CLEANUP_FREE char *port = strdup(colon + 1);
    if (host == NULL || port == NULL)
        return -ENOMEM;
    *ret_host = TAKE_PTR(host);
    *ret_port = TAKE_PTR(port);
    return 0;
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    }
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static int resolve(const char *text, struct addrinfo **ret, struct error *err)
{
    CLEANUP_FREE char *host = NULL;
    CLEANUP_FREE char *port = NULL;
    int r = split_address(text, &host, &port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE};
    struct addrinfo *found = NULL;
    /* Not looked up: resolvers differ, and listen_host says what it means. */
    const char *name = host != NULL && strcmp(host, "localhost") == 0 ? LOCALHOST : host;
    char *end = NULL;
    if (r < 0 || port[0] < '0' || port[0] > '9' || strtoul(port, &end, 10) > UINT16_MAX || *end != '\0' ||
        getaddrinfo(name, port, &hints, &found) != 0) {
        error_set(err, EINVAL, "\"%s\" is not an address to listen on", text);
        error_hint(err, "give a loopback address and a port, such as 127.0.0.1:7878");
        return -EINVAL;
    }
    if (!is_loopback(found->ai_addr)) {
        freeaddrinfo(found);
        error_set(err, EINVAL, "%s is not a loopback address", text);
        error_hint(err, "listen on 127.0.0.1 and put a reverse proxy with TLS in front for other machines");
        return -EINVAL;
    }
    *ret = found;
    return 0;
}

static int bind_and_listen(const struct addrinfo *where, const char *text, uint16_t *ret_port, struct error *err)
{
    CLEANUP_CLOSE int fd = socket(where->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_errno(err, "cannot create a socket");
    int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)); /* only over connections that linger */
    struct sockaddr_storage bound = {0};
    socklen_t length = sizeof(bound);
    if (bind(fd, where->ai_addr, where->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ||
        getsockname(fd, (struct sockaddr *)&bound, &length) < 0) {
        int r = error_errno(err, "cannot listen on %s", text);
        if (r == -EADDRINUSE)
            error_hint(err, "another program uses this port: stop it, or choose another with --listen");
        return r;
    }
    *ret_port = ntohs(bound.ss_family == AF_INET ? ((struct sockaddr_in *)&bound)->sin_port
                                                 : ((struct sockaddr_in6 *)&bound)->sin6_port);
    return TAKE_FD(fd);
}

int listen_tcp(const char *address, uint16_t *ret_port, struct error *err)
{
    struct addrinfo *where;
    int r = resolve(address, &where, err);
    if (r < 0)
        return r;
    r = bind_and_listen(where, address, ret_port, err);
    freeaddrinfo(where);
    return r;
}

/* Removes a socket file that a daemon which is gone left behind. */
static int remove_stale(const char *path, struct error *err)
{
    struct stat status;
    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : error_errno(err, "cannot look at %s", path);
    if (!S_ISSOCK(status.st_mode)) {
        error_set(err, EEXIST, "%s exists and is not a socket", path);
        error_hint(err, "remove it, or choose another path with --socket");
        return -EEXIST;
    }
    CLEANUP_CLOSE int fd = unix_socket_connect(path, NULL);
    if (fd != -ECONNREFUSED) {
        error_set(err, EADDRINUSE, "another program listens on %s", path);
        error_hint(err, "stop it, or choose another path with --socket");
        return -EADDRINUSE;
    }
    return unlink(path) < 0 ? error_errno(err, "cannot remove the stale socket %s", path) : 0;
}

int listen_unix(const char *path, struct error *err)
{
    int r = remove_stale(path, err);
    if (r < 0)
        return r;
    mode_t earlier = umask(0177); /* the socket must at no moment be open to others */
    int fd = unix_socket_listen(path, err);
    umask(earlier);
    if (fd >= 0)
        (void)listen(fd, BACKLOG);
    return fd;
}

int listen_check(const char *address, struct error *err)
{
    struct addrinfo *where;
    int r = resolve(address, &where, err);
    if (r == 0)
        freeaddrinfo(where);
    return r;
}

char *listen_host(const char *address)
{
    if (strncmp(address, "localhost:", strlen("localhost:")) == 0)
        return strdup(LOCALHOST);
    return strndup(address, (size_t)(strrchr(address, ':') - address));
}
