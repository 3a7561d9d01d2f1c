/*
 * tsc.h: how fast this host's time stamp counter runs.
 *
 * An emulated guest sees the host's counter. Its kernel would measure it against the emulated PIT, which fails on a
 * busy host, and then, with no other clock in a microvm, it hangs; so it is told (`tsc_early_khz=`).
 */
#ifndef DORMOUSE_VMM_TSC_H
#define DORMOUSE_VMM_TSC_H

#include <stdint.h>

/* kHz, measured against CLOCK_MONOTONIC_RAW for a tenth of a second at the first call. Any thread. */
uint32_t tsc_khz(void);

#endif
