/*
 * Runs the real recipes where that is quick, and small scripts of its own for what recipes do only when they fail.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/io.h"
#include "base/strbuf.h"
#include "host/assets.h"
#include "template/script.h"
#include "template/template.h"

struct fixture {
    char directory[96];
    char path[128];      /* of the file that path_of named last */
    struct strbuf lines; /* of progress, each with a newline */
    bool cancel;         /* at the next line */
    struct error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const char *parent = getenv("TMPDIR");
    snprintf(f->directory, sizeof(f->directory), "%s/test-template-XXXXXX", parent != NULL ? parent : "/tmp");
    if (mkdtemp(f->directory) == NULL)
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    int r = io_remove_tree(f->directory);
    strbuf_done(&f->lines);
    error_done(&f->err);
    free(f);
    return r;
}

static bool keep_line(void *context, const char *line)
{
    struct fixture *f = context;
    strbuf_printf(&f->lines, "%s\n", line);
    return !f->cancel;
}

static const char *path_of(struct fixture *f, const char *name)
{
    snprintf(f->path, sizeof(f->path), "%s/%s", f->directory, name);
    return f->path;
}

static void write_file(struct fixture *f, const char *name, const char *content, mode_t mode)
{
    assert_int_equal(io_write_file_atomic(path_of(f, name), content, strlen(content), mode), 0);
}

static bool exists(struct fixture *f, const char *name)
{
    return access(path_of(f, name), F_OK) == 0;
}

/* Runs a command of the shell in the fixture's directory; its exit status. */
static int shell(struct fixture *f, const char *command)
{
    char *line;
    assert_true(asprintf(&line, "cd %s && { %s; } >/dev/null 2>&1", f->directory, command) > 0);
    int status = system(line); /* NOLINT(cert-env33-c): the commands are this file's own */
    free(line);
    return status;
}

static void assert_contains(const char *text, const char *part)
{
    if (text == NULL || strstr(text, part) == NULL)
        fail_msg("'%s' is not in: %s", part, text != NULL ? text : "(none)");
}

/* Runs a script with this body. */
static int run(struct fixture *f, const char *body, char **ret_result)
{
    write_file(f, "script", body, 0755);
    char script[128];
    snprintf(script, sizeof(script), "%s", path_of(f, "script"));
    const char *const arguments[] = {script, f->directory, NULL};
    return script_run(arguments, keep_line, f, ret_result, &f->err);
}

static void script_hands_over_lines_and_result(void **state)
{
    struct fixture *f = *state;
    char *result = NULL;
    assert_int_equal(run(f, "#!/bin/sh\necho one\nprintf 'two\\rthr\\033ee\\n\\nfour'\necho made >&3\n", &result),
                     0);
    assert_string_equal(strbuf_text(&f->lines), "one\ntwo\nthr?ee\nfour\n");
    assert_string_equal(result, "made\n");
    free(result);
}

static void script_line_is_cut(void **state)
{
    struct fixture *f = *state;
    char *result = NULL;
    assert_int_equal(run(f, "#!/bin/sh\nhead -c 100000 /dev/zero | tr '\\0' x\necho\necho next\n", &result), 0);
    assert_int_equal(f->lines.length, SCRIPT_LINE_MAX - 1 + strlen("\nnext\n"));
    free(result);
}

static void script_failure_has_its_last_words(void **state)
{
    struct fixture *f = *state;
    char *result = NULL;
    const char *body = "#!/bin/sh\nfor i in 1 2 3 4 5; do echo \"words $i\" >&2; done\n"
                       "echo 'hint: try that' >&2\nexit 7\n";
    assert_int_equal(run(f, body, &result), -EIO);
    assert_string_equal(f->err.message, "words 3; words 4; words 5");
    assert_string_equal(f->err.hint, "try that");
    assert_null(result);
}

static void script_chooses_the_errno(void **state)
{
    struct fixture *f = *state;
    char *result = NULL;
    assert_int_equal(run(f, "#!/bin/sh\nexit 122\n", &result), -EINVAL);
    assert_contains(f->err.message, "exit status 122");
    assert_int_equal(run(f, "#!/bin/sh\necho 'cp: x: No space left on device' >&2; exit 1\n", &result), -ENOSPC);
    assert_int_equal(run(f, "#!/bin/sh\nkill -9 $$\n", &result), -EIO);
    assert_contains(f->err.message, "signal 9");
    assert_int_equal(run(f, "#!/nonexistent/shell\n", &result), -ENOENT);
}

/* Holds until every process has gone that had opened the FIFO for writing. */
static void await_hangup(int fifo)
{
    struct pollfd wait = {.fd = fifo, .events = POLLIN};
    assert_int_equal(poll(&wait, 1, 20000), 1);
    assert_int_equal(wait.revents, POLLHUP);
}

