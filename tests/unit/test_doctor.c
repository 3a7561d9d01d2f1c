/*
 * The doctor against the facts of the machine it runs on, and against machines that lack something: another PATH, a
 * full disk, a host firewall, no privileges. What needs root is skipped without, with a message.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "host/doctor.h"

#define QEMU   "/usr/bin/qemu-system-x86_64"
#define NOBODY 65534

static char directory[] = "/tmp/test-doctor-XXXXXX";

static struct doctor_report examine(const char *data_directory)
{
    struct doctor_report report;
    assert_int_equal(doctor_examine(data_directory, &report, NULL), 0);
    return report;
}

static const struct doctor_check *find_check(const struct doctor_report *report, const char *name)
{
    const struct doctor_check *found = NULL;
    for (size_t i = 0; i < report->count; i++) {
        if (strcmp(report->checks[i].name, name) == 0) {
            assert_null(found); /* names are unique */
            found = &report->checks[i];
        }
    }
    assert_non_null(found);
    return found;
}

static void assert_status(const struct doctor_report *report, const char *name, enum doctor_status status)
{
    const struct doctor_check *check = find_check(report, name);
    if (check->status != status)
        fail_msg("%s is %s: %s", name, doctor_status_name(check->status), check->detail);
}

static void assert_advice(const struct doctor_report *report, const char *name, const char *part)
{
    const struct doctor_check *check = find_check(report, name);
    assert_non_null(check->remedy);
    if (strstr(check->remedy, part) == NULL)
        fail_msg("the remedy for %s is: %s", name, check->remedy);
}

static void assert_detail(const struct doctor_report *report, const char *name, const char *part)
{
    const struct doctor_check *check = find_check(report, name);
    if (strstr(check->detail, part) == NULL)
        fail_msg("the detail of %s is: %s", name, check->detail);
}

static void skip_unless_root(const char *test)
{
    if (geteuid() == 0)
        return;
    print_message("%s: skipped: needs root\n", test);
    skip();
}

/* ---- */

static void test_every_lack_has_a_remedy(void **state)
{
    (void)state;
    CLEANUP_DOCTOR_REPORT struct doctor_report report = examine(directory);
    assert_true(report.count > 20);
    for (size_t i = 0; i < report.count; i++) {
        const struct doctor_check *check = &report.checks[i];
        find_check(&report, check->name);
        assert_non_null(check->detail);
        if (check->status == DOCTOR_OK)
            assert_null(check->remedy);
        else
            assert_non_null(check->remedy);
    }
}

static void test_facts_of_this_machine(void **state)
{
    (void)state;
    CLEANUP_DOCTOR_REPORT struct doctor_report report = examine(directory);
    struct utsname host;
    unsigned major = 0;
    unsigned minor = 0;
    assert_int_equal(uname(&host), 0);
    assert_int_equal(sscanf(host.release, "%u.%u", &major, &minor), 2);
    assert_detail(&report, "kernel", host.release);
    assert_status(&report, "root", geteuid() == 0 ? DOCTOR_OK : DOCTOR_FAIL);
    assert_status(&report, "pagemap", major * 100 + minor >= 607 ? DOCTOR_OK : DOCTOR_WARN);
    assert_status(&report, "cgroup",
                  access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0 ? DOCTOR_OK : DOCTOR_WARN);
    assert_status(&report, "fuse", access("/dev/fuse", R_OK | W_OK) == 0 ? DOCTOR_OK : DOCTOR_FAIL);
    assert_status(&report, "tun", access("/dev/net/tun", R_OK | W_OK) == 0 ? DOCTOR_OK : DOCTOR_FAIL);

    struct sysinfo info;
    unsigned long available = 0;
    assert_int_equal(sysinfo(&info), 0);
    assert_int_equal(sscanf(find_check(&report, "memory")->detail, "%lu MiB", &available), 1);
    assert_in_range(available, info.freeram * info.mem_unit / 2 >> 20, info.totalram * info.mem_unit >> 20);
    if (available > 4096)
        assert_status(&report, "memory", DOCTOR_OK);
}

static void test_qemu_is_asked_for_its_version(void **state)
{
    (void)state;
    CLEANUP_DOCTOR_REPORT struct doctor_report report = examine(directory);
    if (access(QEMU, X_OK) < 0) {
        assert_status(&report, "qemu", DOCTOR_FAIL);
        assert_advice(&report, "qemu", "apt-get install qemu-system-x86");
        return;
    }
    char version[64] = "";
    FILE *pipe = popen(QEMU " --version", "r");
    assert_non_null(pipe);
    assert_int_equal(fscanf(pipe, "QEMU emulator version %63[0-9.]", version), 1);
    pclose(pipe);
    assert_detail(&report, "qemu", version);
    assert_status(&report, "qemu", strtod(version, NULL) >= 7.2 ? DOCTOR_OK : DOCTOR_FAIL);
}

static void make_file(const char *name, mode_t mode)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    CLEANUP_CLOSE int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, mode);
    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, mode), 0);
}

static void test_tools_are_looked_up_in_path(void **state)
{
    (void)state;
    CLEANUP_FREE char *path = strdup(getenv("PATH"));
    make_file("cpio", 0755);
    make_file("mmdebstrap", 0644);
    char mke2fs[128];
    snprintf(mke2fs, sizeof(mke2fs), "%s/mke2fs", directory);
    assert_int_equal(mkdir(mke2fs, 0755), 0);
    assert_int_equal(setenv("PATH", directory, 1), 0);
    CLEANUP_DOCTOR_REPORT struct doctor_report report = examine(directory);
    assert_int_equal(setenv("PATH", path, 1), 0);
    assert_status(&report, "cpio", DOCTOR_OK);
    assert_detail(&report, "cpio", directory);
    assert_status(&report, "mmdebstrap", DOCTOR_FAIL); /* not executable */
    assert_status(&report, "mke2fs", DOCTOR_FAIL);     /* not a file */
    assert_status(&report, "ip", DOCTOR_WARN);
    assert_status(&report, "nft", DOCTOR_FAIL);
    assert_status(&report, "network", DOCTOR_FAIL);
    assert_advice(&report, "mke2fs", "apt-get install e2fsprogs");
    assert_advice(&report, "depmod", "apt-get install kmod");
    assert_advice(&report, "nft", "apt-get install nftables");
}

