/* options.h: dormoused's command line. */
#ifndef DORMOUSE_API_OPTIONS_H
#define DORMOUSE_API_OPTIONS_H

#include <stdint.h>

#include "base/error.h"

struct daemon_options {
    const char *data;
    const char *socket;
    const char *listen;
    uint64_t network_ahead;
    uint64_t vmm_ahead;
    uint64_t sandboxes_max;     /* 0: any number */
    uint64_t starts_max;        /* 0: any number */
    uint32_t memory_limit_mib;  /* 0: what the host has available */
    uint64_t memory_overcommit; /* percent */
    uint32_t disk_limit_mib;    /* 0: none */
};

/*
 * Fills in what is not given. 1: go on. 0: --help or --version, which has been printed. -EINVAL: a wrong usage,
 * with the message.
 */
int daemon_options_parse(int argc, char **argv, struct daemon_options *ret, struct error *err);

#endif
