/* The jail with real programs, and the QMP client against a peer that misbehaves. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/unix_socket.h"
#include "unit.h"
#include "vmm/jail.h"
#include "vmm/qmp.h"
#include "vmm/syscall_filter.h"
#include "vmm/vmm.h"

#define JAIL_UID 812345

/* Runs a shell script in a jail and returns its exit status; its output goes to *ret_output. */
static int run_in_jail(const char *directory, const char *script, const struct jail_descriptor *descriptors,
                       size_t count, char **ret_output)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int output[2];
    assert_int_equal(pipe2(output, O_CLOEXEC), 0);
    char *arguments[] = {(char *)"/usr/bin/sh", (char *)"-c", (char *)script, NULL};
    char *environment[] = {(char *)"PATH=/usr/bin", NULL};
    struct jail_options options = {
        .directory = directory,
        .arguments = arguments,
        .environment = environment,
        .descriptors = descriptors,
        .descriptor_count = count,
        .log_fd = output[1],
        .namespace_fd = -1,
        .uid = JAIL_UID,
        .gid = JAIL_UID,
    };
    pid_t pid;
    int pidfd;
    if (jail_spawn(&options, &pid, &pidfd, &err) < 0)
        fail_msg("%s", error_message(&err));
    close(pidfd);
    close(output[1]);
    char *text = calloc(1, 65536);
    assert_true(io_read_full(output[0], text, 65535) >= 0);
    close(output[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    *ret_output = text;
    return WEXITSTATUS(status);
}

static void a_jail_shows_nothing_of_the_host(void **state)
{
    CLEANUP_FREE char *output = NULL;
    int status = run_in_jail(*state, "echo /*; echo /dev/*; id -u; id -g; cat /etc/passwd; ls /proc/1; echo $$",
                             NULL, 0, &output);
    assert_int_equal(status, 0);
    assert_non_null(strstr(output, "/bin /dev /etc /lib /lib64 /usr /vm\n/dev/null /dev/urandom /dev/zero\n"));
    assert_non_null(strstr(output, "812345\n812345\n"));
    assert_non_null(strstr(output, "/etc/passwd: No such file"));
    assert_non_null(strstr(output, "/proc/1'"));
    assert_string_equal(output + strlen(output) - 3, "\n1\n"); /* it is process 1 of its own namespace */
}

static void a_jail_cannot_write_or_gain_anything(void **state)
{
    CLEANUP_FREE char *output = NULL;
    run_in_jail(*state,
                "touch /usr/x /x /vm/x; mount -t tmpfs none /vm; grep -E 'CapEff|NoNewPrivs' /proc/self/status; "
                "chown 0 /vm; ulimit -c; echo end",
                NULL, 0, &output);
    assert_non_null(strstr(output, "'/usr/x': Read-only file system"));
    assert_non_null(strstr(output, "'/x': Permission denied"));
    assert_non_null(strstr(output, "'/vm/x': Permission denied"));
    assert_non_null(strstr(output, "mount: "));
    assert_non_null(strstr(output, "\n0\nend\n"));
    CLEANUP_FREE char *file = unit_path(*state, "x");
    assert_int_equal(access(file, F_OK), -1);
}

static void descriptors_arrive_where_they_should(void **state)
{
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(io_write_full(pipes[1], "hello\n", 6), 0);
    close(pipes[1]);
    struct jail_descriptor descriptors[] = {{pipes[0], 5}};
    CLEANUP_FREE char *output = NULL;
    run_in_jail(*state, "cat <&5; (echo x >&7) 2>/dev/null || echo no 7", descriptors, 1, &output);
    close(pipes[0]);
    assert_string_equal(output, "hello\nno 7\n");
}

static void a_jail_names_the_step_that_failed(void **state)
{
    (void)state;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    char *arguments[] = {(char *)"/usr/bin/no-such-program", NULL};
    char *environment[] = {NULL};
    CLEANUP_CLOSE int log_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct jail_options options = {.directory = *state,
                                   .arguments = arguments,
                                   .environment = environment,
                                   .log_fd = log_fd,
                                   .namespace_fd = -1,
                                   .uid = JAIL_UID,
                                   .gid = JAIL_UID};
    pid_t pid;
    int pidfd;
    assert_int_equal(jail_spawn(&options, &pid, &pidfd, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "executing the program"));
    options.directory = "/nonexistent";
    assert_int_equal(jail_spawn(&options, &pid, &pidfd, &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "mounting the jail's root"));
}

/* ---- the filter of system calls ---- */

#define SIX_PAGES ((size_t)6 * 4096)

static int map_errno(size_t length, int protection, int flags, int fd, off_t offset)
{
    void *place = mmap(NULL, length, protection, flags, fd, offset);
    return place == MAP_FAILED ? errno : 0;
}

/* Returns the line of the first expectation that isn't met, or 0. */
static int try_calls(bool kvm, int fd)
{
    const int both = PROT_READ | PROT_WRITE;
#define EXPECT(condition)                                                                                          \
    do {                                                                                                           \
        if (!(condition))                                                                                          \
            return __LINE__;                                                                                       \
    } while (0)
    uint8_t *before = mmap(NULL, SIX_PAGES, PROT_READ, MAP_SHARED, fd, 0);
    uint8_t *own = mmap(NULL, SIX_PAGES, both, MAP_PRIVATE, fd, 0);
    EXPECT(before != MAP_FAILED && own != MAP_FAILED);
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall_filter_install(kvm) == 0);

    EXPECT(map_errno(SIX_PAGES, both, MAP_SHARED, fd, 0) == EACCES);
    EXPECT(map_errno(SIX_PAGES, PROT_READ, MAP_SHARED, fd, 0) == EACCES); /* mprotect would add to it */
    EXPECT(map_errno(SIX_PAGES, both, MAP_SHARED_VALIDATE, fd, 0) == EACCES);
    EXPECT(map_errno(4096, both, MAP_SHARED, fd, 4096) == EACCES);
    EXPECT(map_errno((SIZE_MAX >> 20 << 12) + 4096, both, MAP_SHARED, fd, 0) == EACCES); /* 4096 in its low half */
    EXPECT(map_errno(4096, both, MAP_SHARED, fd, (off_t)1 << 32) == EACCES);
    EXPECT(map_errno(3 * 4096, both, MAP_SHARED, fd, 0) == (kvm ? 0 : EACCES));
    EXPECT(mremap(before, 4096, SIX_PAGES, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOSYS);
    EXPECT(syscall(SYS_remap_file_pages, before, 4096, 0, 1, 0) == -1 && errno == ENOSYS);
    EXPECT(syscall(SYS_mmap | 0x40000000, NULL, 4096, both, MAP_SHARED, fd, 0) == -1 && errno == ENOSYS);

    EXPECT(map_errno(SIX_PAGES, both, MAP_PRIVATE, fd, 0) == 0);
    EXPECT(map_errno(SIX_PAGES, both, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == 0);
    EXPECT(madvise(own, SIX_PAGES, MADV_DONTNEED) == 0);
    EXPECT(madvise((void *)1, SIX_PAGES, MADV_HUGEPAGE) == 0); /* the kernel isn't asked */
    EXPECT(madvise((void *)1, SIX_PAGES, MADV_DONTNEED) == -1);
    char *grown = realloc(malloc(1 << 20), 4 << 20);
    EXPECT(grown != NULL);
#undef EXPECT
    free(grown);
    return 0;
}

static void nothing_is_shared_with_a_vmm(void **state)
{
    (void)state;
    CLEANUP_CLOSE int fd = memfd_create("image", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)SIX_PAGES), 0);
    for (int kvm = 0; kvm < 2; kvm++) {
        int line[2];
        assert_int_equal(pipe2(line, O_CLOEXEC), 0);
        pid_t pid = fork();
        if (pid == 0) {
            int failed = try_calls(kvm != 0, fd);
            _exit(write(line[1], &failed, sizeof(failed)) == (ssize_t)sizeof(failed) ? 0 : 1);
        }
        close(line[1]);
        int failed = -1;
        assert_int_equal(io_read_full(line[0], &failed, sizeof(failed)), sizeof(failed));
        close(line[0]);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        if (failed != 0)
            fail_msg("with kvm %d: line %d", kvm, failed);
    }
}

