#include "net/claim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/strbuf.h"

#define CLAIM_PATH_BYTES sizeof(CLAIM_DIRECTORY "/4294967295")
#define CLAIM_FILE_MAX   (PATH_MAX + 256)

/* Who a claim file names. */
struct claim {
    char *text; /* holds both */
    const char *instance;
    const char *data_directory;
};

enum standing {
    CLAIM_OURS,
    CLAIM_THEIRS,
    CLAIM_ABANDONED, /* its data directory is gone, or the file is damaged */
};

static void claim_done(struct claim *claim)
{
    free(claim->text);
}

static void claim_path(unsigned slot, char ret_path[static CLAIM_PATH_BYTES])
{
    snprintf(ret_path, CLAIM_PATH_BYTES, CLAIM_DIRECTORY "/%u", slot);
}

int claim_lock(struct error *err)
{
    int r = io_make_directories(CLAIM_DIRECTORY, 0755);
    if (r < 0)
        return error_code(err, r, "cannot make %s", CLAIM_DIRECTORY);
    CLEANUP_CLOSE int fd = open(CLAIM_DIRECTORY "/lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_errno(err, "cannot open %s/lock", CLAIM_DIRECTORY);
    while (flock(fd, LOCK_EX) < 0)
        if (errno != EINTR)
            return error_errno(err, "cannot lock %s/lock", CLAIM_DIRECTORY);
    return TAKE_FD(fd);
}

/* -ENOENT when the slot is free. A damaged file yields an empty owner. */
static int claim_read(unsigned slot, struct claim *ret, struct error *err)
{
    char path[CLAIM_PATH_BYTES];
    claim_path(slot, path);
    char *text;
    size_t length;
    int r = io_read_file(path, CLAIM_FILE_MAX, &text, &length);
    if (r == -ENOENT)
        return r;
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    char *newline = strchr(text, '\n');
    if (newline != NULL)
        *newline = '\0';
    ret->text = text;
    ret->instance = newline == NULL ? "" : text;
    ret->data_directory = newline == NULL ? "" : newline + 1;
    return 0;
}

static int claim_write(const struct claim_owner *owner, unsigned slot, struct error *err)
{
    char path[CLAIM_PATH_BYTES];
    claim_path(slot, path);
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s\n%s", owner->instance, owner->data_directory);
    if (text.failed)
        return error_set(err, ENOMEM, "out of memory");
    int r = io_write_file_atomic(path, text.data, text.length, 0644);
    return r < 0 ? error_code(err, r, "cannot write %s", path) : 0;
}

/* Only a clear "it does not exist" counts as gone: a directory that can't be looked at may be in use. */
static bool is_gone(const char *directory)
{
    struct stat status;
    return directory[0] != '/' || (stat(directory, &status) < 0 && (errno == ENOENT || errno == ENOTDIR));
}

/* The daemon has its data directory for itself, so a claim that names it is ours whatever the instance: it was
 * left by an earlier data directory at the same place. */
static enum standing claim_standing(const struct claim *claim, const struct claim_owner *owner)
{
    if (strcmp(claim->data_directory, owner->data_directory) == 0)
        return CLAIM_OURS;
    return is_gone(claim->data_directory) ? CLAIM_ABANDONED : CLAIM_THEIRS;
}

/* Calls back for every claimed slot. */
static int claim_each(int (*each)(unsigned slot, void *context, struct error *err), void *context,
                      struct error *err)
{
    DIR *directory = opendir(CLAIM_DIRECTORY);
    if (directory == NULL)
        return error_errno(err, "cannot list %s", CLAIM_DIRECTORY);
    int r = 0;
    struct dirent *entry;
    while (r == 0 && (entry = readdir(directory)) != NULL) {
        char *end;
        unsigned long slot = strtoul(entry->d_name, &end, 10);
        if (end != entry->d_name && *end == '\0' && slot < CLAIM_SLOTS)
            r = each((unsigned)slot, context, err);
    }
    closedir(directory);
    return r;
}

int claim_take(const struct claim_owner *owner, unsigned start, unsigned *ret_slot, struct error *err)
{
    CLEANUP_CLOSE int lock = claim_lock(err);
    if (lock < 0)
        return lock;
    for (unsigned i = 0; i < CLAIM_SLOTS; i++) {
        unsigned slot = (start + i) % CLAIM_SLOTS;
        char path[CLAIM_PATH_BYTES];
        claim_path(slot, path);
        if (access(path, F_OK) == 0)
            continue;
        if (errno != ENOENT)
            return error_errno(err, "cannot look at %s", path);
        int r = claim_write(owner, slot, err);
        if (r < 0)
            return r;
        *ret_slot = slot;
        return 0;
    }
    return error_set(err, EAGAIN, "all %d network slots of this host are in use", CLAIM_SLOTS);
}

int claim_confirm(const struct claim_owner *owner, unsigned slot, struct error *err)
{
    CLEANUP_CLOSE int lock = claim_lock(err);
    if (lock < 0)
        return lock;
    CLEANUP(claim_done) struct claim claim = {0};
    int r = slot < CLAIM_SLOTS ? claim_read(slot, &claim, err) : -ENOENT;
    if (r == -ENOENT)
        return error_set(err, ENOENT, "network slot %u is not claimed", slot);
    if (r < 0)
        return r;
    enum standing standing = claim_standing(&claim, owner);
    if (strcmp(claim.instance, owner->instance) != 0 || standing == CLAIM_THEIRS)
        return error_set(err, ENOENT, "network slot %u belongs to instance %.40s with the data directory %s", slot,
                         claim.instance, claim.data_directory);
    return standing == CLAIM_OURS ? 0 : claim_write(owner, slot, err);
}

struct listing {
    const struct claim_owner *owner;
    bool *owned;
};

static int list_one(unsigned slot, void *context, struct error *err)
{
    struct listing *listing = context;
    CLEANUP(claim_done) struct claim claim = {0};
    int r = claim_read(slot, &claim, err);
    if (r < 0)
        return r;
    enum standing standing = claim_standing(&claim, listing->owner);
    if (standing == CLAIM_ABANDONED)
        r = claim_write(listing->owner, slot, err);
    if (r == 0 && standing != CLAIM_THEIRS)
        listing->owned[slot] = true;
    return r;
}

int claim_list(const struct claim_owner *owner, bool owned[static CLAIM_SLOTS], struct error *err)
{
    CLEANUP_CLOSE int lock = claim_lock(err);
    if (lock < 0)
        return lock;
    struct listing listing = {owner, owned};
    return claim_each(list_one, &listing, err);
}

int claim_release(const struct claim_owner *owner, unsigned slot, struct error *err)
{
    CLEANUP_CLOSE int lock = claim_lock(err);
    if (lock < 0)
        return lock;
    CLEANUP(claim_done) struct claim claim = {0};
    int r = claim_read(slot, &claim, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0 || claim_standing(&claim, owner) != CLAIM_OURS)
        return r;
    char path[CLAIM_PATH_BYTES];
    claim_path(slot, path);
    return unlink(path) < 0 ? error_errno(err, "cannot remove %s", path) : 0;
}

static int note_claim(unsigned slot, void *context, struct error *err)
{
    (void)slot;
    (void)err;
    *(bool *)context = true;
    return 0;
}

int claim_any(bool *ret, struct error *err)
{
    bool any = false;
    int r = claim_each(note_claim, &any, err);
    if (r == 0)
        *ret = any;
    return r;
}
