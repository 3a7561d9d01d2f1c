/*
 * log.h: the daemon's log: one line per event on standard error, with a time stamp.
 *
 * Only the daemon's top level logs; libraries return errors. Lines from several threads never mix, and control
 * characters in the text (it may quote what a client or a guest sent) are shown as "?". Any thread.
 */
#ifndef DORMOUSE_API_LOG_H
#define DORMOUSE_API_LOG_H

#include "base/macro.h"

void log_event(const char *format, ...) PRINTF_LIKE(1, 2);

#endif
