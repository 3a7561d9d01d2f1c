/*
 * script.h: runs one of the scripts in recipes/ as a child of its own process group.
 *
 * Each line of its standard output and standard error is handed to `progress` from the calling thread (cut at
 * SCRIPT_LINE_MAX, control characters replaced). What the script writes to file descriptor 3 is its result.
 * A line "hint: …" on standard error becomes the error's hint. Nothing of the group is left when the call returns.
 * Any thread.
 */
#ifndef DORMOUSE_TEMPLATE_SCRIPT_H
#define DORMOUSE_TEMPLATE_SCRIPT_H

#include "base/error.h"
#include "template/template.h"

#define SCRIPT_LINE_MAX   512
#define SCRIPT_RESULT_MAX 16384
#define SCRIPT_TIMEOUT_S  (30 * 60)

/*
 * `arguments` is NULL-terminated, the first is the script's path. The caller frees *ret_result (NUL-terminated).
 * -ECANCELED: `progress` said so; -ETIMEDOUT after SCRIPT_TIMEOUT_S; -ENOSPC: the disk is full; -EIO: the script
 * failed; or the errno that the script chose (exit status 100 + errno).
 */
int script_run(const char *const *arguments, template_progress progress, void *context, char **ret_result,
               struct error *err);

#endif
