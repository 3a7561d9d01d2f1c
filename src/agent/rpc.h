/*
 * rpc.h: the procedures of process.Process and filesystem.Filesystem over the Connect protocol.
 *
 * A unary procedure returns 0 and a message, a negative errno and an error, or RPC_DEFERRED when it will call
 * rpc_respond or rpc_fail itself. A streaming procedure returns 0 once it has called rpc_stream_begin, which makes
 * it the owner of the exchange, or an error. One thread.
 */
#ifndef DORMOUSE_AGENT_RPC_H
#define DORMOUSE_AGENT_RPC_H

#include <jansson.h>

#include "agent/agent.h"
#include "agent/connect.h"

#define RPC_BODY_MAX (16u * 1024 * 1024) /* bytes of one request */
#define RPC_DEFERRED 1

typedef int rpc_unary(struct http_connection *connection, const json_t *request, json_t **ret, struct error *err);
typedef int rpc_stream(struct http_connection *connection, const json_t *request, struct error *err);

/* Takes the request if its path is one of a procedure's, else returns false. */
bool rpc_begin(struct http_connection *connection);

/* The user named by the Authorization header, or the default one. */
int rpc_user(struct http_connection *connection, const struct user_database *database, struct user *ret,
             struct error *err);

/* The value of Connect-Timeout-Ms in ns, 0 if there is no limit. */
int rpc_timeout(struct http_connection *connection, int64_t *ret_ns, struct error *err);

void rpc_respond(struct http_connection *connection, const json_t *message);
void rpc_fail(struct http_connection *connection, const struct error *err);

void rpc_stream_begin(struct http_connection *connection, const struct http_handler *handler, void *owner);
void rpc_stream_end(struct http_connection *connection, const struct error *err);

/* ---- the procedures ---- */

rpc_stream command_rpc_start;
rpc_stream command_rpc_connect;
rpc_unary command_rpc_list;
rpc_unary command_rpc_update;
rpc_unary command_rpc_send_input;
rpc_unary command_rpc_send_signal;
rpc_unary command_rpc_close_stdin;

rpc_unary filesystem_rpc_stat;
rpc_unary filesystem_rpc_make_dir;
rpc_unary filesystem_rpc_move;
rpc_unary filesystem_rpc_list_dir;
rpc_unary filesystem_rpc_remove;

#endif
