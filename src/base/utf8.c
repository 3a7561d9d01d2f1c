#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

/* The length of the valid sequence at the beginning, 0 if there is none (RFC 3629). */
static size_t sequence_length(const uint8_t *bytes, size_t available)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (bytes[0] < 0x80)
        return bytes[0] != 0;
    size_t length = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;
    if (bytes[0] < 0xc2 || bytes[0] > 0xf4 || length > available)
        return 0;
    uint32_t point = bytes[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (bytes[i] & 0x3f);
    }
    bool surrogate = point >= 0xd800 && point <= 0xdfff;
    return point < smallest[length] || point > 0x10ffff || surrogate ? 0 : length;
}

void utf8_append(struct strbuf *out, const char *bytes, size_t length)
{
    size_t start = 0;
    for (size_t i = 0; i < length;) {
        size_t n = sequence_length((const uint8_t *)bytes + i, length - i);
        if (n > 0) {
            i += n;
            continue;
        }
        strbuf_append(out, bytes + start, i - start);
        strbuf_puts(out, "\xef\xbf\xbd");
        start = ++i;
    }
    strbuf_append(out, bytes + start, length - start);
}

json_t *utf8_json(const char *bytes, size_t length)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    utf8_append(&text, bytes, length);
    return text.failed ? NULL : json_stringn_nocheck(strbuf_text(&text), text.length);
}
