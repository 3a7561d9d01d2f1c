/*
 * bare-migrate: restores a bare guest (bare.h), and then times what QEMU itself offers for saving it: stop, and
 * `migrate` to a file. The file is handed over as a descriptor, which is faster than the usual "exec:cat >FILE" and
 * is possible in QEMU's own sandbox; bandwidth is not limited, and all of the guest's memory is in the host's.
 * Prints as JSON, in µs from the stop:
 *
 *     {"completed_us": … (QEMU's MIGRATION event), "durable_us": … (after an fsync), "file_bytes": …}
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bare.h"
#include "base/io.h"

static const char *const preparations[] = {
    "{\"execute\": \"migrate-set-capabilities\", \"arguments\": {\"capabilities\":"
    " [{\"capability\": \"events\", \"state\": true}]}}",
    /* In bytes/s; far more than any machine has. */
    "{\"execute\": \"migrate-set-parameters\", \"arguments\": {\"max-bandwidth\": 1099511627776}}",
};

static int execute(struct bare *bare, const char *command, int fd, struct error *err)
{
    int r = bare_command(bare, command, fd, err);
    return r < 0 ? r : bare_wait(bare, "{\"return\": {}", NULL, err);
}

static int prepare(struct bare *bare, int file, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(preparations); i++) {
        int r = execute(bare, preparations[i], -1, err);
        if (r < 0)
            return r;
    }
    return execute(bare, "{\"execute\": \"getfd\", \"arguments\": {\"fdname\": \"file\"}}", file, err);
}

static int stop_and_migrate(struct bare *bare, struct error *err)
{
    int r = execute(bare, "{\"execute\": \"stop\"}", -1, err);
    if (r == 0)
        r = bare_command(bare, "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"fd:file\"}}", -1, err);
    if (r == 0)
        r = bare_wait(bare, "\"status\": \"completed\"", NULL, err);
    return r;
}

/* Brings the whole memory image, its holes too, into the page cache, where a guest that is not restored has it. */
static int read_memory_image(const char *snapshot, struct error *err)
{
    enum { BLOCK = 1 << 20 };
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *block = malloc(BLOCK);
    if (block == NULL || asprintf(&path, "%s/memory", snapshot) < 0) {
        path = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    CLEANUP_CLOSE int image = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = image < 0 ? -1 : 1;
    while (n > 0)
        n = read(image, block, BLOCK);
    return n < 0 ? error_errno(err, "cannot read %s", path) : 0;
}

static int measure(struct bare *bare, const char *snapshot, int file, struct error *err)
{
    int r = read_memory_image(snapshot, err);
    if (r == 0)
        r = bare_start(bare, err);
    if (r == 0)
        r = prepare(bare, file, err);
    if (r < 0)
        return r;
    int64_t begun_ns = clock_monotonic_ns();
    r = stop_and_migrate(bare, err);
    if (r < 0)
        return r;
    int64_t completed_ns = clock_monotonic_ns();
    if (fsync(file) < 0)
        return error_errno(err, "cannot make the file durable");
    int64_t durable_ns = clock_monotonic_ns();
    struct stat status;
    if (fstat(file, &status) < 0)
        return error_errno(err, "cannot read the file's size");
    printf("{\"completed_us\": %" PRId64 ", \"durable_us\": %" PRId64 ", \"file_bytes\": %lld}\n",
           (completed_ns - begun_ns) / 1000, (durable_ns - begun_ns) / 1000, (long long)status.st_size);
    return 0;
}

static int run(const struct bare_source *source, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "%s/migration", source->work) < 0) {
        path = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    CLEANUP_CLOSE int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return error_errno(err, "cannot make %s", path);
    unlink(path);
    struct bare *bare = NULL;
    int r = bare_isolate(err);
    if (r == 0)
        r = bare_prepare(source, 0, &bare, err);
    if (r == 0)
        r = measure(bare, source->snapshot, file, err);
    bare_free(bare);
    return r;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fputs("Usage: bare-migrate ARGUMENTS SNAPSHOT WORK\n", stderr);
        return 2;
    }
    const struct bare_source source = {.arguments = argv[1], .snapshot = argv[2], .work = argv[3]};
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (run(&source, &err) == 0)
        return 0;
    fprintf(stderr, "bare-migrate: %s\n", error_message(&err));
    return 1;
}
