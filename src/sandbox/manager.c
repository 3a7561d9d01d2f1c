#include "sandbox/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/io.h"
#include "host/assets.h"
#include "sandbox/internal.h"

#define INSTANCE_LENGTH 12
#define API_KEY_BYTES   20

static const char *const parts[] = {"vms", "kernels", "cache", "tmp"};

char *manager_path(const struct manager *manager, const char *part, const char *name, struct error *err)
{
    char *path;
    if (asprintf(&path, "%s/%s/%s", manager->directory, part, name) >= 0)
        return path;
    error_set(err, ENOMEM, "out of memory");
    return NULL;
}

void manager_log(struct manager *manager, const char *format, ...)
{
    char *line;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&line, format, args);
    va_end(args);
    if (n < 0)
        return;
    if (manager->options.log != NULL)
        manager->options.log(manager->options.log_context, line);
    free(line);
}

int replace_text(char **text, const char *value, struct error *err)
{
    char *copy = strdup(value);
    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    free(*text);
    *text = copy;
    return 0;
}

char *new_id(struct error *err)
{
    char *id = malloc(SANDBOX_ID_LENGTH + 1);
    int r = id != NULL ? random_name(id, SANDBOX_ID_LENGTH) : -ENOMEM;
    if (r == 0)
        return id;
    free(id);
    error_code(err, r, "cannot make an id");
    return NULL;
}

struct worker {
    struct manager *manager;
    void (*function)(struct manager *, void *);
    void *argument;
};

static void *run_worker(void *context)
{
    struct worker *worker = context;
    struct manager *manager = worker->manager;
    worker->function(manager, worker->argument);
    free(worker);
    pthread_mutex_lock(&manager->lock);
    manager->workers--;
    pthread_cond_broadcast(&manager->workers_done);
    pthread_mutex_unlock(&manager->lock);
    return NULL;
}

int manager_spawn(struct manager *manager, void (*function)(struct manager *, void *), void *argument)
{
    struct worker *worker = malloc(sizeof(*worker));
    if (worker == NULL)
        return -ENOMEM;
    *worker = (struct worker){manager, function, argument};
    pthread_mutex_lock(&manager->lock);
    manager->workers++;
    pthread_mutex_unlock(&manager->lock);
    pthread_t thread;
    int code = pthread_create(&thread, NULL, run_worker, worker);
    if (code == 0) {
        pthread_detach(thread);
        return 0;
    }
    free(worker);
    pthread_mutex_lock(&manager->lock);
    manager->workers--;
    pthread_mutex_unlock(&manager->lock);
    return -code;
}

static int make_directories(struct manager *manager, struct error *err)
{
    int r = io_make_directories(manager->directory, 0700);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(parts); i++) {
        CLEANUP_FREE char *path = manager_path(manager, parts[i], "", err);
        r = path != NULL ? io_make_directories(path, 0700) : -ENOMEM;
    }
    if (r == 0 && chmod(manager->directory, 0700) < 0)
        r = -errno;
    return r < 0 ? error_code(err, r, "cannot make the data directory %s", manager->directory) : 0;
}

static int lock_directory(struct manager *manager, struct error *err)
{
    CLEANUP_FREE char *path = manager_path(manager, ".", "lock", err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int r = error_set(err, EBUSY, "another dormoused uses %s", manager->directory);
        error_hint(err, "end it, or give this one another --data directory");
        return r;
    }
    manager->directory_lock = TAKE_FD(fd);
    return 0;
}

/* Reads the one-line file `name`, or makes it with what `generate` writes into a buffer of 128. */
static int load_or_make(struct manager *manager, const char *name, int (*generate)(char *), char **ret,
                        struct error *err)
{
    CLEANUP_FREE char *path = manager_path(manager, ".", name, err);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_FREE char *text = NULL;
    int r = io_read_file(path, 127, &text, NULL);
    if (r == -ENOENT) {
        text = calloc(1, 128);
        r = text == NULL ? -ENOMEM : generate(text);
        if (r == 0)
            r = io_write_file_atomic(path, text, strlen(text), 0600);
    }
    if (r < 0)
        return error_code(err, r, "cannot read or make %s", path);
    text[strcspn(text, "\n")] = '\0';
    if (text[0] == '\0' || strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(text)) {
        r = error_set(err, EUCLEAN, "%s is damaged", path);
        error_hint(err, "restore it, or remove it when no sandbox runs");
        return r;
    }
    *ret = TAKE_PTR(text);
    return 0;
}

static int generate_instance(char *text)
{
    return random_name(text, INSTANCE_LENGTH);
}

static int generate_api_key(char *text)
{
    strcpy(text, "e2b_");
    return random_hex(text + 4, API_KEY_BYTES);
}

static int open_parts(struct manager *manager, struct error *err)
{
    CLEANUP_FREE char *registry_path = manager_path(manager, ".", "registry.db", err);
    CLEANUP_FREE char *image_server = asset_find("dormouse-imaged", err);
    if (registry_path == NULL || image_server == NULL)
        return -ENOENT;
    int r = load_or_make(manager, "instance", generate_instance, &manager->instance, err);
    if (r == 0)
        r = load_or_make(manager, "api-key", generate_api_key, &manager->api_key, err);
    if (r == 0)
        r = registry_open(registry_path, &manager->registry, err);
    if (r == 0)
        r = store_open(manager->directory, &manager->store, err);
    if (r == 0)
        r = imaged_start(manager->directory, image_server, &manager->images, &manager->images_lost, err);
    if (r < 0)
        return r;
    struct network_pool_options networks = {
        .instance = manager->instance,
        .data_directory = manager->directory,
        .ahead = manager->options.network_ahead,
    };
    return network_pool_open(&networks, &manager->networks, err);
}

