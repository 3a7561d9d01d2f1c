#include "cli/exec_input.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/encode.h"
#include "cli/terminal.h"

#define CHUNK_SIZE ((size_t)32 << 10)

void exec_input_init(struct exec_input *input, struct client *client, const struct guest *guest, CURLM *multi)
{
    *input = (struct exec_input){
        .client = client, .guest = guest, .multi = multi, .stdin_fd = -1, .terminal_fd = -1, .refused = ERROR_INIT};
}

void exec_input_started(struct exec_input *input, int64_t pid)
{
    input->pid = pid;
}

/* ---- one request ---- */

static size_t receive_answer(char *data, size_t unit, size_t count, void *context)
{
    struct strbuf *answer = context;
    if (answer->length + unit * count > CLIENT_ERROR_ANSWER_MAX)
        return 0;
    strbuf_append(answer, data, unit * count);
    return answer->failed ? 0 : unit * count;
}

static void end_call(struct exec_input *input, struct exec_call *call)
{
    if (call->easy != NULL)
        curl_multi_remove_handle(input->multi, call->easy);
    curl_easy_cleanup(call->easy);
    curl_slist_free_all(call->headers);
    strbuf_done(&call->answer);
    *call = (struct exec_call){.answer = STRBUF_INIT};
}

static int begin_call(struct exec_input *input, struct exec_call *call, const char *path, const char *body,
                      struct error *err)
{
    call->headers = curl_slist_append(NULL, "Content-Type: application/json");
    call->easy = client_easy_new(input->client, path, input->guest, &call->headers, err);
    if (call->easy == NULL) {
        end_call(input, call);
        return -ENOMEM;
    }
    bool ok = curl_easy_setopt(call->easy, CURLOPT_COPYPOSTFIELDS, body) == CURLE_OK &&
              curl_easy_setopt(call->easy, CURLOPT_WRITEFUNCTION, receive_answer) == CURLE_OK &&
              curl_easy_setopt(call->easy, CURLOPT_WRITEDATA, &call->answer) == CURLE_OK &&
              curl_multi_add_handle(input->multi, call->easy) == CURLM_OK;
    if (ok)
        return 0;
    end_call(input, call);
    return error_set(err, ENOMEM, "cannot prepare a request");
}

/* Takes `fields` over and adds the process' selector. */
static int call_process(struct exec_input *input, struct exec_call *call, const char *procedure, json_t *fields,
                        struct error *err)
{
    json_object_set_new(fields, "process", json_pack("{s:I}", "pid", (json_int_t)input->pid));
    CLEANUP_FREE char *body = json_dumps(fields, JSON_COMPACT);
    json_decref(fields);
    if (body == NULL)
        return error_set(err, ENOMEM, "out of memory");
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, "/process.Process/%s", procedure);
    return begin_call(input, call, strbuf_text(&path), body, err);
}

/* ---- standard input ---- */

bool exec_input_wants_stdin(const struct exec_input *input)
{
    return input->stdin_fd >= 0 && input->pid > 0 && input->data.easy == NULL && !input->end_reached;
}

int exec_input_read(struct exec_input *input, struct error *err)
{
    char chunk[CHUNK_SIZE];
    ssize_t n = read(input->stdin_fd, chunk, sizeof(chunk));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    /* A terminal that hung up: the same as its end. */
    if (n < 0 && errno != EIO)
        return error_errno(err, "cannot read standard input");
    if (n <= 0) {
        input->end_reached = true;
        return 0;
    }
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    base64_encode(&text, chunk, (size_t)n);
    json_t *fields = json_pack("{s:{s:s}}", "input", input->tty ? "pty" : "stdin", strbuf_text(&text));
    if (text.failed || fields == NULL) {
        json_decref(fields);
        return error_set(err, ENOMEM, "out of memory");
    }
    return call_process(input, &input->data, "SendInput", fields, err);
}

/* ---- signals and sizes ---- */

bool exec_input_busy(const struct exec_input *input)
{
    return input->signal != 0 || input->resized || input->control.easy != NULL;
}

bool exec_input_signal(struct exec_input *input, int signal)
{
    if (input->signal != 0 || input->control.easy != NULL)
        return false;
    input->signal = signal;
    return true;
}

static int send_signal(struct exec_input *input, struct error *err)
{
    const char *name = input->signal == SIGKILL ? "SIGNAL_SIGKILL" : "SIGNAL_SIGTERM";
    input->signal = 0;
    return call_process(input, &input->control, "SendSignal", json_pack("{s:s}", "signal", name), err);
}

static int send_size(struct exec_input *input, struct error *err)
{
    input->resized = false;
    struct winsize size;
    if (!terminal_size(input->terminal_fd, &size))
        return 0;
    json_t *fields =
        json_pack("{s:{s:{s:i, s:i}}}", "pty", "size", "cols", (int)size.ws_col, "rows", (int)size.ws_row);
    return call_process(input, &input->control, "Update", fields, err);
}

int exec_input_advance(struct exec_input *input, struct error *err)
{
    int r = 0;
    if (input->pid <= 0)
        return 0;
    if (input->control.easy == NULL && input->signal != 0)
        r = send_signal(input, err);
    else if (input->control.easy == NULL && input->resized)
        r = send_size(input, err);
    if (r < 0 || !input->end_reached || input->stdin_fd < 0 || input->data.easy != NULL)
        return r;
    input->stdin_fd = -1;
    return input->tty ? 0 : call_process(input, &input->data, "CloseStdin", json_object(), err);
}

/* What the process can't take any more ends the input, as a closed pipe would. */
static void finish_data(struct exec_input *input, struct error *problem)
{
    if (problem->code == 0)
        return;
    input->stdin_fd = -1;
    if (input->refused.code == 0)
        error_move(&input->refused, problem);
}

bool exec_input_finish(struct exec_input *input, CURL *easy, CURLcode result)
{
    if (easy != input->data.easy && easy != input->control.easy)
        return false;
    struct exec_call *call = easy == input->data.easy ? &input->data : &input->control;
    CLEANUP_ERROR struct error problem = ERROR_INIT;
    long status = 0;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    if (result != CURLE_OK)
        client_curl_error(input->client, easy, result, &problem);
    else if (status >= 400)
        client_http_error(status, strbuf_text(&call->answer), call->answer.length, &problem);
    if (call == &input->data)
        finish_data(input, &problem);
    end_call(input, call);
    return true;
}

void exec_input_done(struct exec_input *input)
{
    end_call(input, &input->data);
    end_call(input, &input->control);
    error_done(&input->refused);
}
