#include "agent/environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char **find(struct environment *environment, const char *name, size_t name_length)
{
    for (size_t i = 0; i < environment->count; i++) {
        char *item = environment->items[i];
        if (strncmp(item, name, name_length) == 0 && item[name_length] == '=')
            return &environment->items[i];
    }
    return NULL;
}

/* Room for one more and the NULL behind it; grows by doubling. */
static bool reserve(struct environment *environment)
{
    size_t count = environment->count;
    if (count >= ENVIRONMENT_MAX)
        return false;
    if (count > 0 && (count < 16 || (count & (count - 1)) != 0))
        return true;
    size_t capacity = count < 16 ? 16 : count * 2;
    char **items = realloc(environment->items, (capacity + 1) * sizeof(*items));
    if (items == NULL)
        return false;
    environment->items = items;
    return true;
}

void environment_set(struct environment *environment, const char *name, size_t name_length, const char *value)
{
    char *item;
    if (environment->failed || asprintf(&item, "%.*s=%s", (int)name_length, name, value) < 0) {
        environment->failed = true;
        return;
    }
    char **earlier = find(environment, name, name_length);
    if (earlier != NULL) {
        free(*earlier);
        *earlier = item;
    } else if (reserve(environment)) {
        environment->items[environment->count++] = item;
        environment->items[environment->count] = NULL;
    } else {
        free(item);
        environment->failed = true;
    }
}

void environment_done(struct environment *environment)
{
    for (size_t i = 0; i < environment->count; i++)
        free(environment->items[i]);
    free(TAKE_PTR(environment->items));
    environment->count = 0;
}
