#include "host/memory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"

#define TEXT_MAX 65536

/* Of a file whose lines are "name: number kB". */
static int find_kib(const char *text, const char *name, uint64_t *ret_bytes)
{
    unsigned long long kib;
    const char *line = strstr(text, name);
    if (line == NULL || sscanf(line + strlen(name), "%llu", &kib) != 1)
        return -ENODATA;
    *ret_bytes = (uint64_t)kib << 10;
    return 0;
}

int host_memory_available(uint64_t *ret)
{
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file("/proc/meminfo", TEXT_MAX, &text, NULL);
    return r < 0 ? r : find_kib(text, "\nMemAvailable:", ret);
}

int process_private_bytes(pid_t pid, uint64_t *ret)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file(path, TEXT_MAX, &text, NULL);
    uint64_t resident = 0;
    uint64_t swapped = 0;
    if (r == 0)
        r = find_kib(text, "\nRssAnon:", &resident);
    if (r == 0)
        r = find_kib(text, "\nVmSwap:", &swapped);
    if (r < 0)
        return r == -ENOENT || r == -ENODATA ? -ESRCH : r; /* a process that has ended has no memory to tell of */
    *ret = resident + swapped;
    return 0;
}
