/*
 * manager.h: all sandboxes, templates and snapshots of one data directory, and every operation on them.
 *
 * This is what the HTTP routes (and so the CLI) call; it knows neither HTTP nor JSON clients.
 *
 * Order of calls: manager_open (opens the registry, re-adopts running VMMs, rolls back what was half done, removes
 * leftovers), any of the operations, manager_close (sandboxes go on running).
 *
 * Threads: every function may be called from any thread. Operations on one sandbox are serialised by its own lock:
 * a call waits for the one before it and then finds the state that one left. A call that can't apply in that state
 * fails with EBUSY-class errors (below) and changes nothing. Operations on different sandboxes run in parallel.
 *
 * Ids: where a parameter is called `id_or_prefix`, a prefix that fits exactly one object is enough.
 *
 * Errors, as negative errno, with message and often a hint in the error object:
 *     ENOENT       no such sandbox, template or snapshot (or an ambiguous prefix: EINVAL)
 *     EBUSY        the present state or users of the object don't allow it (HTTP 409)
 *     EINVAL       an argument is out of range (400)
 *     EAGAIN       a limit of the host is reached; later it may work (503)
 *     ENOSPC       the disk is full (507); nothing was changed
 *     ETIMEDOUT    the guest did not answer in time (504)
 *     others       as they came from the kernel (500)
 *
 * Memory: what a `…_info` holds is owned by whoever received it and freed by its `…_info_done`.
 */
#ifndef DORMOUSE_SANDBOX_MANAGER_H
#define DORMOUSE_SANDBOX_MANAGER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "sandbox/state.h"

#define SANDBOX_MEMORY_MIN_MIB    64
#define SANDBOX_MEMORY_MAX_MIB    (256 * 1024)
#define SANDBOX_CPUS_MAX          32
#define SANDBOX_FORK_MAX          100
#define SANDBOX_TIMEOUT_MAX_S     (31 * 24 * 3600)
#define SANDBOX_TIMEOUT_DEFAULT_S 300
#define SANDBOX_ENV_MAX           256
#define TEMPLATE_DISK_MIN_MIB     16
#define TEMPLATE_DISK_MAX_MIB     (1024 * 1024)

struct manager;

struct manager_options {
    const char *data_directory;         /* created if absent, mode 0700 */
    unsigned network_ahead;             /* namespaces kept ready */
    unsigned vmm_ahead;                 /* VMMs kept ready, each with another namespace */
    unsigned sandboxes_max;             /* that run at once; 0: any number */
    unsigned starts_max;                /* under way at once; 0: any number */
    uint64_t memory_limit_bytes;        /* for all guests; 0: what the host has available */
    unsigned memory_overcommit_percent; /* how much of it may be promised; at least 100 */
    uint64_t disk_limit_bytes;          /* what a guest may write to its disk until its next snapshot; 0: any */
    void (*log)(void *context, const char *line); /* what happened in the background; any thread */
    void *log_context;
};

/* -EBUSY: another daemon uses the directory. -EUCLEAN: the registry is damaged; nothing was touched. */
int manager_open(const struct manager_options *options, struct manager **ret, struct error *err);
void manager_close(struct manager *manager);

/* The key that clients on TCP must present, "e2b_" + 40 hex digits; made at the first start. */
const char *manager_api_key(const struct manager *manager);

/* ---- sandboxes ---- */

/* A list of "key=value" (environment) or alternating keys and values (metadata): see the fields. */
struct string_list {
    char **items;
    size_t count;
};
void string_list_done(struct string_list *list);
/* Appends a copy. */
int string_list_add(struct string_list *list, const char *text);

struct sandbox_spec {
    const char *template_name; /* template name or id, a checkpoint's name, or a snapshot's id */
    unsigned cpus;             /* 0: as the template */
    unsigned memory_mib;       /* 0: as the template; another value boots instead of restoring */
    int64_t timeout_s;         /* 0: no limit; counted from the moment it runs */
    enum timeout_action on_timeout;
    bool durable;       /* its disk outlives a crash of VMM, image server or host, as it was last flushed */
    bool auto_resume;   /* paused with its memory, it is woken by requests for it: manager_wake */
    bool egress_denied; /* no guest → outside */
    struct string_list environment; /* "K=V" each; in front of it, a checkpoint's */
    struct string_list metadata;    /* key, value, key, value … */
};

/* How long the last start took, in µs from the request; 0: not measured. */
struct sandbox_timings {
    int64_t spawned_us; /* the VMM process was started */
    int64_t running_us; /* the VMM says the guest runs */
    int64_t agent_us;   /* the agent has acknowledged clock, entropy and identity */
};

