/*
 * init.h: the agent as the guest's first process.
 *
 * Boots (boot.h), starts the server (server.h) in a child and stays: it reaps orphans, starts the server again if
 * it dies, and on SIGUSR2 or any signal that asks an init to stop, ends all processes, unmounts and powers off.
 * It sleeps unless a process ends. A guest that cannot boot says why on the console and powers off.
 */
#ifndef DORMOUSE_AGENT_INIT_H
#define DORMOUSE_AGENT_INIT_H

#include <signal.h>

#define INIT_POWER_OFF_SIGNAL SIGUSR2 /* the one busybox's poweroff sends, too */

_Noreturn void init_main(void);

#endif
