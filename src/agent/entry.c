#include "agent/entry.h"

#include <errno.h>
#include <limits.h>
#include <linux/limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "agent/path.h"

#define ATTRIBUTE_PREFIX "user.dormouse."

static const char *type_name(mode_t mode)
{
    if (S_ISREG(mode))
        return "FILE_TYPE_FILE";
    if (S_ISDIR(mode))
        return "FILE_TYPE_DIRECTORY";
    return S_ISLNK(mode) ? "FILE_TYPE_SYMLINK" : "FILE_TYPE_UNSPECIFIED";
}

/* As Go's fs.FileMode writes it, which is what clients of the protocol know: "dtrwxrwxrwx", "Lrwxrwxrwx". */
static void write_permissions(mode_t mode, char ret[16])
{
    size_t used = 0;
    if (S_ISDIR(mode))
        ret[used++] = 'd';
    if (S_ISLNK(mode))
        ret[used++] = 'L';
    if (S_ISBLK(mode) || S_ISCHR(mode))
        ret[used++] = 'D';
    if (S_ISFIFO(mode))
        ret[used++] = 'p';
    if (S_ISSOCK(mode))
        ret[used++] = 'S';
    if (mode & S_ISUID)
        ret[used++] = 'u';
    if (mode & S_ISGID)
        ret[used++] = 'g';
    if (S_ISCHR(mode))
        ret[used++] = 'c';
    if (mode & S_ISVTX)
        ret[used++] = 't';
    if (used == 0)
        ret[used++] = '-';
    for (int bit = 8; bit >= 0; bit--)
        ret[used++] = "xwr"[bit % 3];
    for (int bit = 8; bit >= 0; bit--)
        if (!(mode & 1u << bit))
            ret[used - 1 - (size_t)bit] = '-';
    ret[used] = '\0';
}

static void set_text(json_t *object, const char *key, const struct strbuf *text)
{
    json_object_set_new(object, key, json_string(strbuf_text(text)));
}

static void set_owners(const struct user_database *database, const struct stat *status, json_t *entry)
{
    CLEANUP_STRBUF struct strbuf owner = STRBUF_INIT;
    CLEANUP_STRBUF struct strbuf group = STRBUF_INIT;
    users_append_owner(database, status->st_uid, &owner);
    users_append_group(database, status->st_gid, &group);
    set_text(entry, "owner", &owner);
    set_text(entry, "group", &group);
}

static void set_times(const struct stat *status, json_t *entry)
{
    struct tm utc;
    char seconds[32];
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    if (gmtime_r(&status->st_mtim.tv_sec, &utc) == NULL ||
        strftime(seconds, sizeof(seconds), "%Y-%m-%dT%H:%M:%S", &utc) == 0)
        return;
    strbuf_printf(&text, "%s.%09ldZ", seconds, status->st_mtim.tv_nsec);
    set_text(entry, "modifiedTime", &text);
}

/* Where the link leads in the end; of a dangling one, its text. */
static void set_link_target(const char *path, json_t *entry)
{
    char target[PATH_MAX];
    if (realpath(path, target) == NULL) {
        ssize_t n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
            return;
        target[n] = '\0';
    }
    json_object_set_new(entry, "symlinkTarget", json_string(target));
}

static void set_metadata(const char *path, json_t *entry)
{
    char names[4096];
    char value[4096];
    ssize_t length = llistxattr(path, names, sizeof(names));
    json_t *metadata = NULL;
    for (const char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
        if (strncmp(name, ATTRIBUTE_PREFIX, strlen(ATTRIBUTE_PREFIX)) != 0)
            continue;
        ssize_t n = lgetxattr(path, name, value, sizeof(value));
        if (n < 0)
            continue;
        if (metadata == NULL)
            metadata = json_object();
        json_object_set_new(metadata, name + strlen(ATTRIBUTE_PREFIX), json_stringn(value, (size_t)n));
    }
    if (metadata != NULL)
        json_object_set_new(entry, "metadata", metadata);
}

int entry_describe(const struct user_database *database, const char *path, json_t **ret, struct error *err)
{
    struct stat status;
    if (lstat(path, &status) < 0)
        return errno == ENOENT || errno == ENOTDIR ? error_set(err, ENOENT, "path '%s' does not exist", path)
                                                   : error_errno(err, "cannot look at '%s'", path);
    CLEANUP_STRBUF struct strbuf size = STRBUF_INIT; /* 64-bit integers are strings in protobuf's JSON */
    char permissions[16];
    strbuf_printf(&size, "%lld", (long long)status.st_size);
    write_permissions(status.st_mode, permissions);
    json_t *entry = json_pack("{s:s, s:s, s:s, s:s, s:i, s:s}", "name", path_name(path), "type",
                              type_name(status.st_mode), "path", path, "size", strbuf_text(&size), "mode",
                              (int)(status.st_mode & 07777), "permissions", permissions);
    if (entry == NULL) /* JSON has no way to write it */
        return error_set(err, EINVAL, "the name of a file is not UTF-8");
    set_owners(database, &status, entry);
    set_times(&status, entry);
    if (S_ISLNK(status.st_mode))
        set_link_target(path, entry);
    if (S_ISREG(status.st_mode))
        set_metadata(path, entry);
    *ret = entry;
    return 0;
}

static void remove_metadata(int fd)
{
    char names[4096];
    ssize_t length = flistxattr(fd, names, sizeof(names));
    for (const char *name = names; length > 0 && name < names + length; name += strlen(name) + 1)
        if (strncmp(name, ATTRIBUTE_PREFIX, strlen(ATTRIBUTE_PREFIX)) == 0)
            fremovexattr(fd, name);
}

int entry_set_metadata(int fd, const json_t *metadata, struct error *err)
{
    const char *key;
    json_t *value;
    remove_metadata(fd);
    json_object_foreach ((json_t *)(uintptr_t)metadata, key, value) {
        char name[XATTR_NAME_MAX + 1];
        int length = snprintf(name, sizeof(name), ATTRIBUTE_PREFIX "%s", key);
        if (length < 0 || (size_t)length >= sizeof(name))
            return error_set(err, EINVAL, "the metadata key '%.64s' is too long", key);
        if (fsetxattr(fd, name, json_string_value(value), json_string_length(value), 0) < 0)
            return error_errno(err, "cannot store the metadata '%s'", key);
    }
    return 0;
}
