#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static const struct verb verbs[] = {
    {"doctor", "what this host has and lacks, with the remedy for each", verb_doctor},
    {"template", "build, list and remove templates", verb_template},
    {"run", "start a sandbox from a template", verb_run},
    {"ls", "list sandboxes", verb_ls},
    {"info", "everything about a sandbox", verb_info},
    {"logs", "the guest's console", verb_logs},
    {"stats", "memory, CPU time and disk of a sandbox", verb_stats},
    {"exec", "run a command in a sandbox", verb_exec},
    {"cp", "copy files and trees to or from a sandbox", verb_cp},
    {"pause", "snapshot sandboxes and end their processes", verb_pause},
    {"resume", "let paused sandboxes go on", verb_resume},
    {"checkpoint", "snapshot a sandbox that goes on, by name", verb_checkpoint},
    {"fork", "make copies of a sandbox, memory included", verb_fork},
    {"kill", "end and remove sandboxes", verb_kill},
    {"snapshot", "list, describe, check, compare, show and remove snapshots", verb_snapshot},
    {"store", "look after the store: numbers, gc, compaction, verification", verb_store},
    {"dedup-report", "what deduplication would gain, without a daemon", verb_dedup_report},
    {"env", "environment for E2B clients, for eval", verb_env},
};

/* A closed 0, 1 or 2 would be taken by the next socket, and output would go there. */
static int occupy_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY) != fd)
            return -errno;
    return 0;
}

/* Results that could not be written are a failure, too: a full disk must not look like success. */
static int flush_output(struct error *err)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    return error_errno(err, "cannot write the output");
}

int main(int argc, char **argv)
{
    if (occupy_standard_descriptors() < 0)
        return EXIT_FAILURE;
    setlocale(LC_CTYPE, "C.UTF-8");
    signal(SIGPIPE, SIG_IGN);
    CLEANUP_ERROR struct error err = ERROR_INIT;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        error_set(&err, ENOMEM, "cannot initialise libcurl");
        cli_report(&err);
        return EXIT_FAILURE;
    }
    const char *socket_path = getenv("DORMOUSE_SOCKET");
    struct cli cli = {.socket_path =
                          socket_path != NULL && *socket_path != '\0' ? socket_path : DORMOUSE_SOCKET_DEFAULT};
    int r = verb_dispatch(&cli, "", "Pauses, resumes and forks microVM sandboxes.", verbs, ARRAY_SIZE(verbs), argc,
                          argv, &err);
    int flushed = flush_output(r < 0 ? NULL : &err);
    if (r >= 0 && flushed < 0)
        r = flushed;
    curl_global_cleanup();
    if (r >= 0)
        return r;
    cli_report(&err);
    return cli.usage_failed ? EXIT_STATUS_USAGE : EXIT_FAILURE;
}
