#include "agent/proto.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/encode.h"

static const json_t *member(const json_t *message, const char *name)
{
    const json_t *value = json_object_get(message, name);
    return json_is_null(value) ? NULL : value;
}

static int wrong_type(struct error *err, const char *name, const char *wanted)
{
    return error_set(err, EINVAL, "'%s' must be %s", name, wanted);
}

int proto_object(const json_t *message, const char *name, const json_t **ret, struct error *err)
{
    const json_t *value = member(message, name);
    if (value != NULL && !json_is_object(value))
        return wrong_type(err, name, "an object");
    *ret = value;
    return 0;
}

int proto_text(const json_t *message, const char *name, const char **ret, struct error *err)
{
    const json_t *value = member(message, name);
    if (value != NULL && !json_is_string(value))
        return wrong_type(err, name, "a string");
    *ret = json_string_value(value);
    return 0;
}

int proto_uint32(const json_t *message, const char *name, uint32_t *ret, struct error *err)
{
    const json_t *value = member(message, name);
    long long number = -1;
    if (value == NULL)
        number = 0;
    else if (json_is_integer(value))
        number = json_integer_value(value);
    else if (json_is_string(value) && json_string_length(value) > 0) {
        char *end;
        errno = 0;
        number = strtoll(json_string_value(value), &end, 10);
        if (errno != 0 || *end != '\0')
            number = -1;
    }
    if (number < 0 || number > UINT32_MAX)
        return wrong_type(err, name, "an integer from 0 to 4294967295");
    *ret = (uint32_t)number;
    return 0;
}

int proto_bool(const json_t *message, const char *name, bool absent, bool *ret, struct error *err)
{
    const json_t *value = member(message, name);
    if (value != NULL && !json_is_boolean(value))
        return wrong_type(err, name, "true or false");
    *ret = value != NULL ? json_is_true(value) : absent;
    return 0;
}

int proto_bytes(const json_t *message, const char *name, struct strbuf *out, bool *ret_given, struct error *err)
{
    const json_t *value = member(message, name);
    if (value != NULL && !json_is_string(value))
        return wrong_type(err, name, "base64 text");
    *ret_given = value != NULL;
    if (value == NULL)
        return 0;
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_append(&text, json_string_value(value), json_string_length(value));
    while (text.length % 4 != 0)
        strbuf_puts(&text, "=");
    for (size_t i = 0; i < text.length; i++) {
        if (text.data[i] == '-')
            text.data[i] = '+';
        else if (text.data[i] == '_')
            text.data[i] = '/';
    }
    int r = text.failed ? -ENOMEM : base64_decode(out, strbuf_text(&text), text.length);
    if (r == -ENOMEM)
        return error_set(err, ENOMEM, "no memory for '%s'", name);
    return r < 0 ? wrong_type(err, name, "base64 text") : 0;
}
