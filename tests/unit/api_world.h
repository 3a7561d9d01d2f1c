/*
 * api_world.h: the API's server in this process, in a network namespace of its own in which the guest's address is
 * ours, so that a thread can play the guest.
 *
 * All waits are bounded: a test that hangs fails instead.
 */
#ifndef DORMOUSE_TESTS_API_WORLD_H
#define DORMOUSE_TESTS_API_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

#define WORLD_WAIT_MS 20000

/* Enters the namespace; false when the kernel does not allow that here. Before any thread. */
bool world_enter(void);

/* A cmocka setup and teardown: starts and stops the server. *state is a directory, see unit.h. */
int world_start(void **state);
int world_stop(void **state);
/* The same with a server that gives a client one second for its request. */
int world_start_impatient(void **state);

/* Connects to the server, on TCP or on the unix socket; the caller closes it. */
int world_connect(bool trusted);

void world_send(int fd, const char *text);
void world_send_bytes(int fd, const void *bytes, size_t length);

/* Receives until `text` has appeared, or (NULL) until the peer closes; appends to *out. */
void world_receive_until(int fd, const char *text, struct strbuf *out);

/* True if the peer closes without sending more. */
bool world_is_closed(int fd);

/*
 * Sends a request with "Connection: close" and returns the whole reply; the caller frees it. `headers`: further
 * lines, each ended by CRLF, or NULL; `body`: NULL for none.
 */
char *world_request(bool trusted, const char *method, const char *path, const char *headers, const char *body);

/* The reply's status and body. */
int world_status(const char *reply);
const char *world_body(const char *reply);

/* Creates a sandbox through the API; the caller frees the id. */
char *world_sandbox(void);

/* A listening socket on the guest's address, and the next connection to it; the caller closes both. */
int world_guest_listen(unsigned *ret_port);
int world_guest_listen_at(uint16_t port);
int world_guest_accept(int listener);

#endif
