/*
 * rest.h: the plain HTTP routes: /health, /metrics, /envs, /init, /files.
 *
 * Errors are {"code":STATUS,"message":…}. One thread.
 */
#ifndef DORMOUSE_AGENT_REST_H
#define DORMOUSE_AGENT_REST_H

#include <jansson.h>

#include "agent/agent.h"

/* Takes the request if its path is one of these, else returns false. */
bool rest_begin(struct http_connection *connection);

void rest_respond(struct http_connection *connection, unsigned status, const json_t *body);
void rest_fail(struct http_connection *connection, const struct error *err);

/* What GET and POST /files have in common: whom the request is for and which file. */
struct rest_file {
    struct user_database database;
    struct user user;
    char *path; /* absolute; NULL if the request names none */
};

/* Checks token or signature (`operation`: "read" or "write"), finds the user and the path. */
int rest_file_of(struct http_connection *connection, const char *operation, struct rest_file *ret,
                 struct error *err);
/* A path as a client gave it, made absolute. */
int rest_resolve(struct http_connection *connection, const struct user *user, const char *path, char **ret,
                 struct error *err);
void rest_file_done(struct rest_file *file);

/* ---- the routes ---- */

void rest_download(struct http_connection *connection);
void rest_upload(struct http_connection *connection);

#endif
