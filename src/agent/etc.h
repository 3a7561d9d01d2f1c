/*
 * etc.h: the few files under /etc that a guest needs to work and an image may lack.
 *
 * Best effort: an image whose /etc cannot be written still boots. One thread.
 */
#ifndef DORMOUSE_AGENT_ETC_H
#define DORMOUSE_AGENT_ETC_H

/* Gives /etc/resolv.conf public name servers if it is missing, empty or a dangling link. */
void etc_ensure_resolver(void);

/* Lets "localhost" resolve by /etc/hosts. */
void etc_ensure_localhost(void);

/* Sets the kernel's host name from /etc/hostname, or to "dormouse", and lets it resolve. */
void etc_set_boot_host_name(void);

/* Lets `name`, and no earlier host name, resolve to the guest itself by /etc/hosts. */
void etc_set_host_name(const char *name);

#endif
