/*
 * guest_files.h: files in a guest, over its agent.
 *
 * Relative paths are the user's: they start at the home directory. What the agent answers is not trusted: it may
 * lie about its own files, and nothing more. Errors as in client.h.
 */
#ifndef DORMOUSE_CLI_GUEST_FILES_H
#define DORMOUSE_CLI_GUEST_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "cli/client.h"

struct guest_entry {
    bool exists; /* if not, nothing else is set */
    bool is_directory;
    bool is_regular;
    mode_t mode; /* permission bits, 0777 at most */
    char *path;  /* absolute */
};
void guest_entry_done(struct guest_entry *entry);
#define CLEANUP_GUEST_ENTRY CLEANUP(guest_entry_done)

/* Symbolic links are followed. That there is nothing is no error. */
int guest_files_stat(struct client *client, const struct guest *guest, const char *path, struct guest_entry *ret,
                     struct error *err);

int guest_files_remove(struct client *client, const struct guest *guest, const char *path, struct error *err);

/* Writes (and replaces) a regular file with what `source` gives. */
int guest_files_upload(struct client *client, const struct guest *guest, const char *path, client_source source,
                       void *context, struct error *err);

/* The contents of a regular file as a stream. */
int guest_files_download(struct client *client, const struct guest *guest, const char *path,
                         struct client_stream **ret, struct error *err);

/*
 * Runs a program of the guest and waits for it; an exit status other than 0 is an error that quotes what it wrote
 * to its standard error. `command` ends with NULL. `signal_fd` as in exec_session.h.
 */
int guest_files_run(struct client *client, const struct guest *guest, const char *const *command, int signal_fd,
                    struct error *err);

#endif
