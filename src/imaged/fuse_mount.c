#include "imaged/fuse_mount.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "imaged/priority.h"

struct fuse_mount {
    struct fuse_mount_options options;
    char *path;
    struct fuse_session *session;
    char **buffers; /* one a thread */
    pthread_t *threads;
    unsigned thread_count;
    unsigned next_thread; /* atomic */
};

/*
 * The header of a write request is 80 bytes. Buffers begin so that its data lies at a page boundary, as direct I/O
 * on the files below wants it; this is why they are read here instead of by fuse_session_receive_buf.
 */
#define WRITE_HEADER_BYTES 80u
#define REQUEST_BYTES      (FUSE_MOUNT_MAX_BYTES + 4096u)
#define PAGE_BYTES         4096u

static void answer_requests(struct fuse_mount *mount, char *memory)
{
    while (!fuse_session_exited(mount->session)) {
        ssize_t length = read(fuse_session_fd(mount->session), memory, REQUEST_BYTES);
        if (length > 0) {
            struct fuse_buf request = {.mem = memory, .size = (size_t)length};
            fuse_session_process_buf(mount->session, &request);
        } else if (length == 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
            return; /* the mount is gone; ENOENT: the request was taken back */
        }
    }
}

static void *answer(void *argument)
{
    struct fuse_mount *mount = argument;
    unsigned thread = __atomic_fetch_add(&mount->next_thread, 1, __ATOMIC_RELAXED);
    priority_answering();
    mount->options.enter(mount->options.context, thread);
    answer_requests(mount, mount->buffers[thread] + PAGE_BYTES - WRITE_HEADER_BYTES);
    return NULL;
}

static int prepare_directory(const char *path, struct error *err)
{
    /* MNT_FORCE ends requests that a dead server left unanswered. */
    while (umount2(path, MNT_FORCE | MNT_DETACH) == 0)
        ;
    int r = io_make_directories(path, 0755);
    return r < 0 ? error_code(err, r, "cannot make %s", path) : 0;
}

static int mount_session(struct fuse_mount *mount, struct error *err)
{
    char options[256];
    snprintf(options, sizeof(options), "fsname=%s,subtype=dormouse,allow_other,default_permissions,max_read=%u",
             mount->options.name, FUSE_MOUNT_MAX_BYTES);
    const char *arguments[] = {"dormouse-imaged", "-o", options};
    struct fuse_args args = FUSE_ARGS_INIT((int)ARRAY_SIZE(arguments), (char **)arguments);
    mount->session = fuse_session_new(&args, mount->options.operations, sizeof(*mount->options.operations),
                                      mount->options.context);
    if (mount->session == NULL)
        return error_set(err, EIO, "cannot make a FUSE session");
    if (fuse_session_mount(mount->session, mount->path) != 0)
        return error_errno(err, "cannot mount %s", mount->path);
    return 0;
}

static int start_threads(struct fuse_mount *mount, struct error *err)
{
    mount->threads = calloc(mount->options.threads, sizeof(*mount->threads));
    mount->buffers = calloc(mount->options.threads, sizeof(char *));
    if (mount->threads == NULL || mount->buffers == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < mount->options.threads; i++)
        if ((mount->buffers[i] = aligned_alloc(PAGE_BYTES, PAGE_BYTES + REQUEST_BYTES)) == NULL)
            return error_set(err, ENOMEM, "out of memory");
    for (; mount->thread_count < mount->options.threads; mount->thread_count++) {
        int code = pthread_create(&mount->threads[mount->thread_count], NULL, answer, mount);
        if (code != 0)
            return error_code(err, -code, "cannot start a thread");
    }
    return 0;
}

int fuse_mount_start(const struct fuse_mount_options *options, struct fuse_mount **ret, struct error *err)
{
    int r = prepare_directory(options->path, err);
    if (r < 0)
        return r;
    struct fuse_mount *mount = calloc(1, sizeof(*mount));
    if (mount == NULL || (mount->path = strdup(options->path)) == NULL) {
        free(mount);
        return error_set(err, ENOMEM, "out of memory");
    }
    mount->options = *options;
    mount->options.path = mount->path;
    if ((r = mount_session(mount, err)) < 0 || (r = start_threads(mount, err)) < 0)
        fuse_mount_free(mount);
    else
        *ret = mount;
    return r;
}

struct fuse_session *fuse_mount_session(struct fuse_mount *mount)
{
    return mount->session;
}

const char *fuse_mount_path(const struct fuse_mount *mount)
{
    return mount->path;
}

void fuse_mount_stop(struct fuse_mount *mount)
{
    if (mount->session != NULL)
        fuse_session_exit(mount->session);
    /* Aborting the connection wakes the threads, also when files in the mount are still open. */
    (void)umount2(mount->path, MNT_FORCE | MNT_DETACH);
    for (unsigned i = 0; i < mount->thread_count; i++)
        pthread_join(mount->threads[i], NULL);
    mount->thread_count = 0;
}

void fuse_mount_free(struct fuse_mount *mount)
{
    if (mount == NULL)
        return;
    fuse_mount_stop(mount);
    if (mount->session != NULL) {
        fuse_session_unmount(mount->session);
        fuse_session_destroy(mount->session);
    }
    for (unsigned i = 0; mount->buffers != NULL && i < mount->options.threads; i++)
        free(mount->buffers[i]);
    free(mount->buffers);
    free(mount->threads);
    free(mount->path);
    free(mount);
}

void fuse_mount_root_attributes(struct stat *ret)
{
    *ret = (struct stat){.st_ino = FUSE_ROOT_ID, .st_mode = S_IFDIR | 0755, .st_nlink = 2, .st_blksize = 4096};
}
