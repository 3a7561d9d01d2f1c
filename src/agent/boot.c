#include "agent/boot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/control_port.h"
#include "agent/etc.h"
#include "base/io.h"

#define MODULE_ORDER       "/modules/order"
#define MODULE_ORDER_LIMIT (64 * 1024)
#define DEVICE_WAIT_NS     (10 * INT64_C(1000000000))

struct mount_point {
    const char *type;
    const char *path;
    unsigned long flags;
    const char *options;
    mode_t mode;
    bool optional;
};

static int mount_all(const struct mount_point *points, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        const struct mount_point *point = &points[i];
        mkdir(point->path, point->mode);
        if (mount(point->type, point->path, point->type, point->flags, point->options) < 0 && !point->optional)
            return error_errno(err, "cannot mount %s at %s", point->type, point->path);
    }
    return 0;
}

int boot_mount_early(struct error *err)
{
    static const struct mount_point points[] = {
        {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, 0555, false},
        {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, 0555, false},
        {"devtmpfs", "/dev", MS_NOSUID, "mode=0755", 0755, false},
    };
    return mount_all(points, ARRAY_SIZE(points), err);
}

static int load_module(const char *name, struct error *err)
{
    CLEANUP_FREE char *path = NULL;
    if (asprintf(&path, "/modules/%s.ko", name) < 0) {
        path = NULL;
        return error_set(err, ENOMEM, "no memory to load the module %s", name);
    }
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, "cannot open the module %s", path);
    if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
        return error_errno(err, "cannot load the module %s", path);
    return 0;
}

int boot_load_modules(struct error *err)
{
    CLEANUP_FREE char *order = NULL;
    int r = io_read_file(MODULE_ORDER, MODULE_ORDER_LIMIT, &order, NULL);
    if (r < 0)
        return error_code(err, r, "cannot read %s", MODULE_ORDER);
    char *rest = NULL;
    for (char *name = strtok_r(order, " \t\r\n", &rest); name != NULL; name = strtok_r(NULL, " \t\r\n", &rest)) {
        r = load_module(name, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int open_device_events(struct error *err)
{
    CLEANUP_CLOSE int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_errno(err, "cannot listen for the kernel's device events");
    return TAKE_FD(fd);
}

static bool devices_present(void)
{
    char port[CONTROL_PORT_PATH_MAX];
    return access(BOOT_ROOT_DISK, F_OK) == 0 && control_port_find(port) == 0;
}

int boot_wait_for_devices(struct error *err)
{
    CLEANUP_CLOSE int events = open_device_events(err);
    if (events < 0)
        return events;
    int64_t deadline_ns = clock_monotonic_ns() + DEVICE_WAIT_NS;
    /* The events only say that it is worth looking again, so their content is dropped. */
    while (!devices_present()) {
        int64_t left_ns = deadline_ns - clock_monotonic_ns();
        struct pollfd wait = {.fd = events, .events = POLLIN};
        if (left_ns <= 0 || poll(&wait, 1, (int)(left_ns / 1000000) + 1) < 0)
            return error_set(err, ENODEV,
                             "%s did not appear: the VMM gave no such device, or its module is missing",
                             access(BOOT_ROOT_DISK, F_OK) < 0 ? BOOT_ROOT_DISK : "the port " CONTROL_PORT_NAME);
        char buffer[4096];
        while (recv(events, buffer, sizeof(buffer), 0) > 0)
            ;
    }
    return 0;
}

int boot_mount_root(struct error *err)
{
    mkdir(BOOT_NEW_ROOT, 0755);
    /* No access times: a fork that only reads must not write to its disk, nor dirty memory for it. */
    if (mount(BOOT_ROOT_DISK, BOOT_NEW_ROOT, "ext4", MS_NOATIME, NULL) < 0)
        return error_errno(err, "cannot mount %s as ext4", BOOT_ROOT_DISK);
    return 0;
}

/* Frees what the RAM disk holds; must be called when nothing but the new root is mounted in it. */
static void empty_ram_disk(void)
{
    DIR *root = opendir("/");
    if (root == NULL)
        return;
    for (struct dirent *entry = readdir(root); entry != NULL; entry = readdir(root)) {
        char path[sizeof(entry->d_name) + 1];
        snprintf(path, sizeof(path), "/%s", entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && strcmp(path, BOOT_NEW_ROOT) != 0)
            io_remove_tree(path);
    }
    closedir(root);
}

int boot_switch_root(struct error *err)
{
    static const char *const moved[] = {"/proc", "/sys", "/dev"};
    for (size_t i = 0; i < ARRAY_SIZE(moved); i++) {
        char target[64];
        snprintf(target, sizeof(target), BOOT_NEW_ROOT "%s", moved[i]);
        mkdir(target, 0755);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0)
            return error_errno(err, "cannot move %s into the root disk", moved[i]);
    }
    empty_ram_disk();
    if (chdir(BOOT_NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return error_errno(err, "cannot switch to the root disk");
    return 0;
}

/* devtmpfs has the devices but not these links, which shells and programs expect. */
static void link_standard_streams(void)
{
    static const char *const links[][2] = {
        {"/proc/self/fd", "/dev/fd"},
        {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"},
        {"/proc/self/fd/2", "/dev/stderr"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(links); i++)
        (void)!symlink(links[i][0], links[i][1]);
}

int boot_mount_late(struct error *err)
{
    static const struct mount_point points[] = {
        {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", 0755, false},
        {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777", 0755, false},
        {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755", 0755, false},
        {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, 0755, true},
    };
    int r = mount_all(points, ARRAY_SIZE(points), err);
    if (r < 0)
        return r;
    link_standard_streams();
    if (mkdir("/tmp", 01777) == 0)
        chmod("/tmp", 01777); /* past the umask */
    mkdir("/etc", 0755);
    etc_ensure_resolver();
    etc_ensure_localhost();
    etc_set_boot_host_name();
    return 0;
}