static void write_verdict(const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/kvm-verdict", directory);
    assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0600), 0);
}

static void test_kvm_verdict_is_read(void **state)
{
    (void)state;
    bool usable = access("/dev/kvm", R_OK | W_OK) == 0;
    CLEANUP_DOCTOR_REPORT struct doctor_report without = examine(directory);
    write_verdict("works\nlinux 6.1 qemu 7.2\n");
    CLEANUP_DOCTOR_REPORT struct doctor_report good = examine(directory);
    write_verdict("does not run a guest\nlinux 6.1 qemu 7.2\n");
    CLEANUP_DOCTOR_REPORT struct doctor_report bad = examine(directory);
    assert_status(&bad, "kvm", DOCTOR_WARN);
    if (!usable) {
        assert_status(&without, "kvm", DOCTOR_WARN);
        assert_status(&good, "kvm", DOCTOR_WARN);
        assert_detail(&good, "kvm", "/dev/kvm");
        return;
    }
    assert_status(&without, "kvm", DOCTOR_OK);
    assert_detail(&without, "kvm", "first template build");
    assert_status(&good, "kvm", DOCTOR_OK);
    assert_detail(&good, "kvm", "has run a guest");
    assert_detail(&bad, "kvm", "failed to run a guest");
    assert_advice(&bad, "kvm", directory);
}

static void test_a_disk_is_looked_at_where_the_data_will_be(void **state)
{
    (void)state;
    char absent[128];
    snprintf(absent, sizeof(absent), "%s/not/there/yet", directory);
    CLEANUP_DOCTOR_REPORT struct doctor_report report = examine(absent);
    assert_detail(&report, "disk", directory);
    assert_int_equal(access(absent, F_OK), -1); /* a check makes nothing */
}

/* ---- machines that lack something ---- */

/* Runs the function, which makes no assertions, in a process of its own; it is right when it returns 0. */
static int run_apart(int (*function)(void))
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(function());
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The status of a check, or a negative errno. */
static int status_of(const char *data_directory, const char *name)
{
    CLEANUP_DOCTOR_REPORT struct doctor_report report = {NULL, 0};
    int r = doctor_examine(data_directory, &report, NULL);
    for (size_t i = 0; r == 0 && i < report.count; i++)
        if (strcmp(report.checks[i].name, name) == 0)
            return (int)report.checks[i].status;
    return r < 0 ? r : -ENOENT;
}

static int look_without_privileges(void)
{
    if (setresuid(NOBODY, NOBODY, NOBODY) < 0)
        return 1;
    return status_of("/", "root") == DOCTOR_FAIL && status_of("/", "network") == DOCTOR_FAIL ? 0 : 2;
}

static int look_at_disks(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) < 0 ||
        mount("small", directory, "tmpfs", 0, "size=16m") < 0)
        return 1;
    if (status_of(directory, "disk") != DOCTOR_FAIL)
        return 2;
    if (mount("", directory, "", MS_REMOUNT, "size=4g") < 0 || status_of(directory, "disk") != DOCTOR_WARN)
        return 3;
    if (mount("", directory, "", MS_REMOUNT, "size=40g") < 0 || status_of(directory, "disk") != DOCTOR_OK)
        return 4;
    return 0;
}

static int look_at_firewalls(void)
{
    if (unshare(CLONE_NEWNET) < 0 || status_of("/", "network") != DOCTOR_OK)
        return 1;
    if (status_of("/", "forwarding") != DOCTOR_OK)
        return 2;
    if (system("nft 'table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; "
               "}'") != 0 ||
        status_of("/", "forwarding") != DOCTOR_WARN)
        return 3;
    if (system("nft 'add rule ip filter FORWARD iifname \"dmh*\" accept'") != 0 ||
        status_of("/", "forwarding") != DOCTOR_OK)
        return 4;
    /* The trial left nothing. */
    return system("nft list table inet dormouse 2>/dev/null") != 0 ? 0 : 5;
}

static void test_lack_of_privileges_is_a_failure(void **state)
{
    (void)state;
    skip_unless_root(__func__);
    assert_int_equal(run_apart(look_without_privileges), 0);
}

static void test_small_disk_is_a_failure(void **state)
{
    (void)state;
    skip_unless_root(__func__);
    assert_int_equal(run_apart(look_at_disks), 0);
}

static void test_foreign_firewall_is_noticed(void **state)
{
    (void)state;
    skip_unless_root(__func__);
    assert_int_equal(run_apart(look_at_firewalls), 0);
}

static int make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int remove_directory(void **state)
{
    (void)state;
    return io_remove_tree(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_lack_has_a_remedy),
        cmocka_unit_test(test_facts_of_this_machine),
        cmocka_unit_test(test_qemu_is_asked_for_its_version),
        cmocka_unit_test(test_tools_are_looked_up_in_path),
        cmocka_unit_test(test_kvm_verdict_is_read),
        cmocka_unit_test(test_a_disk_is_looked_at_where_the_data_will_be),
        cmocka_unit_test(test_lack_of_privileges_is_a_failure),
        cmocka_unit_test(test_small_disk_is_a_failure),
        cmocka_unit_test(test_foreign_firewall_is_noticed),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