/* ---- QMP ---- */

struct peer {
    int listening;
    const char *answer;
    size_t repeat; /* the answer is sent so many times */
};

static void *run_peer(void *context)
{
    struct peer *peer = context;
    int fd = accept(peer->listening, NULL, NULL);
    char request[4096];
    (void)!read(fd, request, sizeof(request));
    for (size_t i = 0; i < peer->repeat; i++)
        if (send(fd, peer->answer, strlen(peer->answer), MSG_NOSIGNAL) < 0)
            break;
    shutdown(fd, SHUT_WR);
    while (read(fd, request, sizeof(request)) > 0)
        ;
    close(fd);
    return NULL;
}

static int execute_against(const char *directory, const char *answer, size_t repeat, const char *event,
                           struct error *err)
{
    CLEANUP_FREE char *path = unit_path(directory, "qmp");
    unlink(path);
    struct peer peer = {unix_socket_listen(path, err), answer, repeat};
    assert_true(peer.listening >= 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_peer, &peer), 0);
    struct qmp *qmp = NULL;
    assert_int_equal(qmp_connect(path, &qmp, err), 0);
    assert_int_equal(qmp_negotiate(qmp, err), 0);
    json_t *value = NULL;
    int r = qmp_execute(qmp, "stop", NULL, 10000, &value, err);
    json_decref(value);
    if (r == 0 && event != NULL)
        r = qmp_wait_event(qmp, event, 10000, NULL, err);
    qmp_free(qmp);
    pthread_join(thread, NULL);
    close(peer.listening);
    return r;
}

