#include "base/number.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <strings.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

bool number_take(const char **cursor, uint64_t *ret)
{
    uint64_t value = 0;
    const char *at = *cursor;
    if (!is_digit(*at))
        return false;
    for (; is_digit(*at); at++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return false;
    *cursor = at;
    *ret = value;
    return true;
}

int number_parse(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *ret, struct error *err)
{
    uint64_t value;
    const char *at = text;
    if (!number_take(&at, &value) || *at != '\0')
        return error_set(err, EINVAL, "'%s' is not a number", text);
    if (value < minimum || value > maximum)
        return error_set(err, EINVAL, "%s is not within %" PRIu64 " and %" PRIu64, text, minimum, maximum);
    *ret = value;
    return 0;
}

/* What follows a size: its factor to MiB, or 0 when it is no unit. */
static uint64_t size_unit(const char *text)
{
    uint64_t factor = 1;
    switch (tolower((unsigned char)*text)) {
    case '\0':
        return factor;
    case 'm':
        break;
    case 'g':
        factor = 1024;
        break;
    case 't':
        factor = 1024 * 1024;
        break;
    default:
        return 0;
    }
    const char *rest = text + 1;
    return *rest == '\0' || strcasecmp(rest, "b") == 0 || strcasecmp(rest, "ib") == 0 ? factor : 0;
}

int number_parse_mib(const char *text, uint32_t *ret_mib, struct error *err)
{
    uint64_t value;
    uint64_t mib;
    const char *at = text;
    uint64_t factor = number_take(&at, &value) ? size_unit(at) : 0;
    if (factor == 0)
        return error_set(err, EINVAL, "'%s' is not a size such as 512M or 2G", text);
    if (__builtin_mul_overflow(value, factor, &mib) || mib == 0 || mib > UINT32_MAX)
        return error_set(err, EINVAL, "the size %s is out of range", text);
    *ret_mib = (uint32_t)mib;
    return 0;
}
