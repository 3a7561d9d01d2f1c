/*
 * The build runs in a thread of its own and writes its lines into a socket pair; the connection's thread reads
 * them out as the client takes them. The pair is all that the two share while both run: back pressure, the end of
 * the build and the client's hang-up are a full buffer, an end of file and EPIPE.
 */
#include "api/native_build.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/body.h"
#include "api/log.h"
#include "api/native_json.h"
#include "api/reply.h"
#include "base/utf8.h"

#define BLOCK_BYTES (16 * 1024UL)

struct build {
    struct manager *manager;
    json_t *body; /* holds the strings of `spec` */
    struct template_spec spec;
    int writer; /* the building thread's end */
    int reader; /* the connection's end */
    int hangup_fd;
    pthread_t thread;
};

static void free_build(struct build *build)
{
    json_decref(build->body);
    cleanup_close(&build->writer);
    cleanup_close(&build->reader);
    free(build);
}

/* False when nobody reads any more. */
static bool write_line(struct build *build, json_t *json)
{
    CLEANUP_FREE char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    CLEANUP_STRBUF struct strbuf line = STRBUF_INIT;
    strbuf_printf(&line, "%s\n", text != NULL ? text : "{}");
    if (line.failed)
        return false;
    for (size_t done = 0; done < line.length;) {
        ssize_t n = send(build->writer, line.data + done, line.length - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static bool report_progress(void *context, const char *line)
{
    return write_line(context, json_pack("{s:o}", "progress", utf8_json(line, strlen(line))));
}

static void *run_build(void *context)
{
    struct build *build = context;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct template_info info;
    int r = manager_template_build(build->manager, &build->spec, report_progress, build, &info, &err);
    if (r < 0) {
        log_event("template %s: %s", build->spec.name, error_message(&err));
        write_line(build, json_pack("{s:o}", "error", reply_failure_json(&err)));
    } else {
        log_event("template %s: built", build->spec.name);
        write_line(build, json_pack("{s:o}", "template", native_template_json(&info)));
        template_info_done(&info);
    }
    shutdown(build->writer, SHUT_WR);
    return NULL;
}

static ssize_t read_progress(void *context, uint64_t position, char *buffer, size_t size)
{
    (void)position;
    struct build *build = context;
    struct pollfd fds[] = {{.fd = build->reader, .events = POLLIN}, {.fd = build->hangup_fd, .events = POLLIN}};
    while (poll(fds, ARRAY_SIZE(fds), -1) < 0)
        if (errno != EINTR)
            return MHD_CONTENT_READER_END_WITH_ERROR;
    if (fds[1].revents != 0)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    ssize_t n = read(build->reader, buffer, size);
    if (n < 0)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    return n == 0 ? MHD_CONTENT_READER_END_OF_STREAM : n;
}

static void end_progress(void *context)
{
    struct build *build = context;
    shutdown(build->reader, SHUT_RDWR); /* a build in progress learns it from its next line */
    pthread_join(build->thread, NULL);
    free_build(build);
}

static int read_spec(json_t *body, struct template_spec *spec, struct error *err)
{
    static const char *const known[] = {"name", "recipe", "rootfs", "disk_mib", "memory_mib", "cpus", NULL};
    int r;
    if ((r = body_known(body, known, err)) < 0 || (r = body_string(body, "name", &spec->name, err)) < 0 ||
        (r = body_string(body, "recipe", &spec->recipe, err)) < 0 ||
        (r = body_string(body, "rootfs", &spec->rootfs, err)) < 0 ||
        (r = body_unsigned(body, "disk_mib", &spec->disk_mib, err)) < 0 ||
        (r = body_unsigned(body, "memory_mib", &spec->memory_mib, err)) < 0 ||
        (r = body_unsigned(body, "cpus", &spec->cpus, err)) < 0)
        return r;
    if (spec->name == NULL)
        return error_set(err, EINVAL, "\"name\" is missing");
    if (spec->rootfs != NULL && spec->rootfs[0] != '/')
        return error_set(err, EINVAL, "\"rootfs\" must be an absolute path");
    return 0;
}

/* NULL, and the error, on failure. */
static struct build *create_build(struct api_call *call, struct error *err)
{
    int hangup_fd = http_request_hangup_fd(call->request);
    if (hangup_fd < 0) {
        error_code(err, hangup_fd, "cannot watch the connection");
        return NULL;
    }
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0) {
        error_errno(err, "cannot create a socket pair");
        return NULL;
    }
    struct build *build = calloc(1, sizeof(*build));
    if (build == NULL) {
        close(sockets[0]);
        close(sockets[1]);
        error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    *build = (struct build){.manager = call->api->manager,
                            .body = json_incref(call->body),
                            .writer = sockets[0],
                            .reader = sockets[1],
                            .hangup_fd = hangup_fd};
    return build;
}

static int start_build(struct api_call *call, struct build *build, struct error *err)
{
    int r = read_spec(build->body, &build->spec, err);
    if (r < 0)
        return r;
    /* It names a path on this host, which root reads: an API key alone does not grant that. */
    if (build->spec.rootfs != NULL && !call->request->trusted)
        return error_set(err, EINVAL, "\"rootfs\" is accepted on the unix socket only");
    r = pthread_create(&build->thread, NULL, run_build, build);
    return r != 0 ? error_code(err, -r, "cannot start a thread") : 0;
}

int native_build_template(struct api_call *call, struct error *err)
{
    struct build *build = create_build(call, err);
    if (build == NULL)
        return -err->code;
    int r = start_build(call, build, err);
    if (r < 0) {
        free_build(build);
        return r;
    }
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_progress, build, end_progress);
    if (response == NULL) {
        end_progress(build);
        return error_set(err, ENOMEM, "out of memory");
    }
    call->reply->status = 200;
    call->reply->response = response;
    call->request->unbounded_reply = true;
    reply_header(call->reply, MHD_HTTP_HEADER_CONTENT_TYPE, "application/x-ndjson");
    return 0;
}
