#include "imaged/priority.h"

#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As the kernel has it; glibc doesn't yet. */
struct sched_attributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime;
    uint64_t deadline;
    uint64_t period;
};

/* Since Linux 6.12 a short slice lets a thread preempt those with longer ones; before, it is ignored. */
static void set(uint32_t policy, int nice, uint64_t slice_ns)
{
    struct sched_attributes attributes = {
        .size = sizeof(attributes), .policy = policy, .nice = nice, .runtime = slice_ns};
    (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

void priority_answering(void)
{
    set(SCHED_OTHER, -10, 100000);
}

void priority_ahead(void)
{
    set(SCHED_BATCH, 0, 0);
}
