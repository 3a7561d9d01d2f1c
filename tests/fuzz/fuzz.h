/* fuzz.h: the entry point that libFuzzer and replay.c share. */
#ifndef DORMOUSE_TESTS_FUZZ_H
#define DORMOUSE_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
