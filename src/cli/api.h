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
#include "cli/options.h"

/* json_t * that is released at the end of its scope. */
void json_cleanup(json_t **value);
#define CLEANUP_JSON CLEANUP(json_cleanup)

int api_open(const struct cli *cli, struct client **ret, struct error *err);

/* GET of a collection ("/sandboxes"): an array. */
int api_list(struct client *client, const char *collection, json_t **ret, struct error *err);

/* The ids in such a list, which owns them; the caller frees the array. */
int api_ids(const json_t *list, char ***ret_ids, struct error *err);

/*
 * METHOD /dormouse/v1 COLLECTION / id ACTION, e.g. ("POST", "/sandboxes", id, "/pause"); `body` is taken over
 * (NULL: none). With `ret`, the answer must be an object.
 */
int api_object(struct client *client, const char *method, const char *collection, const char *id,
               const char *action, json_t *body, json_t **ret, struct error *err);

/*
 * The full id, which the agent's routes demand, of a sandbox that runs or will when it is asked; else -EBUSY. The
 * caller frees it.
 */
int api_running_sandbox(struct client *client, const char *id_or_prefix, char **ret_id, struct error *err);

/* ---- whole verbs: they parse their arguments and return as a verb does ---- */

/* Prints the collection: as JSON, or the fields as a table. */
int api_list_verb(struct cli *cli, const struct verb_usage *usage, int argc, char **argv, const char *collection,
                  const struct format_field *fields, size_t count, struct error *err);

/* Prints the object whose id is the one operand: as JSON, or a line for each field. */
int api_show_verb(struct cli *cli, const struct verb_usage *usage, int argc, char **argv, const char *collection,
                  const char *action, const struct format_field *fields, size_t count, struct error *err);

/* Does something with one id; *ret is what --json prints, or NULL. */
typedef int (*api_action)(struct client *client, const char *id, void *context, json_t **ret, struct error *err);

/* Does the same with each operand, as api_each. */
int api_each_verb(struct cli *cli, const struct verb_usage *usage, const struct option_spec *specs,
                  size_t spec_count, int argc, char **argv, api_action act, void *context, struct error *err);

/* For each id: prints it when it is done (with --json the object), or reports the failure, and goes on. Returns the
 * exit status: 1 if any failed. */
int api_each(const struct cli *cli, struct client *client, char *const *ids, size_t count, api_action act,
             void *context);

/* An api_action: DELETE. --json prints {field: id}. */
struct api_removal {
    const char *collection;
    const char *field;
};
int api_remove(struct client *client, const char *id, void *api_removal, json_t **ret, struct error *err);

#endif
