/*
 * control.h: the private channel between the daemon and the guest agent.
 *
 * The channel is a byte stream over a virtio console port named "dormouse.control" that only root in the guest
 * can open. It carries what only the host may ask: identity, clock, entropy, power-off. It is not HTTP because
 * it lies on the resume path: every guest instruction between "the VMM runs" and "the agent answered" is paid
 * on each resume (measured under TCG: 16 ms for the first TCP exchange, 2.4 ms for the first one here).
 *
 * A message is a 16-byte header and a body of fields, little-endian:
 *
 *     header: u32 magic "DMC1" | u16 type | u16 zero | u32 sequence | u32 body length (≤ CONTROL_BODY_MAX)
 *     field:  u16 tag | u16 zero | u32 length | bytes
 *
 * The host sends requests and the agent answers each, in order, with CONTROL_REPLY and the same sequence.
 * A snapshot can be taken while a message is half transferred, and a daemon can die: so whoever (re)connects on
 * the host begins with a request whose sequence is random and ignores replies to any other; and the agent, on
 * bytes that are not a header, skips to the next magic. Unknown tags are ignored; an unknown type gets
 * STATUS = ENOSYS.
 *
 * Both sides distrust each other's lengths: nothing is allocated before the header is validated. Pure functions
 * without I/O or state; any thread.
 */
#ifndef DORMOUSE_CONTROL_CONTROL_H
#define DORMOUSE_CONTROL_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

#define CONTROL_PORT_NAME   "dormouse.control"
#define CONTROL_MAGIC       0x31434d44u /* "DMC1" */
#define CONTROL_HEADER_SIZE 16
#define CONTROL_BODY_MAX    (256u * 1024)

enum control_type {
    CONTROL_APPLY = 1,     /* clock, entropy, identity: all fields given are applied before the reply */
    CONTROL_CLOCK = 2,     /* TIME only */
    CONTROL_SYNC = 3,      /* sync(2): file system caches reach the disk */
    CONTROL_POWER_OFF = 4, /* terminate processes, unmount, power off; replied to before it begins */
    CONTROL_REPLY = 5,
    CONTROL_FREEZE = 6, /* file systems on disks stand still until THAW */
    CONTROL_THAW = 7,
};

enum control_tag {
    CONTROL_TIME = 1,            /* i64: CLOCK_REALTIME in ns */
    CONTROL_ENTROPY = 2,         /* bytes mixed into the kernel's pool, credited, and the CRNG reseeded */
    CONTROL_HOSTNAME = 3,        /* text */
    CONTROL_SANDBOX_ID = 4,      /* text */
    CONTROL_TEMPLATE_ID = 5,     /* text */
    CONTROL_ACCESS_TOKEN = 6,    /* text; empty: none is demanded */
    CONTROL_ENV = 7,             /* text "K=V"; repeated; the set given replaces the earlier one */
    CONTROL_DEFAULT_USER = 8,    /* text */
    CONTROL_DEFAULT_WORKDIR = 9, /* text */

    CONTROL_STATUS = 32,  /* reply: i32, 0 or a positive errno */
    CONTROL_MESSAGE = 33, /* reply: text, what failed */
    CONTROL_BOOT_ID = 34, /* reply: text, /proc/sys/kernel/random/boot_id */
    CONTROL_VERSION = 35, /* reply: text, the agent's version */
    CONTROL_FROZEN = 36,  /* reply to FREEZE: i32, file systems that stand still */
    CONTROL_SYNCED = 37,  /* reply to FREEZE: i32, file systems that can't, and were synced */
};

struct control_header {
    uint16_t type; /* enum control_type */
    uint32_t sequence;
    uint32_t length; /* of the body, bytes */
};

struct control_field {
    uint16_t tag;
    uint32_t length;      /* bytes */
    const uint8_t *bytes; /* inside the body that was given; not NUL-terminated */
};

/* Appends a message: begin, any number of adds, end. The buffer's `failed` tells at the end. */
size_t control_begin(struct strbuf *out, enum control_type type, uint32_t sequence);
void control_add(struct strbuf *out, enum control_tag tag, const void *bytes, size_t length);
void control_add_text(struct strbuf *out, enum control_tag tag, const char *text);
void control_add_i64(struct strbuf *out, enum control_tag tag, int64_t value);
void control_add_i32(struct strbuf *out, enum control_tag tag, int32_t value);
/* `start` is what control_begin returned. */
void control_end(struct strbuf *out, size_t start);

/* Validates CONTROL_HEADER_SIZE bytes; -EBADMSG on a wrong magic, non-zero padding or a length over the limit. */
int control_parse_header(const uint8_t bytes[CONTROL_HEADER_SIZE], struct control_header *ret);

/*
 * Walks a body: `*position` starts at 0. Returns 1 and a field, 0 at the end, -EBADMSG on a field that does not
 * fit the body.
 */
int control_next_field(const uint8_t *body, size_t length, size_t *position, struct control_field *ret);

/* The field's value; -EBADMSG when its length is another. */
int control_field_i64(const struct control_field *field, int64_t *ret);
int control_field_i32(const struct control_field *field, int32_t *ret);
/* A copy with a NUL; -EBADMSG when it holds a NUL itself, -ENOMEM. The caller frees it. */
int control_field_text(const struct control_field *field, char **ret);

#endif
