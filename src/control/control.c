#include "control/control.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_HEADER_SIZE 8

static void put_u16(uint8_t *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof(value));
}

static void put_u32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof(value));
}

static uint16_t get_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

static uint32_t get_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return le32toh(value);
}

size_t control_begin(struct strbuf *out, enum control_type type, uint32_t sequence)
{
    uint8_t header[CONTROL_HEADER_SIZE] = {0};
    put_u32(header, CONTROL_MAGIC);
    put_u16(header + 4, (uint16_t)type);
    put_u32(header + 8, sequence);
    size_t start = out->length;
    strbuf_append(out, header, sizeof(header));
    return start;
}

void control_add(struct strbuf *out, enum control_tag tag, const void *bytes, size_t length)
{
    uint8_t header[FIELD_HEADER_SIZE] = {0};
    if (length > CONTROL_BODY_MAX) {
        out->failed = true;
        return;
    }
    put_u16(header, (uint16_t)tag);
    put_u32(header + 4, (uint32_t)length);
    strbuf_append(out, header, sizeof(header));
    strbuf_append(out, bytes, length);
}

void control_add_text(struct strbuf *out, enum control_tag tag, const char *text)
{
    control_add(out, tag, text, strlen(text));
}

void control_add_i64(struct strbuf *out, enum control_tag tag, int64_t value)
{
    uint64_t wire = htole64((uint64_t)value);
    control_add(out, tag, &wire, sizeof(wire));
}

void control_add_i32(struct strbuf *out, enum control_tag tag, int32_t value)
{
    uint32_t wire = htole32((uint32_t)value);
    control_add(out, tag, &wire, sizeof(wire));
}

void control_end(struct strbuf *out, size_t start)
{
    if (out->failed)
        return;
    size_t length = out->length - start - CONTROL_HEADER_SIZE;
    if (length > CONTROL_BODY_MAX)
        out->failed = true;
    else
        put_u32((uint8_t *)out->data + start + 12, (uint32_t)length);
}

int control_parse_header(const uint8_t bytes[CONTROL_HEADER_SIZE], struct control_header *ret)
{
    struct control_header header = {
        .type = get_u16(bytes + 4),
        .sequence = get_u32(bytes + 8),
        .length = get_u32(bytes + 12),
    };
    if (get_u32(bytes) != CONTROL_MAGIC || get_u16(bytes + 6) != 0 || header.length > CONTROL_BODY_MAX)
        return -EBADMSG;
    *ret = header;
    return 0;
}

int control_next_field(const uint8_t *body, size_t length, size_t *position, struct control_field *ret)
{
    size_t left = length - *position;
    if (left == 0)
        return 0;
    if (left < FIELD_HEADER_SIZE)
        return -EBADMSG;
    const uint8_t *at = body + *position;
    uint32_t size = get_u32(at + 4);
    if (get_u16(at + 2) != 0 || size > left - FIELD_HEADER_SIZE)
        return -EBADMSG;
    ret->tag = get_u16(at);
    ret->length = size;
    ret->bytes = at + FIELD_HEADER_SIZE;
    *position += FIELD_HEADER_SIZE + size;
    return 1;
}

int control_field_i64(const struct control_field *field, int64_t *ret)
{
    uint64_t wire;
    if (field->length != sizeof(wire))
        return -EBADMSG;
    memcpy(&wire, field->bytes, sizeof(wire));
    *ret = (int64_t)le64toh(wire);
    return 0;
}

int control_field_i32(const struct control_field *field, int32_t *ret)
{
    if (field->length != sizeof(uint32_t))
        return -EBADMSG;
    *ret = (int32_t)get_u32(field->bytes);
    return 0;
}

int control_field_text(const struct control_field *field, char **ret)
{
    if (memchr(field->bytes, '\0', field->length) != NULL)
        return -EBADMSG;
    char *text = malloc((size_t)field->length + 1);
    if (text == NULL)
        return -ENOMEM;
    memcpy(text, field->bytes, field->length);
    text[field->length] = '\0';
    *ret = text;
    return 0;
}
