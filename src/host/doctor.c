#include "host/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/io.h"
#include "base/process.h"
#include "host/memory.h"
#include "image/pages.h"
#include "net/firewall.h"
#include "net/namespace.h"
#include "vmm/cgroup.h"
#include "vmm/vmm.h"

#define GIB                      ((uint64_t)1 << 30)
#define DISK_NEEDED              (2 * GIB) /* the template "base", and a snapshot of a small sandbox */
#define DISK_ADVISED             (10 * GIB)
#define MEMORY_NEEDED            (GIB / 2)
#define MEMORY_ADVISED           (2 * GIB)
#define AS_ROOT                  "sudo dormouse doctor"
#define KVM_MICROVM              "/usr/bin/qemu-system-x86_64-microvm"
#define KVM_API_VERSION_EXPECTED 12

/* What one check finds. */
struct finding {
    enum doctor_status status;
    char *detail;
    char *remedy;
};

struct doctor {
    const char *data_directory;
    char *place; /* the data directory, or the nearest directory above it that exists */
};

static char *format_text(const char *format, va_list arguments)
{
    char *text;
    return vasprintf(&text, format, arguments) < 0 ? NULL : text;
}

static void find(struct finding *finding, enum doctor_status status, const char *format, ...) PRINTF_LIKE(3, 4);
static void advise(struct finding *finding, const char *format, ...) PRINTF_LIKE(2, 3);

static void find(struct finding *finding, enum doctor_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    finding->status = status;
    finding->detail = format_text(format, arguments);
    va_end(arguments);
}

static void advise(struct finding *finding, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    finding->remedy = format_text(format, arguments);
    va_end(arguments);
}

/* ---- privileges, tools ---- */

static void check_root(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    if (geteuid() == 0) {
        find(finding, DOCTOR_OK, "running as root");
        return;
    }
    find(finding, DOCTOR_FAIL, "running as user %u, but sandboxes need root", (unsigned)geteuid());
    advise(finding, AS_ROOT);
}

static void check_kernel(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    struct utsname host;
    unsigned major = 0;
    unsigned minor = 0;
    uname(&host);
    sscanf(host.release, "%u.%u", &major, &minor);
    if (major > 6 || (major == 6 && minor >= 1)) {
        find(finding, DOCTOR_OK, "Linux %s", host.release);
        return;
    }
    find(finding, DOCTOR_WARN, "Linux %s is older than 6.1, the oldest that is tested", host.release);
    advise(finding, "apt-get install linux-image-amd64 && reboot");
}

static void check_qemu(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_FREE char *version = NULL;
    unsigned major = 0;
    unsigned minor = 0;
    int r = vmm_version(VMM_ACCELERATOR_TCG, &version, &err);
    if (r == 0)
        sscanf(version, "qemu %u.%u", &major, &minor);
    if (major > 7 || (major == 7 && minor >= 2)) {
        find(finding, DOCTOR_OK, "%s", version);
        return;
    }
    if (r < 0)
        find(finding, DOCTOR_FAIL, "%s", error_message(&err));
    else
        find(finding, DOCTOR_FAIL, "%s is older than 7.2", version);
    advise(finding, "apt-get install qemu-system-x86");
}

static void check_qemu_microvm(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    if (access(KVM_MICROVM, X_OK) == 0) {
        find(finding, DOCTOR_OK, "%s", KVM_MICROVM);
        return;
    }
    find(finding, DOCTOR_WARN, "%s, which starts faster under KVM, is missing", KVM_MICROVM);
    advise(finding, "apt-get install qemu-system-x86");
}

