/*
 * Single regular files go by the agent's /files, in one stream. Trees go as a tar archive through a temporary file
 * in the guest's /tmp, packed or unpacked there by the guest's own tar; it is removed on every way out, also after
 * a signal, which only makes the transfers end early (client_set_cancel).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/encode.h"
#include "base/io.h"
#include "cli/api.h"
#include "cli/copy_path.h"
#include "cli/guest_files.h"
#include "cli/options.h"
#include "cli/parse.h"
#include "cli/signals.h"
#include "cli/tree.h"

#define PERMISSION_BITS  0777
#define TEMPORARY_PREFIX "/tmp/.dormouse-cp-"
#define TEMPORARY_RANDOM 8
#define BLOCK_SIZE       65536
#define NEW_DIRECTORY    0755

static const struct verb_usage usage = {
    .verb = "cp",
    .arguments = "[OPTIONS] SOURCE ID:DESTINATION | ID:SOURCE DESTINATION",
    .summary = "Copies a file or a tree to or from a running sandbox.",
    .details =
        "As with docker cp: into DESTINATION if that is a directory, else to that name; SOURCE/. means what is\n"
        "in the directory. Permissions are kept, owners are not. A link given as SOURCE is followed, links in\n"
        "a tree are copied as links. Relative paths in the sandbox start at the user's home directory. A path\n"
        "of this host that looks like ID:PATH is written with ./ in front.\n",
    .minimum = 2,
    .maximum = 2,
};

struct copy {
    struct client *client;
    struct guest guest;
    int signal_fd;
    struct tree_count count;
};

/* ---- the temporary archive in the guest ---- */

