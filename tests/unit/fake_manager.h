/*
 * fake_manager.h: a manager (sandbox/manager.h) without guests, for tests of what stands in front of it.
 *
 * Sandboxes are entries in an array, all in one process; manager_socket gives an ordinary socket, so a test that
 * proxies runs in a network namespace in which NET_GUEST_ADDRESS is its own. There is one template, "base".
 */
#ifndef DORMOUSE_TESTS_FAKE_MANAGER_H
#define DORMOUSE_TESTS_FAKE_MANAGER_H

#include <semaphore.h>

#include "sandbox/manager.h"

#define FAKE_API_KEY      "e2b_0123456789abcdef0123456789abcdef01234567"
#define FAKE_TOKEN_PREFIX "token-" /* the sandbox's id follows */

/* The prefix of snapshot "s0base" by which its verification ends only when it is cancelled. */
#define FAKE_ENDLESS_SNAPSHOT "s0b"

/* Posted when that begins, and when it was cancelled; initialised by whoever waits for them. */
extern sem_t fake_verifying;
extern sem_t fake_cancelled;

#endif
