/*
 * macro.h: clean-up attributes and visible hand-overs.
 *
 * Every resource is declared with one of the clean-up attributes, so that each early return releases it.
 * A hand-over to another owner is written with TAKE_FD or TAKE_PTR, which leave the variable empty:
 *
 *     CLEANUP_CLOSE int fd = open(…);
 *     …
 *     *ret_fd = TAKE_FD(fd);
 *     return 0;
 */
#ifndef DORMOUSE_BASE_MACRO_H
#define DORMOUSE_BASE_MACRO_H

#include <stddef.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define MIN(a, b)                                                                                                  \
    ({                                                                                                             \
        __typeof__(a) min_a = (a);                                                                                 \
        __typeof__(b) min_b = (b);                                                                                 \
        min_a < min_b ? min_a : min_b;                                                                             \
    })
#define MAX(a, b)                                                                                                  \
    ({                                                                                                             \
        __typeof__(a) max_a = (a);                                                                                 \
        __typeof__(b) max_b = (b);                                                                                 \
        max_a > max_b ? max_a : max_b;                                                                             \
    })

#define ROUND_UP(n, unit) (((n) + (unit)-1) / (unit) * (unit))

/* Empties the variable and yields what it held. */
#define TAKE_PTR(p)                                                                                                \
    ({                                                                                                             \
        __typeof__(p) take_p = (p);                                                                                \
        (p) = NULL;                                                                                                \
        take_p;                                                                                                    \
    })
#define TAKE_FD(fd)                                                                                                \
    ({                                                                                                             \
        int take_fd = (fd);                                                                                        \
        (fd) = -1;                                                                                                 \
        take_fd;                                                                                                   \
    })

#define PRINTF_LIKE(format_index, first_argument) __attribute__((format(printf, format_index, first_argument)))
#define CLEANUP(function)                         __attribute__((cleanup(function)))
#define CLEANUP_FREE                              CLEANUP(cleanup_free)
#define CLEANUP_CLOSE                             CLEANUP(cleanup_close)

void cleanup_free(void *pointer_to_pointer);
void cleanup_close(int *fd);

#endif
