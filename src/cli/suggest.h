/*
 * suggest.h: how far a mistyped word is from a known one.
 */
#ifndef DORMOUSE_CLI_SUGGEST_H
#define DORMOUSE_CLI_SUGGEST_H

#include <stddef.h>

/* Beyond this a suggestion helps nobody. */
#define SUGGEST_DISTANCE_MAX 2

/* Insertions, deletions, replacements and swaps of neighbours between two words; SIZE_MAX for words over 31 bytes.
 */
size_t suggest_distance(const char *a, const char *b);

#endif