/* How long the last pause, or the stop within the last fork, took, and what it wrote. */
struct capture_figures {
    int64_t stopped_us;    /* the guest stood still, until committed (pause) or continued (fork) */
    int64_t total_us;      /* the whole operation */
    int64_t bytes_private; /* private pages found, bytes */
    int64_t bytes_written; /* of them, those that differed from the parent image and were written, bytes */
};

struct sandbox_info {
    char *id;
    enum sandbox_state state;
    char *lost_reason; /* NULL unless lost */
    pid_t vmm_pid;     /* host pid; 0 when there is none */
    char *template_id;
    char *template_name; /* "" when the template is gone */
    char *snapshot_id;   /* the snapshot that its memory comes from; "" if booted */
    char *parent_id;     /* the sandbox it was forked from, or "" */
    char *access_token;  /* what the agent demands as X-Access-Token */
    unsigned cpus;
    unsigned memory_mib;
    uint64_t disk_bytes; /* the rootfs' virtual size */
    bool egress_denied;
    struct string_list environment;
    struct string_list metadata;
    int64_t created_ns; /* CLOCK_REALTIME */
    int64_t started_ns; /* last time it began to run, CLOCK_REALTIME */
    int64_t expires_ns; /* CLOCK_REALTIME; 0: never */
    enum timeout_action on_timeout;
    bool auto_resume;
    bool durable;
    struct sandbox_timings timings;
    struct capture_figures capture;
};
void sandbox_info_done(struct sandbox_info *info);

struct sandbox_list {
    struct sandbox_info *items; /* by created_ns, oldest first */
    size_t count;
};
void sandbox_list_done(struct sandbox_list *list);

int manager_create(struct manager *manager, const struct sandbox_spec *spec, struct sandbox_info *ret,
                   struct error *err);
int manager_get(struct manager *manager, const char *id_or_prefix, struct sandbox_info *ret, struct error *err);
int manager_list(struct manager *manager, struct sandbox_list *ret, struct error *err);

/*
 * Running → paused; returns when the snapshot is committed. On failure it runs on. With `disk_only` the guest's
 * file systems are frozen and only its disk is kept: it will boot from it.
 */
int manager_pause(struct manager *manager, const char *id_or_prefix, bool disk_only, struct sandbox_info *ret,
                  struct error *err);

struct resume_options {
    int64_t timeout_s; /* < 0: as before */
    bool reboot;       /* boot from the snapshot's disk, its memory given up; implied by one that holds none */
};

/* Paused → running. A running sandbox is left as it is, its timeout only ever extended, and *ret_was_running set.
 */
int manager_resume(struct manager *manager, const char *id_or_prefix, const struct resume_options *options,
                   bool *ret_was_running, struct sandbox_info *ret, struct error *err);

/*
 * A request for the sandbox has come: it runs when this returns 0. Waits for what is under way; of several calls
 * one resumes it, with its timeout as before. -EBUSY, and nothing is changed: it doesn't run and isn't to be woken,
 * because its spec doesn't say auto_resume, or because it would have to boot.
 */
int manager_wake(struct manager *manager, const char *id, struct sandbox_info *ret, struct error *err);

/* One child's outcome: either info (error.code == 0) or error. */
struct fork_result {
    struct sandbox_info info;
    struct error error;
};
/* The caller gives `count` results (1 … SANDBOX_FORK_MAX) and frees them with fork_results_done. Running or paused.
 */
int manager_fork(struct manager *manager, const char *id_or_prefix, unsigned count, int64_t timeout_s,
                 struct fork_result *results, struct error *err);
void fork_results_done(struct fork_result *results, unsigned count);

/* In any state; its own snapshot goes too unless somebody else needs it. Returns when nothing is left. */
int manager_kill(struct manager *manager, const char *id_or_prefix, struct error *err);

/* From now; 0: no limit. Running only. */
int manager_set_timeout(struct manager *manager, const char *id_or_prefix, int64_t timeout_s, struct error *err);

/* Replaces whether the guest reaches the outside. Running only. */
int manager_set_egress(struct manager *manager, const char *id_or_prefix, bool allowed, struct error *err);

struct sandbox_stats {
    int64_t private_bytes; /* guest memory that is this sandbox's own */
    int64_t shared_bytes;  /* resident guest memory that it shares with its image */
    int64_t vmm_rss_bytes; /* the VMM's whole resident set */
    int64_t cpu_ns;        /* CPU time of the VMM since it started */
    int64_t overlay_bytes; /* disk blocks that the rootfs overlay occupies */
};
int manager_stats(struct manager *manager, const char *id_or_prefix, struct sandbox_stats *ret, struct error *err);

