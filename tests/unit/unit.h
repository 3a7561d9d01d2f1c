/* unit.h: what every cmocka test needs, in the order cmocka wants it, and a directory of its own. */
#ifndef DORMOUSE_TESTS_UNIT_H
#define DORMOUSE_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/io.h"

/* A cmocka setup and teardown: *state is the path of a new directory, which goes with the test. */
static inline int unit_make_directory(void **state)
{
    const char *base = getenv("TMPDIR");
    char *path;
    if (asprintf(&path, "%s/dormouse-unit-XXXXXX", base != NULL ? base : "/var/tmp") < 0 || mkdtemp(path) == NULL)
        return -1;
    *state = path;
    return 0;
}

static inline int unit_remove_directory(void **state)
{
    int r = io_remove_tree(*state);
    free(*state);
    return r;
}

static inline char *unit_path(const char *directory, const char *name)
{
    char *path = io_path(directory, name, NULL);
    assert_non_null(path);
    return path;
}

#define UNIT_TEST(function) cmocka_unit_test_setup_teardown(function, unit_make_directory, unit_remove_directory)

#endif
