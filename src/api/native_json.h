/*
 * native_json.h: the JSON shapes of Dormouse's own API; docs/api.yaml describes them.
 *
 * Each returns a new JSON object, or NULL when memory runs out. Pure; any thread.
 */
#ifndef DORMOUSE_API_NATIVE_JSON_H
#define DORMOUSE_API_NATIVE_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "sandbox/manager.h"

/* `with_token`: the access token too, which only root on this host may see. */
json_t *native_sandbox_json(const struct sandbox_info *info, bool with_token);
json_t *native_stats_json(const struct sandbox_stats *stats);
json_t *native_template_json(const struct template_info *info);
json_t *native_snapshot_json(const struct snapshot_info *info);

#endif
