/*
 * strbuf.h: a growing, always NUL-terminated byte buffer.
 *
 *     CLEANUP_STRBUF struct strbuf b = STRBUF_INIT;
 *     strbuf_printf(&b, "%s: %d\n", name, n);
 *     if (b.failed) …                                    // an allocation failed; checked once, at the end
 *
 * Bytes may include NUL: `length` counts them. A failed allocation sets `failed` and later calls do nothing,
 * so a sequence of appends is checked once.
 */
#ifndef DORMOUSE_BASE_STRBUF_H
#define DORMOUSE_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

#include "base/macro.h"

struct strbuf {
    char *data; /* NULL while empty and never appended to */
    size_t length;
    size_t capacity;
    bool failed;
};

#define STRBUF_INIT                                                                                                \
    {                                                                                                              \
        NULL, 0, 0, false                                                                                          \
    }
#define CLEANUP_STRBUF CLEANUP(strbuf_done)

void strbuf_append(struct strbuf *buf, const void *bytes, size_t length);
void strbuf_puts(struct strbuf *buf, const char *text);
void strbuf_printf(struct strbuf *buf, const char *format, ...) PRINTF_LIKE(2, 3);

/* Drops the first `length` bytes. */
void strbuf_consume(struct strbuf *buf, size_t length);

/* The text, "" when empty; owned by the buffer. */
const char *strbuf_text(const struct strbuf *buf);

/* The text, owned by the caller (NULL when an allocation failed); the buffer is empty afterwards. */
char *strbuf_take(struct strbuf *buf);

void strbuf_done(struct strbuf *buf);

#endif
