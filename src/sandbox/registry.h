/*
 * registry.h: what the daemon must know again after a restart, in SQLite (data directory, registry.db).
 *
 * Sandboxes, templates and checkpoints, each a JSON document under an id. A document is written whole, in
 * one transaction, before and after each transition. After a crash of the daemon nothing is missing. After a power
 * failure the last writes may be, but none before the last durable one: write-ahead logging, with a sync (about 1
 * ms) only where something would be lost that can't be told from what is on disk.
 *
 * Threads: any; calls are serialised inside.
 */
#ifndef DORMOUSE_SANDBOX_REGISTRY_H
#define DORMOUSE_SANDBOX_REGISTRY_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

enum registry_kind { REGISTRY_SANDBOX, REGISTRY_TEMPLATE, REGISTRY_CHECKPOINT };

struct registry;

/* -EUCLEAN when the file is damaged; it is left as it is. */
int registry_open(const char *path, struct registry **ret, struct error *err);
void registry_close(struct registry *registry);

int registry_put(struct registry *registry, enum registry_kind kind, const char *id, const json_t *document,
                 bool durable, struct error *err);
/* Durable: what it referred to is removed next. */
int registry_delete(struct registry *registry, enum registry_kind kind, const char *id, struct error *err);

/* Calls `each` for every object; a negative result ends the walk and is returned. */
typedef int (*registry_visitor)(void *context, const char *id, const json_t *document, struct error *err);
int registry_visit(struct registry *registry, enum registry_kind kind, registry_visitor each, void *context,
                   struct error *err);

#endif
