/*
 * encode.h: base64 and random names.
 *
 * base64 is RFC 4648 section 4 with padding; the decoder refuses anything else. It is ours, 60 lines, because
 * the guest agent is static and would otherwise drag in a TLS library for it.
 */
#ifndef DORMOUSE_BASE_ENCODE_H
#define DORMOUSE_BASE_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

/* Appends the base64 text of `length` bytes. */
void base64_encode(struct strbuf *out, const void *bytes, size_t length);

/* Decodes `length` characters and appends the bytes; -EINVAL (nothing appended) when it is not base64. */
int base64_decode(struct strbuf *out, const char *text, size_t length);

/* Writes `length` random characters of [a-z0-9], the first a letter, and a NUL; -errno if the kernel has no
 * entropy. */
int random_name(char *ret_name, size_t length);

/* Writes 2 × `bytes` random lower-case hex digits and a NUL. */
int random_hex(char *ret_text, size_t bytes);

#endif
