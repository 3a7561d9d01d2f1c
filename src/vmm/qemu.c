/*
 * The QEMU driver: stock qemu-system-x86_64, `microvm` machine, nothing patched.
 *
 * - Guest RAM is a memory-backend-file with share=off on /vm/memory: a private mapping of the image.
 * - Device state is saved by xen-save-devices-state (which every build has) and loaded by the ordinary incoming
 *   path; `-global migration.send-configuration=off` makes the two agree. Without -S, QEMU continues the guest as
 *   soon as the state is loaded: load and go are one step.
 * - The sockets are made and listened on here and handed over, so a connection can be queued before QEMU starts and
 *   nobody polls for a socket to appear. The control port's chardev waits for its client (it is there already), so
 *   the guest never sees the port's host side closed across a restore, which would cost it an interrupt and a
 *   work queue.
 * - A prepared VMM waits in QEMU's preconfig state: linked, seccomp on, all of QEMU's classes and the accelerator
 * made, but no machine yet. Command line options would name /vm/memory and the disk too early, so both, and the
 * memory's size, are given over QMP, then the machine is made. What it is made of is the same in all ways to start.
 * - QEMU hands its monitor's socket from its main thread to another while, with -preconfig, the main thread already
 *   serves it. Whatever arrives meanwhile may be lost, or a thread wait for ever (seen in 1 of 100 starts). So the
 *   connection is made before (wait=on), and nothing is sent to a VMM in preparation until it has sent its
 * greeting, the other thread's first act. A VMM counts as prepared when it has answered a command.
 * - The device list is the same for boot and restore: that is what makes device state loadable. Whoever changes it
 *   changes VMM_MACHINE_REVISION, which snapshots record.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/unix_socket.h"
#include "control/control.h"
#include "net/net.h"
#include "vmm/cpu_model.h"
#include "vmm/driver.h"
#include "vmm/jail.h"
#include "vmm/qmp.h"
#include "vmm/tsc.h"

#define QEMU     "/usr/bin/qemu-system-x86_64"
#define QEMU_KVM "/usr/bin/qemu-system-x86_64-microvm"

#define QMP_TIMEOUT_MS 5000

/* QEMU may still be starting. */
#define LOAD_TIMEOUT_MS 30000

/* In the background, and perhaps on a busy host. */
#define PREPARE_TIMEOUT_MS 20000

/* A pause flushes the guest's disk, which can take long on slow storage. */
#define PAUSE_TIMEOUT_MS 30000

/* Descriptor numbers inside the VMM. */
enum { FD_QMP = 3, FD_CONTROL = 4, FD_TAP = 5, FD_STATE = 6 };

/*
 * tsc=reliable and nowatchdog: no periodic timers in an idle guest, and no false alarm after a long pause.
 * psi=0: a few hundred instructions less on each wake-up. mitigations=off under TCG only: no speculation there.
 */
#define KERNEL_ARGUMENTS "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable nowatchdog psi=0"

#define ARGUMENTS_MAX 64

#define VERSION_MAX 64

/* Names inside QEMU. */
#define MEMORY_ID "ram"
#define DISK_ID   "rootfs"
#define STATE_ID  "state"

struct arguments {
    char *items[ARGUMENTS_MAX + 1];
    size_t count;
    bool failed;
};

static void arguments_done(struct arguments *arguments)
{
    for (size_t i = 0; i < arguments->count; i++)
        free(arguments->items[i]);
}

static void add(struct arguments *arguments, const char *format, ...) PRINTF_LIKE(2, 3);
static void add(struct arguments *arguments, const char *format, ...)
{
    char *text;
    va_list list;
    va_start(list, format);
    int n = arguments->count < ARGUMENTS_MAX ? vasprintf(&text, format, list) : -1;
    va_end(list);
    if (n < 0)
        arguments->failed = true;
    else
        arguments->items[arguments->count++] = text;
}

static void add_pair(struct arguments *arguments, const char *option, const char *value)
{
    add(arguments, "%s", option);
    add(arguments, "%s", value);
}

