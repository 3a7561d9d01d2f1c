/*
 * string_map.h: environment and metadata between JSON objects and the manager's string lists.
 *
 * Pure; any thread.
 */
#ifndef DORMOUSE_API_STRING_MAP_H
#define DORMOUSE_API_STRING_MAP_H

#include <jansson.h>

#include "base/error.h"
#include "sandbox/manager.h"

/*
 * Appends the object's members: to an environment as "K=V", to metadata as key, value. `field` names the object in
 * errors; NULL as the object adds nothing. -EINVAL unless all values are strings and the names can be used.
 */
int string_map_environment(json_t *object, const char *field, struct string_list *list, struct error *err);
int string_map_metadata(json_t *object, const char *field, struct string_list *list, struct error *err);

/* The way back; NULL when memory runs out. */
json_t *string_map_environment_json(const struct string_list *list);
json_t *string_map_metadata_json(const struct string_list *list);

/* The metadata's value for a key, or NULL. */
const char *string_map_metadata_get(const struct string_list *list, const char *key);

#endif
