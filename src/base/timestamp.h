/*
 * timestamp.h: RFC 3339 in UTC, as the API shows times.
 *
 * Pure; any thread. Times are ns of CLOCK_REALTIME.
 */
#ifndef DORMOUSE_BASE_TIMESTAMP_H
#define DORMOUSE_BASE_TIMESTAMP_H

#include <stddef.h>
#include <stdint.h>

#define TIMESTAMP_LENGTH 24 /* "2026-01-02T03:04:05.678Z" */

/* Milliseconds, rounded down. Years 0001 to 9999; what lies outside is shown as the nearest end. */
void timestamp_format(int64_t ns, char ret_text[TIMESTAMP_LENGTH + 1]);

/* "Z" or a numeric offset, any number of fraction digits (beyond ns ignored); -EINVAL when it is not RFC 3339. */
int timestamp_parse(const char *text, int64_t *ret_ns);

#endif
