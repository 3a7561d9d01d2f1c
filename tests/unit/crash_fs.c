#include "crash_fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#define NAME_BYTES 64
#define NODES_MAX  4096

enum operation_kind { MAKE_FILE, MAKE_DIRECTORY, LINK, UNLINK, RENAME, WRITE, TRUNCATE, SYNC };

struct operation {
    enum operation_kind kind;
    size_t node; /* what is made, linked, written or synced; the directory of what is unlinked or renamed */
    size_t directory;
    char name[NAME_BYTES];
    char to_name[NAME_BYTES]; /* of a RENAME, to `directory` */
    uint64_t offset;
    size_t length;
    uint8_t *bytes;
};

struct entry {
    char name[NAME_BYTES];
    size_t node;
};

struct content {
    uint8_t *bytes;
    size_t length;
    struct entry *entries;
    size_t count;
};

struct node {
    bool directory;
    bool synced;
    struct content now;
    struct content durable;
};

struct crash_log {
    char *root;
    dev_t device;
    struct operation *operations;
    size_t count;
    ino_t inodes[NODES_MAX]; /* of each node, when it was met */
    bool stale[NODES_MAX];   /* the inode's number has another node now */
    size_t node_count;
    size_t first_nodes; /* those that recording began with */
    struct node *first;
    size_t synced[NODES_MAX];
    char names[NODES_MAX][NAME_BYTES];
    size_t synced_count;
};

struct crash_state {
    const struct crash_log *log;
    size_t without; /* node, or SIZE_MAX */
    size_t point;
    struct node nodes[NODES_MAX];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct crash_log *recording;

#define CHECK(condition)                                                                                           \
    do {                                                                                                           \
        if (!(condition)) {                                                                                        \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, strerror(errno));                  \
            abort();                                                                                               \
        }                                                                                                          \
    } while (0)

/* --- the model --- */

static void content_done(struct content *content)
{
    free(content->bytes);
    free(content->entries);
    *content = (struct content){0};
}

static void content_copy(struct content *to, const struct content *from)
{
    content_done(to);
    *to = *from;
    to->bytes = malloc(from->length + 1);
    to->entries = malloc((from->count + 1) * sizeof(*to->entries));
    CHECK(to->bytes != NULL && to->entries != NULL);
    if (from->length > 0)
        memcpy(to->bytes, from->bytes, from->length);
    if (from->count > 0)
        memcpy(to->entries, from->entries, from->count * sizeof(*to->entries));
}

static struct entry *find_entry(const struct content *content, const char *name)
{
    for (size_t i = 0; i < content->count; i++)
        if (strcmp(content->entries[i].name, name) == 0)
            return &content->entries[i];
    return NULL;
}

/* Sorted by name, so that equal trees have equal hashes. */
static void set_entry(struct content *content, const char *name, size_t node)
{
    struct entry *entry = find_entry(content, name);
    if (entry != NULL) {
        entry->node = node;
        return;
    }
    content->entries = realloc(content->entries, (content->count + 1) * sizeof(*content->entries));
    CHECK(content->entries != NULL);
    size_t at = content->count++;
    for (; at > 0 && strcmp(content->entries[at - 1].name, name) > 0; at--)
        content->entries[at] = content->entries[at - 1];
    content->entries[at].node = node;
    CHECK(snprintf(content->entries[at].name, NAME_BYTES, "%s", name) < NAME_BYTES);
}

static void remove_entry(struct content *content, const char *name)
{
    struct entry *entry = find_entry(content, name);
    CHECK(entry != NULL);
    size_t after = content->count - (size_t)(entry - content->entries) - 1;
    memmove(entry, entry + 1, after * sizeof(*entry));
    content->count--;
}

static void resize(struct content *content, size_t length)
{
    content->bytes = realloc(content->bytes, length + 1);
    CHECK(content->bytes != NULL);
    if (length > content->length)
        memset(content->bytes + content->length, 0, length - content->length);
    content->length = length;
}

static void apply(struct node *nodes, const struct operation *operation)
{
    struct content *node = &nodes[operation->node].now;
    struct content *directory = &nodes[operation->directory].now;
    switch (operation->kind) {
    case MAKE_DIRECTORY:
        nodes[operation->node].directory = true;
        set_entry(directory, operation->name, operation->node);
        break;
    case MAKE_FILE:
    case LINK:
        set_entry(directory, operation->name, operation->node);
        break;
    case UNLINK:
        remove_entry(node, operation->name);
        break;
    case RENAME: {
        struct entry *entry = find_entry(node, operation->name);
        CHECK(entry != NULL);
        size_t moved = entry->node;
        remove_entry(node, operation->name);
        set_entry(directory, operation->to_name, moved);
        break;
    }
    case WRITE:
        if (operation->offset + operation->length > node->length)
            resize(node, operation->offset + operation->length);
        memcpy(node->bytes + operation->offset, operation->bytes, operation->length);
        break;
    case TRUNCATE:
        resize(node, operation->offset);
        break;
    case SYNC:
        content_copy(&nodes[operation->node].durable, node);
        nodes[operation->node].synced = true;
        break;
    }
}

