#include "base/timestamp.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#define NS_PER_SECOND INT64_C(1000000000)

void timestamp_format(int64_t ns, char ret_text[TIMESTAMP_LENGTH + 1])
{
    int64_t seconds = ns / NS_PER_SECOND;
    int64_t rest = ns % NS_PER_SECOND;
    if (rest < 0) {
        rest += NS_PER_SECOND;
        seconds--;
    }
    /* An int64_t of ns reaches from 1677 to 2262: the year always has four digits. */
    time_t when = (time_t)seconds;
    struct tm parts;
    gmtime_r(&when, &parts);
    snprintf(ret_text, TIMESTAMP_LENGTH + 1, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ",
             (unsigned)(parts.tm_year + 1900) % 10000, (unsigned)(parts.tm_mon + 1) % 100,
             (unsigned)parts.tm_mday % 100, (unsigned)parts.tm_hour % 100, (unsigned)parts.tm_min % 100,
             (unsigned)parts.tm_sec % 100, (unsigned)(rest / 1000000));
}

/* Reads exactly `digits` digits followed by `after` ('\0': anything). */
static bool take_number(const char **text, int digits, char after, int *ret)
{
    int value = 0;
    for (int i = 0; i < digits; i++) {
        if (!isdigit((unsigned char)**text))
            return false;
        value = value * 10 + (*(*text)++ - '0');
    }
    if (after != '\0' && *(*text)++ != after)
        return false;
    *ret = value;
    return true;
}

static bool take_fraction(const char **text, int64_t *ret_ns)
{
    *ret_ns = 0;
    if (**text != '.')
        return true;
    (*text)++;
    if (!isdigit((unsigned char)**text))
        return false;
    for (int64_t unit = NS_PER_SECOND / 10; isdigit((unsigned char)**text); unit /= 10)
        *ret_ns += unit * (*(*text)++ - '0');
    return true;
}

static bool take_offset(const char **text, int *ret_seconds)
{
    char sign = *(*text)++;
    if (sign == 'Z' || sign == 'z') {
        *ret_seconds = 0;
        return true;
    }
    int hours;
    int minutes;
    if ((sign != '+' && sign != '-') || !take_number(text, 2, ':', &hours) ||
        !take_number(text, 2, '\0', &minutes) || hours > 23 || minutes > 59)
        return false;
    *ret_seconds = (hours * 60 + minutes) * 60 * (sign == '-' ? -1 : 1);
    return true;
}

int timestamp_parse(const char *text, int64_t *ret_ns)
{
    struct tm parts = {0};
    int64_t fraction;
    int offset;
    if (!take_number(&text, 4, '-', &parts.tm_year) || !take_number(&text, 2, '-', &parts.tm_mon) ||
        !take_number(&text, 2, '\0', &parts.tm_mday))
        return -EINVAL;
    if (*text != 'T' && *text != 't')
        return -EINVAL;
    text++;
    if (!take_number(&text, 2, ':', &parts.tm_hour) || !take_number(&text, 2, ':', &parts.tm_min) ||
        !take_number(&text, 2, '\0', &parts.tm_sec) || !take_fraction(&text, &fraction) || *text == '\0' ||
        !take_offset(&text, &offset) || *text != '\0')
        return -EINVAL;
    if (parts.tm_mon < 1 || parts.tm_mon > 12 || parts.tm_mday < 1 || parts.tm_mday > 31 || parts.tm_hour > 23 ||
        parts.tm_min > 59 || parts.tm_sec > 60)
        return -EINVAL;

    int day = parts.tm_mday;
    parts.tm_year -= 1900;
    parts.tm_mon -= 1;
    int64_t seconds = timegm(&parts);
    if (parts.tm_mday != day && parts.tm_sec < 60) /* timegm normalises 30 February */
        return -EINVAL;
    if (__builtin_mul_overflow(seconds - offset, NS_PER_SECOND, &seconds) ||
        __builtin_add_overflow(seconds, fraction, &seconds))
        return -EINVAL;
    *ret_ns = seconds;
    return 0;
}
