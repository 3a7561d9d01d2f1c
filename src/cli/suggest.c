#include "cli/suggest.h"

#include <stdint.h>
#include <string.h>

#include "base/macro.h"

#define WORD_MAX 32

/* Optimal string alignment: table[i][j] is the distance of a's first i from b's first j characters. */
size_t suggest_distance(const char *a, const char *b)
{
    size_t rows = strlen(a) + 1;
    size_t columns = strlen(b) + 1;
    if (rows > WORD_MAX || columns > WORD_MAX)
        return SIZE_MAX;
    size_t table[WORD_MAX][WORD_MAX];
    for (size_t i = 0; i < rows; i++)
        table[i][0] = i;
    for (size_t j = 0; j < columns; j++)
        table[0][j] = j;
    for (size_t i = 1; i < rows; i++)
        for (size_t j = 1; j < columns; j++) {
            size_t replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            size_t changed = MIN(table[i - 1][j], table[i][j - 1]) + 1;
            table[i][j] = MIN(replaced, changed);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                table[i][j] = MIN(table[i][j], table[i - 2][j - 2] + 1);
        }
    return table[rows - 1][columns - 1];
}