/*
 * Begins to keep VMMs ready. Until somebody asks for one, the guests of any template are a good guess.
 */
static int open_standbys(struct manager *manager, struct error *err)
{
    CLEANUP_FREE char *directory = manager_path(manager, "vms", "", err);
    if (directory == NULL)
        return -ENOMEM;
    directory[strlen(directory) - 1] = '\0';
    struct standby_options options = {
        .instance = manager->instance,
        .directory = directory,
        .networks = manager->networks,
        .ahead = manager->options.vmm_ahead,
    };
    int r = standby_pool_open(&options, &manager->standbys, err);
    if (r < 0 || manager->templates == NULL)
        return r;
    CLEANUP(snapshot_done) struct snapshot snapshot = {0};
    enum vmm_accelerator accelerator;
    if (store_read(manager->store, manager->templates->info.snapshot_id, &snapshot, NULL) == 0 &&
        vmm_accelerator_parse(snapshot.manifest.accelerator, &accelerator) == 0)
        standby_want(manager->standbys, accelerator, snapshot.manifest.cpus);
    return 0;
}

static int open_manager(struct manager *manager, struct error *err)
{
    if (geteuid() != 0) {
        error_set(err, EPERM, "dormoused must run as root: it makes namespaces, TAP devices and mounts");
        error_hint(err, "start it with sudo");
        return -EPERM;
    }
    int r = make_directories(manager, err);
    if (r == 0)
        r = lock_directory(manager, err);
    if (r == 0)
        r = open_parts(manager, err);
    if (r == 0)
        r = limits_open(manager, err);
    if (r == 0)
        r = watch_open(manager, err);
    if (r == 0)
        r = manager_recover(manager, err);
    manager->recovered = r == 0;
    if (r == 0)
        limits_announce(manager);
    if (r == 0)
        r = open_standbys(manager, err);
    if (r == 0)
        r = watch_start(manager, err);
    return r;
}

int manager_open(const struct manager_options *options, struct manager **ret, struct error *err)
{
    struct manager *manager = calloc(1, sizeof(*manager));
    if (manager == NULL)
        return error_set(err, ENOMEM, "out of memory");
    manager->options = *options;
    manager->directory_lock = manager->epoll_fd = manager->wake_fd = -1;
    pthread_mutex_init(&manager->lock, NULL);
    pthread_mutex_init(&manager->build, NULL);
    pthread_mutex_init(&manager->naming, NULL);
    pthread_cond_init(&manager->workers_done, NULL);
    manager->directory = strdup(options->data_directory);
    int r = manager->directory == NULL ? error_set(err, ENOMEM, "out of memory") : open_manager(manager, err);
    if (r < 0) {
        manager_close(manager);
        return r;
    }
    *ret = manager;
    return 0;
}

/* With no VM left, the image server has nothing to outlive the daemon for. Who didn't take the VMs over can't know.
 */
static void leave_images(struct manager *manager)
{
    bool needed = !manager->recovered;
    for (const struct sandbox *sandbox = manager->sandboxes; sandbox != NULL; sandbox = sandbox->next)
        needed = needed || sandbox->vmm != NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (manager->images != NULL && !needed && imaged_stop(manager->images, &err) < 0)
        manager_log(manager, "ending the image server: %s", error_message(&err));
    imaged_close(manager->images);
}

static void free_objects(struct manager *manager)
{
    while (manager->sandboxes != NULL) {
        struct sandbox *sandbox = manager->sandboxes;
        manager->sandboxes = sandbox->next;
        vmm_free(sandbox->vmm);
        sandbox_free(sandbox);
    }
    checkpoints_free(manager);
    while (manager->templates != NULL) {
        struct template *template = manager->templates;
        manager->templates = template->next;
        template_info_done(&template->info);
        free(template);
    }
}

void manager_close(struct manager *manager)
{
    if (manager == NULL)
        return;
    watch_stop(manager);
    pthread_mutex_lock(&manager->lock);
    while (manager->workers > 0)
        pthread_cond_wait(&manager->workers_done, &manager->lock);
    pthread_mutex_unlock(&manager->lock);
    leave_images(manager);
    free_objects(manager);
    standby_pool_close(manager->standbys);
    if (manager->networks != NULL)
        network_pool_close(manager->networks);
    limits_close(manager);
    store_close(manager->store);
    registry_close(manager->registry);
    cleanup_close(&manager->epoll_fd);
    cleanup_close(&manager->wake_fd);
    cleanup_close(&manager->directory_lock);
    pthread_cond_destroy(&manager->workers_done);
    pthread_mutex_destroy(&manager->build);
    pthread_mutex_destroy(&manager->naming);
    pthread_mutex_destroy(&manager->lock);
    free(manager->directory);
    free(manager->instance);
    free(manager->api_key);
    free(manager);
}

const char *manager_api_key(const struct manager *manager)
{
    return manager->api_key;
}
