/*
 * io.h: whole reads and writes, small files, paths, directory trees, monotonic and wall time.
 *
 * All functions but io_path return 0 (or a byte count) or a negative errno and touch their outputs only on success.
 * EINTR is retried. Paths are used as given; nothing here follows a symbolic link on removal.
 */
#ifndef DORMOUSE_BASE_IO_H
#define DORMOUSE_BASE_IO_H

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/macro.h"

/* Reads up to `length` bytes until end of file; returns the number read or a negative errno. */
ssize_t io_read_full(int fd, void *buffer, size_t length);
/* As above from `offset` on, leaving the file's position alone. */
ssize_t io_pread_full(int fd, void *buffer, size_t length, off_t offset);

/* Writes all of it or fails. */
int io_write_full(int fd, const void *buffer, size_t length);
int io_pwrite_full(int fd, const void *buffer, size_t length, off_t offset);

/* Reads a whole file of at most `limit` bytes (-EFBIG above), NUL-terminated; the caller frees it. */
int io_read_file(const char *path, size_t limit, char **ret_data, size_t *ret_length);

/* Writes path.tmp, fsyncs, renames over path and fsyncs the directory: the old or the new content, never half. */
int io_write_file_atomic(const char *path, const void *data, size_t length, mode_t mode);

/* directory/name; the caller frees it. NULL, with ENOMEM in err, when memory is short. */
char *io_path(const char *directory, const char *name, struct error *err);

int io_fsync_path(const char *path);

/* mkdir -p; existing directories keep their mode. */
int io_make_directories(const char *path, mode_t mode);

/* rm -rf without following links or crossing into other mounts; absent is success. */
int io_remove_tree(const char *path);

/* Sets or clears FD_CLOEXEC. */
int io_set_cloexec(int fd, int on);

/* CLOCK_MONOTONIC and CLOCK_REALTIME in ns. */
int64_t clock_monotonic_ns(void);
int64_t clock_realtime_ns(void);

#endif
