/*
 * list_filter.h: which sandboxes a list request asks for, and in which pages.
 *
 * Pure; any thread; the query is untrusted.
 */
#ifndef DORMOUSE_API_LIST_FILTER_H
#define DORMOUSE_API_LIST_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/uri.h"
#include "base/error.h"
#include "sandbox/manager.h"

#define LIST_PAGE_MAX 100

struct list_filter {
    bool running;
    bool paused;
    struct string_list metadata; /* key, value …: all must be there */
    const char *template;        /* id or name; NULL: any; belongs to the query */
    int64_t started_after_ns;
    bool ascending; /* by the time they started; otherwise descending */
    size_t limit;
    const char *cursor; /* the last page's token; NULL: from the beginning; belongs to the query */
};

/*
 * From "state", "metadata", "template", "startedAfter", "order", "limit" and "nextToken". -EINVAL. The query must
 * outlive the filter; the caller calls list_filter_done, after a failure too.
 */
int list_filter_parse(const struct uri_query *query, struct list_filter *ret, struct error *err);
void list_filter_done(struct list_filter *filter);

/* Whether the filter lets the sandbox through, whatever the page. */
bool list_filter_wants(const struct list_filter *filter, const struct sandbox_info *info);

/*
 * Sorts `items` and picks those that the filter lets through, one page of them, into `ret_page` (LIST_PAGE_MAX
 * places). Returns their number; *ret_token is the next page's token, NULL on the last one; the caller frees it.
 * -ENOMEM.
 */
int list_filter_page(const struct list_filter *filter, struct sandbox_info *items, size_t count,
                     const struct sandbox_info **ret_page, char **ret_token);

/*
 * E2B's metadata parameter, already decoded once: it is decoded again, cut at "&" and "=", and each part decoded
 * once more. Appends key, value … to `list`. -EINVAL, -ENOMEM.
 */
int list_filter_metadata(const char *text, struct string_list *list);

#endif