static void check_cancel(struct fixture *f, const char *body)
{
    char *result = NULL;
    assert_int_equal(mkfifo(path_of(f, "fifo"), 0600), 0);
    int fifo = open(path_of(f, "fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_true(fifo >= 0);
    f->cancel = true;
    assert_int_equal(run(f, body, &result), -ECANCELED);
    assert_string_equal(strbuf_text(&f->lines), "ready\n");
    await_hangup(fifo);
    close(fifo);
}

static void cancel_ends_the_group(void **state)
{
    check_cancel(*state,
                 "#!/bin/bash\ntrap 'touch $1/cleaned' EXIT\nexec 4>$1/fifo\nsleep 1000 &\necho ready\nwait\n");
    assert_true(exists(*state, "cleaned"));
}

static void cancel_ends_what_ignores_it(void **state)
{
    check_cancel(*state, "#!/bin/bash\ntrap '' TERM\nexec 4>$1/fifo\nsleep 1000 &\necho ready\nsleep 1000\n");
}

static void script_leaves_nothing_running(void **state)
{
    struct fixture *f = *state;
    char *result = NULL;
    assert_int_equal(mkfifo(path_of(f, "fifo"), 0600), 0);
    int fifo = open(path_of(f, "fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    assert_int_equal(run(f, "#!/bin/bash\nexec 4>$1/fifo\nsleep 1000 &\necho made >&3\n", &result), 0);
    await_hangup(fifo);
    close(fifo);
    free(result);
}

static int build(struct fixture *f, const char *recipe, const char *source, uint64_t size, uint64_t *ret_size)
{
    char cache[128], output[128], from[128];
    snprintf(cache, sizeof(cache), "%s", path_of(f, "cache"));
    snprintf(output, sizeof(output), "%s", path_of(f, "image"));
    snprintf(from, sizeof(from), "%s", source != NULL ? path_of(f, source) : "");
    struct rootfs_options options = {
        .recipe = recipe, .source = source != NULL ? from : NULL, .size_bytes = size, .cache = cache};
    return rootfs_build(&options, output, keep_line, f, ret_size, &f->err);
}

static void assert_built(struct fixture *f, int result)
{
    if (result < 0)
        fail_msg("%s", error_message(&f->err));
}

/* Refused for this reason, and nothing left. */
static void assert_refused(struct fixture *f, int result, int expected, const char *reason)
{
    assert_int_equal(result, expected);
    assert_contains(f->err.message, reason);
    assert_false(exists(f, "image"));
    assert_int_equal(shell(f, "[ -z \"$(ls -d image.* cache/.tmp.*)\" ]"), 0);
}

static void need_root(void)
{
    if (geteuid() != 0) {
        print_message("file systems with their owners can only be made by root\n");
        skip();
    }
}

static void tiny_is_built_and_kept(void **state)
{
    struct fixture *f = *state;
    uint64_t size = 0;
    need_root();
    assert_built(f, build(f, "tiny", NULL, 0, &size));
    assert_int_equal(size, 64 << 20);
    assert_int_equal(shell(f, "e2fsck -fn image"), 0);
    assert_int_equal(shell(f, "debugfs -R 'stat /home/user' image | grep -E 'User: +1000'"), 0);
    assert_int_equal(shell(f, "debugfs -R 'stat /bin/bash' image | grep 'Type: regular'"), 0);
    assert_int_equal(shell(f, "[ $(du --block-size=1M image | cut -f1) -lt 8 ]"), 0);
    assert_contains(strbuf_text(&f->lines), "making the file tree");

    strbuf_consume(&f->lines, f->lines.length);
    assert_built(f, build(f, "tiny", NULL, 128 << 20, &size));
    assert_int_equal(size, 128 << 20);
    assert_null(strstr(strbuf_text(&f->lines), "making the file tree"));
}

static void bad_recipes_are_refused(void **state)
{
    struct fixture *f = *state;
    uint64_t size = 0;
    assert_refused(f, build(f, "../tiny", NULL, 0, &size), -EINVAL, "../tiny");
    assert_refused(f, build(f, "", NULL, 0, &size), -EINVAL, "recipe");
    assert_refused(f, build(f, "nonexistent", NULL, 0, &size), -ENOENT, "'nonexistent'");
    assert_contains(f->err.hint, "tiny");
    need_root();
    assert_refused(f, build(f, "tiny", NULL, 1 << 20, &size), -EINVAL, "do not fit");
}

static void sources_become_images(void **state)
{
    struct fixture *f = *state;
    uint64_t size = 0;
    need_root();
    assert_int_equal(shell(f, "mkdir -p tree/bin && echo '#!' >tree/bin/sh && tar -cJf tree.tar.xz -C tree ."), 0);
    assert_built(f, build(f, NULL, "tree", 0, &size));
    assert_int_equal(size, UINT64_C(2) << 30);
    assert_built(f, build(f, NULL, "tree.tar.xz", 16 << 20, &size));
    assert_int_equal(size, 16 << 20);
    assert_int_equal(shell(f, "debugfs -R 'cat /bin/sh' image | grep '#!' && mv image disk"), 0);

    assert_built(f, build(f, NULL, "disk", 0, &size));
    assert_int_equal(size, 16 << 20);
    assert_built(f, build(f, NULL, "disk", 32 << 20, &size));
    assert_int_equal(size, 32 << 20);
    assert_int_equal(shell(f, "e2fsck -fn image && dumpe2fs -h image | grep -E 'Block count: +8192'"), 0);
}

static void bad_sources_are_refused(void **state)
{
    struct fixture *f = *state;
    uint64_t size = 0;
    need_root();
    assert_refused(f, build(f, NULL, "absent", 0, &size), -ENOENT, "absent");
    assert_int_equal(shell(f, "mkdir -p empty && head -c 100000 /dev/urandom >noise"), 0);
    assert_refused(f, build(f, NULL, "empty", 0, &size), -EINVAL, "/bin/sh");
    assert_refused(f, build(f, NULL, "noise", 0, &size), -EINVAL, "tar archive");

    assert_int_equal(shell(f, "truncate -s 16M disk && mke2fs -q -t ext4 disk"), 0);
    assert_refused(f, build(f, NULL, "disk", 8 << 20, &size), -EINVAL, "more than");
    assert_int_equal(shell(f, "dd if=/dev/urandom of=disk bs=1k seek=2 count=200 conv=notrunc"), 0);
    assert_refused(f, build(f, NULL, "disk", 0, &size), -EINVAL, "damaged");
}

/* The kernel, by the script itself, with an agent of this test's. */
static char *make_kernel(struct fixture *f, const char *agent)
{
    char directory[128], agent_path[128];
    snprintf(directory, sizeof(directory), "%s", path_of(f, "kernel"));
    snprintf(agent_path, sizeof(agent_path), "%s", path_of(f, agent));
    CLEANUP_FREE char *script = asset_find("recipes/kernel", &f->err);
    assert_non_null(script);
    const char *const arguments[] = {script, directory, agent_path, NULL};
    char *result = NULL;
    strbuf_consume(&f->lines, f->lines.length);
    assert_built(f, script_run(arguments, keep_line, f, &result, &f->err));
    return result;
}

static void kernel_is_downloaded_once(void **state)
{
    struct fixture *f = *state;
    write_file(f, "agent1", "one", 0755);
    write_file(f, "agent2", "two", 0755);
    CLEANUP_FREE char *first = make_kernel(f, "agent1");
    assert_contains(strbuf_text(&f->lines), "downloading");
    CLEANUP_FREE char *again = make_kernel(f, "agent1");
    assert_string_equal(again, first);
    assert_int_equal(f->lines.length, 0);
    CLEANUP_FREE char *other = make_kernel(f, "agent2");
    assert_string_equal(strbuf_text(&f->lines), "making the initrd\n");
    assert_string_not_equal(other, first);

    assert_int_equal(shell(f, "cat kernel/*/modules/order >order; [ $(ls kernel/*/initrd-* | wc -l) = 2 ] &&"
                              "for i in kernel/*/initrd-*; do mkdir x; (cd x && cpio -id) <$i || exit 1;"
                              "cmp x/modules/order order || exit 1; cat x/init >>agents; rm -r x; done;"
                              "grep -q one agents && grep -q two agents"),
                     0);
    assert_int_equal(shell(f, "for i in virtio virtio_mmio virtio_net virtio_console virtio_blk; do"
                              "  grep -qx $i order && [ -s kernel/*/modules/$i.ko ] || exit 1; done"),
                     0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(script_hands_over_lines_and_result, setup, teardown),
        cmocka_unit_test_setup_teardown(script_line_is_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(script_failure_has_its_last_words, setup, teardown),
        cmocka_unit_test_setup_teardown(script_chooses_the_errno, setup, teardown),
        cmocka_unit_test_setup_teardown(cancel_ends_the_group, setup, teardown),
        cmocka_unit_test_setup_teardown(cancel_ends_what_ignores_it, setup, teardown),
        cmocka_unit_test_setup_teardown(script_leaves_nothing_running, setup, teardown),
        cmocka_unit_test_setup_teardown(tiny_is_built_and_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_recipes_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(sources_become_images, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_sources_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(kernel_is_downloaded_once, setup, teardown),
    };
    return cmocka_run_group_tests_name("template", tests, NULL, NULL);
}
