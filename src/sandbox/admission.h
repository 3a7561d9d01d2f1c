/*
 * admission.h: how many guests run and start at once, and how much memory they may come to use.
 *
 * A guest that is started is promised memory: its own and what its VMM needs, since in time it may write to all of
 * it. Most never do; so promises may add up to more than there is, by a ratio that the administrator chooses. Let
 *
 *     owned       memory that the VMMs have made their own so far
 *     capacity    what they may own together: the limit that was set, or owned + what the host has available, less
 *                 ADMISSION_RESERVE; of both, the smaller
 *     promised    of all guests that run or are being started
 *
 * A start is admitted when both hold:
 *
 *     owned + new <= capacity               it could use all that it is promised, as things are now
 *     promised + new <= overcommit * capacity
 *
 * With an overcommit of 1 no guest ever finds the host without memory. Above, guests that grow together can: then
 * the kernel reclaims, swaps, and at last kills; which one is nobody's choice here.
 *
 * Order of calls: admission_promise; admission_begin_start, which waits for its turn; admission_end_start; at the
 * guest's end admission_withdraw. Threads: any. -EAGAIN, with the reason "too_many_sandboxes", "out_of_memory" or
 * "too_many_starts": later it may work.
 */
#ifndef DORMOUSE_SANDBOX_ADMISSION_H
#define DORMOUSE_SANDBOX_ADMISSION_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/error.h"

#define ADMISSION_RESERVE       (UINT64_C(256) << 20)
#define ADMISSION_START_WAIT_MS 30000

struct admission_limits {
    unsigned sandboxes;          /* that run at once; 0: any number */
    unsigned starts;             /* under way at once; 0: any number */
    uint64_t memory_bytes;       /* 0: what the host has */
    unsigned overcommit_percent; /* at least 100 */
    int start_wait_ms;
};

/* Where the numbers come from, bytes. Called by any thread. */
struct host_memory {
    int (*available)(void *context, uint64_t *ret, struct error *err);
    uint64_t (*owned)(void *context); /* by all VMMs */
    void *context;
};

struct admission;

/* NULL when memory is short. */
struct admission *admission_new(const struct admission_limits *limits, const struct host_memory *memory);
void admission_free(struct admission *admission);

int admission_promise(struct admission *admission, uint64_t bytes, struct error *err);
/* For a guest that runs already. */
void admission_note(struct admission *admission, uint64_t bytes);
void admission_withdraw(struct admission *admission, uint64_t bytes);

/* First come, first served. -ECANCELED when *cancelled became true (then admission_wake is to be called). */
int admission_begin_start(struct admission *admission, const atomic_bool *cancelled, struct error *err);
void admission_end_start(struct admission *admission);
void admission_wake(struct admission *admission);

#endif
