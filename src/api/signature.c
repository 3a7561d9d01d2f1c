#include "api/signature.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

#include "base/encode.h"
#include "base/strbuf.h"

static const char *parameter_or_empty(const struct uri_query *query, const char *name)
{
    const char *value = uri_query_get(query, name);
    return value != NULL ? value : "";
}

bool signature_fits(const struct uri_query *query, const char *method, const char *access_token)
{
    const char *given = uri_query_get(query, "signature");
    const char *expiration = uri_query_get(query, "signature_expiration");
    if (given == NULL || access_token[0] == '\0')
        return false;
    CLEANUP_STRBUF struct strbuf text = STRBUF_INIT;
    strbuf_printf(&text, "%s:%s:%s:%s", parameter_or_empty(query, "path"),
                  strcmp(method, "GET") == 0 ? "read" : "write", parameter_or_empty(query, "username"),
                  access_token);
    if (expiration != NULL)
        strbuf_printf(&text, ":%s", expiration);

    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned digest_length;
    if (text.failed || EVP_Digest(strbuf_text(&text), text.length, digest, &digest_length, EVP_sha256(), NULL) != 1)
        return false;
    CLEANUP_STRBUF struct strbuf expected = STRBUF_INIT;
    strbuf_puts(&expected, "v1_");
    base64_encode(&expected, digest, digest_length);
    if (expected.failed)
        return false;
    size_t length = strcspn(expected.data, "=");
    return strlen(given) == length && CRYPTO_memcmp(given, expected.data, length) == 0;
}
