/*
 * internal.h: what the files behind manager.h share.
 *
 * Locks: `manager->lock` guards the lists, reference counts and the `info` of every object; it is held only for
 * moments, never across I/O other than opening a socket. `sandbox->operation` is held for a whole operation on one
 * sandbox; whoever changes `info` holds both, so either suffices for reading. Order: operation before lock; never
 * two operation locks at once.
 *
 * Life of a sandbox object: in the list with references 0; sandbox_acquire takes a reference and the operation
 * lock; when it is removed from the list it is freed by the last release.
 */
#ifndef DORMOUSE_SANDBOX_INTERNAL_H
#define DORMOUSE_SANDBOX_INTERNAL_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>

#include "image/page_digests.h"
#include "imaged/client.h"
#include "net/net.h"
#include "sandbox/admission.h"
#include "sandbox/manager.h"
#include "sandbox/registry.h"
#include "sandbox/standby.h"
#include "store/store.h"
#include "vmm/cgroup.h"
#include "vmm/vmm.h"

#define SANDBOX_ID_LENGTH 20

/* Why a sandbox is lost whose VMM had pages or blocks still to read. */
#define IMAGES_LOST "the image server ended while it ran"

/* What a guest runs on, since its VMM was started; it goes into its snapshots. */
struct machine {
    char *vmm; /* name and version; NULL: none was started yet */
    char *cpu_model;
    unsigned revision;
    enum vmm_accelerator accelerator;
};

struct sandbox {
    struct sandbox *next;
    unsigned references;
    bool removed; /* no longer in the list */
    pthread_mutex_t operation;
    struct sandbox_info info;
    char *vm_directory;     /* exists while there is a VMM */
    char *pending_snapshot; /* what is being written by a pause; else NULL */
    struct vmm *vmm;
    struct machine machine;
    struct imaged_files files;    /* of the image server, while there is a VMM */
    bool fresh_memory;            /* booted, not restored: its memory image is empty */
    struct page_digests *digests; /* of its memory as the snapshot `digests_snapshot` has it; NULL: unknown */
    char *digests_snapshot;
    struct network *network;
    uint64_t promised_bytes; /* of the host's memory, while there is a VMM; 0: none */
    char *cgroup;            /* its directory; NULL: none */
    uint64_t vmm_start_time; /* of info.vmm_pid */
    int64_t network_slot;    /* -1: none; as recorded */
    int64_t deadline_ns;     /* CLOCK_BOOTTIME; 0: none */
    int64_t timeout_s;       /* as last set, for a resume that names none; 0: none */
    int64_t wake_failed_ns;  /* CLOCK_MONOTONIC, when a request last failed to wake it; 0: never */
    bool expiring;           /* a worker is on its way */
    atomic_bool cancelled;   /* the capture under way is to be given up */
    bool doomed;             /* to be killed: what is under way is given up; under manager->lock */
    bool unrecorded; /* a template being built: no list, no registry; a crash leaves nothing to go on with */
};

struct template
{
    struct template *next;
    struct template_info info;
};

/* A name of a snapshot, by which it is kept until the name is removed. */
struct checkpoint {
    struct checkpoint *next;
    char *name; /* "name:tag", or the snapshot's id for one without a name */
    char *snapshot_id;
    struct string_list environment; /* of the sandbox: what is made from it inherits it */
};

/* While it is in the manager's list, the snapshot isn't collected. */
struct snapshot_pin {
    struct snapshot_pin *next;
    const char *id;
};

struct manager {
    struct manager_options options;
    char *directory;
    char *instance; /* this data directory's name, [a-z0-9]+ */
    char *api_key;
    int directory_lock;
    struct registry *registry;
    struct store *store;
    struct imaged *images; /* the image server */
    bool images_lost;      /* at start: it was not running any more */
    bool recovered;        /* what ran has been taken over */
    atomic_int kvm;        /* whether it runs guests: 0 not known yet, 1 yes, -1 no */
    struct network_pool *networks;
    struct standby_pool *standbys;
    struct admission *admission;
    struct cgroups *cgroups; /* NULL: there are none on this host */
    pthread_mutex_t lock;
    struct sandbox *sandboxes;
    struct template *templates;
    struct checkpoint *checkpoints;
    struct snapshot_pin *pins;
    pthread_mutex_t build;  /* one template build at a time */
    pthread_mutex_t naming; /* of checkpoints; taken before `lock` */
    pthread_t watcher;
    bool watching;
    int epoll_fd;
    int wake_fd; /* eventfd: a deadline has changed, or stop */
    bool stopping;
    bool gc_runs;
    bool gc_wanted; /* something was removed since it began */
    unsigned workers;
    pthread_cond_t workers_done;
};

