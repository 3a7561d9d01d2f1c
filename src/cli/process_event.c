#include "cli/process_event.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/encode.h"

#define SIGNAL_PREFIX "signal: "
#define CORE_SUFFIX   " (core dumped)"

int process_event_signal(const char *status)
{
    if (status == NULL || strncmp(status, SIGNAL_PREFIX, strlen(SIGNAL_PREFIX)) != 0)
        return 0;
    const char *name = status + strlen(SIGNAL_PREFIX);
    size_t length = strlen(name);
    size_t suffix = strlen(CORE_SUFFIX);
    if (length > suffix && strcmp(name + length - suffix, CORE_SUFFIX) == 0)
        length -= suffix;
    for (int n = 1; n < NSIG; n++) {
        const char *known = sigdescr_np(n);
        if (known != NULL && strlen(known) == length && strncasecmp(name, known, length) == 0)
            return n;
    }
    /* Real-time signals have no name: "signal: 34". */
    char *end;
    long number = strtol(name, &end, 10);
    return end == name + length && number > 0 && number < NSIG ? (int)number : 0;
}

static void parse_end(const json_t *end, struct process_event *event)
{
    int signal = process_event_signal(json_string_value(json_object_get(end, "status")));
    if (signal == 0)
        signal = process_event_signal(json_string_value(json_object_get(end, "error")));
    event->kind = PROCESS_EVENT_END;
    if (json_is_true(json_object_get(end, "exited")))
        signal = 0;
    event->signal = signal;
    event->exit_status =
        signal > 0 ? 128 + signal : (int)(json_integer_value(json_object_get(end, "exitCode")) & 255);
}

static int parse_data(const json_t *data, struct process_event *event, struct error *err)
{
    static const struct {
        const char *field;
        enum process_event_kind kind;
    } streams[] = {
        {"stdout", PROCESS_EVENT_STDOUT}, {"stderr", PROCESS_EVENT_STDERR}, {"pty", PROCESS_EVENT_STDOUT}};
    for (size_t i = 0; i < ARRAY_SIZE(streams); i++) {
        const json_t *text = json_object_get(data, streams[i].field);
        if (text == NULL)
            continue;
        event->kind = streams[i].kind;
        if (!json_is_string(text) ||
            base64_decode(&event->data, json_string_value(text), json_string_length(text)) < 0)
            return error_set(err, EPROTO, "the agent sent output that is not base64");
        return event->data.failed ? error_set(err, ENOMEM, "out of memory") : 0;
    }
    return 0;
}

static int parse_object(const json_t *message, struct process_event *event, struct error *err)
{
    const json_t *object = json_object_get(message, "event");
    const json_t *start = json_object_get(object, "start");
    const json_t *end = json_object_get(object, "end");
    if (start != NULL) {
        event->kind = PROCESS_EVENT_START;
        event->pid = json_integer_value(json_object_get(start, "pid"));
        if (event->pid <= 0 || event->pid > INT_MAX)
            return error_set(err, EPROTO, "the agent started a process without a pid");
        return 0;
    }
    if (end != NULL) {
        parse_end(end, event);
        return 0;
    }
    return parse_data(json_object_get(object, "data"), event, err);
}

int process_event_parse(const char *json, size_t length, struct process_event *ret, struct error *err)
{
    json_t *message = json_loadb(json, length, 0, NULL);
    if (!json_is_object(message)) {
        json_decref(message);
        return error_set(err, EPROTO, "the agent sent a message that is not a JSON object");
    }
    struct process_event event = {.kind = PROCESS_EVENT_OTHER, .data = STRBUF_INIT};
    int r = parse_object(message, &event, err);
    json_decref(message);
    if (r < 0) {
        process_event_done(&event);
        return r;
    }
    *ret = event;
    return 0;
}

void process_event_done(struct process_event *event)
{
    strbuf_done(&event->data);
}
