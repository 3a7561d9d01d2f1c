#include "template/script.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"

#define GRACE_NS   (INT64_C(3) * 1000000000) /* from SIGTERM, which lets the script clean up, to SIGKILL */
#define TAIL_LINES 3
#define HINT       "hint: "

struct line {
    char text[SCRIPT_LINE_MAX];
    size_t length;
};

struct stream {
    int fd; /* -1 after end of file */
    bool is_error;
    struct line line;
};

struct run {
    pid_t pid; /* also the process group */
    int pidfd;
    int result;
    struct stream output, errors;
    template_progress progress;
    void *context;
    struct line tail[TAIL_LINES]; /* of standard error; a ring */
    size_t tail_count;
    struct line hint;
    int stopped; /* errno for which the script is being ended, or 0 */
    int64_t deadline_ns;
};

static void line_append(struct line *line, const char *text, size_t length)
{
    length = MIN(length, sizeof(line->text) - 1 - line->length);
    memcpy(line->text + line->length, text, length);
    line->length += length;
    line->text[line->length] = '\0';
}

static void run_stop(struct run *run, int reason)
{
    if (run->stopped == 0) {
        run->stopped = reason;
        run->deadline_ns = clock_monotonic_ns() + GRACE_NS;
        kill(-run->pid, SIGTERM);
    } else {
        kill(-run->pid, SIGKILL);
        run->deadline_ns = INT64_MAX;
    }
}

static void run_line(struct run *run, struct stream *stream)
{
    struct line *line = &stream->line;
    if (line->length == 0)
        return;
    if (stream->is_error && strncmp(line->text, HINT, strlen(HINT)) == 0) {
        run->hint.length = 0;
        line_append(&run->hint, line->text + strlen(HINT), line->length - strlen(HINT));
    } else {
        if (stream->is_error)
            run->tail[run->tail_count++ % TAIL_LINES] = *line;
        if (run->stopped == 0 && !run->progress(run->context, line->text))
            run_stop(run, ECANCELED);
    }
    line->length = 0;
}

/* Reads once what is there. */
static void run_read(struct run *run, struct stream *stream)
{
    char buffer[4096];
    ssize_t n = read(stream->fd, buffer, sizeof(buffer));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    for (ssize_t i = 0; i < n; i++) {
        char c = buffer[i];
        if (c == '\n' || c == '\r')
            run_line(run, stream);
        else
            line_append(&stream->line, (unsigned char)c < ' ' || c == 127 ? "?" : &c, 1);
    }
    if (n <= 0) {
        run_line(run, stream);
        close(stream->fd);
        stream->fd = -1;
    }
}

/* Until the script has ended and what it printed is read. What it left running is killed: it may hold the pipes. */
static void run_watch(struct run *run)
{
    for (;;) {
        struct pollfd wait[] = {
            {.fd = run->output.fd, .events = POLLIN},
            {.fd = run->errors.fd, .events = POLLIN},
            {.fd = run->pidfd, .events = POLLIN},
        };
        int64_t left_ms = MAX((run->deadline_ns - clock_monotonic_ns()) / 1000000, INT64_C(0));
        int n = poll(wait, ARRAY_SIZE(wait), (int)MIN(left_ms + 1, INT64_C(60000)));
        if (n > 0 && wait[0].revents != 0)
            run_read(run, &run->output);
        if (n > 0 && wait[1].revents != 0)
            run_read(run, &run->errors);
        if (n > 0 && wait[2].revents != 0) {
            /* Until it is waited for, its number cannot be anybody else's. */
            kill(-run->pid, SIGKILL);
            if (wait[0].revents == 0 && wait[1].revents == 0)
                return;
        }
        if (clock_monotonic_ns() >= run->deadline_ns)
            run_stop(run, ETIMEDOUT);
    }
}

static int make_pipe(int *ret_read, int *ret_write, struct error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_errno(err, "cannot make a pipe");
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *ret_read = ends[0];
    *ret_write = ends[1];
    return 0;
}