/* Where PATH finds an executable file; NULL if nowhere. */
static char *find_tool(const char *name)
{
    const char *path = getenv("PATH");
    CLEANUP_FREE char *places = strdup(path != NULL ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
    char *rest = NULL;
    for (char *place = places == NULL ? NULL : strtok_r(places, ":", &rest); place != NULL;
         place = strtok_r(NULL, ":", &rest)) {
        char *candidate;
        struct stat status;
        if (asprintf(&candidate, "%s/%s", place, name) < 0)
            return NULL;
        if (stat(candidate, &status) == 0 && S_ISREG(status.st_mode) && access(candidate, X_OK) == 0)
            return candidate;
        free(candidate);
    }
    return NULL;
}

struct tool {
    const char *name;
    const char *package;
    enum doctor_status without;
    const char *purpose;
};

static const struct tool tools[] = {
    {"nft", "nftables", DOCTOR_FAIL, "sets the firewall of sandboxes"},
    {"mmdebstrap", "mmdebstrap", DOCTOR_FAIL, "makes the file tree of the template 'base'"},
    {"mke2fs", "e2fsprogs", DOCTOR_FAIL, "makes the images of templates"},
    {"cpio", "cpio", DOCTOR_FAIL, "packs the initrd"},
    {"depmod", "kmod", DOCTOR_FAIL, "finds the modules of the guests' kernel"},
    {"modprobe", "kmod", DOCTOR_FAIL, "finds the modules of the guests' kernel"},
    {"tar", "tar", DOCTOR_FAIL, "unpacks the sources of templates"},
    {"ip", "iproute2", DOCTOR_WARN, "looks into the namespaces of sandboxes"},
};

static void check_tool(const struct tool *tool, struct finding *finding)
{
    CLEANUP_FREE char *path = find_tool(tool->name);
    if (path != NULL) {
        find(finding, DOCTOR_OK, "%s", path);
        return;
    }
    find(finding, tool->without, "%s, which %s, is not in PATH", tool->name, tool->purpose);
    advise(finding, "apt-get install %s", tool->package);
}

/* ---- network ---- */

static void check_device(const char *path, const char *module, struct finding *finding)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    int code = errno;
    if (fd >= 0) {
        find(finding, DOCTOR_OK, "%s opens", path);
        return;
    }
    if (code == EACCES || code == EPERM)
        advise(finding, AS_ROOT);
    else
        advise(finding, "modprobe %s", module);
    find(finding, DOCTOR_FAIL, "cannot open %s: %s", path, strerror(code));
}

static void check_tun(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    check_device("/dev/net/tun", "tun", finding);
}

static int install_rules(void *context, struct error *err)
{
    (void)context;
    struct range range = {10u << 24}; /* any: nothing is sent */
    return firewall_install_inside(&range, err);
}

static void check_network(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    int r = namespace_run(-1, install_rules, NULL, &err);
    if (r == 0) {
        find(finding, DOCTOR_OK, "a network namespace takes the rules of a sandbox, NAT included");
        return;
    }
    find(finding, DOCTOR_FAIL, "%s", error_message(&err));
    advise(finding, "%s", r == -EPERM ? AS_ROOT : err.hint != NULL ? err.hint : "modprobe nf_tables nft_masq");
}

/* Docker and ufw drop what is forwarded and not theirs; whatever our own table accepts. */
static void check_forwarding(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    static const char *const arguments[] = {"sh", "-c",
                                            "nft list chain ip filter FORWARD | grep -q 'policy drop' && "
                                            "! nft list table ip filter | grep -q '" NAMESPACE_VETH_PREFIX "'",
                                            NULL};
    if (process_run(arguments, NULL) != 0) {
        find(finding, DOCTOR_OK, "no other firewall is known to drop what sandboxes send");
        return;
    }
    find(finding, DOCTOR_WARN,
         "another firewall (Docker, ufw) drops forwarded packets: guests can't reach the outside");
    advise(finding, "iptables -I FORWARD -i " NAMESPACE_VETH_PREFIX
                    "+ -j ACCEPT && iptables -I FORWARD -o " NAMESPACE_VETH_PREFIX "+ -j ACCEPT");
}

/* ---- kernel interfaces ---- */

/* 1: the verdict is that KVM works; 0: that it does not; -ENOENT: there is none. */
static int read_kvm_verdict(const struct doctor *doctor, char **ret_path)
{
    CLEANUP_FREE char *text = NULL;
    if (asprintf(ret_path, "%s/kvm-verdict", doctor->data_directory) < 0) {
        *ret_path = NULL;
        return -ENOMEM;
    }
    int r = io_read_file(*ret_path, 4096, &text, NULL);
    return r < 0 ? r : strncmp(text, "works\n", strlen("works\n")) == 0;
}

