/*
 * bare-start: starts COUNT bare guests (bare.h), at most PARALLEL at a time, and prints as JSON how long that took.
 * They all live until the last one runs; with --hold, until the end of standard input. In µs from the first start:
 *
 *     {"total_us": …, "guests": [{"pid": …, "begun_us": …, "spawned_us": …, "running_us": …}, …]}
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bare.h"
#include "base/io.h"

#define COUNT_MAX    256
#define PARALLEL_MAX 64

struct batch {
    struct bare *guests[COUNT_MAX];
    unsigned count;
    unsigned parallel;
    pthread_mutex_t lock;
    unsigned next;
    struct error error;
};

static void *start_some(void *context)
{
    struct batch *batch = context;
    for (;;) {
        pthread_mutex_lock(&batch->lock);
        unsigned i = batch->error.code != 0 ? batch->count : batch->next++;
        pthread_mutex_unlock(&batch->lock);
        if (i >= batch->count)
            return NULL;
        CLEANUP_ERROR struct error err = ERROR_INIT;
        if (bare_start(batch->guests[i], &err) == 0)
            continue;
        pthread_mutex_lock(&batch->lock);
        error_move(&batch->error, &err);
        pthread_mutex_unlock(&batch->lock);
    }
}

static int start_all(struct batch *batch, struct error *err)
{
    pthread_t threads[PARALLEL_MAX];
    unsigned started = 0;
    /* This thread is one of them. */
    while (started + 1 < batch->parallel && pthread_create(&threads[started], NULL, start_some, batch) == 0)
        started++;
    start_some(batch);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    int r = -batch->error.code;
    error_move(err, &batch->error);
    return r;
}

static void print(const struct batch *batch)
{
    int64_t first_ns = INT64_MAX;
    int64_t last_ns = 0;
    for (unsigned i = 0; i < batch->count; i++) {
        first_ns = MIN(first_ns, bare_begun_ns(batch->guests[i]));
        last_ns = MAX(last_ns, bare_running_ns(batch->guests[i]));
    }
    printf("{\"total_us\": %" PRId64 ", \"guests\": [", (last_ns - first_ns) / 1000);
    for (unsigned i = 0; i < batch->count; i++) {
        const struct bare *guest = batch->guests[i];
        printf("%s{\"pid\": %d, \"begun_us\": %" PRId64 ", \"spawned_us\": %" PRId64 ", \"running_us\": %" PRId64
               "}",
               i == 0 ? "" : ", ", (int)bare_pid(guest), (bare_begun_ns(guest) - first_ns) / 1000,
               (bare_spawned_ns(guest) - first_ns) / 1000, (bare_running_ns(guest) - first_ns) / 1000);
    }
    puts("]}");
    fflush(stdout);
}

static void wait_for_end_of_input(void)
{
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
}

static int run(const struct bare_source *source, struct batch *batch, bool hold, struct error *err)
{
    int r = bare_isolate(err);
    for (unsigned i = 0; r == 0 && i < batch->count; i++)
        r = bare_prepare(source, i, &batch->guests[i], err);
    if (r == 0)
        r = start_all(batch, err);
    if (r == 0)
        print(batch);
    if (r == 0 && hold)
        wait_for_end_of_input();
    for (unsigned i = 0; i < batch->count; i++)
        bare_free(batch->guests[i]);
    return r;
}

int main(int argc, char **argv)
{
    bool hold = argc == 7 && strcmp(argv[6], "--hold") == 0;
    if (argc != 6 && !hold) {
        fputs("Usage: bare-start ARGUMENTS SNAPSHOT WORK COUNT PARALLEL [--hold]\n", stderr);
        return 2;
    }
    const struct bare_source source = {.arguments = argv[1], .snapshot = argv[2], .work = argv[3]};
    struct batch batch = {
        .count = (unsigned)atoi(argv[4]), .parallel = (unsigned)atoi(argv[5]), .lock = PTHREAD_MUTEX_INITIALIZER};
    if (batch.count < 1 || batch.count > COUNT_MAX || batch.parallel < 1 || batch.parallel > PARALLEL_MAX) {
        fprintf(stderr, "bare-start: COUNT must be from 1 to %d, PARALLEL from 1 to %d\n", COUNT_MAX, PARALLEL_MAX);
        return 2;
    }
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (run(&source, &batch, hold, &err) == 0)
        return 0;
    fprintf(stderr, "bare-start: %s\n", error_message(&err));
    return 1;
}
