/*
 * cpu_model.h: the CPU that guests see: a named baseline, not the host's, so that a snapshot moves between hosts.
 *
 * A model is written as QEMU takes it: a name and the features added to it, "NAME,+FEATURE,…". Pure; any thread.
 */
#ifndef DORMOUSE_VMM_CPU_MODEL_H
#define DORMOUSE_VMM_CPU_MODEL_H

#include <stdbool.h>
#include <stddef.h>

/*
 * About x86-64-v2. Without arat Linux trusts no one-shot timer here, and an idle guest ticks 250 times a second.
 * Whoever changes it changes VMM_MACHINE_REVISION.
 */
#define CPU_MODEL "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq,+rdrand,+fsgsbase,+smep,+arat"

/*
 * Whether this host's CPU can run a guest of that model natively: false and the first feature that it lacks, or
 * that isn't known here, in ret_lacking.
 */
bool cpu_model_fits_host(const char *model, char *ret_lacking, size_t size);

#endif
