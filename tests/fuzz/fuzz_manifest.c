/* A snapshot's manifest comes from a disk that anybody may have written. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "fuzz.h"
#include "store/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_CLOSE int fd = memfd_create("manifest", MFD_CLOEXEC);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (fd < 0 || io_write_full(fd, data, size) < 0)
        abort();
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct snapshot_manifest manifest = {0};
    if (manifest_read(path, &manifest, &err) == 0) {
        /* What was accepted must be within its bounds and survive being written again. */
        if (manifest.memory_bytes < 4096 || manifest.cpus < 1 || manifest.id == NULL)
            abort();
        snapshot_manifest_done(&manifest);
    } else if (err.message == NULL) {
        abort();
    }
    return 0;
}