/* Takes the reference. */
static void add_json(struct arguments *arguments, const char *option, json_t *value)
{
    CLEANUP_FREE char *text = value != NULL ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    if (text != NULL)
        add_pair(arguments, option, text);
    else
        arguments->failed = true;
}

static const char *program(enum vmm_accelerator accelerator)
{
    return accelerator == VMM_ACCELERATOR_KVM && access(QEMU_KVM, X_OK) == 0 ? QEMU_KVM : QEMU;
}

static void add_machine(struct arguments *a, const struct vmm_config *config)
{
    add(a, "%s", program(config->accelerator));
    add_pair(a, "-machine",
             "microvm,x-option-roms=off,pit=on,pic=on,rtc=on,isa-serial=on,mem-merge=off,"
             "dump-guest-core=off,suppress-vmdesc=on");
    /* tb-size bounds what translated code may take of the host's memory (MiB). */
    add_pair(a, "-accel", config->accelerator == VMM_ACCELERATOR_KVM ? "kvm" : "tcg,thread=multi,tb-size=128");
    add_pair(a, "-cpu", CPU_MODEL);
    add(a, "-smp");
    add(a, "%u", config->cpus);
    add(a, "-nodefaults");
    add(a, "-no-user-config");
    add_pair(a, "-display", "none");
    add(a, "-no-reboot");
    add_pair(a, "-global", "migration.send-configuration=off");
    add_pair(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
}

static json_t *memory_backend(uint64_t memory_bytes)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:I}", "qom-type", "memory-backend-file", "id", MEMORY_ID, "mem-path",
                     "/vm/" VMM_FILE_MEMORY, "share", 0, "size", (json_int_t)memory_bytes);
}

static json_t *root_disk(void)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:{s:b}, s:{s:s, s:s, s:s, s:s, s:{s:b}}}", "driver", "raw", "node-name",
                     DISK_ID, "discard", "unmap", "detect-zeroes", "unmap", "cache", "direct", 1, "file", "driver",
                     "file", "filename", "/vm/" VMM_FILE_ROOTFS, "discard", "unmap", "locking", "off", "cache",
                     "direct", 1);
}

/* What depends on the guest, for a VMM that isn't prepared. */
static void add_guest(struct arguments *a, const struct vmm_config *config)
{
    add_pair(a, "-machine", "memory-backend=" MEMORY_ID);
    add(a, "-m");
    add(a, "%" PRIu64 "M", config->memory_bytes >> 20);
    add_json(a, "-object", memory_backend(config->memory_bytes));
    if (config->tap_fd >= 0)
        add_json(a, "-blockdev", root_disk());
}

static void add_devices(struct arguments *a, const struct vmm_config *config)
{
    add_pair(a, "-chardev", "file,id=console,path=/vm/" VMM_FILE_CONSOLE ",append=on");
    add_pair(a, "-serial", "chardev:console");
    add(a, "-chardev");
    add(a, "socket,id=qmp,fd=%d,server=on,wait=on", FD_QMP);
    add_pair(a, "-mon", "chardev=qmp,mode=control");
    add_pair(a, "-device", "virtio-serial-device");
    add(a, "-chardev");
    add(a, "socket,id=control,fd=%d,server=on,wait=on", FD_CONTROL);
    add_pair(a, "-device", "virtserialport,chardev=control,name=" CONTROL_PORT_NAME);
    if (config->tap_fd < 0)
        return;
    add_pair(a, "-device", "virtio-blk-device,werror=report,rerror=report,drive=" DISK_ID);
    add(a, "-netdev");
    add(a, "tap,id=net,fd=%d,vhost=off", FD_TAP);
    add_pair(a, "-device", "virtio-net-device,netdev=net,guest_announce=off,mac=" NET_GUEST_MAC);
}

/*
 * Loading and continuing is one step unless this is switched off: then QEMU starts stopped and is told to continue,
 * which it does when it has loaded the state, or at once if it has.
 */
