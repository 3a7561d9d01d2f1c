/*
 * net_world.h: a small internet for tests of net: a private "host", an "outside", and guests without a VMM.
 *
 * world_enter moves the process into network and mount namespaces of its own, with an empty /run, so that neither
 * the machine's firewall nor other daemons are touched, and everything vanishes with the process. The outside knows
 * no route back to any sandbox: it can answer only what the host has masqueraded.
 *
 * A guest is a network namespace with the guest's address and MAC on a TAP device, and a thread that carries frames
 * between that and the sandbox's TAP, as a VMM would.
 *
 * Functions return 0, a descriptor, or a negative errno; none waits longer than WORLD_PATIENCE_MS.
 */
#ifndef DORMOUSE_TESTS_NET_WORLD_H
#define DORMOUSE_TESTS_NET_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "net/net.h"

#define WORLD_DATA             "/run/data" /* where data directories go: in the world's own /run */
#define WORLD_PATIENCE_MS      20000
#define WORLD_HOST_ADDRESS     "198.51.100.1"
#define WORLD_OUTSIDE_ADDRESS  "198.51.100.2"
#define WORLD_METADATA_ADDRESS "169.254.169.254" /* also outside, as a cloud has it */

struct world {
    int host_fd;    /* the network namespace of the tests' own process */
    int outside_fd; /* that of the outside */
};

struct guest {
    int namespace_fd;
    int own_tap_fd;
    int sandbox_tap_fd;
    int stop_fd;
    int listener_fd; /* for guest_barrier */
    uint16_t listener_port;
    pthread_t carrier;
    atomic_uint disturbances; /* frames that would have woken an idle guest: broadcasts, multicasts, ARP requests */
};

/* Before the first thread. 0, or the exit status of a program that can't go on, after a message in `program`'s
 * name: without root, the one that meson takes for "skipped". */
int world_enter(struct world *world, const char *program);

/* Runs a shell command in a namespace; its exit status, or a negative errno. */
int world_shell(int namespace_fd, const char *format, ...) PRINTF_LIKE(2, 3);

/* As the functions of net.h; the running test fails when they do. The data directory is made. */
struct network_pool *world_open_pool(const char *instance, const char *data_directory, unsigned ahead);
struct network_pool *world_start_pool(const char *instance, const char *data_directory, unsigned ahead);
struct network *world_take(struct network_pool *pool);

int guest_attach(struct guest *guest, struct network *network);
void guest_detach(struct guest *guest);

/* Returns when everything the guest has sent before has been carried. */
int guest_barrier(struct guest *guest, const struct network *network);

/* Sends a datagram to each of the outside's ports from 1 to `count`: to the kernel, as many connections. */
int guest_flood(struct guest *guest, const struct network *network, uint16_t count);

/* A socket bound to `address` in a namespace, listening if it is a stream; the port is the kernel's choice. */
int peer_listen(int namespace_fd, int type, const char *address, uint16_t *ret_port);

/* A non-blocking socket in a namespace that has begun to connect. */
int peer_connect(int namespace_fd, int type, const char *address, uint16_t port);

/* How a connection attempt that was begun ends. */
int peer_wait_connected(int fd);

int peer_accept(int listener_fd);

/* Sends one message each way. */
int peer_exchange(int one_fd, int other_fd);
int peer_send(int fd, const char *text);
/* Waits for a message, which has to be `text`. */
int peer_expect(int fd, const char *text);
/* Whether nothing has arrived. */
int peer_is_silent(int fd);

#endif
