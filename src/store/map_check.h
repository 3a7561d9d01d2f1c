/* map_check.h: what makes a map valid, for who decodes one and who encodes one. Pure. */
#ifndef DORMOUSE_STORE_MAP_CHECK_H
#define DORMOUSE_STORE_MAP_CHECK_H

#include "store/map.h"

/* -EBADMSG with the first extent that docs/snapshot-format.md has refused. */
int map_extents_check(const struct map_extent *extents, size_t count, uint64_t pages, uint32_t layer_count,
                      struct error *err);

#endif
