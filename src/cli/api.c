#include "cli/api.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/parse.h"

void json_cleanup(json_t **value)
{
    json_decref(*value);
}

int api_open(const struct cli *cli, struct client **ret, struct error *err)
{
    return client_open(cli->socket_path, ret, err);
}

int api_list(struct client *client, const char *collection, json_t **ret, struct error *err)
{
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, DORMOUSE_API "%s", collection);
    CLEANUP_JSON json_t *list = NULL;
    int r = client_call(client, "GET", strbuf_text(&path), NULL, &list, err);
    if (r < 0)
        return r;
    if (!json_is_array(list))
        return error_set(err, EPROTO, "the daemon answered %s with something else than a list", collection);
    *ret = TAKE_PTR(list);
    return 0;
}

int api_ids(const json_t *list, char ***ret_ids, struct error *err)
{
    size_t count = json_array_size(list);
    CLEANUP_FREE char **ids = calloc(count + 1, sizeof(*ids));
    if (ids == NULL)
        return error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        ids[i] = (char *)json_string_value(json_object_get(json_array_get(list, i), "id"));
        if (ids[i] == NULL)
            return error_set(err, EPROTO, "the daemon's list has something without an id");
    }
    *ret_ids = TAKE_PTR(ids);
    return 0;
}

int api_object(struct client *client, const char *method, const char *collection, const char *id,
               const char *action, json_t *body, json_t **ret, struct error *err)
{
    CLEANUP_JSON json_t *owned_body = body;
    int r = parse_id(id, err);
    if (r < 0)
        return r;
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    strbuf_printf(&path, DORMOUSE_API "%s/%s%s", collection, id, action);
    CLEANUP_JSON json_t *answer = NULL;
    r = client_call(client, method, strbuf_text(&path), TAKE_PTR(owned_body), ret != NULL ? &answer : NULL, err);
    if (r < 0)
        return r;
    if (ret == NULL)
        return 0;
    if (!json_is_object(answer))
        return error_set(err, EPROTO, "the daemon answered %s with something else than an object", collection);
    *ret = TAKE_PTR(answer);
    return 0;
}

int api_running_sandbox(struct client *client, const char *id_or_prefix, char **ret_id, struct error *err)
{
    CLEANUP_JSON json_t *info = NULL;
    int r = api_object(client, "GET", "/sandboxes", id_or_prefix, "", NULL, &info, err);
    if (r < 0)
        return r;
    const char *id = json_string_value(json_object_get(info, "id"));
    const char *state = json_string_value(json_object_get(info, "state"));
    if (id == NULL || state == NULL || parse_id(id, NULL) < 0)
        return error_set(err, EPROTO, "the daemon's description of sandbox %s has no id or state", id_or_prefix);
    /* One that is woken by requests will be by the next. */
    bool wakes = json_is_true(json_object_get(info, "auto_resume")) && strcmp(state, "lost") != 0;
    if (strcmp(state, "running") != 0 && !wakes) {
        error_set(err, EBUSY, "sandbox %s is not running: it is %s", id_or_prefix, state);
        if (strcmp(state, "paused") == 0)
            error_hint(err, "wake it with: dormouse resume %s", id_or_prefix);
        return -EBUSY;
    }
    *ret_id = strdup(id);
    return *ret_id != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

int api_list_verb(struct cli *cli, const struct verb_usage *usage, int argc, char **argv, const char *collection,
                  const struct format_field *fields, size_t count, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *list = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_list(client, collection, &list, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(list);
    else
        format_table(list, fields, count);
    return EXIT_SUCCESS;
}

int api_show_verb(struct cli *cli, const struct verb_usage *usage, int argc, char **argv, const char *collection,
                  const char *action, const struct format_field *fields, size_t count, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, usage, NULL, 0, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    CLEANUP_JSON json_t *object = NULL;
    r = api_open(cli, &client, err);
    if (r == 0)
        r = api_object(client, "GET", collection, operands.items[0], action, NULL, &object, err);
    if (r < 0)
        return r;
    if (cli->json)
        format_json(object);
    else
        format_lines(object, fields, count);
    return EXIT_SUCCESS;
}

int api_each(const struct cli *cli, struct client *client, char *const *ids, size_t count, api_action act,
             void *context)
{
    int status = EXIT_SUCCESS;
    for (size_t i = 0; i < count; i++) {
        CLEANUP_ERROR struct error err = ERROR_INIT;
        CLEANUP_JSON json_t *result = NULL;
        int r = act(client, ids[i], context, &result, &err);
        if (r < 0) {
            if (count > 1)
                error_wrap(&err, r, "%s", ids[i]);
            cli_report(&err);
            status = EXIT_FAILURE;
        } else if (cli->json) {
            format_json_line(result);
        } else {
            puts(ids[i]);
            fflush(stdout);
        }
    }
    return status;
}

int api_each_verb(struct cli *cli, const struct verb_usage *usage, const struct option_spec *specs,
                  size_t spec_count, int argc, char **argv, api_action act, void *context, struct error *err)
{
    struct operands operands;
    int r = options_parse(cli, usage, specs, spec_count, argc, argv, &operands, err);
    if (r <= 0)
        return r;
    CLEANUP_CLIENT struct client *client = NULL;
    r = api_open(cli, &client, err);
    return r < 0 ? r : api_each(cli, client, operands.items, operands.count, act, context);
}

int api_remove(struct client *client, const char *id, void *api_removal, json_t **ret, struct error *err)
{
    const struct api_removal *removal = api_removal;
    int r = api_object(client, "DELETE", removal->collection, id, "", NULL, NULL, err);
    if (r == 0)
        *ret = json_pack("{s:s}", removal->field, id);
    return r;
}
