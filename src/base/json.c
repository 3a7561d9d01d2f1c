#include "base/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"

int json_read_text(const json_t *object, const char *key, char **ret, struct error *err)
{
    const json_t *value = json_object_get(object, key);
    if (value != NULL && !json_is_string(value))
        return error_set(err, EINVAL, "%s must be a string", key);
    char *copy = strdup(value != NULL ? json_string_value(value) : "");
    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *ret = copy;
    return 0;
}

int json_read_integer(const json_t *object, const char *key, int64_t minimum, int64_t maximum, int64_t absent,
                      int64_t *ret, struct error *err)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL) {
        *ret = absent;
        return 0;
    }
    if (!json_is_integer(value))
        return error_set(err, EINVAL, "%s must be a whole number", key);
    int64_t number = json_integer_value(value);
    if (number < minimum || number > maximum)
        return error_set(err, EINVAL, "%s must be from %lld to %lld, not %lld", key, (long long)minimum,
                         (long long)maximum, (long long)number);
    *ret = number;
    return 0;
}

int json_read_bool(const json_t *object, const char *key, bool absent, bool *ret, struct error *err)
{
    const json_t *value = json_object_get(object, key);
    if (value != NULL && !json_is_boolean(value))
        return error_set(err, EINVAL, "%s must be true or false", key);
    *ret = value != NULL ? json_is_true(value) : absent;
    return 0;
}

int json_read_file(const char *path, size_t limit, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    int r = io_read_file(path, limit, &text, &length);
    if (r < 0)
        return error_code(err, r, "cannot read %s", path);
    json_error_t where;
    json_t *value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(value)) {
        json_decref(value);
        return error_set(err, EBADMSG, "%s is damaged: line %d: %s", path, where.line,
                         value == NULL ? where.text : "not an object");
    }
    *ret = value;
    return 0;
}
