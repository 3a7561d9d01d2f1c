/* Requests of the agent's procedures: the frame, the JSON, the members as protobuf's JSON has them. */
#include <jansson.h>

#include "agent/connect.h"
#include "agent/path.h"
#include "agent/proto.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_STRBUF struct strbuf bytes = STRBUF_INIT;
    CLEANUP_FREE char *path = NULL;
    CLEANUP_ERROR struct error err = ERROR_INIT;
    const char *text;
    size_t length;
    const json_t *object;
    uint32_t number;
    bool flag;
    if (connect_parse_request((const char *)data, size, &text, &length, &err) < 0) {
        connect_append_end(&bytes, &err);
        return 0;
    }
    json_t *message = json_loadb(text, length, 0, NULL);
    if (proto_object(message, "process", &object, NULL) == 0)
        proto_uint32(object, "pid", &number, NULL);
    if (proto_object(message, "input", &object, NULL) == 0)
        proto_bytes(object, "stdin", &bytes, &flag, NULL);
    proto_bool(message, "stdin", true, &flag, NULL);
    if (proto_text(message, "path", &text, NULL) == 0 && text != NULL)
        path_resolve(text, "/home/user", "/work", &path, NULL);
    json_decref(message);
    return 0;
}
