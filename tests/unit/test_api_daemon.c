/* dormoused as a process, with a manager without guests: options, sockets, readiness, signals. */
#include "unit.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "base/unix_socket.h"

#define WAIT_MS        20000
#define ARGUMENTS_MAX  12
#define EXECUTABLE_ENV "DORMOUSED_FAKE"

struct daemon {
    pid_t pid;
    int output; /* standard output and error */
};

/* Arguments end with NULL. `notify`: the value of NOTIFY_SOCKET, or NULL. */
static struct daemon start(const char *notify, const char *const *arguments)
{
    char *argv[ARGUMENTS_MAX + 2] = {getenv(EXECUTABLE_ENV)};
    for (int i = 0; i < ARGUMENTS_MAX && arguments[i] != NULL; i++)
        argv[i + 1] = (char *)arguments[i];
    int pipe_fds[2];
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nothing behind */
        dup2(pipe_fds[1], STDOUT_FILENO);
        dup2(pipe_fds[1], STDERR_FILENO);
        if (notify != NULL)
            setenv("NOTIFY_SOCKET", notify, 1);
        execv(argv[0], argv);
        _exit(127);
    }
    close(pipe_fds[1]);
    return (struct daemon){pid, pipe_fds[0]};
}

/* Reads its output until `text` appears, or (NULL) until it closes. */
static void read_until(struct daemon *daemon, const char *text, struct strbuf *out)
{
    while (text == NULL || strstr(strbuf_text(out), text) == NULL) {
        struct pollfd readable = {.fd = daemon->output, .events = POLLIN};
        assert_int_equal(poll(&readable, 1, WAIT_MS), 1);
        char buffer[1024];
        ssize_t n = read(daemon->output, buffer, sizeof(buffer));
        assert_true(n >= 0);
        if (n == 0)
            break;
        strbuf_append(out, buffer, (size_t)n);
    }
    if (text != NULL && strstr(strbuf_text(out), text) == NULL)
        fail_msg("\"%s\" is missing in: %s", text, strbuf_text(out));
}

