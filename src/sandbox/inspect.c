/* What can be asked of a sandbox without changing it: figures, console, a way to its ports. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/process.h"
#include "image/capture.h"
#include "sandbox/internal.h"

#define LOGS_MAX (1u << 20)

static int read_rss(pid_t pid, int64_t *ret_bytes)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file(path, 4096, &text, NULL);
    long long pages;
    if (r < 0)
        return r;
    if (sscanf(text, "%*d %lld", &pages) != 1)
        return -EBADMSG;
    *ret_bytes = pages * sysconf(_SC_PAGESIZE);
    return 0;
}

static int gather(struct sandbox *sandbox, struct sandbox_stats *ret, struct error *err)
{
    CLEANUP_FREE struct vmm_ram_range *ranges = NULL;
    struct capture_memory source = {.pid = vmm_pid(sandbox->vmm)};
    int r = vmm_ram_ranges(sandbox->vmm, &ranges, &source.range_count, err);
    if (r < 0)
        return r;
    source.ranges = ranges;
    uint64_t private_bytes;
    uint64_t resident_bytes;
    r = capture_count(&source, &private_bytes, &resident_bytes, err);
    if (r < 0)
        return r;
    struct sandbox_stats stats = {.private_bytes = (int64_t)private_bytes};
    /* A swapped page is private and not resident. */
    stats.shared_bytes = resident_bytes > private_bytes ? (int64_t)(resident_bytes - private_bytes) : 0;
    r = read_rss(source.pid, &stats.vmm_rss_bytes);
    if (r == 0)
        r = process_cpu_time(source.pid, &stats.cpu_ns);
    if (r < 0)
        return error_code(err, r, "cannot read the VMM's figures");
    r = sandbox_overlay_bytes(sandbox, &stats.overlay_bytes, err);
    if (r < 0)
        return r;
    *ret = stats;
    return 0;
}

int manager_stats(struct manager *manager, const char *id_or_prefix, struct sandbox_stats *ret, struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id_or_prefix, &sandbox, err);
    if (r < 0)
        return r;
    r = sandbox_require(sandbox, SANDBOX_RUNNING, "measured", err);
    if (r == 0)
        r = gather(sandbox, ret, err);
    sandbox_release(manager, sandbox);
    return r;
}

static int read_tail(const char *path, size_t limit, char **ret_text, size_t *ret_length, struct error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    off_t size = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
    if (size < 0)
        return error_errno(err, "cannot read the console");
    size_t most = MIN(limit, (size_t)LOGS_MAX);
    size_t wanted = MIN((size_t)size, most);
    CLEANUP_FREE char *text = malloc(wanted + 1);
    if (text == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (lseek(fd, size - (off_t)wanted, SEEK_SET) < 0)
        return error_errno(err, "cannot read the console");
    ssize_t n = io_read_full(fd, text, wanted);
    if (n < 0)
        return error_code(err, (int)n, "cannot read the console");
    text[n] = '\0';
    *ret_text = TAKE_PTR(text);
    *ret_length = (size_t)n;
    return 0;
}

int manager_logs(struct manager *manager, const char *id_or_prefix, size_t limit, char **ret_text,
                 size_t *ret_length, struct error *err)
{
    struct sandbox *sandbox;
    int r = sandbox_acquire(manager, id_or_prefix, &sandbox, err);
    if (r < 0)
        return r;
    r = sandbox_require(sandbox, SANDBOX_RUNNING, "asked for its console", err);
    CLEANUP_FREE char *path = r == 0 ? io_path(sandbox->vm_directory, VMM_FILE_CONSOLE, err) : NULL;
    if (r == 0)
        r = path != NULL ? read_tail(path, limit, ret_text, ret_length, err) : -ENOMEM;
    sandbox_release(manager, sandbox);
    return r;
}

int manager_socket(struct manager *manager, const char *id, struct error *err)
{
    struct network network = {.namespace_fd = -1};
    int r = -ENOENT;
    /* Without the operation lock: traffic must not wait for a pause. The duplicate outlives the lock. */
    pthread_mutex_lock(&manager->lock);
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next) {
        if (strcmp(sandbox->info.id, id) != 0)
            continue;
        if (sandbox->info.state != SANDBOX_RUNNING || sandbox->network == NULL) {
            r = error_set(err, EBUSY, "sandbox %s is %s", id, sandbox_state_name(sandbox->info.state));
            break;
        }
        network = *sandbox->network;
        network.namespace_fd = fcntl(sandbox->network->namespace_fd, F_DUPFD_CLOEXEC, 3);
        r = network.namespace_fd < 0 ? error_errno(err, "cannot reach sandbox %s", id) : 0;
        break;
    }
    pthread_mutex_unlock(&manager->lock);
    if (r == -ENOENT)
        return error_set(err, ENOENT, "there is no sandbox %.64s", id);
    if (r < 0)
        return r;
    int fd = network_socket(&network, err);
    close(network.namespace_fd);
    return fd;
}
