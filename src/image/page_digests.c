#include "image/page_digests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <xxhash.h>

#include "store/map.h"

#define SECRET_BYTES 192

/* Two zeros in the table: unknown. A page whose digest is that is never known. */
struct page_digests {
    uint8_t secret[SECRET_BYTES];
    uint64_t pages;
    struct page_digest *values; /* a mapping: what was never set occupies nothing */
};

_Static_assert(SECRET_BYTES >= XXH3_SECRET_SIZE_MIN, "XXH3 wants a longer secret");

static size_t table_bytes(const struct page_digests *digests)
{
    return digests->pages * sizeof(*digests->values);
}

int page_digests_new(uint64_t pages, const struct page_digests *like, struct page_digests **ret, struct error *err)
{
    struct page_digests *digests = calloc(1, sizeof(*digests));
    if (digests == NULL)
        return error_set(err, ENOMEM, "out of memory");
    digests->pages = pages;
    if (like != NULL) {
        memcpy(digests->secret, like->secret, SECRET_BYTES);
    } else if (getrandom(digests->secret, SECRET_BYTES, 0) != SECRET_BYTES) {
        free(digests);
        return error_set(err, EIO, "no random numbers");
    }
    void *values = mmap(NULL, table_bytes(digests), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (values == MAP_FAILED) {
        free(digests);
        return error_errno(err, "no memory for the digests of %llu pages", (unsigned long long)pages);
    }
    digests->values = values;
    *ret = digests;
    return 0;
}

void page_digests_free(struct page_digests *digests)
{
    if (digests == NULL)
        return;
    munmap(digests->values, table_bytes(digests));
    free(digests);
}

struct page_digest page_digest_of(const struct page_digests *digests, const void *page)
{
    XXH128_hash_t hash = XXH3_128bits_withSecret(page, IMAGE_PAGE_BYTES, digests->secret, SECRET_BYTES);
    return (struct page_digest){{hash.low64, hash.high64}};
}

void page_digests_set(struct page_digests *digests, uint64_t number, struct page_digest digest)
{
    if (number < digests->pages)
        digests->values[number] = digest;
}

bool page_digests_match(const struct page_digests *digests, uint64_t number, struct page_digest digest)
{
    if (number >= digests->pages || (digest.words[0] | digest.words[1]) == 0)
        return false;
    const struct page_digest *known = &digests->values[number];
    return known->words[0] == digest.words[0] && known->words[1] == digest.words[1];
}