static bool resumes_on_load(void)
{
    const char *value = getenv("DORMOUSE_RESTORE_RESUME_ON_LOAD");
    return value == NULL || strcmp(value, "0") != 0;
}

static int continue_after_load(struct vmm *vmm, struct error *err)
{
    return resumes_on_load() ? 0 : qmp_execute(vmm->connection, "cont", NULL, LOAD_TIMEOUT_MS, NULL, err);
}

static void add_start(struct arguments *a, const struct vmm_config *config, enum vmm_start how)
{
    if (how != VMM_START_BOOT && !resumes_on_load())
        add(a, "-S");
    if (how == VMM_START_PREPARE) {
        add(a, "-preconfig");
        add_pair(a, "-incoming", "defer");
        return;
    }
    add_guest(a, config);
    if (how == VMM_START_RESTORE) {
        add(a, "-incoming");
        add(a, "fd:%d", FD_STATE);
        return;
    }
    add_pair(a, "-kernel", "/vm/" VMM_FILE_KERNEL);
    add_pair(a, "-initrd", "/vm/" VMM_FILE_INITRD);
    add(a, "-append");
    if (config->accelerator == VMM_ACCELERATOR_KVM)
        add(a, KERNEL_ARGUMENTS);
    else
        add(a, KERNEL_ARGUMENTS " mitigations=off tsc_early_khz=%u", tsc_khz());
}

/* Makes a listening socket in the VM directory; a stale one of an earlier VMM is replaced. */
static int listen_in(const char *directory, const char *name, char **ret_path, struct error *err)
{
    CLEANUP_FREE char *path = io_path(directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, "cannot remove %s", path);
    int fd = unix_socket_listen(path, err);
    if (fd >= 0)
        *ret_path = TAKE_PTR(path);
    return fd;
}

static int connect_sockets(struct vmm *vmm, struct error *err)
{
    CLEANUP_FREE char *path = io_path(vmm->directory, VMM_FILE_QMP, err);
    if (path == NULL)
        return -ENOMEM;
    struct qmp *qmp = NULL;
    int r = qmp_connect(path, &qmp, err);
    if (r < 0)
        return r;
    vmm->connection = qmp;
    r = vmm_control_fd(vmm, err);
    return r < 0 ? r : 0;
}

static int attach(struct vmm *vmm, struct error *err)
{
    int r = connect_sockets(vmm, err);
    return r < 0 ? r : qmp_negotiate(vmm->connection, err);
}

static int spawn(struct vmm *vmm, const struct vmm_config *config, const struct jail_descriptor *descriptors,
                 size_t descriptor_count, const struct arguments *arguments, int log_fd, struct error *err)
{
    char *environment[] = {(char *)config->marker, NULL};
    struct jail_bind binds[VMM_BINDS];
    size_t bind_count = vmm_binds(config, binds);
    struct jail_options jail = {
        .directory = config->directory,
        .binds = binds,
        .bind_count = bind_count,
        .arguments = arguments->items,
        .environment = environment,
        .descriptors = descriptors,
        .descriptor_count = descriptor_count,
        .log_fd = log_fd,
        .cgroup = config->cgroup,
        .namespace_fd = config->namespace_fd,
        .device = config->accelerator == VMM_ACCELERATOR_KVM ? "/dev/kvm" : NULL,
        .uid = config->uid,
        .gid = VMM_GROUP_ID,
    };
    return jail_spawn(&jail, &vmm->pid, &vmm->pidfd, err);
}

static int query_status(struct vmm *vmm, int timeout_ms, char status[static 32], struct error *err)
{
    json_t *reply = NULL;
    int r = qmp_execute(vmm->connection, "query-status", NULL, timeout_ms, &reply, err);
    if (r < 0)
        return r;
    const char *text = json_string_value(json_object_get(reply, "status"));
    snprintf(status, 32, "%s", text != NULL ? text : "");
    json_decref(reply);
    return 0;
}

