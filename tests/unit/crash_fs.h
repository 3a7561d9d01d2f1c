/*
 * crash_fs.h: what a program does to a directory tree, and what a crash at any point of it would have left.
 *
 * The test program is linked with crash_wrapped of tests/unit/meson.build, so that calls from the code under test
 * come by here. Order of calls: crash_record; the code under test, crash_mark where it has promised something;
 * crash_stop; then crash_replay, and crash_rebuild and crash_step until crash_step says that the end is reached.
 *
 * The model is what POSIX promises and no more: a file's content as of its last fsync, a directory's entries as of
 * its own last fsync. What the tree held when recording began is durable. One recording at a time; any failure of
 * the model itself ends the program.
 */
#ifndef DORMOUSE_TESTS_CRASH_FS_H
#define DORMOUSE_TESTS_CRASH_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum crash_kind {
    CRASH_PROCESS,         /* all that was done is there */
    CRASH_HOST,            /* only what was fsynced */
    CRASH_EMPTY,           /* all names; files as of their last fsync, else empty */
    CRASH_SHORT,           /* all names; files as of their last fsync, else half */
    CRASH_LAYERS_FIRST,    /* as HOST, but all names in the directory `layers` */
    CRASH_SNAPSHOTS_FIRST, /* as HOST, but all names elsewhere */
    CRASH_KINDS
};

struct crash_log;

void crash_record(const char *root);
/* Number of operations so far. */
size_t crash_mark(void);
/* Compares the model's end with the real tree: nothing escaped the record. */
struct crash_log *crash_stop(void);
void crash_log_free(struct crash_log *log);

/* Things that were changed and then fsynced: 0 to count - 1; the name is the log's. */
size_t crash_synced_count(const struct crash_log *log);
const char *crash_synced_name(const struct crash_log *log, size_t index);

struct crash_state;

/* `without`: leaves out all fsyncs of this thing; SIZE_MAX: of none. */
struct crash_state *crash_replay(const struct crash_log *log, size_t without);
void crash_state_free(struct crash_state *state);
/* Operations done so far. */
size_t crash_point(const struct crash_state *state);
/* Does the next operation; false: there is none. */
bool crash_step(struct crash_state *state);
/* Equal for equal trees. */
uint64_t crash_hash(const struct crash_state *state, enum crash_kind kind);
/* Makes the tree that a crash now leaves. `to` must not exist. */
void crash_rebuild(const struct crash_state *state, enum crash_kind kind, const char *to);

#endif
