/*
 * number.h: the numbers and sizes people type.
 *
 * Each parser takes the whole text or fails with -EINVAL and a message that quotes it; outputs are touched only on
 * success. Pure; any thread.
 */
#ifndef DORMOUSE_BASE_NUMBER_H
#define DORMOUSE_BASE_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Digits from *cursor on, which moves behind them; false when there are none or they don't fit. */
bool number_take(const char **cursor, uint64_t *ret);

/* Decimal digits only, within minimum … maximum. */
int number_parse(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *ret, struct error *err);

/* "512", "512M", "2G", "1T", also with "iB" or "B" behind; a bare number is MiB. Result in MiB, at least 1. */
int number_parse_mib(const char *text, uint32_t *ret_mib, struct error *err);

#endif
