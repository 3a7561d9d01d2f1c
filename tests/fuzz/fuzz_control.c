/* Messages of the control channel: each side reads what a hostile other side may have written. */
#include <stdlib.h>

#include "control/control.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct control_header header;
    if (size < CONTROL_HEADER_SIZE || control_parse_header(data, &header) < 0)
        return 0;
    size_t body_length = MIN((size_t)header.length, size - CONTROL_HEADER_SIZE);
    const uint8_t *body = data + CONTROL_HEADER_SIZE;
    size_t position = 0;
    struct control_field field;
    while (control_next_field(body, body_length, &position, &field) > 0) {
        int64_t wide;
        int32_t narrow;
        CLEANUP_FREE char *text = NULL;
        if (field.bytes < body || field.bytes + field.length > body + body_length || position > body_length)
            abort();
        control_field_i64(&field, &wide);
        control_field_i32(&field, &narrow);
        control_field_text(&field, &text);
    }
    return 0;
}
