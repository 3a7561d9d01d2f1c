#include "cli/guest_files.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli/api.h"
#include "cli/exec_session.h"

#define PERMISSION_BITS    0777
#define COMPLAINT_MAX      4096
#define COMPLAINT_SHOWN    400
#define OUTPUT_IGNORED_MAX 0

void guest_entry_done(struct guest_entry *entry)
{
    free(entry->path);
    entry->path = NULL;
}

static int read_entry(const json_t *entry, struct guest_entry *ret, struct error *err)
{
    const char *path = json_string_value(json_object_get(entry, "path"));
    const char *type = json_string_value(json_object_get(entry, "type"));
    if (path == NULL || *path != '/' || type == NULL)
        return error_set(err, EPROTO, "the agent's description of a file is incomplete");
    char *copy = strdup(path);
    if (copy == NULL)
        return error_set(err, ENOMEM, "out of memory");
    *ret = (struct guest_entry){
        .exists = true,
        .is_directory = strcmp(type, "FILE_TYPE_DIRECTORY") == 0,
        .is_regular = strcmp(type, "FILE_TYPE_FILE") == 0,
        .mode = (mode_t)json_integer_value(json_object_get(entry, "mode")) & PERMISSION_BITS,
        .path = copy,
    };
    return 0;
}

/* *ret is NULL when there is nothing. */
static int stat_once(struct client *client, const struct guest *guest, const char *path, json_t **ret,
                     struct error *err)
{
    CLEANUP_JSON json_t *answer = NULL;
    json_t *body = json_pack("{s:s}", "path", path);
    if (body == NULL)
        return error_set(err, EINVAL, "the path is not UTF-8, which the agent's protocol demands");
    int r = client_guest_call(client, guest, "filesystem.Filesystem/Stat", body, &answer, err);
    if (r < 0 && r != -ENOENT)
        return error_wrap(err, r, "%s in the sandbox", path);
    if (r == -ENOENT)
        error_done(err);
    *ret = json_incref(json_object_get(answer, "entry"));
    return 0;
}

int guest_files_stat(struct client *client, const struct guest *guest, const char *path, struct guest_entry *ret,
                     struct error *err)
{
    CLEANUP_JSON json_t *entry = NULL;
    CLEANUP_JSON json_t *followed = NULL;
    int r = stat_once(client, guest, path, &entry, err);
    if (r < 0)
        return r;
    /* The agent tells where a link leads in the end, so that one more step is enough. */
    const char *target = json_string_value(json_object_get(entry, "symlinkTarget"));
    r = target != NULL ? stat_once(client, guest, target, &followed, err) : 0;
    if (r < 0)
        return r;
    if (target != NULL ? followed == NULL : entry == NULL) {
        *ret = (struct guest_entry){.exists = false};
        return 0;
    }
    return read_entry(target != NULL ? followed : entry, ret, err);
}

int guest_files_remove(struct client *client, const struct guest *guest, const char *path, struct error *err)
{
    return client_guest_call(client, guest, "filesystem.Filesystem/Remove", json_pack("{s:s}", "path", path), NULL,
                             err);
}

/* "/files?path=…" with the user, who is not taken from the headers here. */
static int files_path(const struct guest *guest, const char *path, struct strbuf *ret, struct error *err)
{
    char *escaped = curl_easy_escape(NULL, path, 0);
    char *user = guest->user != NULL ? curl_easy_escape(NULL, guest->user, 0) : NULL;
    if (escaped == NULL || (guest->user != NULL && user == NULL))
        ret->failed = true;
    else if (user != NULL)
        strbuf_printf(ret, "/files?path=%s&username=%s", escaped, user);
    else
        strbuf_printf(ret, "/files?path=%s", escaped);
    curl_free(escaped);
    curl_free(user);
    return ret->failed ? error_set(err, ENOMEM, "out of memory") : 0;
}

int guest_files_upload(struct client *client, const struct guest *guest, const char *path, client_source source,
                       void *context, struct error *err)
{
    CLEANUP_STRBUF struct strbuf url = STRBUF_INIT;
    CLEANUP_STRBUF struct strbuf answer = STRBUF_INIT;
    CLEANUP_STREAM struct client_stream *stream = NULL;
    int r = files_path(guest, path, &url, err);
    if (r < 0)
        return r;
    const struct client_request request = {
        .method = "POST",
        .path = strbuf_text(&url),
        .guest = guest,
        .content_type = "application/octet-stream",
        .source = source,
        .source_context = context,
    };
    r = client_stream_open(client, &request, &stream, err);
    if (r == 0)
        r = client_stream_read_all(stream, &answer, err);
    return r < 0 ? error_wrap(err, r, "writing %s in the sandbox", path) : 0;
}

int guest_files_download(struct client *client, const struct guest *guest, const char *path,
                         struct client_stream **ret, struct error *err)
{
    CLEANUP_STRBUF struct strbuf url = STRBUF_INIT;
    int r = files_path(guest, path, &url, err);
    if (r < 0)
        return r;
    const struct client_request request = {.method = "GET", .path = strbuf_text(&url), .guest = guest};
    r = client_stream_open(client, &request, ret, err);
    return r < 0 ? error_wrap(err, r, "reading %s in the sandbox", path) : 0;
}

/* The first line a failed program wrote, or its exit status. */
static int command_error(const char *program, const struct exec_outcome *outcome, struct exec_output *complaint,
                         struct error *err)
{
    if (outcome->not_started.code != 0) {
        error_set(err, ENOENT, "cannot run %s in the sandbox: %s", program, error_message(&outcome->not_started));
        error_hint(err, "copying needs tar, mkdir and chmod in the guest");
        return -ENOENT;
    }
    const char *text = strbuf_text(&complaint->pending);
    size_t length = MIN(strcspn(text, "\n"), (size_t)COMPLAINT_SHOWN);
    CLEANUP_FREE char *line = format_clean(strndup(text, length));
    if (line == NULL || *line == '\0')
        return error_set(err, EIO, "%s in the sandbox failed with status %d", program, outcome->exit_status);
    return error_set(err, EIO, "%s in the sandbox failed: %s", program, line);
}

int guest_files_run(struct client *client, const struct guest *guest, const char *const *command, int signal_fd,
                    struct error *err)
{
    struct exec_output out = {.fd = -1, .keep_max = OUTPUT_IGNORED_MAX};
    struct exec_output complaint = {.fd = -1, .keep_max = COMPLAINT_MAX};
    struct exec_options options = {
        .guest = *guest,
        .command = command,
        .stdin_fd = -1,
        .terminal_fd = -1,
        .signal_fd = signal_fd,
    };
    while (command[options.command_count] != NULL)
        options.command_count++;
    struct exec_outcome outcome;
    int r = exec_session_run(client, &options, &out, &complaint, &outcome, err);
    if (r == 0) {
        if (outcome.exit_status != 0)
            r = command_error(command[0], &outcome, &complaint, err);
        exec_outcome_done(&outcome);
    }
    exec_output_done(&out);
    exec_output_done(&complaint);
    return r;
}