struct crash_state *crash_replay(const struct crash_log *log, size_t without)
{
    struct crash_state *state = calloc(1, sizeof(*state));
    CHECK(state != NULL);
    state->log = log;
    state->without = without == SIZE_MAX ? SIZE_MAX : log->synced[without];
    for (size_t i = 0; i < log->first_nodes; i++) {
        state->nodes[i].directory = log->first[i].directory;
        state->nodes[i].synced = true;
        content_copy(&state->nodes[i].now, &log->first[i].now);
        content_copy(&state->nodes[i].durable, &log->first[i].now);
    }
    return state;
}

void crash_state_free(struct crash_state *state)
{
    for (size_t i = 0; i < NODES_MAX; i++) {
        content_done(&state->nodes[i].now);
        content_done(&state->nodes[i].durable);
    }
    free(state);
}

size_t crash_point(const struct crash_state *state)
{
    return state->point;
}

bool crash_step(struct crash_state *state)
{
    if (state->point == state->log->count)
        return false;
    const struct operation *operation = &state->log->operations[state->point++];
    if (operation->kind != SYNC || operation->node != state->without)
        apply(state->nodes, operation);
    return true;
}

/* What of a node is left; *ret_length for files. */
static const struct content *pick(const struct node *node, enum crash_kind kind, bool in_layers, size_t *ret_length)
{
    bool all_names = kind == CRASH_PROCESS || kind == CRASH_EMPTY || kind == CRASH_SHORT ||
                     (kind == CRASH_LAYERS_FIRST && in_layers) || (kind == CRASH_SNAPSHOTS_FIRST && !in_layers);
    bool all = node->directory ? all_names : kind == CRASH_PROCESS;
    const struct content *content = all ? &node->now : &node->durable;
    if (kind == CRASH_SHORT && !node->directory && !node->synced) {
        *ret_length = node->now.length / 2;
        return &node->now;
    }
    *ret_length = content->length;
    return content;
}

static uint64_t hash_node(const struct crash_state *state, size_t index, enum crash_kind kind, bool in_layers)
{
    size_t length;
    const struct node *node = &state->nodes[index];
    const struct content *content = pick(node, kind, in_layers, &length);
    uint64_t hash = XXH3_64bits(content->bytes, length);
    for (size_t i = 0; i < content->count; i++) {
        const char *name = content->entries[i].name;
        bool layers = in_layers || strcmp(name, "layers") == 0;
        uint64_t pair[] = {hash, hash_node(state, content->entries[i].node, kind, layers)};
        hash = XXH3_64bits_withSeed(name, strlen(name), XXH3_64bits(pair, sizeof(pair)));
    }
    return hash + node->directory;
}

uint64_t crash_hash(const struct crash_state *state, enum crash_kind kind)
{
    return hash_node(state, 0, kind, false);
}

static void rebuild(const struct crash_state *state, size_t index, enum crash_kind kind, bool in_layers,
                    const char *path)
{
    size_t length;
    const struct node *node = &state->nodes[index];
    const struct content *content = pick(node, kind, in_layers, &length);
    if (!node->directory) {
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        CHECK(fd >= 0 && write(fd, content->bytes, length) == (ssize_t)length && close(fd) == 0);
        return;
    }
    CHECK(mkdir(path, 0700) == 0);
    for (size_t i = 0; i < content->count; i++) {
        char *child;
        const char *name = content->entries[i].name;
        CHECK(asprintf(&child, "%s/%s", path, name) > 0);
        rebuild(state, content->entries[i].node, kind, in_layers || strcmp(name, "layers") == 0, child);
        free(child);
    }
}

void crash_rebuild(const struct crash_state *state, enum crash_kind kind, const char *to)
{
    rebuild(state, 0, kind, false, to);
}

/* --- the record --- */

static size_t add_node(struct crash_log *log, ino_t inode)
{
    CHECK(log->node_count < NODES_MAX);
    for (size_t i = 0; i < log->node_count; i++)
        if (log->inodes[i] == inode)
            log->stale[i] = true;
    log->inodes[log->node_count] = inode;
    return log->node_count++;
}

