/*
 * template.h: what a guest boots: the kernel with its initrd, and root file systems.
 *
 * Long work is done by the scripts in recipes/, run as children; each line they print is handed to `progress` from
 * the calling thread. A false result from it ends the child (its whole process group) and yields -ECANCELED.
 * On failure the last lines the script wrote to its standard error are in the error. Nothing half-made is left
 * under the final name. Any thread; calls with the same target directory must not run at the same time.
 */
#ifndef DORMOUSE_TEMPLATE_TEMPLATE_H
#define DORMOUSE_TEMPLATE_TEMPLATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef bool (*template_progress)(void *context, const char *line);

struct guest_kernel {
    char *kernel;  /* bzImage */
    char *initrd;  /* the agent as /init, and the modules it loads */
    char *version; /* of the kernel, as uname -r prints it */
};
void guest_kernel_done(struct guest_kernel *kernel);

/*
 * Makes (or finds, when it is there and was made from this very agent binary) the kernel and initrd under
 * `directory`. The kernel is Debian's linux-image-cloud-amd64, downloaded and unpacked, not installed on the host.
 */
int guest_kernel_prepare(const char *directory, template_progress progress, void *context, struct guest_kernel *ret,
                         struct error *err);

struct rootfs_options {
    const char *recipe;  /* name of a directory in recipes/, e.g. "base" or "tiny"; or NULL */
    const char *source;  /* instead: a directory, a tar archive (any compression tar knows) or an ext4 image */
    uint64_t size_bytes; /* virtual size; 0: what the recipe says (2 GiB for `source`) */
    const char *cache;   /* a directory for downloads and finished trees, reused by later builds */
};

/* Writes a raw ext4 image at `output` (sparse) and its virtual size to *ret_size. */
int rootfs_build(const struct rootfs_options *options, const char *output, template_progress progress,
                 void *context, uint64_t *ret_size, struct error *err);

#endif