static int await_prepared(struct vmm *vmm, struct error *err)
{
    char status[32];
    int r = qmp_wait_greeting(vmm->connection, PREPARE_TIMEOUT_MS, err);
    if (r == 0)
        r = qmp_negotiate(vmm->connection, err);
    return r == 0 ? query_status(vmm, QMP_TIMEOUT_MS, status, err) : r;
}

static int start(struct vmm *vmm, const struct vmm_config *config, enum vmm_start how, int log_fd,
                 struct error *err)
{
    CLEANUP_FREE char *qmp_path = NULL;
    CLEANUP_CLOSE int qmp_fd = listen_in(config->directory, VMM_FILE_QMP, &qmp_path, err);
    if (qmp_fd < 0)
        return qmp_fd;
    CLEANUP_FREE char *control_path = NULL;
    CLEANUP_CLOSE int control_fd = listen_in(config->directory, VMM_FILE_CONTROL, &control_path, err);
    if (control_fd < 0)
        return control_fd;
    int r = how == VMM_START_PREPARE ? connect_sockets(vmm, err) : attach(vmm, err);
    if (r < 0)
        return r;

    struct jail_descriptor descriptors[4] = {{qmp_fd, FD_QMP}, {control_fd, FD_CONTROL}};
    size_t count = 2;
    if (config->tap_fd >= 0)
        descriptors[count++] = (struct jail_descriptor){config->tap_fd, FD_TAP};
    if (how == VMM_START_RESTORE)
        descriptors[count++] = (struct jail_descriptor){config->state_fd, FD_STATE};
    CLEANUP(arguments_done) struct arguments arguments = {0};
    add_machine(&arguments, config);
    add_devices(&arguments, config);
    add_start(&arguments, config, how);
    if (arguments.failed)
        return error_set(err, ENOMEM, "out of memory");
    r = spawn(vmm, config, descriptors, count, &arguments, log_fd, err);
    if (r == 0 && how == VMM_START_PREPARE)
        r = await_prepared(vmm, err);
    if (r == 0 && how == VMM_START_RESTORE)
        r = continue_after_load(vmm, err);
    return r;
}

/* Brings a prepared VMM to where one that was started the ordinary way has its machine. */
static int make_machine(struct qmp *qmp, uint64_t memory_bytes, struct error *err)
{
    const struct {
        const char *command;
        json_t *arguments;
    } steps[] = {
        {"qom-set", json_pack("{s:s, s:s, s:{s:I}}", "path", "/machine", "property", "memory", "value", "size",
                              (json_int_t)memory_bytes)},
        {"object-add", memory_backend(memory_bytes)},
        {"qom-set", json_pack("{s:s, s:s, s:s}", "path", "/machine", "property", "memory-backend", "value",
                              "/objects/" MEMORY_ID)},
        {"blockdev-add", root_disk()},
        {"x-exit-preconfig", NULL},
    };
    int r = 0;
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        if (r == 0)
            r = qmp_execute(qmp, steps[i].command, steps[i].arguments, QMP_TIMEOUT_MS, NULL, err);
        else
            json_decref(steps[i].arguments);
    }
    return r;
}

/* A machine can only be made once, so after a failure this VMM is of no more use. */
static int restore_prepared(struct vmm *vmm, int state_fd, uint64_t memory_bytes, struct error *err)
{
    int r = make_machine(vmm->connection, memory_bytes, err);
    if (r == 0)
        r = qmp_execute_with_fd(vmm->connection, "getfd", json_pack("{s:s}", "fdname", STATE_ID), state_fd,
                                QMP_TIMEOUT_MS, err);
    if (r == 0)
        r = qmp_execute(vmm->connection, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" STATE_ID),
                        QMP_TIMEOUT_MS, NULL, err);
    return r == 0 ? continue_after_load(vmm, err) : r;
}

static void detach(struct vmm *vmm)
{
    qmp_free(vmm->connection);
    vmm->connection = NULL;
}

