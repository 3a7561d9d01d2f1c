#include "agent/connect.h"

#include <endian.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The first entry also stands for an errno that is not in the table. */
static const struct {
    const char *code;
    int error_code;
    unsigned http_status;
} codes[] = {
    {"internal", EIO, 500},
    {"invalid_argument", EINVAL, 400},
    {"invalid_argument", EISDIR, 400},
    {"invalid_argument", ENOTDIR, 400},
    {"invalid_argument", ENAMETOOLONG, 400},
    {"invalid_argument", ELOOP, 400},
    {"not_found", ENOENT, 404},
    {"not_found", ESRCH, 404},
    {"already_exists", EEXIST, 409},
    {"permission_denied", EACCES, 403},
    {"permission_denied", EPERM, 403},
    {"permission_denied", EROFS, 403},
    {"unauthenticated", EKEYREJECTED, 401},
    {"unimplemented", ENOSYS, 501},
    {"failed_precondition", ENOTCONN, 400},
    {"failed_precondition", ENOTEMPTY, 400},
    {"deadline_exceeded", ETIMEDOUT, 504},
    {"resource_exhausted", EAGAIN, 429},
    {"resource_exhausted", ENOMEM, 429},
    {"resource_exhausted", ENOSPC, 429},
    {"resource_exhausted", EDQUOT, 429},
    {"resource_exhausted", E2BIG, 429},
};

static size_t find_code(int error_code)
{
    for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
        if (codes[i].error_code == error_code)
            return i;
    return 0;
}

const char *connect_code(int error_code)
{
    return codes[find_code(error_code)].code;
}

unsigned connect_http_status(int error_code)
{
    return codes[find_code(error_code)].http_status;
}

void connect_append_error(struct strbuf *out, const struct error *err)
{
    json_t *json = json_pack("{s:s, s:s}", "code", connect_code(err->code), "message", error_message(err));
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    /* A message that is not UTF-8 cannot be a JSON text; the code is what clients act on. */
    if (text != NULL)
        strbuf_puts(out, text);
    else
        strbuf_printf(out, "{\"code\":\"%s\"}", connect_code(err->code));
    free(text);
}

void connect_append_frame(struct strbuf *out, enum connect_flags flags, const char *message, size_t length)
{
    uint8_t header[CONNECT_FRAME_HEADER_SIZE] = {(uint8_t)flags};
    uint32_t wire = htobe32((uint32_t)length);
    memcpy(header + 1, &wire, sizeof(wire));
    strbuf_append(out, header, sizeof(header));
    strbuf_append(out, message, length);
}

void connect_append_end(struct strbuf *out, const struct error *err)
{
    CLEANUP_STRBUF struct strbuf message = STRBUF_INIT;
    strbuf_puts(&message, "{");
    if (err != NULL) {
        strbuf_puts(&message, "\"error\":");
        connect_append_error(&message, err);
    }
    strbuf_puts(&message, "}");
    out->failed |= message.failed;
    connect_append_frame(out, CONNECT_END_OF_STREAM, strbuf_text(&message), message.length);
}

/* Takes the frame at the start of the body. */
static int parse_frame(const char *body, size_t length, uint8_t *ret_flags, size_t *ret_length, struct error *err)
{
    uint32_t wire;
    if (length < CONNECT_FRAME_HEADER_SIZE)
        return error_set(err, EINVAL, "the request's body ends inside a frame header");
    memcpy(&wire, body + 1, sizeof(wire));
    if (be32toh(wire) > length - CONNECT_FRAME_HEADER_SIZE)
        return error_set(err, EINVAL, "the request's body is shorter than its frame says");
    *ret_flags = (uint8_t)body[0];
    *ret_length = be32toh(wire);
    return 0;
}

int connect_parse_request(const char *body, size_t length, const char **ret_message, size_t *ret_length,
                          struct error *err)
{
    uint8_t flags = 0;
    size_t message_length = 0;
    int r = parse_frame(body, length, &flags, &message_length, err);
    if (r < 0)
        return r;
    if (flags == CONNECT_COMPRESSED)
        return error_set(err, ENOSYS, "compressed messages are not supported");
    if (flags != CONNECT_MESSAGE)
        return error_set(err, EINVAL, "the request's frame has unknown flags");
    size_t used = CONNECT_FRAME_HEADER_SIZE + message_length;
    if (used < length) {
        size_t end_length = 0;
        r = parse_frame(body + used, length - used, &flags, &end_length, err);
        if (r < 0)
            return r;
        if (flags != CONNECT_END_OF_STREAM || used + CONNECT_FRAME_HEADER_SIZE + end_length != length)
            return error_set(err, EINVAL, "the request has more than one message");
    }
    *ret_message = body + CONNECT_FRAME_HEADER_SIZE;
    *ret_length = message_length;
    return 0;
}
