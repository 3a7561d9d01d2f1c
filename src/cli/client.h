/*
 * client.h: requests to the daemon over its unix socket, and through it to the agent of a sandbox.
 *
 * Order of calls: client_open, any number of client_call or client_stream_*, client_close. A stream is read before
 * the next call is made. One thread. SIGPIPE must be ignored by the program.
 *
 * An answer of status 400 and above, or of the Connect protocol, becomes an error with the peer's message and hint;
 * its text is cut and freed of control characters, since it may come from a guest. Errors:
 *     ECONNREFUSED, ENOENT, EACCES   the daemon can't be reached (hint: how to start it)
 *     ENOENT, EBUSY, EINVAL, …       what the peer's status says
 *     EPROTO, EFBIG                  the answer is not what the protocol allows, or larger than 64 MiB
 *     ECONNRESET                     the connection ended in the middle of the answer
 *     ECANCELED                      the cancel descriptor became readable
 */
#ifndef DORMOUSE_CLI_CLIENT_H
#define DORMOUSE_CLI_CLIENT_H

#include <curl/curl.h>
#include <jansson.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/strbuf.h"

#define CLIENT_ANSWER_MAX       ((size_t)64 << 20)
#define CLIENT_ERROR_ANSWER_MAX ((size_t)64 << 10)

struct client;

int client_open(const char *socket_path, struct client **ret, struct error *err);
void client_close(struct client **client);
#define CLEANUP_CLIENT CLEANUP(client_close)

/* Every wait ends with ECANCELED once `fd` is readable; -1: none. The descriptor stays the caller's. */
void client_set_cancel(struct client *client, int fd);

/* One JSON request to the daemon. `body` is taken over, NULL for none; a NULL `ret` ignores what is answered. */
int client_call(struct client *client, const char *method, const char *path, json_t *body, json_t **ret,
                struct error *err);

/* An agent and as whom to talk to it. */
struct guest {
    const char *sandbox_id; /* in full */
    const char *user;       /* NULL: the agent's default */
};

/* A unary Connect call, "filesystem.Filesystem/Stat"; `body` is taken over. */
int client_guest_call(struct client *client, const struct guest *guest, const char *procedure, json_t *body,
                      json_t **ret, struct error *err);

/* Gives up to `size` bytes of a request's body; 0: the end; negative: give up. */
typedef ssize_t (*client_source)(void *context, char *buffer, size_t size);

struct client_request {
    const char *method;
    const char *path;          /* with its query */
    const struct guest *guest; /* NULL: the daemon itself */
    const char *content_type;  /* of the body */
    const char *body;          /* or NULL */
    client_source source;      /* instead of `body`: it is sent chunked */
    void *source_context;
};

struct client_stream;

/* Returns when the answer's head is there and its status is below 400. */
int client_stream_open(struct client *client, const struct client_request *request, struct client_stream **ret,
                       struct error *err);
/* Up to `size` bytes as soon as there are any; 0: the answer is complete. */
ssize_t client_stream_read(struct client_stream *stream, void *buffer, size_t size, struct error *err);
/* The rest of the answer, at most CLIENT_ANSWER_MAX. */
int client_stream_read_all(struct client_stream *stream, struct strbuf *ret, struct error *err);
void client_stream_close(struct client_stream **stream);
#define CLEANUP_STREAM CLEANUP(client_stream_close)

/*
 * For a caller that runs its own multi loop: an easy handle set up for the socket, with the headers for `guest` in
 * *headers (appended to; freed by the caller after the handle).
 */
CURL *client_easy_new(const struct client *client, const char *path, const struct guest *guest,
                      struct curl_slist **headers, struct error *err);

/* What went wrong, as an error; each always returns a negative errno. */
int client_http_error(long status, const char *body, size_t length, struct error *err);
/* {"code": an HTTP status or a name of the Connect protocol, "message", "hint"?} */
int client_peer_error(const json_t *object, struct error *err);
int client_curl_error(const struct client *client, CURL *easy, CURLcode code, struct error *err);

#endif
