/*
 * error.h: the one error idiom.
 *
 * A function that can fail returns 0 (or a non-negative result) on success and a negative errno on failure,
 * and takes a `struct error *` as its last parameter in which it says what failed. Each caller may put its own
 * context in front while the error travels up; the top level (a CLI verb, an HTTP route, the daemon's main)
 * shows it once. Library code neither logs nor exits.
 *
 *     CLEANUP_ERROR struct error err = ERROR_INIT;
 *     int r = store_open(path, &store, &err);
 *     if (r < 0)
 *         return error_wrap(&err, r, "opening the snapshot store");
 *
 *     if (open(path, …) < 0)
 *         return error_errno(err, "cannot open %s", path);       // takes errno, appends its text
 *     if (size > limit)
 *         return error_set(err, EINVAL, "%s is larger than %zu bytes", path, limit);
 *
 * The `struct error *` may be NULL where the caller only wants the number. Outputs (`ret_…`) are never touched
 * on failure. An error object belongs to one thread at a time; the caller that declared it frees it.
 */
#ifndef DORMOUSE_BASE_ERROR_H
#define DORMOUSE_BASE_ERROR_H

#include "base/macro.h"

struct error {
    int code;      /* positive errno of the failure; 0: none */
    char *message; /* what failed and why, outermost context first */
    char *hint;    /* what the person can do about it, or NULL */
    /* A word for programs, a constant: which of the failures with this code it is; NULL where the code says it all.
     */
    const char *reason;
};

#define ERROR_INIT                                                                                                 \
    {                                                                                                              \
        0, NULL, NULL, NULL                                                                                        \
    }
#define CLEANUP_ERROR CLEANUP(error_done)

/* Sets code and message (replacing an earlier one); returns -code. */
int error_set(struct error *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* As error_set with the present errno, whose text is appended; returns -errno. */
int error_errno(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* As error_errno, for a call that returned a negative errno itself. */
int error_code(struct error *err, int negative_errno, const char *format, ...) PRINTF_LIKE(3, 4);

/* Puts "context: " in front of the message; returns `result`, so that it can stand in a return statement. */
int error_wrap(struct error *err, int result, const char *format, ...) PRINTF_LIKE(3, 4);

/* Says what to do about it; the innermost hint stays, since it knows most. */
void error_hint(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* Says which it is of the failures with this code; `reason` is a constant. The innermost stays. */
void error_reason(struct error *err, const char *reason);

/* The message, or the errno's text where none was set; never NULL. */
const char *error_message(const struct error *err);

/* Moves `from` into `to` and empties `from`. */
void error_move(struct error *to, struct error *from);

void error_done(struct error *err);

#endif
