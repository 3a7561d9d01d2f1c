/*
 * tree.h: directory trees as tar streams, by libarchive.
 *
 * Packing reads this host's files and gives a stream of GNU tar (which busybox reads, too) owned by root. Symbolic
 * links stay links, special files other than FIFOs are left out.
 *
 * Extracting takes a stream that a guest made, so it is hostile: nothing is written outside the directory, through
 * a symbolic link or to an absolute path; only regular files, directories and links are made; set-uid, set-gid and
 * sticky bits, owners, extended attributes and ACLs are dropped. The host's disk is the only bound on its size.
 */
#ifndef DORMOUSE_CLI_TREE_H
#define DORMOUSE_CLI_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct tree_count {
    uint64_t files; /* regular files */
    uint64_t bytes; /* in them */
    uint64_t skipped;
};

struct tree_pack;

/* `with_root`: the directory itself is in the archive (as "./"), and so its mode. */
int tree_pack_open(const char *directory, bool with_root, struct tree_pack **ret, struct error *err);
/* A client_source. */
ssize_t tree_pack_read(void *pack, char *buffer, size_t size);
/* After tree_pack_read failed: why. Returns a negative errno, 0 when it did not fail. */
int tree_pack_error(struct tree_pack *pack, struct error *err);
const struct tree_count *tree_pack_count(const struct tree_pack *pack);
void tree_pack_close(struct tree_pack **pack);
#define CLEANUP_TREE_PACK CLEANUP(tree_pack_close)

/* Up to `size` bytes of the archive; 0: its end; negative errno with `err` set. */
typedef ssize_t (*tree_source)(void *context, void *buffer, size_t size, struct error *err);

/* Into `directory`, which exists and becomes the working directory of this process. */
int tree_extract(const char *directory, bool with_root, tree_source source, void *context, struct tree_count *ret,
                 struct error *err);

#endif