/* ---- info.c ---- */
int string_list_copy(struct string_list *to, const struct string_list *from);
int sandbox_info_copy(struct sandbox_info *to, const struct sandbox_info *from);
int template_info_copy(struct template_info *to, const struct template_info *from);

/* ---- manager.c ---- */

/* DIRECTORY/part/name; the caller frees it; NULL sets err. */
char *manager_path(const struct manager *manager, const char *part, const char *name, struct error *err);
void manager_log(struct manager *manager, const char *format, ...) PRINTF_LIKE(2, 3);
/* Replaces an owned string. */
int replace_text(char **text, const char *value, struct error *err);
/* A new [a-z0-9] id. The caller frees it. */
char *new_id(struct error *err);
/* Runs `function` on a thread of its own, which manager_close waits for. */
int manager_spawn(struct manager *manager, void (*function)(struct manager *, void *), void *argument);

/* ---- objects.c: the lists, references, records ---- */

int sandbox_acquire(struct manager *manager, const char *id_or_prefix, struct sandbox **ret, struct error *err);
/*
 * As sandbox_acquire, but what is under way gives way: a resume cancels a pause that isn't committed yet, a kill
 * everything, by ending the VMM; it gets -EALREADY when the sandbox has gone by that.
 */
enum preemption { PREEMPT_PAUSE, PREEMPT_ALL };
int sandbox_preempt(struct manager *manager, const char *id_or_prefix, enum preemption preemption,
                    struct sandbox **ret, struct error *err);
void sandbox_release(struct manager *manager, struct sandbox *sandbox);
/* Ends the VMM's process at once, whatever is under way. Under manager->lock, by which its record is true. */
void sandbox_end_vmm(const struct sandbox *sandbox);
/* A new object, neither listed nor recorded, with a VM directory's name. `info` is moved in. NULL sets err. */
struct sandbox *sandbox_new(struct manager *manager, struct sandbox_info *info, struct error *err);
void sandbox_free(struct sandbox *sandbox);
/* A new object, acquired, listed and recorded. `info` is moved in. */
int sandbox_add(struct manager *manager, struct sandbox_info *info, struct sandbox **ret, struct error *err);
/* Takes it out of list and registry; it is freed at release. */
int sandbox_remove(struct manager *manager, struct sandbox *sandbox, struct error *err);
/* Changes the state and records everything, or changes nothing. -EBUSY when the table forbids it. */
int sandbox_set_state(struct manager *manager, struct sandbox *sandbox, enum sandbox_state state,
                      struct error *err);
/*
 * Changes the state whether or not it can be recorded, which is logged: for what has happened already. What
 * recovery makes of the older record must be true, too.
 */
void sandbox_force_state(struct manager *manager, struct sandbox *sandbox, enum sandbox_state state);
/* Records the sandbox as it is: durably if it was to be durable, and while a pause is under way. */
int sandbox_record(struct manager *manager, struct sandbox *sandbox, struct error *err);
int sandbox_require(const struct sandbox *sandbox, enum sandbox_state state, const char *what, struct error *err);
/* Gives up on a sandbox: the reason is recorded and shown. */
void sandbox_set_lost(struct manager *manager, struct sandbox *sandbox, const char *reason);
/*
 * The VMM has ended, or must: nothing of it is left. A sandbox that was to be durable is then paused with its disk
 * alone, as its guest's last flush left it; any other is lost.
 */
void sandbox_give_up(struct manager *manager, struct sandbox *sandbox, const char *reason);
/* Copies info for the caller. */
int sandbox_report(struct manager *manager, struct sandbox *sandbox, struct sandbox_info *ret, struct error *err);
/* Lists of texts in records. */
json_t *json_list(const struct string_list *list);
int json_read_list(const json_t *document, const char *key, struct string_list *ret, struct error *err);
/* Fills a sandbox object from its record; it is listed, not acquired. */
int sandbox_load(struct manager *manager, const char *id, const json_t *document, struct error *err);
/* Sets the timeout from now, or none for 0. */
void sandbox_set_deadline(struct manager *manager, struct sandbox *sandbox, int64_t timeout_s);

/* Moves the deadline, without touching what a resume would set again. */
void sandbox_postpone(struct manager *manager, struct sandbox *sandbox, int64_t delay_ns);

