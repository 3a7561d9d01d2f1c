/*
 * entry.h: what clients see of a file: its EntryInfo, and the metadata they attached to it.
 *
 * Metadata are extended attributes "user.dormouse.KEY". One thread.
 */
#ifndef DORMOUSE_AGENT_ENTRY_H
#define DORMOUSE_AGENT_ENTRY_H

#include <jansson.h>

#include "agent/users.h"
#include "base/error.h"

/* The EntryInfo of `path` itself, links not followed; json_decref'd by the caller. */
int entry_describe(const struct user_database *database, const char *path, json_t **ret, struct error *err);

/* Replaces the file's metadata by `metadata`, an object of strings, NULL for none. */
int entry_set_metadata(int fd, const json_t *metadata, struct error *err);

#endif
