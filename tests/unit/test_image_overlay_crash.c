/*
 * An overlay's files after a crash at any point: each block has what it had at the last flush or what was written
 * to it since, in every way that the writes since the last syncs can have reached the disk or not (crash_fs.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/macro.h"
#include "crash_fs.h"
#include "image/overlay.h"
#include "unit.h"

#define BLOCK  ((size_t)OVERLAY_BLOCK_BYTES)
#define BLOCKS 20u
#define STEPS  100u

/* The model doesn't know holes, and an overlay can do without. */
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
    (void)fd;
    (void)mode;
    (void)offset;
    (void)length;
    errno = EOPNOTSUPP;
    return -1;
}

/* What each block holds, over and over. */
struct content {
    uint64_t values[BLOCKS];
};

struct event {
    enum { EVENT_WRITE, EVENT_FLUSH, EVENT_REBASE } kind;
    size_t begin; /* operations of the record before it, and with it */
    size_t end;
    uint64_t block; /* of a write */
    uint64_t value;
    struct content content; /* of a flush: what it made durable; of a rebase: the base from then on */
};

struct history {
    struct event events[STEPS * 2];
    size_t count;
    struct content first; /* base */
};

static int read_content(void *context, uint64_t offset, size_t length, void *to)
{
    const struct content *content = context;
    for (size_t i = 0; i < length; i += sizeof(uint64_t))
        memcpy((uint8_t *)to + i, &content->values[(offset + i) / BLOCK], sizeof(uint64_t));
    return 0;
}

