/*
 * proto.h: reading protobuf messages in their JSON form.
 *
 * Absent and null members are the default; numbers may be given as text; unknown members are ignored. All
 * functions return 0 or -EINVAL with an error that names the member. Texts belong to the JSON object.
 */
#ifndef DORMOUSE_AGENT_PROTO_H
#define DORMOUSE_AGENT_PROTO_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

/* The member if it is an object, NULL if it is absent. */
int proto_object(const json_t *message, const char *name, const json_t **ret, struct error *err);
/* NULL if absent. */
int proto_text(const json_t *message, const char *name, const char **ret, struct error *err);
int proto_uint32(const json_t *message, const char *name, uint32_t *ret, struct error *err);
int proto_bool(const json_t *message, const char *name, bool absent, bool *ret, struct error *err);
/* Appends the bytes (base64, standard or URL alphabet, padded or not); *ret_given tells whether it was there. */
int proto_bytes(const json_t *message, const char *name, struct strbuf *out, bool *ret_given, struct error *err);

#endif