static void check_kvm(const struct doctor *doctor, struct finding *finding)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_CLOSE int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        int code = errno;
        find(finding, DOCTOR_WARN, "cannot open /dev/kvm (%s): guests are emulated, which is slower",
             strerror(code));
        advise(finding, "%s", code == EACCES ? AS_ROOT : "modprobe kvm_intel || modprobe kvm_amd");
        return;
    }
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION_EXPECTED) {
        find(finding, DOCTOR_WARN, "/dev/kvm has an unknown interface (%d): guests are emulated, which is slower",
             version);
        advise(finding, "apt-get install linux-image-amd64 && reboot");
        return;
    }
    int verdict = read_kvm_verdict(doctor, &path);
    if (verdict > 0) {
        find(finding, DOCTOR_OK, "KVM has run a guest here");
    } else if (verdict < 0) {
        find(finding, DOCTOR_OK, "/dev/kvm is there; the first template build finds out whether it runs a guest");
    } else {
        find(finding, DOCTOR_WARN,
             "/dev/kvm is there, but has failed to run a guest: guests are emulated, which is slower");
        advise(finding, "rm '%s'    (to try again, after a change to this host)", path);
    }
}

static void check_pagemap(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    CLEANUP_CLOSE int fd = page_map_open(getpid(), &err);
    if (fd < 0) {
        find(finding, DOCTOR_FAIL, "%s", error_message(&err));
        advise(finding, AS_ROOT);
    } else if (page_scan_supported(fd)) {
        find(finding, DOCTOR_OK, "the kernel has PAGEMAP_SCAN");
    } else {
        find(finding, DOCTOR_WARN, "the kernel is older than 6.7 and has no PAGEMAP_SCAN: pauses take longer");
        advise(finding, "apt-get install --target-release bookworm-backports linux-image-amd64 && reboot");
    }
}

/* A device node to ask for descriptors, or the system call. */
static bool has_userfaultfd(void)
{
    CLEANUP_CLOSE int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    CLEANUP_CLOSE int fd =
        device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) : (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    return fd >= 0;
}

static void check_userfaultfd(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    if (has_userfaultfd()) {
        find(finding, DOCTOR_OK, "there");
        return;
    }
    int code = errno;
    find(finding, DOCTOR_WARN, "not usable (%s); this version does without it", strerror(code));
    advise(finding, "%s", code == EPERM ? AS_ROOT : "apt-get install linux-image-amd64 && reboot");
}

static void check_fuse(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    check_device("/dev/fuse", "fuse", finding);
}

static void check_cgroup(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    const char *hierarchy = cgroup_hierarchy();
    CLEANUP_FREE char *lacking = hierarchy != NULL ? cgroup_lacking(hierarchy) : NULL;
    if (lacking != NULL && lacking[0] == '\0') {
        find(finding, DOCTOR_OK, "version 2 at %s bounds memory, processes and CPU of each VMM", hierarchy);
        return;
    }
    if (hierarchy == NULL)
        find(finding, DOCTOR_WARN, "no hierarchy of version 2 is mounted: VMMs run without bounds");
    else
        find(finding, DOCTOR_WARN, "version 2 at %s lacks %s: VMMs run without these bounds", hierarchy,
             lacking != NULL ? lacking : "controllers");
    advise(finding, "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX systemd.unified_cgroup_hierarchy=1\"' "
                    ">/etc/default/grub.d/cgroup.cfg && update-grub && reboot");
}

/* ---- resources ---- */

static enum doctor_status judge_room(uint64_t available, uint64_t needed, uint64_t advised)
{
    if (available < needed)
        return DOCTOR_FAIL;
    return available < advised ? DOCTOR_WARN : DOCTOR_OK;
}