static uint32_t random_next(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

static void write_value(struct overlay *overlay, uint64_t block, uint64_t value)
{
    uint64_t words[BLOCK / sizeof(uint64_t)];
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        words[i] = value;
    if (value == 0)
        assert_int_equal(overlay_zero(overlay, block * BLOCK, BLOCK), 0);
    else
        assert_int_equal(overlay_write(overlay, block * BLOCK, BLOCK, words), 0);
}

struct life {
    struct overlay *overlay;
    struct history *history;
    struct content now;
    struct content frozen_content;
    struct content bases[STEPS];
    size_t base_count;
    uint64_t frozen;
};

static struct event *begin_event(struct life *life, int kind)
{
    struct event *event = &life->history->events[life->history->count++];
    *event = (struct event){.kind = kind, .begin = crash_mark(), .content = life->now};
    return event;
}

static void do_write(struct life *life, uint64_t *seed, uint64_t value)
{
    struct event *event = begin_event(life, EVENT_WRITE);
    event->block = random_next(seed) % BLOCKS;
    event->value = random_next(seed) % 5 == 0 ? 0 : value;
    life->now.values[event->block] = event->value;
    write_value(life->overlay, event->block, event->value);
    event->end = crash_mark();
}

static void do_freeze(struct life *life)
{
    struct event *event = begin_event(life, EVENT_FLUSH);
    assert_int_equal(overlay_freeze(life->overlay, &life->frozen, NULL), 0);
    life->frozen_content = life->now;
    event->end = crash_mark();
}

static void do_rebase(struct life *life)
{
    if (life->frozen == 0)
        return;
    struct content *base = &life->bases[life->base_count++];
    *base = life->frozen_content;
    struct event *event = begin_event(life, EVENT_REBASE);
    event->content = *base;
    assert_int_equal(overlay_rebase(life->overlay, life->frozen, read_content, base, NULL), 0);
    event->end = crash_mark();
    life->frozen = 0;
}

static void live(const char *directory, struct history *history, uint64_t seed)
{
    struct life life = {.history = history};
    for (unsigned i = 0; i < BLOCKS; i++)
        history->first.values[i] = i + 1;
    life.now = history->first;
    crash_record(directory);
    assert_int_equal(overlay_open(directory, BLOCKS * BLOCK, read_content, &history->first, &life.overlay, NULL),
                     0);
    for (unsigned i = 0; i < STEPS; i++) {
        unsigned choice = random_next(&seed) % 100;
        if (choice < 75) {
            do_write(&life, &seed, 1000 + i);
        } else if (choice < 88) {
            struct event *event = begin_event(&life, EVENT_FLUSH);
            assert_int_equal(overlay_flush(life.overlay), 0);
            event->end = crash_mark();
        } else if (choice < 95) {
            do_freeze(&life);
        } else {
            do_rebase(&life);
        }
    }
    overlay_close(life.overlay);
}

/* The base that the daemon has named before the operation after `point`. */
static const struct content *base_at(const struct history *history, size_t point)
{
    const struct content *base = &history->first;
    for (size_t i = 0; i < history->count; i++) {
        if (history->events[i].kind == EVENT_REBASE && history->events[i].begin <= point)
            base = &history->events[i].content;
    }
    return base;
}

static bool may_hold(const struct history *history, size_t point, uint64_t block, uint64_t value)
{
    size_t since = 0;
    const struct content *flushed = &history->first;
    for (size_t i = 0; i < history->count; i++) {
        if (history->events[i].kind == EVENT_FLUSH && history->events[i].end <= point) {
            since = i;
            flushed = &history->events[i].content;
        }
    }
    if (value == flushed->values[block])
        return true;
    for (size_t i = since; i < history->count && history->events[i].begin <= point; i++) {
        const struct event *event = &history->events[i];
        if (event->kind == EVENT_WRITE && event->block == block && event->value == value)
            return true;
    }
    return false;
}

/* Whether the files in `directory` are what a crash after `point` operations may leave. */
static bool is_sound(const char *directory, const struct history *history, size_t point)
{
    struct overlay *overlay;
    struct content base = *base_at(history, point);
    if (overlay_open(directory, BLOCKS * BLOCK, read_content, &base, &overlay, NULL) < 0)
        return false;
    static uint64_t words[BLOCKS][BLOCK / sizeof(uint64_t)];
    bool sound = overlay_read(overlay, 0, sizeof(words), words) == 0;
    for (uint64_t block = 0; sound && block < BLOCKS; block++) {
        sound = may_hold(history, point, block, words[block][0]);
        for (size_t i = 1; sound && i < ARRAY_SIZE(words[block]); i++)
            sound = words[block][i] == words[block][0];
    }
    overlay_close(overlay);
    return sound;
}

/* The worst that a kernel may do that writes back at will: maps as they are, but data only where it was synced. */
static void bring_maps(const char *from, const char *to)
{
    for (unsigned generation = 1; generation < STEPS; generation++) {
        char name[64];
        snprintf(name, sizeof(name), "overlay.%u.map", generation);
        CLEANUP_FREE char *source = unit_path(from, name);
        CLEANUP_FREE char *target = unit_path(to, name);
        char bytes[BLOCKS];
        int fd = open(source, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || access(target, F_OK) < 0) {
            cleanup_close(&fd);
            continue;
        }
        assert_int_equal(io_read_full(fd, bytes, sizeof(bytes)), sizeof(bytes));
        close(fd);
        fd = open(target, O_WRONLY | O_CLOEXEC);
        assert_int_equal(io_write_full(fd, bytes, sizeof(bytes)), 0);
        close(fd);
    }
}

static bool check_point(const char *directory, const struct crash_state *state, const struct history *history)
{
    static const enum crash_kind kinds[] = {CRASH_PROCESS, CRASH_HOST, CRASH_EMPTY, CRASH_SHORT};
    CLEANUP_FREE char *process = unit_path(directory, "process");
    CLEANUP_FREE char *crashed = unit_path(directory, "crashed");
    bool sound = true;
    for (size_t i = 0; sound && i < ARRAY_SIZE(kinds); i++) {
        crash_rebuild(state, kinds[i], crashed);
        sound = is_sound(crashed, history, crash_point(state));
        assert_int_equal(io_remove_tree(crashed), 0);
    }
    crash_rebuild(state, CRASH_PROCESS, process);
    crash_rebuild(state, CRASH_HOST, crashed);
    bring_maps(process, crashed);
    sound = sound && is_sound(crashed, history, crash_point(state));
    assert_int_equal(io_remove_tree(process), 0);
    assert_int_equal(io_remove_tree(crashed), 0);
    return sound;
}

/* The first point at which a crash does harm, or SIZE_MAX. */
static size_t find_harm(const char *directory, const struct crash_log *log, size_t without,
                        const struct history *history)
{
    struct crash_state *state = crash_replay(log, without);
    size_t harm = SIZE_MAX;
    do {
        if (!check_point(directory, state, history))
            harm = crash_point(state);
    } while (harm == SIZE_MAX && crash_step(state));
    crash_state_free(state);
    return harm;
}

static void survives_a_crash_at_any_point(void **state)
{
    for (uint64_t seed = 1; seed <= 2; seed++) {
        static struct history history;
        history = (struct history){0};
        CLEANUP_FREE char *path = unit_path(*state, "overlay");
        assert_int_equal(mkdir(path, 0700), 0);
        live(path, &history, seed);
        struct crash_log *log = crash_stop();
        assert_int_equal(find_harm(*state, log, SIZE_MAX, &history), SIZE_MAX);
        /* The test sees each sync that is left out, and none is there for nothing. */
        for (size_t i = 0; seed == 1 && i < crash_synced_count(log); i++) {
            if (find_harm(*state, log, i, &history) == SIZE_MAX)
                fail_msg("without syncing \"%s\", nothing goes wrong", crash_synced_name(log, i));
        }
        crash_log_free(log);
        assert_int_equal(io_remove_tree(path), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(survives_a_crash_at_any_point)};
    return cmocka_run_group_tests_name("overlay-crash", tests, NULL, NULL);
}
