#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An allocation that fails here loses only text: the code stays. */
static char *format_text(const char *format, va_list args)
{
    char *text = NULL;
    if (vasprintf(&text, format, args) < 0)
        return NULL;
    return text;
}

static void replace_message(struct error *err, int code, char *message)
{
    error_done(err);
    err->code = code;
    err->message = message;
}

static int set_with_errno(struct error *err, int code, const char *format, va_list args)
{
    CLEANUP_FREE char *context = format_text(format, args);
    char *message = NULL;
    if (context == NULL || asprintf(&message, "%s: %s", context, strerror(code)) < 0)
        message = NULL;
    replace_message(err, code, message);
    return -code;
}

int error_set(struct error *err, int code, const char *format, ...)
{
    if (err == NULL)
        return -code;
    va_list args;
    va_start(args, format);
    replace_message(err, code, format_text(format, args));
    va_end(args);
    return -code;
}

int error_errno(struct error *err, const char *format, ...)
{
    int code = errno;
    if (err == NULL)
        return -code;
    va_list args;
    va_start(args, format);
    set_with_errno(err, code, format, args);
    va_end(args);
    return -code;
}

int error_code(struct error *err, int negative_errno, const char *format, ...)
{
    if (err == NULL)
        return negative_errno;
    va_list args;
    va_start(args, format);
    set_with_errno(err, -negative_errno, format, args);
    va_end(args);
    return negative_errno;
}

int error_wrap(struct error *err, int result, const char *format, ...)
{
    if (err == NULL)
        return result;
    va_list args;
    va_start(args, format);
    CLEANUP_FREE char *context = format_text(format, args);
    va_end(args);
    if (err->code == 0)
        err->code = -result;
    char *message = NULL;
    if (context == NULL || asprintf(&message, "%s: %s", context, error_message(err)) < 0)
        return result;
    free(err->message);
    err->message = message;
    return result;
}

void error_hint(struct error *err, const char *format, ...)
{
    if (err == NULL || err->hint != NULL)
        return;
    va_list args;
    va_start(args, format);
    err->hint = format_text(format, args);
    va_end(args);
}

void error_reason(struct error *err, const char *reason)
{
    if (err != NULL && err->reason == NULL)
        err->reason = reason;
}

const char *error_message(const struct error *err)
{
    return err->message != NULL ? err->message : strerror(err->code);
}

void error_move(struct error *to, struct error *from)
{
    if (to == NULL)
        return;
    error_done(to);
    *to = *from;
    *from = (struct error)ERROR_INIT;
}

void error_done(struct error *err)
{
    free(err->message);
    free(err->hint);
    *err = (struct error)ERROR_INIT;
}
