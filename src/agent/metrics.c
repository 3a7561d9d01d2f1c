#include "agent/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/io.h"

#define FILE_LIMIT (1024 * 1024)

struct memory {
    uint64_t total, free, buffers, cached, reclaimable; /* bytes */
};

/* The busy and the whole time of all processors since boot, in ticks. */
static int read_cpu_times(uint64_t *ret_busy, uint64_t *ret_whole)
{
    CLEANUP_FREE char *text = NULL;
    uint64_t t[8];
    int r = io_read_file("/proc/stat", FILE_LIMIT, &text, NULL);
    if (r < 0)
        return r;
    if (sscanf(text,
               "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
               &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7]) != 8)
        return -EBADMSG;
    uint64_t whole = 0;
    for (size_t i = 0; i < ARRAY_SIZE(t); i++)
        whole += t[i];
    *ret_whole = whole;
    *ret_busy = whole - t[3] - t[4]; /* but idle and waiting for I/O */
    return 0;
}

static int read_cpu_percent(double *ret)
{
    static uint64_t busy_before;
    static uint64_t whole_before;
    uint64_t busy;
    uint64_t whole;
    int r = read_cpu_times(&busy, &whole);
    if (r < 0)
        return r;
    uint64_t elapsed = whole - whole_before;
    *ret = elapsed == 0 || busy < busy_before ? 0 : 100.0 * (double)(busy - busy_before) / (double)elapsed;
    busy_before = busy;
    whole_before = whole;
    return 0;
}

static uint64_t memory_value(const char *text, const char *name)
{
    const char *line = strstr(text, name);
    return line == NULL ? 0 : strtoull(line + strlen(name), NULL, 10) * 1024;
}

static int read_memory(struct memory *ret)
{
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file("/proc/meminfo", FILE_LIMIT, &text, NULL);
    if (r < 0)
        return r;
    *ret = (struct memory){
        .total = memory_value(text, "MemTotal:"),
        .free = memory_value(text, "MemFree:"),
        .buffers = memory_value(text, "Buffers:"),
        .cached = memory_value(text, "\nCached:"),
        .reclaimable = memory_value(text, "SReclaimable:"),
    };
    return 0;
}

int metrics_read(json_t **ret, struct error *err)
{
    double cpu;
    struct memory memory;
    struct statvfs disk;
    int r = read_cpu_percent(&cpu);
    if (r == 0)
        r = read_memory(&memory);
    if (r == 0 && statvfs("/", &disk) < 0)
        r = -errno;
    if (r < 0)
        return error_code(err, r, "cannot read the system's figures");
    uint64_t cache = memory.buffers + memory.cached + memory.reclaimable;
    uint64_t disk_total = disk.f_blocks * disk.f_frsize;
    uint64_t disk_used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
    *ret = json_pack("{s:I, s:i, s:f, s:I, s:I, s:I, s:I, s:I}",                                      //
                     "ts", (json_int_t)(clock_realtime_ns() / 1000000000),                            //
                     "cpu_count", (int)sysconf(_SC_NPROCESSORS_ONLN),                                 //
                     "cpu_used_pct", (double)(int64_t)(cpu * 100 + 0.5) / 100,                        //
                     "mem_total", (json_int_t)memory.total,                                           //
                     "mem_used", (json_int_t)(memory.total - MIN(memory.total, memory.free + cache)), //
                     "mem_cache", (json_int_t)cache,                                                  //
                     "disk_used", (json_int_t)disk_used,                                              //
                     "disk_total", (json_int_t)disk_total);
    return *ret == NULL ? error_set(err, ENOMEM, "no memory for the metrics") : 0;
}