static int temporary_path(char **ret, struct error *err)
{
    char random[2 * TEMPORARY_RANDOM + 1];
    int r = random_hex(random, TEMPORARY_RANDOM);
    if (r < 0)
        return error_code(err, r, "cannot make a temporary name");
    if (asprintf(ret, TEMPORARY_PREFIX "%s", random) < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

/* Also after a signal and after failures, which it doesn't hide: that it may fail, too, is no news then. */
static void remove_temporary(struct copy *copy, const char *path)
{
    client_set_cancel(copy->client, -1);
    guest_files_remove(copy->client, &copy->guest, path, NULL);
}

static int run_in_guest(struct copy *copy, const char *const *command, struct error *err)
{
    return guest_files_run(copy->client, &copy->guest, command, copy->signal_fd, err);
}

/* ---- to the guest ---- */

static ssize_t read_file(void *context, char *buffer, size_t size)
{
    int fd = *(const int *)context;
    for (;;) {
        ssize_t n = read(fd, buffer, size);
        if (n >= 0 || errno != EINTR)
            return n;
    }
}

static int upload_file(struct copy *copy, int fd, const struct stat *st, const char *path, struct error *err)
{
    int r = guest_files_upload(copy->client, &copy->guest, path, read_file, &fd, err);
    if (r < 0)
        return r;
    copy->count.files++;
    copy->count.bytes += (uint64_t)st->st_size;
    char mode[8];
    snprintf(mode, sizeof(mode), "%04o", (unsigned)st->st_mode & 07777U);
    const char *const command[] = {"chmod", mode, path, NULL};
    return run_in_guest(copy, command, err);
}

static int upload_archive(struct copy *copy, const struct copy_path *source, bool with_root, const char *temporary,
                          struct error *err)
{
    CLEANUP_TREE_PACK struct tree_pack *pack = NULL;
    int r = tree_pack_open(source->path, with_root, &pack, err);
    if (r < 0)
        return r;
    r = guest_files_upload(copy->client, &copy->guest, temporary, tree_pack_read, pack, err);
    int packed = tree_pack_error(pack, err);
    copy->count = *tree_pack_count(pack);
    return packed < 0 ? packed : r;
}

static int upload_tree(struct copy *copy, const struct copy_path *source, bool with_root, const char *directory,
                       struct error *err)
{
    CLEANUP_FREE char *temporary = NULL;
    int r = temporary_path(&temporary, err);
    if (r < 0)
        return r;
    r = upload_archive(copy, source, with_root, temporary, err);
    const char *const make[] = {"mkdir", "-p", directory, NULL};
    if (r == 0)
        r = run_in_guest(copy, make, err);
    const char *const unpack[] = {"tar", "-x", "-p", "-f", temporary, "-C", directory, NULL};
    if (r == 0)
        r = run_in_guest(copy, unpack, err);
    remove_temporary(copy, temporary);
    return r;
}

/* What doesn't exist yet can only be made in a directory that does. The caller frees *ret. */
static int new_guest_path(struct copy *copy, const struct copy_path *destination, char **ret, struct error *err)
{
    CLEANUP_FREE char *parent = copy_path_parent(destination->path);
    CLEANUP_GUEST_ENTRY struct guest_entry entry = {0};
    int r = parent != NULL ? guest_files_stat(copy->client, &copy->guest, parent, &entry, err) : -ENOMEM;
    if (r < 0)
        return r;
    if (!entry.is_directory)
        return error_set(err, ENOENT, "the sandbox has no directory %s", parent);
    *ret = copy_path_join(entry.path, copy_path_name(destination));
    return *ret != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

/* Where in the guest `source` ends up. The caller frees *ret_path. */
static int place_in_guest(struct copy *copy, const struct copy_path *source, bool source_is_directory,
                          const struct copy_path *destination, bool *ret_existed, char **ret_path,
                          struct error *err)
{
    CLEANUP_GUEST_ENTRY struct guest_entry entry = {0};
    int r = guest_files_stat(copy->client, &copy->guest, destination->path, &entry, err);
    if (r < 0)
        return r;
    *ret_existed = false;
    if (!entry.exists && destination->must_be_dir && !source_is_directory)
        return error_set(err, ENOENT, "the sandbox has no directory %s", destination->path);
    if (!entry.exists)
        return new_guest_path(copy, destination, ret_path, err);
    if (!entry.is_directory && (source_is_directory || destination->must_be_dir))
        return error_set(err, ENOTDIR, "%s in the sandbox is not a directory", destination->path);
    bool inside = entry.is_directory && !(source_is_directory && source->contents);
    *ret_existed = entry.is_directory && !inside;
    *ret_path = inside ? copy_path_join(entry.path, copy_path_name(source)) : strdup(entry.path);
    return *ret_path != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

static int copy_to_guest(struct copy *copy, const struct copy_path *source, const struct copy_path *destination,
                         struct error *err)
{
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    CLEANUP_CLOSE int fd = open(source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, "cannot read %s", source->path);
    if (!S_ISDIR(st.st_mode) && source->must_be_dir)
        return error_set(err, ENOTDIR, "%s is not a directory", source->path);
    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s is neither a regular file nor a directory", source->path);
    CLEANUP_FREE char *path = NULL;
    bool existed = false;
    int r = place_in_guest(copy, source, S_ISDIR(st.st_mode), destination, &existed, &path, err);
    if (r < 0)
        return r;
    if (S_ISDIR(st.st_mode))
        return upload_tree(copy, source, !existed, path, err);
    return upload_file(copy, fd, &st, path, err);
}

/* ---- from the guest ---- */

static ssize_t read_stream(void *context, void *buffer, size_t size, struct error *err)
{
    return client_stream_read(context, buffer, size, err);
}

static int download_file(struct copy *copy, const struct guest_entry *entry, const char *path, struct error *err)
{
    CLEANUP_STREAM struct client_stream *stream = NULL;
    int r = guest_files_download(copy->client, &copy->guest, entry->path, &stream, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, entry->mode);
    if (fd < 0)
        return error_errno(err, "cannot write %s", path);
    char block[BLOCK_SIZE];
    ssize_t n;
    while ((n = client_stream_read(stream, block, sizeof(block), err)) > 0) {
        r = io_write_full(fd, block, (size_t)n);
        if (r < 0)
            return error_code(err, r, "cannot write %s", path);
        copy->count.bytes += (uint64_t)n;
    }
    if (n < 0)
        return error_wrap(err, (int)n, "%s is incomplete", path);
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fchmod(fd, entry->mode) < 0)
        return error_errno(err, "cannot set the permissions of %s", path);
    copy->count.files++;
    return 0;
}

static int download_archive(struct copy *copy, const char *temporary, bool with_root, const char *directory,
                            struct error *err)
{
    CLEANUP_STREAM struct client_stream *stream = NULL;
    int r = guest_files_download(copy->client, &copy->guest, temporary, &stream, err);
    if (r == 0)
        r = tree_extract(directory, with_root, read_stream, stream, &copy->count, err);
    return r;
}

static int download_tree(struct copy *copy, const struct guest_entry *entry, bool with_root, const char *directory,
                         struct error *err)
{
    CLEANUP_FREE char *temporary = NULL;
    int r = temporary_path(&temporary, err);
    if (r < 0)
        return r;
    const char *const pack[] = {"tar", "-c", "-f", temporary, "-C", entry->path, ".", NULL};
    r = run_in_guest(copy, pack, err);
    if (r == 0 && mkdir(directory, NEW_DIRECTORY) < 0 && errno != EEXIST)
        r = error_errno(err, "cannot make %s", directory);
    if (r == 0)
        r = download_archive(copy, temporary, with_root, directory, err);
    remove_temporary(copy, temporary);
    return r;
}

/* Where on this host `source` ends up. The caller frees *ret_path. */
static int place_on_host(const struct copy_path *source, bool source_is_directory,
                         const struct copy_path *destination, bool *ret_existed, char **ret_path, struct error *err)
{
    struct stat st;
    bool exists = stat(destination->path, &st) == 0;
    if (!exists && errno != ENOENT)
        return error_errno(err, "cannot look at %s", destination->path);
    if (!exists && destination->must_be_dir && !source_is_directory)
        return error_set(err, ENOENT, "there is no directory %s", destination->path);
    bool is_directory = exists && S_ISDIR(st.st_mode);
    if (exists && !is_directory && (source_is_directory || destination->must_be_dir))
        return error_set(err, ENOTDIR, "%s is not a directory", destination->path);
    bool inside = is_directory && !(source_is_directory && source->contents);
    *ret_existed = is_directory && !inside;
    *ret_path = inside ? copy_path_join(destination->path, copy_path_name(source)) : strdup(destination->path);
    return *ret_path != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

static int copy_from_guest(struct copy *copy, const struct copy_path *source, const struct copy_path *destination,
                           struct error *err)
{
    CLEANUP_GUEST_ENTRY struct guest_entry entry = {0};
    int r = guest_files_stat(copy->client, &copy->guest, source->path, &entry, err);
    if (r < 0)
        return r;
    if (!entry.exists)
        return error_set(err, ENOENT, "the sandbox has no %s", source->path);
    if (!entry.is_directory && source->must_be_dir)
        return error_set(err, ENOTDIR, "%s in the sandbox is not a directory", source->path);
    if (!entry.is_directory && !entry.is_regular)
        return error_set(err, EINVAL, "%s in the sandbox is neither a regular file nor a directory", source->path);
    CLEANUP_FREE char *path = NULL;
    bool existed = false;
    r = place_on_host(source, entry.is_directory, destination, &existed, &path, err);
    if (r < 0)
        return r;
    if (entry.is_directory)
        return download_tree(copy, &entry, !existed, path, err);
    return download_file(copy, &entry, path, err);
}

/* ---- the verb ---- */

static void print_result(const struct cli *cli, char *const *operands, const struct tree_count *count)
{
    if (count->skipped > 0)
        fprintf(stderr, "dormouse: left out %llu sockets, devices or other special files\n",
                (unsigned long long)count->skipped);
    if (!cli->json)
        return;
    CLEANUP_JSON json_t *object = json_pack("{s:s, s:s, s:I, s:I, s:I}", "source", operands[0], "destination",
                                            operands[1], "files", (json_int_t)count->files, "bytes",
                                            (json_int_t)count->bytes, "skipped", (json_int_t)count->skipped);
    format_json(object);
}

static int copy_between(const struct cli *cli, const struct copy_place places[2], const char *user,
                        struct tree_count *ret, struct error *err)
{
    CLEANUP_COPY_PATH struct copy_path source = {0};
    CLEANUP_COPY_PATH struct copy_path destination = {0};
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_FREE char *sandbox_id = NULL;
    CLEANUP_CLOSE int signal_fd = -1;
    bool to_guest = places[1].id != NULL;
    int r;
    if ((r = copy_path_parse(places[0].path, &source, err)) < 0 ||
        (r = copy_path_parse(places[1].path, &destination, err)) < 0 || (r = api_open(cli, &client, err)) < 0 ||
        (r = api_running_sandbox(client, places[to_guest].id, &sandbox_id, err)) < 0 ||
        (r = signals_block(&signal_fd, err)) < 0)
        return r;
    client_set_cancel(client, signal_fd);
    struct copy copy = {.client = client, .guest = {sandbox_id, user}, .signal_fd = signal_fd};
    r = to_guest ? copy_to_guest(&copy, &source, &destination, err)
                 : copy_from_guest(&copy, &source, &destination, err);
    if (r == 0)
        *ret = copy.count;
    return r;
}

int verb_cp(struct cli *cli, int argc, char **argv, struct error *err)
{
    const char *user = NULL;
    const struct option_spec specs[] = {
        {'u', "user", "USER", "as whom in the sandbox (default: the template's user)", option_text, &user},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    struct copy_place places[2] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(places) && r >= 0; i++)
        r = parse_copy_place(operands.items[i], &places[i], err);
    struct tree_count count = {0};
    if (r < 0)
        r = options_usage_error(cli, &usage, err, "%s", error_message(err));
    else if ((places[0].id == NULL) == (places[1].id == NULL))
        r = options_usage_error(cli, &usage, err, "cp: exactly one side must be in a sandbox, as ID:PATH");
    else
        r = copy_between(cli, places, user, &count, err);
    copy_place_done(&places[0]);
    copy_place_done(&places[1]);
    if (r < 0)
        return r;
    print_result(cli, operands.items, &count);
    return EXIT_SUCCESS;
}
