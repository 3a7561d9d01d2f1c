/*
 * notify.h: tells the service manager how far the daemon is: sd_notify(3).
 *
 * It is one datagram to the socket named in NOTIFY_SOCKET; libsystemd would be a large dependency for that.
 */
#ifndef DORMOUSE_API_NOTIFY_H
#define DORMOUSE_API_NOTIFY_H

/* E.g. "READY=1". Nothing happens without NOTIFY_SOCKET, or if nobody listens there. */
void notify_service_manager(const char *state);

#endif