static int spawn(struct run *run, const char *const *arguments, int output, int errors)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    if (posix_spawn_file_actions_init(&files) != 0)
        return ENOMEM;
    if (posix_spawnattr_init(&attributes) != 0) {
        posix_spawn_file_actions_destroy(&files);
        return ENOMEM;
    }
    /* Setting a mask, signals, flags or a group in these objects cannot fail. */
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    int r = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&files, errors, STDERR_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&files, run->result, STDERR_FILENO + 1);
    if (r == 0)
        r = posix_spawn(&run->pid, arguments[0], &files, &attributes, (char *const *)arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return r;
}

static int run_start(struct run *run, const char *const *arguments, struct error *err)
{
    CLEANUP_CLOSE int output = -1;
    CLEANUP_CLOSE int errors = -1;
    run->result = memfd_create("result", MFD_CLOEXEC);
    if (run->result < 0)
        return error_errno(err, "cannot make a memory file");
    int r = make_pipe(&run->output.fd, &output, err);
    if (r == 0)
        r = make_pipe(&run->errors.fd, &errors, err);
    if (r < 0)
        return r;
    r = spawn(run, arguments, output, errors);
    if (r != 0)
        return error_code(err, -r, "cannot run %s", arguments[0]);
    run->pidfd = pidfd_open(run->pid, 0);
    if (run->pidfd < 0) {
        r = error_errno(err, "cannot watch %s", arguments[0]);
        kill(-run->pid, SIGKILL);
        waitpid(run->pid, NULL, 0);
        return r;
    }
    return 0;
}

/* Says why it failed, in the script's own last words. */
static int run_failure(const struct run *run, const char *script, int status, struct error *err)
{
    CLEANUP_STRBUF struct strbuf why = STRBUF_INIT;
    size_t kept = MIN(run->tail_count, (size_t)TAIL_LINES);
    for (size_t i = run->tail_count - kept; i < run->tail_count; i++)
        strbuf_printf(&why, "%s%s", why.length > 0 ? "; " : "", run->tail[i % TAIL_LINES].text);
    if (why.length == 0)
        strbuf_printf(&why, "%s ended with %s %d", script, WIFEXITED(status) ? "exit status" : "signal",
                      WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    int code = EIO;
    if (strstr(strbuf_text(&why), "No space left on device") != NULL)
        code = ENOSPC;
    else if (WIFEXITED(status) && WEXITSTATUS(status) > 100 && WEXITSTATUS(status) < 126)
        code = WEXITSTATUS(status) - 100; /* 126 and above are the shell's own */
    int r = error_set(err, code, "%s", strbuf_text(&why));
    if (run->hint.length > 0)
        error_hint(err, "%s", run->hint.text);
    return r;
}

static int run_end(const struct run *run, const char *script, char **ret_result, struct error *err)
{
    int status;
    if (waitpid(run->pid, &status, 0) < 0)
        return error_errno(err, "cannot wait for %s", script);
    if (run->stopped == ECANCELED)
        return error_set(err, ECANCELED, "canceled");
    if (run->stopped == ETIMEDOUT)
        return error_set(err, ETIMEDOUT, "%s did not end within %d minutes", script, SCRIPT_TIMEOUT_S / 60);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return run_failure(run, script, status, err);

    char buffer[SCRIPT_RESULT_MAX];
    if (lseek(run->result, 0, SEEK_SET) < 0)
        return error_errno(err, "cannot read what %s made", script);
    ssize_t n = io_read_full(run->result, buffer, sizeof(buffer));
    if (n < 0)
        return error_code(err, (int)n, "cannot read what %s made", script);
    char *result = strndup(buffer, (size_t)n);
    if (result == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *ret_result = result;
    return 0;
}

int script_run(const char *const *arguments, template_progress progress, void *context, char **ret_result,
               struct error *err)
{
    struct run run = {
        .pidfd = -1,
        .result = -1,
        .output = {.fd = -1},
        .errors = {.fd = -1, .is_error = true},
        .progress = progress,
        .context = context,
        .deadline_ns = clock_monotonic_ns() + INT64_C(1000000000) * SCRIPT_TIMEOUT_S,
    };
    int r = run_start(&run, arguments, err);
    if (r == 0) {
        run_watch(&run);
        r = run_end(&run, arguments[0], ret_result, err);
    }
    cleanup_close(&run.output.fd);
    cleanup_close(&run.errors.fd);
    cleanup_close(&run.pidfd);
    cleanup_close(&run.result);
    return r;
}
