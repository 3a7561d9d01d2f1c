/*
 * control_channel.h: the agent's end of the daemon's private channel (control/control.h).
 *
 * Opens the port and keeps it open for ever. While the daemon is not connected the port reports a hang-up without
 * end, so it is registered edge-triggered: a daemon that comes or goes is one wake-up each, and an unconnected
 * port costs nothing.
 *
 * Order of calls: control_channel_open, then the loop does the rest. The channel stays at its address. One thread.
 */
#ifndef DORMOUSE_AGENT_CONTROL_CHANNEL_H
#define DORMOUSE_AGENT_CONTROL_CHANNEL_H

#include "agent/identity.h"
#include "agent/loop.h"
#include "base/strbuf.h"

struct control_channel {
    struct loop_source source;
    struct identity *identity;
    int random_fd;
    char boot_id[64];
    struct strbuf received; /* the incomplete message */
    struct strbuf reply;    /* what the port did not take yet */

    void (*applied)(void *owner);   /* after the reply to an APPLY */
    void (*power_off)(void *owner); /* after the reply to a POWER_OFF */
    void *owner;
};

/* `identity`, `applied`, `power_off` and `owner` are set by the caller. */
int control_channel_open(struct control_channel *channel, struct loop *loop, struct error *err);

/* Takes bytes as they came from one read of the port; replies are appended to `channel->reply`. */
void control_channel_receive(struct control_channel *channel, const void *bytes, size_t length);

#endif