static bool find_node(const struct crash_log *log, const struct stat *status, size_t *ret)
{
    for (size_t i = 0; i < log->node_count; i++) {
        if (status->st_dev == log->device && log->inodes[i] == status->st_ino && !log->stale[i]) {
            *ret = i;
            return true;
        }
    }
    return false;
}

static struct operation *add_operation(struct crash_log *log, enum operation_kind kind, size_t node)
{
    log->operations = realloc(log->operations, (log->count + 1) * sizeof(*log->operations));
    CHECK(log->operations != NULL);
    log->operations[log->count] = (struct operation){.kind = kind, .node = node};
    return &log->operations[log->count++];
}

/* The directory that a path's last part is in, if it belongs to the tree; and that part. */
static bool find_directory(int at, const char *path, size_t *ret, char ret_name[static NAME_BYTES])
{
    const char *slash = strrchr(path, '/');
    char *parent = slash != NULL ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    struct stat status;
    bool found = fstatat(at, parent, &status, 0) == 0 && find_node(recording, &status, ret);
    free(parent);
    if (found)
        CHECK(snprintf(ret_name, NAME_BYTES, "%s", slash != NULL ? slash + 1 : path) < NAME_BYTES);
    return found;
}

static void load(struct crash_log *log, const char *path, size_t index)
{
    struct stat status;
    CHECK(lstat(path, &status) == 0);
    log->first = realloc(log->first, log->node_count * sizeof(*log->first));
    CHECK(log->first != NULL);
    log->first[index] = (struct node){.directory = S_ISDIR(status.st_mode)};
    if (!S_ISDIR(status.st_mode)) {
        struct content *content = &log->first[index].now;
        resize(content, (size_t)status.st_size);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0 && read(fd, content->bytes, content->length) == (ssize_t)content->length);
        close(fd);
        return;
    }
    DIR *entries = opendir(path);
    CHECK(entries != NULL);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        size_t child;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *child_path;
        CHECK(asprintf(&child_path, "%s/%s", path, entry->d_name) > 0 && lstat(child_path, &status) == 0);
        bool known = find_node(log, &status, &child);
        if (!known)
            child = add_node(log, status.st_ino);
        if (!known)
            load(log, child_path, child);
        free(child_path);
        set_entry(&log->first[index].now, entry->d_name, child);
    }
    closedir(entries);
}

static struct crash_log *load_tree(const char *root)
{
    struct crash_log *log = calloc(1, sizeof(*log));
    struct stat status;
    CHECK(log != NULL && lstat(root, &status) == 0);
    log->root = strdup(root);
    log->device = status.st_dev;
    load(log, root, add_node(log, status.st_ino));
    log->first_nodes = log->node_count;
    return log;
}

void crash_record(const char *root)
{
    struct crash_log *log = load_tree(root);
    pthread_mutex_lock(&lock);
    recording = log;
    pthread_mutex_unlock(&lock);
}

size_t crash_mark(void)
{
    return recording->count;
}

/* Nodes that were changed, and fsynced after that. */
static void find_synced(struct crash_log *log)
{
    bool dirty[NODES_MAX] = {false};
    bool listed[NODES_MAX] = {false};
    for (size_t i = 0; i < log->count; i++) {
        const struct operation *operation = &log->operations[i];
        bool names = operation->kind <= RENAME;
        if (operation->kind != SYNC) {
            dirty[operation->kind == UNLINK || !names ? operation->node : operation->directory] = true;
            if (operation->kind == RENAME)
                dirty[operation->node] = true;
            if (operation->kind <= MAKE_DIRECTORY)
                CHECK(snprintf(log->names[operation->node], NAME_BYTES, "%s", operation->name) < NAME_BYTES);
        } else if (dirty[operation->node] && !listed[operation->node]) {
            listed[operation->node] = true;
            log->synced[log->synced_count++] = operation->node;
        }
    }
    for (size_t i = 0; i < log->first_nodes; i++)
        for (size_t j = 0; j < log->first[i].now.count; j++)
            memcpy(log->names[log->first[i].now.entries[j].node], log->first[i].now.entries[j].name, NAME_BYTES);
}

size_t crash_synced_count(const struct crash_log *log)
{
    return log->synced_count;
}

const char *crash_synced_name(const struct crash_log *log, size_t index)
{
    return log->names[log->synced[index]];
}

