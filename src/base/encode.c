#include "base/encode.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void base64_encode(struct strbuf *out, const void *bytes, size_t length)
{
    const uint8_t *in = bytes;
    char block[4 * 256];
    size_t used = 0;
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        uint32_t word = (uint32_t)in[i] << 16;
        if (left > 1)
            word |= (uint32_t)in[i + 1] << 8;
        if (left > 2)
            word |= in[i + 2];
        block[used++] = alphabet[word >> 18];
        block[used++] = alphabet[word >> 12 & 63];
        block[used++] = left > 1 ? alphabet[word >> 6 & 63] : '=';
        block[used++] = left > 2 ? alphabet[word & 63] : '=';
        if (used == sizeof(block)) {
            strbuf_append(out, block, used);
            used = 0;
        }
    }
    strbuf_append(out, block, used);
}

static int digit_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+')
        return 62;
    return c == '/' ? 63 : -1;
}

/* Decodes one group of four into at most three bytes; returns their number or -EINVAL. */
static int decode_group(const char *text, bool last, uint8_t *bytes)
{
    int padding = 0;
    if (last && text[3] == '=')
        padding = text[2] == '=' ? 2 : 1;
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) {
        int value = i < 4 - padding ? digit_value(text[i]) : 0;
        if (value < 0)
            return -EINVAL;
        word = word << 6 | (uint32_t)value;
    }
    if ((word & (padding == 2 ? 0xffff : padding == 1 ? 0xff : 0)) != 0)
        return -EINVAL;
    bytes[0] = (uint8_t)(word >> 16);
    bytes[1] = (uint8_t)(word >> 8);
    bytes[2] = (uint8_t)word;
    return 3 - padding;
}

int base64_decode(struct strbuf *out, const char *text, size_t length)
{
    if (length % 4 != 0)
        return -EINVAL;
    size_t start = out->length;
    for (size_t i = 0; i < length; i += 4) {
        uint8_t bytes[3];
        int n = decode_group(text + i, i + 4 == length, bytes);
        if (n < 0) {
            if (out->data != NULL)
                out->data[out->length = start] = '\0';
            return n;
        }
        strbuf_append(out, bytes, (size_t)n);
    }
    return out->failed ? -ENOMEM : 0;
}

static int random_bytes(void *buffer, size_t length)
{
    ssize_t n = getrandom(buffer, length, 0);
    if (n < 0)
        return -errno;
    return (size_t)n == length ? 0 : -EIO;
}

int random_name(char *ret_name, size_t length)
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    for (size_t i = 0; i < length;) {
        uint8_t byte;
        int r = random_bytes(&byte, 1);
        if (r < 0)
            return r;
        unsigned choices = i == 0 ? 26 : 36;
        if (byte >= 256 / choices * choices)
            continue; /* keeps the choice uniform */
        ret_name[i++] = digits[byte % choices];
    }
    ret_name[length] = '\0';
    return 0;
}

int random_hex(char *ret_text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte;
        int r = random_bytes(&byte, 1);
        if (r < 0)
            return r;
        ret_text[2 * i] = "0123456789abcdef"[byte >> 4];
        ret_text[2 * i + 1] = "0123456789abcdef"[byte & 15];
    }
    ret_text[2 * bytes] = '\0';
    return 0;
}