static int wait_running(struct vmm *vmm, int timeout_ms, int64_t *ret_since_ns, struct error *err)
{
    char status[32];
    int r = query_status(vmm, timeout_ms, status, err);
    if (r < 0)
        return r;
    bool runs = strcmp(status, "running") == 0;
    if (!runs && strcmp(status, "inmigrate") != 0)
        return error_set(err, EIO, "the guest is %s instead of starting", status);
    *ret_since_ns = 0;
    if (!runs)
        return qmp_wait_event(vmm->connection, "RESUME", timeout_ms, ret_since_ns, err);
    /* After a restore the event has come; a booted guest runs without one. */
    qmp_wait_event(vmm->connection, "RESUME", 0, ret_since_ns, NULL);
    return 0;
}

static int pause_guest(struct vmm *vmm, struct error *err)
{
    return qmp_execute(vmm->connection, "stop", NULL, PAUSE_TIMEOUT_MS, NULL, err);
}

static int resume_guest(struct vmm *vmm, struct error *err)
{
    return qmp_execute(vmm->connection, "cont", NULL, QMP_TIMEOUT_MS, NULL, err);
}

static int save_device_state(struct vmm *vmm, struct error *err)
{
    json_t *arguments = json_pack("{s:s, s:b}", "filename", "/vm/" VMM_FILE_STATE, "live", 0);
    return qmp_execute(vmm->connection, "xen-save-devices-state", arguments, QMP_TIMEOUT_MS, NULL, err);
}

static int run_version(const char *path, char ret[static VERSION_MAX], struct error *err)
{
    CLEANUP_FREE char *command = NULL;
    if (asprintf(&command, "%s --version 2>/dev/null", path) < 0) {
        command = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    FILE *pipe = popen(command, "re");
    if (pipe == NULL)
        return error_errno(err, "cannot run %s", path);
    char text[VERSION_MAX] = "";
    int n = fscanf(pipe, "QEMU emulator version %63[0-9.]", text);
    pclose(pipe);
    if (n != 1) {
        error_set(err, ENOENT, "%s is not there or does not run", path);
        error_hint(err, "apt-get install qemu-system-x86");
        return -ENOENT;
    }
    memcpy(ret, text, sizeof(text));
    return 0;
}

/* Every restore asks, and QEMU takes 15 ms to say it: what a program said holds until another takes its place. */
static struct {
    pthread_mutex_t lock;
    struct stat programs[2]; /* by accelerator */
    char versions[2][VERSION_MAX];
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool is_known(enum vmm_accelerator accelerator, const struct stat *now)
{
    const struct stat *then = &known.programs[accelerator];
    return known.versions[accelerator][0] != '\0' && then->st_dev == now->st_dev && then->st_ino == now->st_ino &&
           then->st_size == now->st_size && then->st_mtim.tv_sec == now->st_mtim.tv_sec &&
           then->st_mtim.tv_nsec == now->st_mtim.tv_nsec;
}

static int version(enum vmm_accelerator accelerator, char **ret, struct error *err)
{
    const char *path = program(accelerator);
    struct stat now = {0};
    (void)stat(path, &now); /* when it isn't there, running it says so */
    char text[VERSION_MAX];
    pthread_mutex_lock(&known.lock);
    bool again = is_known(accelerator, &now);
    if (again)
        memcpy(text, known.versions[accelerator], sizeof(text));
    pthread_mutex_unlock(&known.lock);
    int r = again ? 0 : run_version(path, text, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&known.lock);
    known.programs[accelerator] = now;
    memcpy(known.versions[accelerator], text, sizeof(text));
    pthread_mutex_unlock(&known.lock);
    if (asprintf(ret, "qemu %s", text) < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

const struct vmm_driver vmm_driver_qemu = {
    .name = "qemu",
    .start = start,
    .restore_prepared = restore_prepared,
    .attach = attach,
    .detach = detach,
    .wait_running = wait_running,
    .pause = pause_guest,
    .resume = resume_guest,
    .save_device_state = save_device_state,
    .version = version,
};
