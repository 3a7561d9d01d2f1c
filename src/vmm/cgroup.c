#include "vmm/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"

#define TOP "dormouse"

/* A group whose processes were killed can be removed when the kernel is done with them. */
#define REMOVE_ATTEMPTS 200
#define REMOVE_WAIT_MS  10

static const char *const controllers[] = {"memory", "pids", "cpu"};

struct cgroups {
    char *top;
    char *directory; /* of this instance */
    char *lacking;
};

const char *cgroup_hierarchy(void)
{
    static const char *const places[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        struct statfs status;
        if (statfs(places[i], &status) == 0 && status.f_type == CGROUP2_SUPER_MAGIC)
            return places[i];
    }
    return NULL;
}

static int write_control(const char *directory, const char *file, const char *text)
{
    CLEANUP_FREE char *path = io_path(directory, file, NULL);
    if (path == NULL)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return io_write_full(fd, text, strlen(text));
}

static bool has_word(const char *text, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = text; (at = strstr(at, word)) != NULL; at += length)
        if ((at == text || at[-1] == ' ') && (at[length] == '\0' || strchr(" ,\n", at[length]) != NULL))
            return true;
    return false;
}

/* Whether children of the directory have this controller, or could be given it if `offered`. */
static bool has_controller(const char *directory, const char *controller, bool offered)
{
    CLEANUP_FREE char *path = io_path(directory, offered ? "cgroup.controllers" : "cgroup.subtree_control", NULL);
    CLEANUP_FREE char *text = NULL;
    return path != NULL && io_read_file(path, 4096, &text, NULL) == 0 && has_word(text, controller);
}

static char *list_lacking(const char *directory, bool offered)
{
    struct strbuf text = STRBUF_INIT;
    for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
        if (!has_controller(directory, controllers[i], offered))
            strbuf_printf(&text, "%s%s", text.length > 0 ? ", " : "", controllers[i]);
    if (text.failed) {
        strbuf_done(&text);
        return NULL;
    }
    return text.length > 0 ? strbuf_take(&text) : strdup("");
}

char *cgroup_lacking(const char *hierarchy)
{
    return list_lacking(hierarchy, true);
}

/* One by one: a single one that can't be had would spoil it for all. */
static void switch_on(const char *directory)
{
    for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
        char text[16];
        snprintf(text, sizeof(text), "+%s", controllers[i]);
        if (!has_controller(directory, controllers[i], false))
            (void)write_control(directory, "cgroup.subtree_control", text);
    }
}

static int make(const char *directory, struct error *err)
{
    if (mkdir(directory, 0755) < 0 && errno != EEXIST)
        return error_errno(err, "cannot make the cgroup %s", directory);
    return 0;
}

int cgroups_open(const char *hierarchy, const char *instance, struct cgroups **ret, struct error *err)
{
    struct cgroups *cgroups = calloc(1, sizeof(*cgroups));
    if (cgroups == NULL)
        return error_set(err, ENOMEM, "out of memory");
    if (asprintf(&cgroups->top, "%s/" TOP, hierarchy) < 0)
        cgroups->top = NULL;
    if (asprintf(&cgroups->directory, "%s/" TOP "/%s", hierarchy, instance) < 0)
        cgroups->directory = NULL;
    int r = cgroups->top == NULL || cgroups->directory == NULL ? error_set(err, ENOMEM, "out of memory") : 0;
    if (r == 0)
        r = make(cgroups->top, err);
    if (r == 0)
        r = make(cgroups->directory, err);
    if (r == 0) {
        switch_on(hierarchy);
        switch_on(cgroups->top);
        switch_on(cgroups->directory);
        cgroups->lacking = list_lacking(cgroups->directory, false);
        r = cgroups->lacking == NULL ? error_set(err, ENOMEM, "out of memory") : 0;
    }
    if (r < 0)
        cgroups_close(cgroups);
    else
        *ret = cgroups;
    return r;
}

void cgroups_close(struct cgroups *cgroups)
{
    if (cgroups == NULL)
        return;
    /* Fails where VMMs run on, or another daemon has its own. */
    if (cgroups->directory != NULL)
        (void)rmdir(cgroups->directory);
    if (cgroups->top != NULL)
        (void)rmdir(cgroups->top);
    free(cgroups->top);
    free(cgroups->directory);
    free(cgroups->lacking);
    free(cgroups);
}

const char *cgroups_lacking(const struct cgroups *cgroups)
{
    return cgroups->lacking;
}

static int set_limit(const char *directory, const char *file, uint64_t value, struct error *err)
{
    char text[32];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    int r = write_control(directory, file, text);
    return r < 0 ? error_code(err, r, "cannot set %s in the cgroup %s", file, directory) : 0;
}

int cgroup_make(struct cgroups *cgroups, const char *name, const struct cgroup_limits *limits, char **ret_path,
                struct error *err)
{
    CLEANUP_FREE char *path = io_path(cgroups->directory, name, err);
    if (path == NULL)
        return -ENOMEM;
    int r = make(path, err);
    const struct {
        const char *controller;
        const char *file;
        uint64_t value;
    } settings[] = {
        {"memory", "memory.max", limits->memory_bytes},
        {"pids", "pids.max", limits->processes},
        {"cpu", "cpu.weight", limits->cpu_weight},
    };
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(settings); i++)
        if (!has_word(cgroups->lacking, settings[i].controller))
            r = set_limit(path, settings[i].file, settings[i].value, err);
    if (r < 0) {
        (void)rmdir(path);
        return r;
    }
    *ret_path = TAKE_PTR(path);
    return 0;
}

int cgroup_enter(const char *path, pid_t pid, struct error *err)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", (int)pid);
    int r = write_control(path, "cgroup.procs", text);
    return r < 0 ? error_code(err, r, "cannot move process %d into the cgroup %s", (int)pid, path) : 0;
}

bool cgroup_ran_out_of_memory(struct cgroups *cgroups, const char *name)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *text = NULL;
    if (asprintf(&path, "%s/%s/memory.events", cgroups->directory, name) < 0) {
        path = NULL;
        return false;
    }
    unsigned long long kills = 0;
    if (io_read_file(path, 4096, &text, NULL) < 0)
        return false;
    const char *line = strstr(text, "\noom_kill ");
    return line != NULL && sscanf(line, " oom_kill %llu", &kills) == 1 && kills > 0;
}

void cgroup_remove(struct cgroups *cgroups, const char *name)
{
    CLEANUP_FREE char *path = io_path(cgroups->directory, name, NULL);
    if (path == NULL)
        return;
    for (int i = 0; i < REMOVE_ATTEMPTS && rmdir(path) < 0 && errno == EBUSY; i++) {
        (void)write_control(path, "cgroup.kill", "1");
        poll(NULL, 0, REMOVE_WAIT_MS);
    }
}

void cgroups_sweep(struct cgroups *cgroups, bool (*keep)(void *context, const char *name), void *context)
{
    DIR *directory = opendir(cgroups->directory);
    if (directory == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.' && !keep(context, entry->d_name))
            cgroup_remove(cgroups, entry->d_name);
    closedir(directory);
}
