/* Runs a fuzz target over every file of a directory, so that what was once found stays found. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/io.h"
#include "fuzz.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fputs("usage: replay CORPUS-DIRECTORY\n", stderr);
        return 2;
    }
    struct dirent **entries;
    int count = scandir(argv[1], &entries, NULL, alphasort);
    int replayed = 0;
    for (int i = 0; i < count; i++) {
        CLEANUP_FREE char *path = NULL;
        CLEANUP_FREE char *data = NULL;
        size_t length;
        if (entries[i]->d_name[0] != '.' && asprintf(&path, "%s/%s", argv[1], entries[i]->d_name) > 0 &&
            io_read_file(path, 1 << 24, &data, &length) == 0) {
            LLVMFuzzerTestOneInput((const uint8_t *)data, length);
            replayed++;
        }
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    printf("%d inputs replayed\n", replayed);
    return replayed > 0 ? 0 : 1;
}
