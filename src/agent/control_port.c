#include "agent/control_port.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"

#define PORT_DIRECTORY "/sys/class/virtio-ports"
#define NAME_LIMIT     256

static bool port_has_name(const char *port)
{
    char path[sizeof(PORT_DIRECTORY) + CONTROL_PORT_PATH_MAX + 8];
    snprintf(path, sizeof(path), PORT_DIRECTORY "/%s/name", port);
    CLEANUP_FREE char *name = NULL;
    if (io_read_file(path, NAME_LIMIT, &name, NULL) < 0)
        return false;
    name[strcspn(name, "\n")] = '\0';
    return strcmp(name, CONTROL_PORT_NAME) == 0;
}

int control_port_find(char ret_path[CONTROL_PORT_PATH_MAX])
{
    DIR *ports = opendir(PORT_DIRECTORY);
    if (ports == NULL)
        return -ENOENT;
    int r = -ENOENT;
    for (struct dirent *entry = readdir(ports); entry != NULL && r < 0; entry = readdir(ports)) {
        char device[CONTROL_PORT_PATH_MAX];
        snprintf(device, sizeof(device), "/dev/%s", entry->d_name);
        if (entry->d_name[0] == '.' || !port_has_name(entry->d_name) || access(device, F_OK) < 0)
            continue;
        memcpy(ret_path, device, sizeof(device));
        r = 0;
    }
    closedir(ports);
    return r;
}
