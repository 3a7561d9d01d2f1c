/* Uploads as multipart/form-data. The pieces' size must not matter: each input is parsed twice. */
#include <stdlib.h>
#include <string.h>

#include "agent/multipart.h"
#include "base/strbuf.h"
#include "fuzz.h"

static int begin(void *owner, const char *name, const char *filename, struct error *err)
{
    (void)err;
    strbuf_printf(owner, "[%s|%s]", name != NULL ? name : "", filename != NULL ? filename : "");
    return 0;
}

static int content(void *owner, const char *bytes, size_t length, struct error *err)
{
    (void)err;
    strbuf_append(owner, bytes, length);
    return 0;
}

static int end(void *owner, struct error *err)
{
    (void)err;
    strbuf_puts(owner, ";");
    return 0;
}

static int parse(const char *body, size_t length, size_t piece, struct strbuf *record)
{
    static const struct multipart_callbacks callbacks = {begin, content, end};
    struct multipart *parser;
    if (multipart_new("multipart/form-data; boundary=b", &callbacks, record, &parser, NULL) < 0)
        abort();
    int r = 0;
    for (size_t at = 0; at < length && r == 0; at += piece)
        r = multipart_feed(parser, body + at, MIN(piece, length - at), NULL);
    if (r == 0)
        r = multipart_finish(parser, NULL);
    multipart_free(parser);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_STRBUF struct strbuf whole = STRBUF_INIT;
    CLEANUP_STRBUF struct strbuf pieces = STRBUF_INIT;
    int r = parse((const char *)data, size, size + 1, &whole);
    int s = parse((const char *)data, size, size % 7 + 1, &pieces);
    if (r != s || whole.length != pieces.length ||
        (whole.length > 0 && memcmp(whole.data, pieces.data, whole.length) != 0))
        abort();
    return 0;
}
