#include "api/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/io.h"
#include "base/timestamp.h"

#define LINE_MAX_BYTES 2048

void log_event(const char *format, ...)
{
    char line[LINE_MAX_BYTES];
    timestamp_format(clock_realtime_ns(), line);
    size_t start = TIMESTAMP_LENGTH;
    line[start++] = ' ';

    va_list args;
    va_start(args, format);
    int n = vsnprintf(line + start, sizeof(line) - start - 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    size_t length = start + MIN((size_t)n, sizeof(line) - start - 2);
    for (size_t i = start; i < length; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[length++] = '\n';
    /* One write per line keeps lines whole; a full disk or closed stderr must not stop the daemon. */
    (void)io_write_full(STDERR_FILENO, line, length);
}
