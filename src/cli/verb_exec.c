#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/utf8.h"
#include "cli/api.h"
#include "cli/exec_session.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "cli/terminal.h"

#define JSON_OUTPUT_MAX ((size_t)16 << 20)

static const struct verb_usage usage = {
    .verb = "exec",
    .arguments = "[OPTIONS] ID [--] COMMAND [ARGUMENT…]",
    .summary = "Runs a command in a running sandbox, directly, not by a shell.",
    .details =
        "The exit status is the command's; 128 + n when signal n ended it, 127 when it was not found, 126 when\n"
        "it can't be run, 1 when Dormouse failed. SIGINT and SIGTERM ask the command to terminate.\n"
        "With --json, one object at the end: pid, exit_status, signal, stdout, stderr, truncated.\n",
    .minimum = 2,
    .maximum = OPERANDS_ANY,
    .in_order = true,
};

struct exec_arguments {
    bool interactive;
    bool tty;
    const char *user;
    const char *directory;
    json_t *environment;
    const char *id;
    const char *const *command;
    size_t command_count;
};

static int parse_arguments(struct cli *cli, int argc, char **argv, struct exec_arguments *a, struct error *err)
{
    const struct option_spec specs[] = {
        {'i', "interactive", NULL, "pass standard input on", option_flag, &a->interactive},
        {'t', "tty", NULL, "give the command a terminal", option_flag, &a->tty},
        {'u', "user", "USER", "as whom (default: the template's user)", option_text, &a->user},
        {'w', "workdir", "DIR", "where (default: the user's home)", option_text, &a->directory},
        {'e', "env", "KEY=VALUE", "environment; repeatable", option_pair, a->environment},
    };
    struct operands operands;
    int r = options_parse(cli, &usage, specs, ARRAY_SIZE(specs), argc, argv, &operands, err);
    if (r <= 0)
        return r;
    size_t first = strcmp(operands.items[1], "--") == 0 ? 2 : 1;
    if (operands.count <= first)
        return options_usage_error(cli, &usage, err, "exec: a command is missing");
    if (cli->json && a->tty)
        return options_usage_error(cli, &usage, err, "exec: --json and --tty exclude each other");
    a->id = operands.items[0];
    a->command = (const char *const *)operands.items + first;
    a->command_count = operands.count - first;
    if (a->tty && json_object_get(a->environment, "TERM") == NULL && getenv("TERM") != NULL)
        json_object_set_new(a->environment, "TERM", json_string(getenv("TERM")));
    return r;
}

/* The one object of --json. */
static int print_outcome(const struct exec_outcome *outcome, const struct exec_output *out,
                         const struct exec_output *errors, struct error *err)
{
    const char *name = outcome->signal != 0 ? sigabbrev_np(outcome->signal) : NULL;
    CLEANUP_JSON json_t *object = json_pack("{s:I, s:i, s:s?, s:o, s:o, s:b}", "pid", (json_int_t)outcome->pid,
                                            "exit_status", outcome->exit_status, "signal", name, "stdout",
                                            utf8_json(strbuf_text(&out->pending), out->pending.length), "stderr",
                                            utf8_json(strbuf_text(&errors->pending), errors->pending.length),
                                            "truncated", out->truncated || errors->truncated);
    if (object == NULL)
        return error_set(err, ENOMEM, "out of memory");
    format_json(object);
    return 0;
}

/* Writers whose reader has gone are told so by EBUSY or ENOENT: no news, as with a local pipe. */
static void report_outcome(const struct exec_outcome *outcome)
{
    if (outcome->not_started.code != 0)
        cli_report(&outcome->not_started);
    int refused = outcome->refused.code;
    if (refused != 0 && refused != ENOENT && refused != EBUSY) {
        CLEANUP_ERROR struct error problem = ERROR_INIT;
        error_set(&problem, refused, "standard input was cut off: %s", error_message(&outcome->refused));
        cli_report(&problem);
    }
}

static int run_session(const struct cli *cli, struct client *client, struct exec_options *options,
                       struct error *err)
{
    struct exec_output out = {.fd = cli->json ? -1 : STDOUT_FILENO, .keep_max = JSON_OUTPUT_MAX};
    struct exec_output errors = {.fd = cli->json ? -1 : STDERR_FILENO, .keep_max = JSON_OUTPUT_MAX};
    struct exec_outcome outcome;
    CLEANUP_TERMINAL struct terminal terminal = TERMINAL_INIT;
    options->raw = options->tty && options->stdin_fd >= 0;
    int r = options->raw ? terminal_make_raw(&terminal, options->stdin_fd, err) : 0;
    if (r == 0)
        r = exec_session_run(client, options, &out, &errors, &outcome, err);
    terminal_restore(&terminal);
    if (r == 0) {
        report_outcome(&outcome);
        int printed = cli->json && outcome.not_started.code == 0 ? print_outcome(&outcome, &out, &errors, err) : 0;
        r = printed < 0 ? printed : outcome.exit_status;
        exec_outcome_done(&outcome);
    }
    exec_output_done(&out);
    exec_output_done(&errors);
    return r;
}

int verb_exec(struct cli *cli, int argc, char **argv, struct error *err)
{
    CLEANUP_JSON json_t *environment = json_object();
    struct exec_arguments arguments = {.environment = environment};
    int r = parse_arguments(cli, argc, argv, &arguments, err);
    if (r <= 0)
        return r;
    if (arguments.tty && arguments.interactive && !isatty(STDIN_FILENO)) {
        error_set(err, ENOTTY, "standard input is not a terminal");
        error_hint(err, "leave out -t, or -i");
        return -ENOTTY;
    }
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_FREE char *sandbox_id = NULL;
    CLEANUP_CLOSE int signal_fd = -1;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_running_sandbox(client, arguments.id, &sandbox_id, err);
    if (r == 0)
        r = signals_block(&signal_fd, err);
    if (r < 0)
        return r;
    struct exec_options options = {
        .guest = {.sandbox_id = sandbox_id, .user = arguments.user},
        .directory = arguments.directory,
        .environment = environment,
        .command = arguments.command,
        .command_count = arguments.command_count,
        .tty = arguments.tty,
        .stdin_fd = arguments.interactive ? STDIN_FILENO : -1,
        .terminal_fd = arguments.tty ? (isatty(STDOUT_FILENO) ? STDOUT_FILENO : STDIN_FILENO) : -1,
        .signal_fd = signal_fd,
    };
    return run_session(cli, client, &options, err);
}
