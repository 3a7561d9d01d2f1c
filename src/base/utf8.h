/*
 * utf8.h: text of unknown origin as valid UTF-8, which is all that JSON can carry.
 *
 * Pure; any thread.
 */
#ifndef DORMOUSE_BASE_UTF8_H
#define DORMOUSE_BASE_UTF8_H

#include <jansson.h>
#include <stddef.h>

#include "base/strbuf.h"

/* Appends the bytes; each that is not part of a valid sequence, and NUL, becomes U+FFFD. */
void utf8_append(struct strbuf *out, const char *bytes, size_t length);

/* A JSON string of the same; NULL when memory runs out. */
json_t *utf8_json(const char *bytes, size_t length);

#endif
