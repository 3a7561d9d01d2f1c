#include "cli/parse.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"

#define ID_LENGTH_MAX        128
#define DURATION_MAX_SECONDS ((int64_t)31 * 24 * 3600)

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int64_t duration_unit(char letter)
{
    switch (letter) {
    case 's':
        return 1;
    case 'm':
        return 60;
    case 'h':
        return 3600;
    case 'd':
        return 24 * 3600;
    default:
        return 0;
    }
}

int parse_duration(const char *text, int64_t *ret_seconds, struct error *err)
{
    int64_t total = 0;
    const char *at = text;
    do {
        uint64_t value;
        bool only_number = false;
        int64_t unit = 0;
        if (number_take(&at, &value)) {
            only_number = *at == '\0' && total == 0;
            unit = only_number ? 1 : duration_unit(*at);
        }
        if (unit == 0)
            return error_set(err, EINVAL, "'%s' is not a duration such as 90, 90s, 5m or 1h30m", text);
        if (value > (uint64_t)(DURATION_MAX_SECONDS / unit) || total + (int64_t)value * unit > DURATION_MAX_SECONDS)
            return error_set(err, EINVAL, "the duration %s is longer than 31 days", text);
        total += (int64_t)value * unit;
        at += only_number ? 0 : 1;
    } while (*at != '\0');
    *ret_seconds = total;
    return 0;
}

static bool is_id_character(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c != '\0' && strchr("._:-", c));
}

int parse_id(const char *text, struct error *err)
{
    size_t length = 0;
    while (is_id_character(text[length]))
        length++;
    if (length == 0 || length > ID_LENGTH_MAX || text[length] != '\0' || text[0] == '.')
        return error_set(err, EINVAL, "'%s' is not an id or a name", text);
    return 0;
}

int parse_pair(const char *text, char **ret_key, const char **ret_value, struct error *err)
{
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text)
        return error_set(err, EINVAL, "'%s' is not of the form KEY=VALUE", text);
    for (const char *at = text; at < equals; at++)
        if (iscntrl((unsigned char)*at))
            return error_set(err, EINVAL, "a key must not have control characters");
    char *key = strndup(text, (size_t)(equals - text));
    if (key == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *ret_key = key;
    *ret_value = equals + 1;
    return 0;
}

void copy_place_done(struct copy_place *place)
{
    free(place->id);
    free(place->path);
    *place = (struct copy_place){NULL, NULL};
}

int parse_copy_place(const char *text, struct copy_place *ret, struct error *err)
{
    if (*text == '\0')
        return error_set(err, EINVAL, "a path is empty");
    size_t id_length = strcspn(text, ":");
    if (text[id_length] == ':' && id_length == 0)
        return error_set(err, EINVAL, "'%s' has no id before the colon", text);
    bool of_host = text[id_length] == '\0' || *text == '/' || *text == '.';
    for (size_t i = 0; i < id_length && !of_host; i++)
        of_host = !is_id_character(text[i]);
    const char *path = of_host ? text : text + id_length + 1;
    if (*path == '\0')
        return error_set(err, EINVAL, "'%s' has no path after the colon", text);
    struct copy_place place = {of_host ? NULL : strndup(text, id_length), strdup(path)};
    if ((!of_host && place.id == NULL) || place.path == NULL) {
        copy_place_done(&place);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret = place;
    return 0;
}
