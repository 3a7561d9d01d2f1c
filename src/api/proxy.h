/*
 * proxy.h: the data proxy: requests that name a sandbox go to a server inside it.
 *
 * A request names a sandbox by its headers (proxy_target.h) or, for /files alone, by a signature. Bodies pass in
 * both directions as they come, in bounded memory and for as long as both sides keep the connection; the guest
 * gets the request as the client sent it, without hop-by-hop headers and the API key. An answer is passed on once
 * the request is complete; a guest that sends more than a buffer of it before has to wait.
 *
 * Order of calls, all in the request's thread: proxy_open when the head is there; then proxy_upload for each piece
 * of the body, proxy_respond when it is complete, and proxy_close at the end in any case.
 */
#ifndef DORMOUSE_API_PROXY_H
#define DORMOUSE_API_PROXY_H

#include "api/api.h"

struct proxy;

/* Whether the request is for a guest and not for the API. */
bool proxy_wants(struct http_request *request);

/*
 * Takes the request on. NULL when it is refused, with *reply filled; the body is then of no interest.
 */
struct proxy *proxy_open(struct api *api, struct http_request *request, struct http_reply *reply);

void proxy_upload(struct proxy *proxy, const char *data, size_t length);

/* Waits for the head of the guest's answer. */
void proxy_respond(struct proxy *proxy, struct http_reply *reply);

/* NULL is allowed. */
void proxy_close(struct proxy *proxy);

#endif