struct crash_log *crash_stop(void)
{
    pthread_mutex_lock(&lock);
    struct crash_log *log = recording;
    recording = NULL;
    pthread_mutex_unlock(&lock);
    find_synced(log);
    struct crash_log *real = load_tree(log->root);
    struct crash_state *is = crash_replay(real, SIZE_MAX);
    struct crash_state *should_be = crash_replay(log, SIZE_MAX);
    while (crash_step(should_be))
        ;
    CHECK(crash_hash(is, CRASH_PROCESS) == crash_hash(should_be, CRASH_PROCESS));
    crash_state_free(is);
    crash_state_free(should_be);
    crash_log_free(real);
    return log;
}

void crash_log_free(struct crash_log *log)
{
    for (size_t i = 0; i < log->count; i++)
        free(log->operations[i].bytes);
    for (size_t i = 0; i < log->first_nodes; i++)
        content_done(&log->first[i].now);
    free(log->operations);
    free(log->first);
    free(log->root);
    free(log);
}

/* --- the functions in whose place these stand --- */

static void begin(void)
{
    pthread_mutex_lock(&lock);
}

static void end(void)
{
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void record_entry(enum operation_kind kind, size_t node, size_t directory, const char *name)
{
    struct operation *operation = add_operation(recording, kind, node);
    operation->directory = directory;
    memcpy(operation->name, name, NAME_BYTES);
}

#define REAL(name) __real_##name
#define WRAP(name) __wrap_##name

int REAL(openat64)(int at, const char *path, int flags, ...);
int WRAP(openat64)(int at, const char *path, int flags, ...);
int WRAP(open64)(const char *path, int flags, ...);
ssize_t REAL(write)(int fd, const void *bytes, size_t length);
ssize_t WRAP(write)(int fd, const void *bytes, size_t length);
ssize_t REAL(pwrite64)(int fd, const void *bytes, size_t length, off_t offset);
ssize_t WRAP(pwrite64)(int fd, const void *bytes, size_t length, off_t offset);
ssize_t WRAP(pwritev64)(int fd, const struct iovec *parts, int count, off_t offset);
int REAL(ftruncate64)(int fd, off_t length);
int WRAP(ftruncate64)(int fd, off_t length);
int REAL(fsync)(int fd);
int WRAP(fsync)(int fd);
int WRAP(fdatasync)(int fd);
int REAL(mkdirat)(int at, const char *path, mode_t mode);
int WRAP(mkdirat)(int at, const char *path, mode_t mode);
int WRAP(mkdir)(const char *path, mode_t mode);
int REAL(linkat)(int from_at, const char *from, int to_at, const char *to, int flags);
int WRAP(linkat)(int from_at, const char *from, int to_at, const char *to, int flags);
int WRAP(link)(const char *from, const char *to);
int REAL(unlinkat)(int at, const char *path, int flags);
int WRAP(unlinkat)(int at, const char *path, int flags);
int WRAP(unlink)(const char *path);
int WRAP(rmdir)(const char *path);
int WRAP(remove)(const char *path);
int REAL(renameat)(int from_at, const char *from, int to_at, const char *to);
int WRAP(renameat)(int from_at, const char *from, int to_at, const char *to);
int WRAP(rename)(const char *from, const char *to);

static int open_file(int at, const char *path, int flags, mode_t mode)
{
    struct stat status;
    size_t directory;
    char name[NAME_BYTES];
    begin();
    bool there = fstatat(at, path, &status, 0) == 0;
    int fd = REAL(openat64)(at, path, flags, mode);
    if (recording != NULL && fd >= 0 && find_directory(at, path, &directory, name)) {
        size_t node;
        CHECK(fstat(fd, &status) == 0);
        if (!there)
            record_entry(MAKE_FILE, add_node(recording, status.st_ino), directory, name);
        else if ((flags & O_TRUNC) && find_node(recording, &status, &node))
            add_operation(recording, TRUNCATE, node);
    }
    end();
    return fd;
}

static mode_t open_mode(int flags, va_list arguments)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

int WRAP(openat64)(int at, const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = open_mode(flags, arguments);
    va_end(arguments);
    return open_file(at, path, flags, mode);
}

int WRAP(open64)(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = open_mode(flags, arguments);
    va_end(arguments);
    return open_file(AT_FDCWD, path, flags, mode);
}

/* The node of a descriptor that belongs to the tree. */
static bool find_open(int fd, size_t *ret)
{
    struct stat status;
    return recording != NULL && fstat(fd, &status) == 0 && find_node(recording, &status, ret);
}

static void record_write(int fd, const void *bytes, ssize_t length, off_t offset)
{
    size_t node;
    if (length <= 0 || !find_open(fd, &node))
        return;
    struct operation *operation = add_operation(recording, WRITE, node);
    operation->offset = (uint64_t)offset;
    operation->length = (size_t)length;
    operation->bytes = malloc((size_t)length);
    CHECK(operation->bytes != NULL);
    memcpy(operation->bytes, bytes, (size_t)length);
}

ssize_t WRAP(write)(int fd, const void *bytes, size_t length)
{
    begin();
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t written = REAL(write)(fd, bytes, length);
    record_write(fd, bytes, written, offset);
    end();
    return written;
}

ssize_t WRAP(pwrite64)(int fd, const void *bytes, size_t length, off_t offset)
{
    begin();
    ssize_t written = REAL(pwrite64)(fd, bytes, length, offset);
    record_write(fd, bytes, written, offset);
    end();
    return written;
}

/* As several writes: between any two of them the process may stop. */
ssize_t WRAP(pwritev64)(int fd, const struct iovec *parts, int count, off_t offset)
{
    ssize_t written = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = WRAP(pwrite64)(fd, parts[i].iov_base, parts[i].iov_len, offset + written);
        if (n < 0)
            return written > 0 ? written : n;
        written += n;
        if ((size_t)n < parts[i].iov_len)
            break;
    }
    return written;
}

