/*
 * e2b.h: what the files of E2B's API share: finding a sandbox, and the JSON shapes.
 *
 * E2B knows two states, running and paused. A sandbox that is lost or being killed does not exist for its clients.
 */
#ifndef DORMOUSE_API_E2B_H
#define DORMOUSE_API_E2B_H

#include <jansson.h>
#include <stdbool.h>

#include "api/api.h"

/* The version of E2B's agent whose protocol ours speaks. */
#define E2B_ENVD_VERSION "0.6.13"

#define E2B_TIMEOUT_V1_S 15
#define E2B_TIMEOUT_V2_S 300

/*
 * The sandbox that the route's first parameter names, "<id>" or "<id>-<clientID>"; -ENOENT. The caller calls
 * sandbox_info_done.
 */
int e2b_find(struct api_call *call, struct sandbox_info *ret, struct error *err);

bool e2b_is_visible(const struct sandbox_info *info);
bool e2b_is_running(const struct sandbox_info *info);

/* "timeout" in s; E2B's 0 means at once, which becomes the shortest time there is: ours would mean never. */
int e2b_read_timeout(json_t *body, int64_t *ret, struct error *err);

/*
 * The network options of a create or an update: whether the guest may reach the outside. -EINVAL for what asks for
 * more than all or nothing: a rule that is not enforced must not be accepted.
 */
int e2b_read_network(json_t *network, bool *ret_egress_denied, struct error *err);

/* Sandbox, SandboxDetail and ListedSandbox; NULL when memory runs out. */
json_t *e2b_sandbox_json(const struct api *api, const struct sandbox_info *info);
json_t *e2b_detail_json(const struct api *api, const struct sandbox_info *info);
json_t *e2b_listed_json(const struct sandbox_info *info);

/* GET /sandboxes and GET /v2/sandboxes: see e2b_list.c. */
int e2b_list_running(struct api_call *call, struct error *err);
int e2b_list_page(struct api_call *call, struct error *err);

/* GET …/metrics, GET …/logs and GET /v2/…/logs: see e2b_observe.c. */
int e2b_get_metrics(struct api_call *call, struct error *err);
int e2b_get_logs(struct api_call *call, struct error *err);
int e2b_get_logs_v2(struct api_call *call, struct error *err);

/* POST …/snapshots and GET /snapshots: see e2b_snapshots.c. */
int e2b_create_snapshot(struct api_call *call, struct error *err);
int e2b_list_snapshots(struct api_call *call, struct error *err);

#endif
