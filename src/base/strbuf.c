#include "base/strbuf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct strbuf *buf, size_t extra)
{
    if (buf->failed)
        return false;
    if (extra >= SIZE_MAX / 2 - buf->length) {
        buf->failed = true;
        return false;
    }
    size_t wanted = buf->length + extra + 1;
    if (wanted <= buf->capacity)
        return true;
    size_t capacity = MAX(wanted, buf->capacity * 2);
    char *data = realloc(buf->data, capacity);
    if (data == NULL) {
        buf->failed = true;
        return false;
    }
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

void strbuf_append(struct strbuf *buf, const void *bytes, size_t length)
{
    if (!reserve(buf, length))
        return;
    if (length > 0)
        memcpy(buf->data + buf->length, bytes, length);
    buf->length += length;
    buf->data[buf->length] = '\0';
}

void strbuf_puts(struct strbuf *buf, const char *text)
{
    strbuf_append(buf, text, strlen(text));
}

void strbuf_printf(struct strbuf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    va_list measure;
    va_copy(measure, args);
    int length = vsnprintf(NULL, 0, format, measure);
    va_end(measure);
    if (length < 0)
        buf->failed = true;
    else if (reserve(buf, (size_t)length)) {
        vsnprintf(buf->data + buf->length, (size_t)length + 1, format, args);
        buf->length += (size_t)length;
    }
    va_end(args);
}

void strbuf_consume(struct strbuf *buf, size_t length)
{
    if (length == 0 || buf->data == NULL)
        return;
    memmove(buf->data, buf->data + length, buf->length - length + 1);
    buf->length -= length;
}

const char *strbuf_text(const struct strbuf *buf)
{
    return buf->data != NULL ? buf->data : "";
}

char *strbuf_take(struct strbuf *buf)
{
    char *data = buf->failed ? NULL : buf->data;
    if (buf->failed)
        free(buf->data);
    else if (data == NULL)
        data = strdup("");
    *buf = (struct strbuf)STRBUF_INIT;
    return data;
}

void strbuf_done(struct strbuf *buf)
{
    free(buf->data);
    *buf = (struct strbuf)STRBUF_INIT;
}