static void check_disk(const struct doctor *doctor, struct finding *finding)
{
    struct statvfs status;
    if (statvfs(doctor->place, &status) < 0) {
        find(finding, DOCTOR_FAIL, "cannot look at %s: %s", doctor->place, strerror(errno));
        advise(finding, "ls -ld %s", doctor->place);
        return;
    }
    uint64_t available = (uint64_t)status.f_bavail * status.f_frsize;
    enum doctor_status verdict = judge_room(available, DISK_NEEDED, DISK_ADVISED);
    find(finding, verdict, "%llu MiB free in %s", (unsigned long long)(available >> 20), doctor->place);
    if (verdict != DOCTOR_OK)
        advise(finding, "df -h    (free some space, or start dormoused with --data on a larger disk)");
}

static void check_memory(const struct doctor *doctor, struct finding *finding)
{
    (void)doctor;
    uint64_t available;
    if (host_memory_available(&available) < 0) {
        find(finding, DOCTOR_WARN, "cannot tell from /proc/meminfo");
        advise(finding, "mount -t proc proc /proc");
        return;
    }
    enum doctor_status verdict = judge_room(available, MEMORY_NEEDED, MEMORY_ADVISED);
    find(finding, verdict, "%llu MiB available", (unsigned long long)(available >> 20));
    if (verdict != DOCTOR_OK)
        advise(finding, "ps aux --sort=-rss | head    (end what uses memory)");
}

/* ---- the report ---- */

static const struct {
    const char *name;
    void (*check)(const struct doctor *doctor, struct finding *finding);
} checks[] = {
    {"root", check_root},       {"kernel", check_kernel},
    {"qemu", check_qemu},       {"qemu-microvm", check_qemu_microvm},
    {"kvm", check_kvm},         {"tun", check_tun},
    {"network", check_network}, {"forwarding", check_forwarding},
    {"pagemap", check_pagemap}, {"userfaultfd", check_userfaultfd},
    {"fuse", check_fuse},       {"cgroup", check_cgroup},
    {"disk", check_disk},       {"memory", check_memory},
};

static int add_check(struct doctor_report *report, const char *name, struct finding *finding)
{
    report->checks[report->count++] =
        (struct doctor_check){name, finding->status, finding->detail, finding->remedy};
    bool complete = finding->detail != NULL && (finding->status == DOCTOR_OK || finding->remedy != NULL);
    return complete ? 0 : -ENOMEM;
}

static char *nearest_directory(const char *path)
{
    char *place = strdup(path);
    while (place != NULL && access(place, F_OK) < 0) {
        char *slash = strrchr(place, '/');
        if (slash == NULL || slash == place) {
            free(place);
            return strdup(slash == NULL ? "." : "/");
        }
        *slash = '\0';
    }
    return place;
}

int doctor_examine(const char *data_directory, struct doctor_report *ret, struct error *err)
{
    CLEANUP_FREE char *place = nearest_directory(data_directory);
    CLEANUP_DOCTOR_REPORT struct doctor_report report = {
        calloc(ARRAY_SIZE(checks) + ARRAY_SIZE(tools), sizeof(*report.checks)), 0};
    const struct doctor doctor = {data_directory, place};
    int r = place == NULL || report.checks == NULL ? -ENOMEM : 0;
    for (size_t i = 0; i < ARRAY_SIZE(checks) && r == 0; i++) {
        struct finding finding = {0};
        checks[i].check(&doctor, &finding);
        r = add_check(&report, checks[i].name, &finding);
    }
    for (size_t i = 0; i < ARRAY_SIZE(tools) && r == 0; i++) {
        struct finding finding = {0};
        check_tool(&tools[i], &finding);
        r = add_check(&report, tools[i].name, &finding);
    }
    if (r < 0)
        return error_set(err, ENOMEM, "out of memory");
    *ret = report;
    report = (struct doctor_report){NULL, 0};
    return 0;
}

const char *doctor_status_name(enum doctor_status status)
{
    static const char *const names[] = {[DOCTOR_OK] = "ok", [DOCTOR_WARN] = "warn", [DOCTOR_FAIL] = "fail"};
    return names[status];
}

void doctor_report_done(struct doctor_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        free(report->checks[i].detail);
        free(report->checks[i].remedy);
    }
    free(report->checks);
    *report = (struct doctor_report){NULL, 0};
}
