#include "agent/freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mntent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/macro.h"

/* The present mounts, in the order in which they were made. */
struct mounts {
    int fds[FREEZE_MOUNTS_MAX];
    dev_t devices[FREEZE_MOUNTS_MAX];
    size_t count;
};

static void mounts_done(struct mounts *mounts)
{
    for (size_t i = 0; i < mounts->count; i++)
        close(mounts->fds[i]);
}

static bool is_known(const struct mounts *mounts, dev_t device)
{
    for (size_t i = 0; i < mounts->count; i++)
        if (mounts->devices[i] == device)
            return true;
    return false;
}

static int add_mount(struct mounts *mounts, const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0 || is_known(mounts, status.st_dev)) {
        if (fd >= 0)
            close(fd);
        return 0; /* hidden below a later mount, a file, or one seen already */
    }
    if (mounts->count == FREEZE_MOUNTS_MAX) {
        close(fd);
        return -E2BIG;
    }
    mounts->fds[mounts->count] = fd;
    mounts->devices[mounts->count++] = status.st_dev;
    return 0;
}

static int find_mounts(struct mounts *mounts)
{
    FILE *table = setmntent("/proc/self/mounts", "re");
    if (table == NULL)
        return -errno;
    struct mntent entry;
    char room[4096];
    int r = 0;
    /* What isn't on a disk is called by a name, not by the path of a device. */
    while (r == 0 && getmntent_r(table, &entry, room, sizeof(room)) != NULL)
        if (entry.mnt_fsname[0] == '/' && hasmntopt(&entry, MNTOPT_RO) == NULL)
            r = add_mount(mounts, entry.mnt_dir);
    endmntent(table);
    return r;
}

static void thaw(const struct mounts *mounts)
{
    for (size_t i = 0; i < mounts->count; i++)
        ioctl(mounts->fds[i], FITHAW, 0); /* EINVAL: it was not frozen */
}

int freeze_all(struct freeze_result *ret)
{
    CLEANUP(mounts_done) struct mounts mounts = {.count = 0};
    struct freeze_result result = {0};
    int r = find_mounts(&mounts);
    for (size_t i = mounts.count; r == 0 && i-- > 0;) {
        if (ioctl(mounts.fds[i], FIFREEZE, 0) == 0 || errno == EBUSY) /* EBUSY: frozen already */
            result.frozen++;
        else if (errno != EOPNOTSUPP && errno != ENOTTY)
            r = -errno;
        else if (syncfs(mounts.fds[i]) == 0)
            result.synced++;
        else
            r = -errno;
    }
    if (r < 0) {
        thaw(&mounts);
        return r;
    }
    *ret = result;
    return 0;
}

void thaw_all(void)
{
    CLEANUP(mounts_done) struct mounts mounts = {.count = 0};
    if (find_mounts(&mounts) == 0)
        thaw(&mounts);
}
