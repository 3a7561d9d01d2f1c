#include "api/body.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

int body_parse(const char *text, size_t length, json_t **ret, struct error *err)
{
    if (length == 0) {
        *ret = json_object();
        return *ret == NULL ? error_set(err, ENOMEM, "out of memory") : 0;
    }
    json_error_t problem;
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &problem);
    if (json == NULL)
        return error_set(err, EINVAL, "the request body is not valid JSON: line %d, column %d: %s", problem.line,
                         problem.column, problem.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return error_set(err, EINVAL, "the request body must be a JSON object");
    }
    *ret = json;
    return 0;
}

static json_t *find_field(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

int body_string(json_t *object, const char *key, const char **ret, struct error *err)
{
    json_t *value = find_field(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_string(value))
        return error_set(err, EINVAL, "\"%s\" must be a string", key);
    *ret = json_string_value(value);
    return 0;
}

int body_integer(json_t *object, const char *key, int64_t minimum, int64_t maximum, int64_t *ret, struct error *err)
{
    json_t *value = find_field(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_integer(value))
        return error_set(err, EINVAL, "\"%s\" must be an integer", key);
    int64_t number = json_integer_value(value);
    if (number < minimum || number > maximum)
        return error_set(err, EINVAL, "\"%s\" must be from %" PRId64 " to %" PRId64, key, minimum, maximum);
    *ret = number;
    return 0;
}

int body_unsigned(json_t *object, const char *key, unsigned *ret, struct error *err)
{
    int64_t number = *ret;
    int r = body_integer(object, key, 0, INT_MAX, &number, err);
    if (r == 0)
        *ret = (unsigned)number;
    return r;
}

int body_boolean(json_t *object, const char *key, bool *ret, struct error *err)
{
    json_t *value = find_field(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_boolean(value))
        return error_set(err, EINVAL, "\"%s\" must be true or false", key);
    *ret = json_is_true(value);
    return 0;
}

int body_object(json_t *object, const char *key, json_t **ret, struct error *err)
{
    json_t *value = find_field(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_object(value))
        return error_set(err, EINVAL, "\"%s\" must be an object", key);
    *ret = value;
    return 0;
}

int body_array(json_t *object, const char *key, json_t **ret, struct error *err)
{
    json_t *value = find_field(object, key);
    if (value == NULL)
        return 0;
    if (!json_is_array(value))
        return error_set(err, EINVAL, "\"%s\" must be an array", key);
    *ret = value;
    return 0;
}

int body_known(json_t *object, const char *const *names, struct error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach (object, key, value) {
        size_t i = 0;
        while (names[i] != NULL && strcmp(names[i], key) != 0)
            i++;
        if (names[i] == NULL)
            return error_set(err, EINVAL, "there is no field \"%s\"", key);
    }
    return 0;
}

void body_cleanup_json(json_t **json)
{
    json_decref(*json);
}
