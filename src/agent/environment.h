/*
 * environment.h: builds the environment of a new process.
 *
 *     CLEANUP_ENVIRONMENT struct environment environment = {0};
 *     environment_set(&environment, "HOME", 4, home);
 *     …
 *     if (environment.failed) …                          // an allocation failed, or there are too many
 */
#ifndef DORMOUSE_AGENT_ENVIRONMENT_H
#define DORMOUSE_AGENT_ENVIRONMENT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/macro.h"

#define ENVIRONMENT_MAX 4096 /* entries */

struct environment {
    char **items; /* "K=V", NULL-terminated; NULL while there is none */
    size_t count;
    bool failed;
};

/* Adds the variable, replacing an earlier one of that name. */
void environment_set(struct environment *environment, const char *name, size_t name_length, const char *value);
void environment_done(struct environment *environment);
#define CLEANUP_ENVIRONMENT CLEANUP(environment_done)

#endif