/* Under manager->lock. NULL: none. */
struct template *template_find(struct manager *manager, const char *name_or_id);
int template_load(struct manager *manager, const char *id, const json_t *document, struct error *err);
int template_record(struct manager *manager, const struct template_info *info, struct error *err);

/* ---- machine.c ---- */

void machine_done(struct machine *machine);
/* As of a VMM that is started now. */
int machine_set(struct machine *machine, enum vmm_accelerator accelerator, struct error *err);
/* NULL when none was started yet, which machine_read takes, too. */
json_t *machine_json(const struct machine *machine);
int machine_read(const json_t *object, struct machine *ret, struct error *err);

/* ---- limits.c ---- */

int limits_open(struct manager *manager, struct error *err);
void limits_close(struct manager *manager);
/* Says in the log what VMMs are run without. */
void limits_announce(struct manager *manager);
/* Before a VMM is started: its memory is promised, its turn waited for, its control group made. */
int limits_enter(struct manager *manager, struct sandbox *sandbox, enum vmm_accelerator accelerator,
                 struct error *err);
/* When the start is over, however it ended. */
void limits_started(struct manager *manager);
/* For a VMM that is taken over. */
void limits_adopt(struct manager *manager, struct sandbox *sandbox);
/* When the VMM has ended, or was never started. */
void limits_leave(struct manager *manager, struct sandbox *sandbox);
/* Whether its VMM was killed because it had used all of its memory. */
bool limits_exceeded(const struct manager *manager, const struct sandbox *sandbox);

/* ---- start.c: from a snapshot to a guest that has acknowledged ---- */

struct start_request {
    const char *snapshot_id;
    bool boot;          /* from the rootfs, instead of restoring */
    int64_t request_ns; /* CLOCK_MONOTONIC, when the caller asked */
    int64_t timeout_s;  /* once it runs; 0: none */
    enum vmm_accelerator accelerator;
};
/* In state creating or resuming: starts the VMM and brings the sandbox to running. On failure nothing is left. */
int sandbox_start(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                  struct error *err);
/* As sandbox_start, but on failure everything is left for the caller to look at and to tear down. */
int sandbox_try_start(struct manager *manager, struct sandbox *sandbox, const struct start_request *request,
                      struct error *err);
/* Sends clock, entropy and identity, and waits for the agent's word. */
int sandbox_apply_identity(struct sandbox *sandbox, int timeout_ms, struct error *err);
/* Ends VMM and network and removes the VM directory. */
void sandbox_teardown(struct manager *manager, struct sandbox *sandbox);
/* What of the sandbox's record the VMM needs. */
void sandbox_vmm_config(const struct manager *manager, const struct sandbox *sandbox, char marker[static 128],
                        enum vmm_accelerator accelerator, int tap_fd, struct vmm_config *ret);

/* ---- images.c: a VM's files in the image server ---- */

/* Has the VM directory's images served; also for a VM that is taken over. */
int sandbox_attach_images(struct manager *manager, struct sandbox *sandbox, struct error *err);
/* After the VMM has ended. */
void sandbox_detach_images(struct manager *manager, struct sandbox *sandbox);
/* Has the pages pushed into the page cache that the guest will touch first. */
void sandbox_prefetch(struct manager *manager, struct sandbox *sandbox);
/* The same for a snapshot just made, which most likely is resumed soon. Costs nobody anything: the pages are clean.
 */
void snapshot_warm(struct manager *manager, const char *id);
/* In the background: notes what the guest, just resumed, touches, for resumes to come. */
void sandbox_record_working_set(struct manager *manager, const struct sandbox *sandbox);
/* A file with the device state of the snapshot that the VM directory was made from; the caller closes it. */
int sandbox_open_device_state(const struct sandbox *sandbox, struct error *err);
/* Bytes of disk that the sandbox has written since its snapshot. */
int sandbox_overlay_bytes(const struct sandbox *sandbox, int64_t *ret, struct error *err);

/* ---- capture.c: from a guest to a snapshot ---- */

enum capture_mode {
    CAPTURE_AND_STOP,     /* the VMM stays stopped */
    CAPTURE_AND_CONTINUE, /* the guest goes on as soon as its divergence is copied */
};
enum capture_extent {
    CAPTURE_ALL,
    CAPTURE_DISK, /* no memory: the guest's file systems are frozen meanwhile */
};
/* On failure the guest runs (again). Figures go into sandbox->info.capture. */
int sandbox_capture(struct manager *manager, struct sandbox *sandbox, enum capture_mode mode,
                    enum capture_extent extent, char **ret_snapshot_id, struct error *err);
