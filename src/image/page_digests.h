/*
 * page_digests.h: what the pages of a VM's memory held when they were last captured.
 *
 * The next capture of the same VM reads its private pages again, but stores only those that hold something else:
 * for the others it takes over the places that the last snapshot's map has. Dirty bits would spare even the
 * reading, but a VMM's pages have none that another process may use: CONFIG_MEM_SOFT_DIRTY is off in many kernels,
 * and userfaultfd's are for the process that owns the memory (docs/architecture.md has what was measured).
 *
 * A digest is XXH3 with 128 bits under a secret of 192 random bytes that never leaves this process. It is compared
 * only with the same page's of the same VM: should a guest ever make two contents with the same digest, which
 * without the secret takes more luck than the universe has time for, its own next snapshot has the older of its own
 * two contents there. Nobody else's page is ever taken for it.
 *
 * Memory: 16 bytes for each page of the guest that was captured (0.4 %). Threads: any number may work on different
 * pages; one that is not being set may be read by any.
 */
#ifndef DORMOUSE_IMAGE_PAGE_DIGESTS_H
#define DORMOUSE_IMAGE_PAGE_DIGESTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct page_digests;

struct page_digest {
    uint64_t words[2];
};

/* Of an image of `pages`, all unknown. With `like` (may be NULL), digests of both can be compared. */
int page_digests_new(uint64_t pages, const struct page_digests *like, struct page_digests **ret, struct error *err);
void page_digests_free(struct page_digests *digests);

struct page_digest page_digest_of(const struct page_digests *digests, const void *page);
/* `number` is that of a page in the image. */
void page_digests_set(struct page_digests *digests, uint64_t number, struct page_digest digest);
/* Whether that page's digest is known, and this. */
bool page_digests_match(const struct page_digests *digests, uint64_t number, struct page_digest digest);

#endif
