#include "agent/init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/boot.h"
#include "agent/network.h"
#include "agent/server.h"
#include "base/io.h"

#define SERVER_SHORT_LIFE_NS (5 * INT64_C(1000000000))
#define SERVER_SHORT_LIVES   5 /* in a row: then it will not get better */
#define OPEN_FILES_SOFT      1024
#define OPEN_FILES_HARD      524288
#define TERM_WAIT_NS         (2 * INT64_C(1000000000))
#define KILL_WAIT_NS         (1 * INT64_C(1000000000))

static void console(const char *text, const struct error *err)
{
    if (err != NULL)
        dprintf(STDERR_FILENO, "dormouse-agent: %s: %s\n", text, error_message(err));
    else
        dprintf(STDERR_FILENO, "dormouse-agent: %s\n", text);
}

static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int standard = 0; standard < 3; standard++)
        dup2(fd, standard);
    if (fd > STDERR_FILENO)
        close(fd);
}

static int boot(struct error *err)
{
    int (*const steps[])(struct error *) = {
        boot_load_modules,
        boot_wait_for_devices,
        boot_mount_root,
    };
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        int r = steps[i](err);
        if (r < 0)
            return r;
    }
    /* Without a network the control channel still works, so this is no reason not to boot. */
    CLEANUP_ERROR struct error network_err = ERROR_INIT;
    if (network_configure(&network_err) < 0)
        console("no network", &network_err);
    int r = boot_switch_root(err);
    return r < 0 ? r : boot_mount_late(err);
}

/* ---- the end ---- */

/* Reaps until nobody is left or the time is over. */
static void await_processes(const sigset_t *child_signal, int64_t wait_ns)
{
    int64_t deadline_ns = clock_monotonic_ns() + wait_ns;
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            return;
        if (pid > 0)
            continue;
        int64_t left_ns = deadline_ns - clock_monotonic_ns();
        if (left_ns <= 0)
            return;
        struct timespec timeout = {.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
        sigtimedwait(child_signal, NULL, &timeout);
    }
}

static _Noreturn void power_off(void)
{
    sigset_t child_signal;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    /* Interactive shells ignore it, but are hung up when the server, which holds their terminals, ends. */
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    await_processes(&child_signal, TERM_WAIT_NS);
    kill(-1, SIGKILL);
    await_processes(&child_signal, KILL_WAIT_NS);
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(RB_POWER_OFF);
    console("the machine cannot be powered off", NULL);
    for (;;)
        pause();
}

/* ---- the server ---- */

/* What programs expect of a Linux system; the kernel's own hard limit is 4096. */
static void raise_file_limit(void)
{
    struct rlimit limit = {.rlim_cur = OPEN_FILES_SOFT, .rlim_max = OPEN_FILES_HARD};
    setrlimit(RLIMIT_NOFILE, &limit);
}

static pid_t start_server(struct identity *identity, const sigset_t *original_mask)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    sigprocmask(SIG_SETMASK, original_mask, NULL);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    server_run_in_guest(identity, &err);
    console("the server cannot go on", &err);
    _exit(EXIT_FAILURE);
}

/* Returns when a signal asks for power-off. */
static void supervise(const sigset_t *signals, const sigset_t *original_mask)
{
    int short_lives = 0;
    struct identity *identity =
        mmap(NULL, sizeof(*identity), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (identity == MAP_FAILED) {
        console("no memory for the sandbox's identity", NULL);
        return;
    }
    pid_t server = start_server(identity, original_mask);
    int64_t started_ns = clock_monotonic_ns();
    while (server > 0 && short_lives < SERVER_SHORT_LIVES) {
        int signal = sigwaitinfo(signals, NULL);
        if (signal > 0 && signal != SIGCHLD)
            return;
        bool ended = false;
        for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
            ended |= pid == server;
        if (!ended)
            continue;
        int64_t now_ns = clock_monotonic_ns();
        short_lives = now_ns - started_ns < SERVER_SHORT_LIFE_NS ? short_lives + 1 : 0;
        console("the server ended; starting it again", NULL);
        server = start_server(identity, original_mask);
        started_ns = now_ns;
    }
    console("the server does not stay up; powering off", NULL);
}

_Noreturn void init_main(void)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    umask(022);
    int r = boot_mount_early(&err);
    open_console();
    if (r == 0)
        r = boot(&err);
    if (r < 0) {
        console("cannot boot", &err);
        power_off();
    }

    static const int handled[] = {SIGCHLD, SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGPWR};
    sigset_t signals;
    sigset_t original_mask;
    sigemptyset(&signals);
    for (size_t i = 0; i < ARRAY_SIZE(handled); i++)
        sigaddset(&signals, handled[i]);
    /* Blocked, not ignored: an init gets only the signals it blocks or handles, and sigwaitinfo takes these. */
    sigprocmask(SIG_BLOCK, &signals, &original_mask);
    reboot(RB_DISABLE_CAD);
    raise_file_limit();
    supervise(&signals, &original_mask);
    power_off();
}
