/*
 * control_port.h: finds the virtio console port that the daemon talks through.
 */
#ifndef DORMOUSE_AGENT_CONTROL_PORT_H
#define DORMOUSE_AGENT_CONTROL_PORT_H

#include "control/control.h"

#define CONTROL_PORT_PATH_MAX 280

/* Writes the device's path; -ENOENT while there is no port named CONTROL_PORT_NAME with a device node. */
int control_port_find(char ret_path[CONTROL_PORT_PATH_MAX]);

#endif
