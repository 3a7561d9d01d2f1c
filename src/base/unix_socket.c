#include "base/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Fills `address` for `path`, through /proc/self/fd of its directory when it is too long; that descriptor must stay
 * open while the address is used. */
static int make_address(const char *path, struct sockaddr_un *address, int *ret_directory, struct error *err)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length < sizeof(address->sun_path)) {
        memcpy(address->sun_path, path, length + 1);
        return 0;
    }
    CLEANUP_FREE char *copy = strdup(path);
    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    char *slash = strrchr(copy, '/');
    if (slash == NULL)
        return error_set(err, ENAMETOOLONG, "the socket's name %s is too long", path);
    *slash = '\0';
    CLEANUP_CLOSE int directory = open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return error_errno(err, "cannot open %s", copy);
    int n = snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", directory, slash + 1);
    if (n >= (int)sizeof(address->sun_path))
        return error_set(err, ENAMETOOLONG, "the socket's name %s is too long", path);
    *ret_directory = TAKE_FD(directory);
    return 0;
}

static int listen_on(const char *path, int type, struct error *err)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int directory = -1;
    int r = make_address(path, &address, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_errno(err, "cannot make a socket");
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 8) < 0)
        return error_errno(err, "cannot listen on %s", path);
    return TAKE_FD(fd);
}

static int connect_to(const char *path, int type, struct error *err)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int directory = -1;
    int r = make_address(path, &address, &directory, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_errno(err, "cannot make a socket");
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_errno(err, "cannot connect to %s", path);
    return TAKE_FD(fd);
}

int unix_socket_listen(const char *path, struct error *err)
{
    return listen_on(path, SOCK_STREAM, err);
}

int unix_socket_connect(const char *path, struct error *err)
{
    return connect_to(path, SOCK_STREAM, err);
}

int unix_socket_listen_packets(const char *path, struct error *err)
{
    return listen_on(path, SOCK_SEQPACKET, err);
}

int unix_socket_connect_packets(const char *path, struct error *err)
{
    return connect_to(path, SOCK_SEQPACKET, err);
}
