#include "agent/auth.h"

#include <errno.h>
#include <sha2.h>
#include <stdlib.h>
#include <string.h>

#include "base/encode.h"
#include "base/strbuf.h"

#define SIGNATURE_VERSION  "v1_"
#define EXPIRES_DIGITS_MAX 18

/* Takes the same time wherever they differ; their lengths may show. */
static bool equal(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned difference = a_length != b_length;
    for (size_t i = 0; i < MIN(a_length, b_length); i++)
        difference |= (unsigned char)a[i] ^ (unsigned char)b[i];
    return difference == 0;
}

int auth_check_token(const struct identity *identity, const char *token)
{
    if (identity->token_length == 0)
        return 0;
    if (token == NULL)
        return -EKEYREJECTED;
    return equal(identity->token, identity->token_length, token, strlen(token)) ? 0 : -EKEYREJECTED;
}

/* "v1_" and the unpadded base64 of sha256("path:operation:user:token[:expires]"). */
static void sign(const struct identity *identity, const struct auth_signature *given, struct strbuf *out)
{
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s:%s:%s:%s", given->path, given->operation, given->user, identity->token);
    if (given->expires != NULL)
        strbuf_printf(&text, ":%s", given->expires);
    uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA2_CTX context;
    SHA256Init(&context);
    SHA256Update(&context, (const uint8_t *)strbuf_text(&text), text.length);
    SHA256Final(digest, &context);
    strbuf_puts(out, SIGNATURE_VERSION);
    base64_encode(out, digest, sizeof(digest));
    out->length = strcspn(strbuf_text(out), "=");
    out->failed |= text.failed;
}

int auth_check_signature(const struct identity *identity, const struct auth_signature *given, int64_t now_s,
                         struct error *err)
{
    if (identity->token_length == 0)
        return 0;
    if (given->signature == NULL)
        return error_set(err, EKEYREJECTED, "missing signature query parameter");
    CLEANUP_STRBUF struct strbuf wanted = STRBUF_INIT;
    sign(identity, given, &wanted);
    if (wanted.failed)
        return error_set(err, ENOMEM, "no memory to check a signature");
    if (!equal(wanted.data, wanted.length, given->signature, strlen(given->signature)))
        return error_set(err, EKEYREJECTED, "invalid signature");
    if (given->expires == NULL)
        return 0;
    size_t digits = strspn(given->expires, "0123456789");
    if (digits == 0 || digits > EXPIRES_DIGITS_MAX || given->expires[digits] != '\0')
        return error_set(err, EKEYREJECTED, "invalid signature expiration");
    if (strtoll(given->expires, NULL, 10) < now_s)
        return error_set(err, EKEYREJECTED, "signature is already expired");
    return 0;
}
