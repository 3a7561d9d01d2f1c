#include "vmm/tsc.h"

#include <pthread.h>
#include <time.h>
#include <x86intrin.h>

#define MEASURE_NS    100000000
#define READ_ATTEMPTS 50

struct reading {
    uint64_t ticks;
    int64_t ns;
};

static int64_t raw_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Both clocks at one moment: of several attempts, the one that was interrupted least. */
static struct reading read_both(void)
{
    struct reading best = {0};
    uint64_t best_window = UINT64_MAX;
    for (int i = 0; i < READ_ATTEMPTS; i++) {
        uint64_t before = __rdtsc();
        int64_t ns = raw_ns();
        uint64_t window = __rdtsc() - before;
        if (window < best_window) {
            best_window = window;
            best = (struct reading){before + window / 2, ns};
        }
    }
    return best;
}

static uint32_t measured_khz;

static void measure(void)
{
    struct reading from = read_both();
    struct timespec duration = {.tv_nsec = MEASURE_NS};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, NULL);
    struct reading to = read_both();
    measured_khz = (uint32_t)((to.ticks - from.ticks) * 1000000 / (uint64_t)(to.ns - from.ns));
}

uint32_t tsc_khz(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, measure);
    return measured_khz;
}