static void replies_are_told_from_events_and_others(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *answer = "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n{\"event\": \"STOP\"}\n"
                         "{\"event\": \"OTHER\"}\n{\"return\": {\"a\": 1}, \"id\": 2}\n";
    assert_int_equal(execute_against(*state, answer, 1, "STOP", &err), 0);
    assert_int_equal(execute_against(*state, answer, 1, "NEVER", &err), -EPIPE);
}

static void a_refusal_carries_its_reason(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *answer = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}, \"id\": 2}\n";
    assert_int_equal(execute_against(*state, answer, 1, NULL, &err), -EREMOTEIO);
    assert_non_null(strstr(error_message(&err), "not now"));
}

static void a_misbehaving_peer_only_fails_the_call(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    assert_int_equal(execute_against(*state, "not json\n", 1, NULL, &err), -EBADMSG);
    assert_int_equal(execute_against(*state, "[1]\n", 1, NULL, &err), -EBADMSG);
    assert_int_equal(execute_against(*state, "", 1, NULL, &err), -EPIPE);
    assert_int_equal(execute_against(*state, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", QMP_MESSAGE_MAX, NULL, &err),
                     -EBADMSG);
    assert_int_equal(execute_against(*state, "{\"event\": \"E\"}\n", 100, NULL, &err), -EPIPE);
}

/* Answers the command that comes after the capabilities with what the descriptor passed with it holds. */
static void *read_passed_descriptor(void *context)
{
    int fd = accept(*(int *)context, NULL, NULL);
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr alignment;
    } control = {0};
    char request[4096];
    struct iovec body = {request, sizeof(request)};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
    struct cmsghdr *header = NULL;
    while (header == NULL && message.msg_flags == 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        if (recvmsg(fd, &message, 0) <= 0)
            break;
        header = CMSG_FIRSTHDR(&message);
    }
    char text[16] = "";
    if (header != NULL) {
        int passed;
        memcpy(&passed, CMSG_DATA(header), sizeof(passed));
        (void)!read(passed, text, sizeof(text) - 1);
        close(passed);
    }
    dprintf(fd, "{\"error\": {\"desc\": \"it holds %s\"}, \"id\": 2}\n", text);
    close(fd);
    return NULL;
}

static void a_descriptor_goes_with_its_command(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *path = unit_path(*state, "qmp");
    unlink(path);
    CLEANUP_CLOSE int listening = unix_socket_listen(path, &err);
    assert_true(listening >= 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_passed_descriptor, &listening), 0);
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(io_write_full(pipes[1], "treasure", 8), 0);
    close(pipes[1]);
    struct qmp *qmp = NULL;
    assert_int_equal(qmp_connect(path, &qmp, &err), 0);
    assert_int_equal(qmp_negotiate(qmp, &err), 0);
    assert_int_equal(qmp_execute_with_fd(qmp, "getfd", NULL, pipes[0], 10000, &err), -EREMOTEIO);
    assert_non_null(strstr(error_message(&err), "it holds treasure"));
    close(pipes[0]);
    qmp_free(qmp);
    pthread_join(thread, NULL);
}

static void a_dead_process_is_not_adopted(void **state)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct vmm *vmm = NULL;
    assert_int_equal(vmm_adopt(*state, getpid(), 1, &vmm, &err), -ESRCH);
    assert_null(vmm);
}

int main(void)
{
    if (geteuid() != 0) {
        fputs("skipped: a jail needs root\n", stderr);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        UNIT_TEST(a_jail_shows_nothing_of_the_host),     UNIT_TEST(a_jail_cannot_write_or_gain_anything),
        UNIT_TEST(descriptors_arrive_where_they_should), UNIT_TEST(a_jail_names_the_step_that_failed),
        UNIT_TEST(nothing_is_shared_with_a_vmm),         UNIT_TEST(replies_are_told_from_events_and_others),
        UNIT_TEST(a_refusal_carries_its_reason),         UNIT_TEST(a_misbehaving_peer_only_fails_the_call),
        UNIT_TEST(a_dead_process_is_not_adopted),        UNIT_TEST(a_descriptor_goes_with_its_command),
    };
    return cmocka_run_group_tests_name("vmm", tests, NULL, NULL);
}