/* Waits for its end; the exit status. */
static int finish(struct daemon *daemon, struct strbuf *out)
{
    read_until(daemon, NULL, out);
    close(daemon->output);
    int status;
    assert_int_equal(waitpid(daemon->pid, &status, 0), daemon->pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Expects that it ends at once with this status, one line, and `part` in it. */
static void check_failure(const char *const *arguments, int status, const char *part)
{
    struct daemon daemon = start(NULL, arguments);
    CLEANUP_STRBUF struct strbuf out = STRBUF_INIT;
    assert_int_equal(finish(&daemon, &out), status);
    if (strstr(strbuf_text(&out), part) == NULL)
        fail_msg("\"%s\" is missing in: %s", part, strbuf_text(&out));
    if (status == 1)
        assert_ptr_equal(strchr(out.data, '\n'), out.data + out.length - 1);
}

static void test_options(void **state)
{
    CLEANUP_FREE char *path = unit_path(*state, "socket");
    check_failure((const char *[]){"--help", NULL}, 0, "--network-ahead");
    check_failure((const char *[]){"--version", NULL}, 0, DORMOUSE_VERSION);
    check_failure((const char *[]){"--frobnicate", NULL}, 2, "--help");
    check_failure((const char *[]){"extra", NULL}, 2, "extra");
    check_failure((const char *[]){"--network-ahead", "-1", NULL}, 2, "--network-ahead");
    check_failure((const char *[]){"--vmm-ahead", "1025", NULL}, 2, "--vmm-ahead");
    check_failure((const char *[]){"--network-ahead", "9999999999999999999999", NULL}, 2, "--network-ahead");
    static const char *const wrong[] = {"0.0.0.0:80",      "192.0.2.1:80",
                                        "[::]:80",         "127.0.0.1",
                                        "127.0.0.1:",      ":80",
                                        "127.0.0.1:65536", "127.0.0.1:x",
                                        "example.org:80",  ""};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        check_failure((const char *[]){"--socket", path, "--listen", wrong[i], NULL}, 2, "127.0.0.1");
}

static unsigned ready_port(const struct strbuf *out)
{
    const char *url = strstr(strbuf_text(out), "http://127.0.0.1:");
    assert_non_null(url);
    return (unsigned)strtoul(url + strlen("http://127.0.0.1:"), NULL, 10);
}

static void test_life(void **state)
{
    CLEANUP_FREE char *data = unit_path(*state, "data");
    CLEANUP_FREE char *path = unit_path(*state, "socket");
    CLEANUP_FREE char *notify_path = unit_path(*state, "notify");
    CLEANUP_CLOSE int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", notify_path);
    assert_int_equal(bind(notify, (struct sockaddr *)&address, sizeof(address)), 0);

    const char *arguments[] = {"--data", data, "--socket", path, "--listen", "127.0.0.1:0", NULL};
    struct daemon daemon = start(notify_path, arguments);
    CLEANUP_STRBUF struct strbuf out = STRBUF_INIT;
    read_until(&daemon, "\n", &out);
    assert_int_equal(strncmp(out.data, "dormoused ready: http://127.0.0.1:", 34), 0);
    char message[64] = "";
    assert_true(recv(notify, message, sizeof(message) - 1, 0) > 0);
    assert_string_equal(message, "READY=1");
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);

    /* A second one does not take the places of the first. */
    check_failure(arguments, 1, "another program listens on");
    CLEANUP_FREE char *other = unit_path(*state, "other");
    char listen[32];
    snprintf(listen, sizeof(listen), "127.0.0.1:%u", ready_port(&out));
    check_failure((const char *[]){"--data", data, "--socket", other, "--listen", listen, NULL}, 1, "--listen");
    assert_int_equal(stat(other, &status), -1);

    /* A client that is connected and says nothing does not delay the end. */
    CLEANUP_CLOSE int idle = unix_socket_connect(path, NULL);
    assert_true(idle >= 0);
    assert_int_equal(kill(daemon.pid, SIGTERM), 0);
    assert_int_equal(finish(&daemon, &out), 0);
    assert_int_equal(stat(path, &status), -1);
    memset(message, 0, sizeof(message));
    assert_true(recv(notify, message, sizeof(message) - 1, 0) > 0);
    assert_string_equal(message, "STOPPING=1");
}

static void test_stale_socket(void **state)
{
    CLEANUP_FREE char *data = unit_path(*state, "data");
    CLEANUP_FREE char *path = unit_path(*state, "socket");
    const char *arguments[] = {"--data", data, "--socket", path, "--listen", "127.0.0.1:0", NULL};
    int stale = unix_socket_listen(path, NULL);
    assert_true(stale >= 0);
    close(stale);
    struct daemon daemon = start(NULL, arguments);
    CLEANUP_STRBUF struct strbuf out = STRBUF_INIT;
    read_until(&daemon, "ready", &out);
    assert_int_equal(kill(daemon.pid, SIGINT), 0);
    assert_int_equal(finish(&daemon, &out), 0);

    assert_int_equal(io_write_file_atomic(path, "precious", 8, 0600), 0);
    check_failure(arguments, 1, "is not a socket");
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_size, 8);
}

static void test_needs_root(void **state)
{
    CLEANUP_FREE char *path = unit_path(*state, "socket");
    /* Not by its path: nobody else may look into root's directories. */
    CLEANUP_CLOSE int executable = open(getenv(EXECUTABLE_ENV), O_RDONLY | O_CLOEXEC);
    assert_true(executable >= 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (setuid(65534) < 0)
            _exit(99);
        char *arguments[] = {(char *)"dormoused", (char *)"--socket", path, NULL};
        fexecve(executable, arguments, environ);
        _exit(98);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
}

int main(void)
{
    if (geteuid() != 0 || getenv(EXECUTABLE_ENV) == NULL)
        return 77; /* meson: skipped */
    const struct CMUnitTest tests[] = {
        UNIT_TEST(test_options),
        UNIT_TEST(test_life),
        UNIT_TEST(test_stale_socket),
        UNIT_TEST(test_needs_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
