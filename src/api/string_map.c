#include "api/string_map.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* NULL, and the error, when the member is no string. */
static const char *member_text(const char *field, const char *key, json_t *value, struct error *err)
{
    if (!json_is_string(value))
        error_set(err, EINVAL, "\"%s\": the value of \"%s\" must be a string", field, key);
    return json_string_value(value);
}

int string_map_environment(json_t *object, const char *field, struct string_list *list, struct error *err)
{
    const char *key;
    json_t *member;
    json_object_foreach (object, key, member) {
        const char *value = member_text(field, key, member, err);
        if (value == NULL)
            return -EINVAL;
        if (key[0] == '\0' || strchr(key, '=') != NULL)
            return error_set(err, EINVAL, "\"%s\": \"%s\" cannot be the name of a variable", field, key);
        char *text;
        if (asprintf(&text, "%s=%s", key, value) < 0)
            return error_set(err, ENOMEM, "out of memory");
        int r = string_list_add(list, text);
        cleanup_free(&text);
        if (r < 0)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

int string_map_metadata(json_t *object, const char *field, struct string_list *list, struct error *err)
{
    const char *key;
    json_t *member;
    json_object_foreach (object, key, member) {
        const char *value = member_text(field, key, member, err);
        if (value == NULL)
            return -EINVAL;
        if (string_list_add(list, key) < 0 || string_list_add(list, value) < 0)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

json_t *string_map_environment_json(const struct string_list *list)
{
    json_t *object = json_object();
    for (size_t i = 0; i < list->count; i++) {
        const char *equals = strchr(list->items[i], '=');
        if (equals == NULL)
            continue;
        CLEANUP_FREE char *name = strndup(list->items[i], (size_t)(equals - list->items[i]));
        if (name == NULL || json_object_set_new(object, name, utf8_json(equals + 1, strlen(equals + 1))) < 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

json_t *string_map_metadata_json(const struct string_list *list)
{
    json_t *object = json_object();
    for (size_t i = 0; i + 1 < list->count; i += 2) {
        const char *value = list->items[i + 1];
        if (json_object_set_new(object, list->items[i], utf8_json(value, strlen(value))) < 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

const char *string_map_metadata_get(const struct string_list *list, const char *key)
{
    for (size_t i = 0; i + 1 < list->count; i += 2)
        if (strcmp(list->items[i], key) == 0)
            return list->items[i + 1];
    return NULL;
}
