/*
 * api.h: the daemon's resources as the verbs use them: checked paths and checked answers.
 *
 * What a person typed as an id is checked (parse_id) before it gets into a path. A client is opened by the caller
 * with api_open. Errors as in client.h.
 */
#ifndef DORMOUSE_CLI_API_H
#define DORMOUSE_CLI_API_H

#include <jansson.h>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/format.h"

/* json_t * that is released at the end of its scope. */
void json_cleanup(json_t **value);
#define CLEANUP_JSON CLEANUP(json_cleanup)

int api_open(const struct cli *cli, struct client **ret, struct error *err);

/* GET of a collection ("/sandboxes"): an array. */
int api_list(struct client *client, const char *collection, json_t **ret, struct error *err);

/*
 * METHOD /dormouse/v1 COLLECTION / id ACTION, e.g. ("POST", "/sandboxes", id, "/pause"); `body` is taken over
 * (NULL: none). With `ret`, the answer must be an object.
 */
int api_object(struct client *client, const char *method, const char *collection, const char *id,
               const char *action, json_t *body, json_t **ret, struct error *err);

/* A running sandbox's full id, which the agent's routes demand; -EBUSY when it doesn't run. The caller frees it. */
int api_running_sandbox(struct client *client, const char *id_or_prefix, char **ret_id, struct error *err);

/* A GET of one object or a list that is then printed: as JSON, or by the fields. Returns the exit status. */
int api_show_list(struct cli *cli, const char *collection, const struct format_field *fields, size_t count,
                  struct error *err);
int api_show_object(struct cli *cli, const char *collection, const char *id, const char *action,
                    const struct format_field *fields, size_t count, struct error *err);

/*
 * Does the same with each of several ids: prints `id` (or with --json the object that `act` returned), reports
 * failures and goes on. Returns the exit status: 1 if any failed.
 */
typedef int (*api_action)(struct client *client, const char *id, void *context, json_t **ret, struct error *err);
int api_each(const struct cli *cli, struct client *client, char *const *ids, size_t count, api_action act,
             void *context);

#endif