/* The guest's console so far (the last part of it, at most `limit` bytes); the caller frees *ret_text. */
int manager_logs(struct manager *manager, const char *id_or_prefix, size_t limit, char **ret_text,
                 size_t *ret_length, struct error *err);

/*
 * A TCP socket, not yet connected, in the sandbox's network namespace; connect it to NET_GUEST_ADDRESS. -EBUSY when
 * the sandbox doesn't run. The caller closes it.
 */
int manager_socket(struct manager *manager, const char *id, struct error *err);

/* ---- templates ---- */

struct template_spec {
    const char *name;    /* [a-z0-9][a-z0-9._-]{0,63} */
    const char *recipe;  /* a recipe's name, or NULL: the recipe called like the template, else "base" */
    const char *rootfs;  /* instead of a recipe: a directory, a tar archive or an ext4 image; or NULL */
    unsigned disk_mib;   /* 0: the recipe's */
    unsigned memory_mib; /* 0: 512 */
    unsigned cpus;       /* 0: 1 */
};

struct template_info {
    char *id;
    char *name;
    char *snapshot_id;
    unsigned cpus;
    unsigned memory_mib;
    uint64_t disk_bytes;
    int64_t created_ns;
};
void template_info_done(struct template_info *info);

struct template_list {
    struct template_info *items;
    size_t count;
};
void template_list_done(struct template_list *list);

/* Called for each line of progress, from the calling thread; a false result cancels the build. */
typedef bool (*progress_function)(void *context, const char *line);

/* Makes the rootfs, boots it once, waits for the agent and snapshots it. Replaces a template of that name at the
 * end. */
int manager_template_build(struct manager *manager, const struct template_spec *spec, progress_function progress,
                           void *context, struct template_info *ret, struct error *err);
int manager_template_list(struct manager *manager, struct template_list *ret, struct error *err);
/* Sandboxes made from it live on. */
int manager_template_remove(struct manager *manager, const char *name_or_id, struct error *err);

/* ---- snapshots ---- */

struct snapshot_info {
    char *id;
    char *problem;    /* NULL; else why it can't be read: all but the id is empty then */
    char *sandbox_id; /* where it was taken; "" for a template's */
    char *template_id;
    char *parent_id;          /* the snapshot whose image it extends; "" for none */
    bool in_use;              /* a paused sandbox, a template or a name needs it */
    bool checkpoint;          /* kept until it is removed, by its names or, without one, by its id */
    struct string_list names; /* "name:tag" each */
    unsigned cpus;
    unsigned memory_mib;
    int64_t created_ns;
    uint64_t memory_bytes;  /* pages of the memory image that aren't zero */
    uint64_t disk_bytes;    /* blocks of the disk image that aren't zero */
    uint64_t state_bytes;   /* device state; 0: disk only */
    char *disk_consistency; /* "frozen", "synced"; "" with memory */
    uint64_t stored_bytes;  /* of all layers it needs, compressed */
    uint64_t own_bytes;     /* of them, of layers that no other snapshot needs */
    unsigned layers;
};
void snapshot_info_done(struct snapshot_info *info);

struct snapshot_list {
    struct snapshot_info *items;
    size_t count;
};
void snapshot_list_done(struct snapshot_list *list);

int manager_snapshot_list(struct manager *manager, struct snapshot_list *ret, struct error *err);
/* In place of an id or its prefix, "name:tag" or "name" will do here and in all that follow. */
int manager_snapshot_get(struct manager *manager, const char *id_or_prefix, struct snapshot_info *ret,
                         struct error *err);
/*
 * -EBUSY while a paused sandbox or a template needs it. Running forks don't: they hold what they map. By its id it
 * goes with all its names; by a name, only that goes, and the snapshot if nobody needs it any more.
 */
int manager_snapshot_remove(struct manager *manager, const char *id_or_prefix, struct error *err);

/* ---- checkpoints ---- */

#define CHECKPOINT_TAG_DEFAULT "default"

/*
 * A snapshot of a running sandbox, which goes on running; of a paused one, the snapshot that it consists of. It is
 * kept until it is removed, under `name` ("name" or "name:tag", each [a-z0-9][a-z0-9._-]{0,62}; NULL: its id), and
 * new sandboxes are made from it as from a template. A name that is taken moves to the new one, and the snapshot
 * that had it is removed if nobody else needs it. -EBUSY for a template's name.
 */
int manager_checkpoint(struct manager *manager, const char *id_or_prefix, const char *name,
                       struct snapshot_info *ret, struct error *err);

/* ---- looking after the store: store_tools.c ---- */

/* Asked from time to time by what takes long; true ends it with ECANCELED. */
typedef bool (*cancel_function)(void *context);

