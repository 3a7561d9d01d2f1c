/*
 * cli.h: the verbs and what they share.
 *
 * A verb returns the exit status (0 … 255) or a negative errno with the reason in `err`, which main prints in one
 * line: exit status 1, or 2 when `usage_failed` is set. Verbs write results to standard output and nothing else
 * there; one thread.
 */
#ifndef DORMOUSE_CLI_CLI_H
#define DORMOUSE_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define DORMOUSE_SOCKET_DEFAULT "/run/dormouse.sock"
#define DORMOUSE_API            "/dormouse/v1"

#define EXIT_STATUS_USAGE 2

/* What holds for the whole call. */
struct cli {
    const char *socket_path;
    bool json;
    bool usage_failed; /* the error is one of usage */
};

typedef int (*verb_function)(struct cli *cli, int argc, char **argv, struct error *err);

struct verb {
    const char *name;
    const char *summary;
    verb_function run;
};

/* A verb that only chooses among others: dormouse itself, template, snapshot, store. `prefix`: "" or the group's
 * name. */
int verb_dispatch(struct cli *cli, const char *prefix, const char *summary, const struct verb *verbs, size_t count,
                  int argc, char **argv, struct error *err);

/* Prints one line to standard error: a failure that doesn't end the verb. */
void cli_report(const struct error *err);

/* argv[0] is the verb's name. */
int verb_checkpoint(struct cli *cli, int argc, char **argv, struct error *err);
int verb_cp(struct cli *cli, int argc, char **argv, struct error *err);
int verb_dedup_report(struct cli *cli, int argc, char **argv, struct error *err);
int verb_doctor(struct cli *cli, int argc, char **argv, struct error *err);
int verb_env(struct cli *cli, int argc, char **argv, struct error *err);
int verb_exec(struct cli *cli, int argc, char **argv, struct error *err);
int verb_fork(struct cli *cli, int argc, char **argv, struct error *err);
int verb_info(struct cli *cli, int argc, char **argv, struct error *err);
int verb_kill(struct cli *cli, int argc, char **argv, struct error *err);
int verb_logs(struct cli *cli, int argc, char **argv, struct error *err);
int verb_ls(struct cli *cli, int argc, char **argv, struct error *err);
int verb_pause(struct cli *cli, int argc, char **argv, struct error *err);
int verb_resume(struct cli *cli, int argc, char **argv, struct error *err);
int verb_run(struct cli *cli, int argc, char **argv, struct error *err);
int verb_snapshot(struct cli *cli, int argc, char **argv, struct error *err);
int verb_snapshot_diff(struct cli *cli, int argc, char **argv, struct error *err);
int verb_snapshot_inspect(struct cli *cli, int argc, char **argv, struct error *err);
int verb_snapshot_mount(struct cli *cli, int argc, char **argv, struct error *err);
int verb_snapshot_verify(struct cli *cli, int argc, char **argv, struct error *err);
int verb_stats(struct cli *cli, int argc, char **argv, struct error *err);
int verb_store(struct cli *cli, int argc, char **argv, struct error *err);
int verb_template(struct cli *cli, int argc, char **argv, struct error *err);
int verb_template_build(struct cli *cli, int argc, char **argv, struct error *err);

#endif
