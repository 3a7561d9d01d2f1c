#include "agent/spawn.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/io.h"

enum stage { STAGE_SESSION, STAGE_STREAMS, STAGE_TERMINAL, STAGE_USER, STAGE_DIRECTORY, STAGE_PROGRAM };

/* What the child tells through the pipe when it cannot become the program; nothing if it does. */
struct failure {
    enum stage stage;
    int code; /* errno */
};

/* The child's ends become its standard streams. */
struct streams {
    int child[3];
    int input, output, error; /* the agent's ends */
    int report[2];
};

static void streams_done(struct streams *streams)
{
    int *const all[] = {&streams->child[0], &streams->child[1], &streams->child[2],  &streams->input,
                        &streams->output,   &streams->error,    &streams->report[0], &streams->report[1]};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        cleanup_close(all[i]);
}

static int make_pipe(int *ret_read, int *ret_write, int *agent_end)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    *ret_read = ends[0];
    *ret_write = ends[1];
    return fcntl(*agent_end, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static int open_pipes(struct streams *streams, bool standard_input)
{
    int r;
    if (standard_input)
        r = make_pipe(&streams->child[0], &streams->input, &streams->input);
    else
        r = streams->child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (r < 0)
        return standard_input ? r : -errno;
    r = make_pipe(&streams->output, &streams->child[1], &streams->output);
    return r < 0 ? r : make_pipe(&streams->error, &streams->child[2], &streams->error);
}

static int open_terminal(struct streams *streams, const struct spawn_request *request)
{
    struct winsize size = {.ws_col = request->columns, .ws_row = request->rows};
    streams->output = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (streams->output < 0 || ioctl(streams->output, TIOCSPTLCK, &(int){0}) < 0)
        return -errno;
    streams->child[0] = ioctl(streams->output, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    streams->input = fcntl(streams->output, F_DUPFD_CLOEXEC, 0);
    if (streams->child[0] < 0 || streams->input < 0 || ioctl(streams->child[0], TIOCSWINSZ, &size) < 0)
        return -errno;
    streams->child[1] = fcntl(streams->child[0], F_DUPFD_CLOEXEC, 0);
    streams->child[2] = fcntl(streams->child[0], F_DUPFD_CLOEXEC, 0);
    /* So that the user's programs can open /dev/tty's path again; the group is devpts' own. */
    if (geteuid() == 0 && fchown(streams->child[0], request->user->uid, (gid_t)-1) < 0)
        return -errno;
    return streams->child[1] < 0 || streams->child[2] < 0 ? -EMFILE : 0;
}

/* ---- in the child ---- */

static int become_user(const struct user *user)
{
    if (geteuid() != 0)
        return user->uid == geteuid() ? 0 : -EPERM;
    if (setgroups(user->group_count, user->groups) < 0 || setgid(user->gid) < 0 || setuid(user->uid) < 0)
        return -errno;
    return 0;
}

static int move_streams(const int child[3])
{
    /* Above the standard streams first: an end may itself have one of their numbers. */
    int high[3];
    for (int i = 0; i < 3; i++)
        if ((high[i] = fcntl(child[i], F_DUPFD_CLOEXEC, 3)) < 0)
            return -errno;
    for (int i = 0; i < 3; i++)
        if (dup2(high[i], i) < 0)
            return -errno;
    return 0;
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
}

/* The agent must survive when the guest runs out of memory; its programs need not. */
static void allow_out_of_memory_kill(void)
{
    CLEANUP_CLOSE int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        io_write_full(fd, "0", 1);
}

static struct failure become_program(const struct spawn_request *request, const struct streams *streams)
{
    reset_signals();
    allow_out_of_memory_kill();
    if (setsid() < 0)
        return (struct failure){STAGE_SESSION, errno};
    int r = move_streams(streams->child);
    if (r < 0)
        return (struct failure){STAGE_STREAMS, -r};
    if (request->terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        return (struct failure){STAGE_TERMINAL, errno};
    r = become_user(request->user);
    if (r < 0)
        return (struct failure){STAGE_USER, -r};
    if (chdir(request->directory) < 0)
        return (struct failure){STAGE_DIRECTORY, errno};
    umask(022);
    environ = (char **)(uintptr_t)request->environment; /* execvp looks PATH up there */
    execvp(request->arguments[0], request->arguments);
    return (struct failure){STAGE_PROGRAM, errno};
}

/* ---- in the agent ---- */

static int describe_failure(const struct spawn_request *request, const struct failure *failure, struct error *err)
{
    const char *reason = strerror(failure->code);
    switch (failure->stage) {
    case STAGE_DIRECTORY:
        return error_set(err, EINVAL, "the directory '%s' cannot be used: %s", request->directory, reason);
    case STAGE_PROGRAM:
        /* A client shows these two differently from all others, as a shell does. */
        return error_set(err, failure->code == ENOENT || failure->code == EACCES ? failure->code : EINVAL,
                         "'%s' cannot be run: %s", request->arguments[0], reason);
    case STAGE_USER:
        return error_set(err, EPERM, "the agent cannot become the user '%s': %s", request->user->name, reason);
    case STAGE_TERMINAL:
        return error_set(err, EIO, "cannot attach the terminal: %s", reason);
    default:
        return error_set(err, EIO, "cannot set up the process: %s", reason);
    }
}

/* Waits for the program to be executed, which closes the pipe, or for the child's report. */
static int await_program(const struct spawn_request *request, struct streams *streams, pid_t pid, struct error *err)
{
    struct failure failure;
    close(TAKE_FD(streams->report[1]));
    ssize_t n = io_read_full(streams->report[0], &failure, sizeof(failure));
    if (n == 0)
        return 0;
    waitpid(pid, NULL, 0);
    if (n != sizeof(failure))
        return error_set(err, EIO, "the process ended before it ran '%s'", request->arguments[0]);
    return describe_failure(request, &failure, err);
}

int spawn(const struct spawn_request *request, struct spawned *ret, struct error *err)
{
    CLEANUP(streams_done) struct streams streams = {{-1, -1, -1}, -1, -1, -1, {-1, -1}};
    int r = request->terminal ? open_terminal(&streams, request) : open_pipes(&streams, request->standard_input);
    if (r == 0 && pipe2(streams.report, O_CLOEXEC) < 0)
        r = -errno;
    if (r < 0)
        return error_code(err, r == -EMFILE || r == -ENFILE ? -EAGAIN : r, "cannot open the process' streams");

    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, "cannot start another process");
    if (pid == 0) {
        struct failure failure = become_program(request, &streams);
        io_write_full(streams.report[1], &failure, sizeof(failure));
        _exit(127);
    }
    r = await_program(request, &streams, pid, err);
    if (r < 0)
        return r;
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        r = error_errno(err, "cannot watch the process");
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return r;
    }
    *ret = (struct spawned){
        .pid = pid,
        .pidfd = pidfd,
        .input = TAKE_FD(streams.input),
        .output = TAKE_FD(streams.output),
        .error = TAKE_FD(streams.error),
    };
    return 0;
}

/* The session of a process, 0 if it is gone. */
static pid_t session_of(const char *pid_text)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%.20s/stat", pid_text);
    CLEANUP_FREE char *stat = NULL;
    if (io_read_file(path, 4096, &stat, NULL) < 0)
        return 0;
    const char *after_name = strrchr(stat, ')'); /* the name may hold anything */
    int session;
    if (after_name == NULL || sscanf(after_name, ") %*c %*d %*d %d", &session) != 1)
        return 0;
    return session;
}

void spawn_signal_session(pid_t leader, int signal)
{
    kill(-leader, signal);
    DIR *processes = opendir("/proc");
    if (processes == NULL)
        return;
    for (struct dirent *entry = readdir(processes); entry != NULL; entry = readdir(processes))
        if (isdigit((unsigned char)entry->d_name[0]) && session_of(entry->d_name) == leader)
            kill((pid_t)strtol(entry->d_name, NULL, 10), signal);
    closedir(processes);
}