int WRAP(ftruncate64)(int fd, off_t length)
{
    size_t node;
    begin();
    int r = REAL(ftruncate64)(fd, length);
    if (r == 0 && find_open(fd, &node))
        add_operation(recording, TRUNCATE, node)->offset = (uint64_t)length;
    end();
    return r;
}

int WRAP(fsync)(int fd)
{
    size_t node;
    begin();
    int r = REAL(fsync)(fd);
    if (r == 0 && find_open(fd, &node))
        add_operation(recording, SYNC, node);
    end();
    return r;
}

int WRAP(fdatasync)(int fd)
{
    return WRAP(fsync)(fd);
}

int WRAP(mkdirat)(int at, const char *path, mode_t mode)
{
    size_t directory;
    char name[NAME_BYTES];
    struct stat status;
    begin();
    int r = REAL(mkdirat)(at, path, mode);
    if (r == 0 && recording != NULL && find_directory(at, path, &directory, name)) {
        CHECK(fstatat(at, path, &status, 0) == 0);
        record_entry(MAKE_DIRECTORY, add_node(recording, status.st_ino), directory, name);
    }
    end();
    return r;
}

int WRAP(mkdir)(const char *path, mode_t mode)
{
    return WRAP(mkdirat)(AT_FDCWD, path, mode);
}

int WRAP(linkat)(int from_at, const char *from, int to_at, const char *to, int flags)
{
    size_t node;
    size_t directory;
    char name[NAME_BYTES];
    struct stat status;
    begin();
    int r = REAL(linkat)(from_at, from, to_at, to, flags);
    if (r == 0 && recording != NULL && find_directory(to_at, to, &directory, name)) {
        CHECK(fstatat(to_at, to, &status, 0) == 0 && find_node(recording, &status, &node));
        record_entry(LINK, node, directory, name);
    }
    end();
    return r;
}

int WRAP(link)(const char *from, const char *to)
{
    return WRAP(linkat)(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int WRAP(unlinkat)(int at, const char *path, int flags)
{
    size_t directory;
    char name[NAME_BYTES];
    begin();
    int r = REAL(unlinkat)(at, path, flags);
    if (r == 0 && recording != NULL && find_directory(at, path, &directory, name))
        record_entry(UNLINK, directory, directory, name);
    end();
    return r;
}

int WRAP(unlink)(const char *path)
{
    return WRAP(unlinkat)(AT_FDCWD, path, 0);
}

int WRAP(rmdir)(const char *path)
{
    return WRAP(unlinkat)(AT_FDCWD, path, AT_REMOVEDIR);
}

int WRAP(remove)(const char *path)
{
    int r = WRAP(unlink)(path);
    return r < 0 && (errno == EISDIR || errno == EPERM) ? WRAP(rmdir)(path) : r;
}

int WRAP(renameat)(int from_at, const char *from, int to_at, const char *to)
{
    size_t directory;
    size_t to_directory;
    char name[NAME_BYTES];
    char to_name[NAME_BYTES];
    begin();
    int r = REAL(renameat)(from_at, from, to_at, to);
    if (r == 0 && recording != NULL && find_directory(from_at, from, &directory, name)) {
        CHECK(find_directory(to_at, to, &to_directory, to_name));
        record_entry(RENAME, directory, to_directory, name);
        memcpy(recording->operations[recording->count - 1].to_name, to_name, NAME_BYTES);
    }
    end();
    return r;
}

int WRAP(rename)(const char *from, const char *to)
{
    return WRAP(renameat)(AT_FDCWD, from, AT_FDCWD, to);
}