struct inspected_section {
    unsigned kind; /* docs/snapshot-format.md */
    bool ignorable;
    uint64_t offset; /* in the manifest */
    uint64_t bytes;
};

struct inspected_layer {
    char *id;
    uint64_t bytes; /* of its file */
    uint64_t frames;
    unsigned frame_pages;  /* in a full frame */
    uint64_t pages;        /* in all frames */
    uint64_t memory_pages; /* of them, those that this snapshot uses */
    uint64_t disk_pages;
    char *problem; /* why it can't be opened, and then frames and pages are unknown; NULL: none */
};

struct inspected_image {
    uint64_t pages;        /* of 4 KiB */
    uint64_t mapped_pages; /* that are in a layer: the others are zero */
    uint64_t extents;
};

struct inspected_working_set {
    bool present; /* and sound: it is only a hint */
    uint64_t runs;
    uint64_t pages;
};

struct snapshot_inspection {
    struct snapshot_info info;
    char *vmm;
    char *accelerator;
    char *cpu_model;
    char *kernel;
    unsigned machine_revision;
    uint64_t manifest_bytes;
    uint32_t compatible_features;
    uint32_t incompatible_features;
    struct inspected_section *sections;
    size_t section_count;
    struct inspected_layer *layers;
    size_t layer_count;
    struct inspected_image memory;
    struct inspected_image disk;
    struct inspected_working_set working_set;
};
void snapshot_inspection_done(struct snapshot_inspection *inspection);

int manager_snapshot_inspect(struct manager *manager, const char *id_or_prefix, struct snapshot_inspection *ret,
                             struct error *err);

struct snapshot_damage {
    char *id;
    char *reason;
    char *remedy;
};

struct store_verification {
    uint64_t snapshots;   /* verified */
    uint64_t layers;      /* read, each once */
    uint64_t layer_bytes; /* of their files */
    struct snapshot_damage *damaged;
    size_t damaged_count;
};
void store_verification_done(struct store_verification *verification);

/*
 * Reads every frame of one snapshot, or of all (NULL). Damage is an answer, not an error. Nothing else waits for
 * it; a snapshot that is removed meanwhile is left out.
 */
int manager_verify(struct manager *manager, const char *id_or_prefix, cancel_function cancel, void *context,
                   struct store_verification *ret, struct error *err);

struct page_range {
    uint64_t page;
    uint64_t count;
};

struct image_difference {
    uint64_t pages[2];        /* in the image of each */
    uint64_t read_pages;      /* whose content was compared; of the others the maps say enough */
    uint64_t different_pages; /* what one of them lacks counts as zero */
    struct page_range *ranges;
    size_t range_count;
    bool ranges_cut; /* there were more than was asked for */
};

struct snapshot_difference {
    char *ids[2];
    struct image_difference memory;
    struct image_difference disk;
};
void snapshot_difference_done(struct snapshot_difference *difference);

/* At most `ranges_max` ranges of each image. */
int manager_snapshot_diff(struct manager *manager, const char *const ids_or_prefixes[2], size_t ranges_max,
                          cancel_function cancel, void *context, struct snapshot_difference *ret,
                          struct error *err);

struct snapshot_compaction {
    char *id;
    bool wanted;        /* a bound was passed; otherwise nothing was changed */
    uint64_t layers[2]; /* before and after */
    uint64_t extents[2];
    uint64_t stored_bytes[2];
};
void snapshot_compaction_done(struct snapshot_compaction *compaction);

int manager_snapshot_compact(struct manager *manager, const char *id_or_prefix, struct snapshot_compaction *ret,
                             struct error *err);

/*
 * The snapshot's disk as a file that the image server serves, read-only, as long as it is open; the caller frees
 * *ret_path. It stays readable when the snapshot is removed while it is open.
 */
int manager_snapshot_disk(struct manager *manager, const char *id_or_prefix, char **ret_id, char **ret_path,
                          struct error *err);

struct store_report {
    uint64_t snapshots;
    uint64_t layers;
    uint64_t layer_bytes;       /* as files */
    uint64_t unreachable_bytes; /* of them, what gc would remove */
    uint64_t image_bytes;       /* what the layers stand for, before compression */
    json_t *image_server;       /* its metrics (docs/operations.md); NULL: it doesn't answer */
};
void store_report_done(struct store_report *report);

int manager_store_report(struct manager *manager, struct store_report *ret, struct error *err);

struct store_collection {
    uint64_t layers_removed;
    uint64_t bytes_removed;
};
/* Layers that nothing needs any more; also done in the background after every removal. */
int manager_store_gc(struct manager *manager, struct store_collection *ret, struct error *err);

#endif