/* What the next capture would have been spared of. */
void sandbox_forget_digests(struct sandbox *sandbox);
/* Of a VMM that has ended: what is in its VM directory of its disk, as a disk-only snapshot. */
int sandbox_salvage(struct manager *manager, struct sandbox *sandbox, char **ret_snapshot_id, struct error *err);
/* Lets a guest write again whose file systems a capture that never ended has frozen. */
void sandbox_thaw(struct sandbox *sandbox);

/* ---- fork.c ---- */

/*
 * The snapshot that copies of a sandbox are made from: of a running one a new one, of a paused one that which it
 * consists of. It is pinned: the caller unpins it, and then has it collected.
 */
int sandbox_snapshot(struct manager *manager, const char *id_or_prefix, const char *what, struct snapshot_pin *pin,
                     char **ret_snapshot_id, struct sandbox_info *ret_info, struct error *err);

/* ---- checkpoint.c ---- */

/* Under manager->lock, which the result needs, too. NULL: none. The first: by "name:tag" or "name". */
const struct checkpoint *checkpoint_find(struct manager *manager, const char *name);
const struct checkpoint *checkpoint_of(struct manager *manager, const char *snapshot_id);
/* Under manager->lock. Whether the snapshot is kept without a name. */
bool checkpoint_is(struct manager *manager, const char *snapshot_id);
/* Under manager->lock. Appends the names that the snapshot has. */
int checkpoint_names(struct manager *manager, const char *snapshot_id, struct string_list *ret);
/* The name exactly; -ENOENT is none: success. The snapshot stays. */
int checkpoint_remove(struct manager *manager, const char *name, struct error *err);
int checkpoint_load(struct manager *manager, const char *name, const json_t *document, struct error *err);
void checkpoints_free(struct manager *manager);

/* ---- snapshots.c ---- */

int snapshot_describe(struct manager *manager, const char *id, struct snapshot_info *ret, struct error *err);

/* From an id, a checkpoint's name or a prefix of an id, in this order, to the id; the caller frees it. Says nothing
 * of whether the snapshot can be read. */
int snapshot_resolve(struct manager *manager, const char *text, char **ret, struct error *err);

/*
 * For the result of reading a snapshot to start from it. One that is damaged or not there is nobody's mistake and
 * no fault of the daemon: -EBUSY, with the reason.
 */
int snapshot_refuse(const char *id, int result, struct error *err);

/* Removes a snapshot that no template or sandbox refers to. */
void snapshot_collect(struct manager *manager, const char *id);
/* `pin` and `id` stay the caller's until unpinned. */
void snapshot_pin(struct manager *manager, struct snapshot_pin *pin, const char *id);
void snapshot_unpin(struct manager *manager, struct snapshot_pin *pin);
/* Removes a snapshot that only its maker knows. */
void snapshot_discard(struct manager *manager, const char *id);
/* Layers that nothing needs any more are removed in the background. */
void snapshot_gc_soon(struct manager *manager);
/* Compacts it if that is worth it; takes a while. */
void snapshot_compact(struct manager *manager, const char *id);

/* ---- lifecycle.c ---- */
int sandbox_pause(struct manager *manager, struct sandbox *sandbox, enum capture_extent extent, struct error *err);
int sandbox_kill(struct manager *manager, struct sandbox *sandbox, struct error *err);
/* Ends the pause whose snapshot has been committed. */
void sandbox_finish_pause(struct manager *manager, struct sandbox *sandbox);

/* ---- recover.c ---- */
int manager_recover(struct manager *manager, struct error *err);

/* ---- watch.c ---- */
int watch_open(struct manager *manager, struct error *err);
/* After recovery: timeouts that passed meanwhile find the VMMs taken over. */
int watch_start(struct manager *manager, struct error *err);
void watch_stop(struct manager *manager);
/* Tells the watcher of a new image server. */
int watch_images(struct manager *manager, struct error *err);
/* Tells the watcher of a new VMM. */
int watch_vmm(struct manager *manager, const struct sandbox *sandbox, struct error *err);
void watch_wake(struct manager *manager);
int64_t boottime_ns(void);

/* ---- accelerator.c ---- */

/* Whether KVM runs guests here; a snapshot's kernel serves for the probe, if there has been none. */
bool accelerator_kvm_works(struct manager *manager, const char *snapshot_id);

/* KVM where a probe has shown that it runs a guest, else TCG; the verdict is kept in the data directory. */
int accelerator_choose(struct manager *manager, const char *kernel, const char *initrd, enum vmm_accelerator *ret,
                       struct error *err);

#endif
