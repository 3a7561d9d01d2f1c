/*
 * body.h: JSON request bodies: parsing, and reading fields with their types and ranges checked.
 *
 * A field that is absent or null leaves *ret as it was, so the caller presets the default. A field of another type
 * or out of range yields -EINVAL with a message that names it. Strings belong to the JSON object. Pure; any thread.
 */
#ifndef DORMOUSE_API_BODY_H
#define DORMOUSE_API_BODY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* An object; no bytes at all count as {}. The caller calls json_decref. */
int body_parse(const char *text, size_t length, json_t **ret, struct error *err);

int body_string(json_t *object, const char *key, const char **ret, struct error *err);
int body_integer(json_t *object, const char *key, int64_t minimum, int64_t maximum, int64_t *ret,
                 struct error *err);
int body_unsigned(json_t *object, const char *key, unsigned *ret, struct error *err);
int body_boolean(json_t *object, const char *key, bool *ret, struct error *err);
int body_object(json_t *object, const char *key, json_t **ret, struct error *err);
int body_array(json_t *object, const char *key, json_t **ret, struct error *err);

/* -EINVAL for the first member that is not in `names`, which ends with NULL: a misspelt option is not ignored. */
int body_known(json_t *object, const char *const *names, struct error *err);

#define CLEANUP_JSON CLEANUP(body_cleanup_json)
void body_cleanup_json(json_t **json);

#endif
