/*
 * Dormouse's own API: looking after the store, below /dormouse/v1/store and /snapshots. The shapes are in
 * docs/api.yaml.
 *
 * What takes long keeps only its own connection's thread, and ends when the client hangs up or the server stops.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "api/native_json.h"
#include "api/reply.h"
#include "base/utf8.h"

#define DIFF_RANGES_MAX 65536

static json_t *text_json(const char *text)
{
    return utf8_json(text, strlen(text));
}

static bool has_hung_up(void *context)
{
    struct pollfd hangup = {.fd = *(const int *)context, .events = POLLIN};
    return poll(&hangup, 1, 0) > 0;
}

/* For has_hung_up; negative errno. */
static int watch_client(struct api_call *call, struct error *err)
{
    int fd = http_request_hangup_fd(call->request);
    return fd < 0 ? error_code(err, fd, "cannot watch the connection") : fd;
}

/* ---- inspect ---- */

static json_t *section_json(const struct inspected_section *section)
{
    static const char *const names[] = {NULL, "description", "layers", "memory map", "disk map", "device state"};
    const char *name = section->kind < ARRAY_SIZE(names) ? names[section->kind] : NULL;
    return json_pack("{s:i, s:s?, s:b, s:I, s:I}", "kind", (int)section->kind, "name", name, "ignorable",
                     (int)section->ignorable, "offset", (json_int_t)section->offset, "bytes",
                     (json_int_t)section->bytes);
}

static json_t *layer_json(const struct inspected_layer *layer)
{
    bool sound = layer->problem == NULL;
    return json_pack("{s:o, s:I, s:o, s:o, s:o, s:I, s:I, s:o}", "id", text_json(layer->id), "bytes",
                     (json_int_t)layer->bytes, "frames",
                     sound ? json_integer((json_int_t)layer->frames) : json_null(), "frame_pages",
                     sound ? json_integer(layer->frame_pages) : json_null(), "pages",
                     sound ? json_integer((json_int_t)layer->pages) : json_null(), "memory_pages",
                     (json_int_t)layer->memory_pages, "disk_pages", (json_int_t)layer->disk_pages, "problem",
                     sound ? json_null() : text_json(layer->problem));
}

static json_t *image_json(const struct inspected_image *image)
{
    return json_pack("{s:I, s:I, s:I}", "pages", (json_int_t)image->pages, "mapped_pages",
                     (json_int_t)image->mapped_pages, "extents", (json_int_t)image->extents);
}

static json_t *working_set_json(const struct inspected_working_set *set)
{
    if (!set->present)
        return json_null();
    return json_pack("{s:I, s:I}", "runs", (json_int_t)set->runs, "pages", (json_int_t)set->pages);
}

static json_t *inspection_json(const struct snapshot_inspection *inspection)
{
    json_t *sections = json_array();
    for (size_t i = 0; i < inspection->section_count; i++)
        json_array_append_new(sections, section_json(&inspection->sections[i]));
    json_t *layers = json_array();
    for (size_t i = 0; i < inspection->layer_count; i++)
        json_array_append_new(layers, layer_json(&inspection->layers[i]));
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:i, s:{s:s, s:I, s:I, s:I, s:o}, s:o, s:o, s:o, s:o}", "snapshot",
                     native_snapshot_json(&inspection->info), "vmm", text_json(inspection->vmm), "accelerator",
                     text_json(inspection->accelerator), "cpu_model", text_json(inspection->cpu_model), "kernel",
                     text_json(inspection->kernel), "machine_revision", (int)inspection->machine_revision,
                     "manifest", "format", "DORMSNAP", "bytes", (json_int_t)inspection->manifest_bytes,
                     "compatible_features", (json_int_t)inspection->compatible_features, "incompatible_features",
                     (json_int_t)inspection->incompatible_features, "sections", sections, "layers", layers,
                     "memory", image_json(&inspection->memory), "disk", image_json(&inspection->disk),
                     "working_set", working_set_json(&inspection->working_set));
}

static int inspect_snapshot(struct api_call *call, struct error *err)
{
    struct snapshot_inspection inspection;
    int r = manager_snapshot_inspect(call->api->manager, call->parameters[0], &inspection, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200, inspection_json(&inspection));
    snapshot_inspection_done(&inspection);
    return 0;
}

/* ---- verify ---- */

static json_t *verification_json(const struct store_verification *verification)
{
    json_t *damaged = json_array();
    for (size_t i = 0; i < verification->damaged_count; i++) {
        const struct snapshot_damage *damage = &verification->damaged[i];
        json_array_append_new(damaged, json_pack("{s:o, s:o, s:o}", "id", text_json(damage->id), "reason",
                                                 text_json(damage->reason), "remedy", text_json(damage->remedy)));
    }
    return json_pack("{s:I, s:I, s:I, s:o}", "snapshots", (json_int_t)verification->snapshots, "layers",
                     (json_int_t)verification->layers, "layer_bytes", (json_int_t)verification->layer_bytes,
                     "damaged", damaged);
}

static int verify(struct api_call *call, const char *id_or_prefix, struct error *err)
{
    struct store_verification verification;
    int hangup_fd = watch_client(call, err);
    int r = hangup_fd < 0
                ? hangup_fd
                : manager_verify(call->api->manager, id_or_prefix, has_hung_up, &hangup_fd, &verification, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200, verification_json(&verification));
    store_verification_done(&verification);
    return 0;
}

static int verify_snapshot(struct api_call *call, struct error *err)
{
    return verify(call, call->parameters[0], err);
}

static int verify_store(struct api_call *call, struct error *err)
{
    return verify(call, NULL, err);
}

/* ---- diff ---- */

static json_t *difference_json(const struct image_difference *difference)
{
    json_t *ranges = json_array();
    for (size_t i = 0; i < difference->range_count; i++)
        json_array_append_new(ranges, json_pack("{s:I, s:I}", "page", (json_int_t)difference->ranges[i].page,
                                                "count", (json_int_t)difference->ranges[i].count));
    return json_pack("{s:[I, I], s:I, s:I, s:I, s:o, s:b}", "pages", (json_int_t)difference->pages[0],
                     (json_int_t)difference->pages[1], "read_pages", (json_int_t)difference->read_pages,
                     "different_pages", (json_int_t)difference->different_pages, "different_bytes",
                     (json_int_t)(difference->different_pages * 4096), "ranges", ranges, "ranges_cut",
                     (int)difference->ranges_cut);
}

static int diff_snapshots(struct api_call *call, struct error *err)
{
    int64_t ranges_max = 0;
    struct snapshot_difference difference;
    int hangup_fd = -1;
    int r = api_query_integer(call, "ranges", 0, DIFF_RANGES_MAX, &ranges_max, err);
    if (r == 0)
        r = hangup_fd = watch_client(call, err);
    if (r >= 0) {
        const char *const ids[] = {call->parameters[0], call->parameters[1]};
        r = manager_snapshot_diff(call->api->manager, ids, (size_t)ranges_max, has_hung_up, &hangup_fd, &difference,
                                  err);
    }
    if (r < 0)
        return r;
    reply_json(call->reply, 200,
               json_pack("{s:[o, o], s:o, s:o}", "snapshots", text_json(difference.ids[0]),
                         text_json(difference.ids[1]), "memory", difference_json(&difference.memory), "disk",
                         difference_json(&difference.disk)));
    snapshot_difference_done(&difference);
    return 0;
}

/* ---- compact, disk ---- */

static json_t *before_after(const uint64_t values[2])
{
    return json_pack("[I, I]", (json_int_t)values[0], (json_int_t)values[1]);
}

static int compact_snapshot(struct api_call *call, struct error *err)
{
    struct snapshot_compaction compaction;
    int r = manager_snapshot_compact(call->api->manager, call->parameters[0], &compaction, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200,
               json_pack("{s:o, s:b, s:o, s:o, s:o}", "id", text_json(compaction.id), "compacted",
                         (int)compaction.wanted, "layers", before_after(compaction.layers), "extents",
                         before_after(compaction.extents), "stored_bytes", before_after(compaction.stored_bytes)));
    snapshot_compaction_done(&compaction);
    return 0;
}

static int get_disk(struct api_call *call, struct error *err)
{
    /* A path on this host is of use to root only. */
    if (!call->request->trusted)
        return error_set(err, ENOENT, "this is served on the unix socket only");
    CLEANUP_FREE char *id = NULL;
    CLEANUP_FREE char *path = NULL;
    int r = manager_snapshot_disk(call->api->manager, call->parameters[0], &id, &path, err);
    if (r == 0)
        reply_json(call->reply, 200, json_pack("{s:o, s:o}", "id", text_json(id), "path", text_json(path)));
    return r;
}

/* ---- the store as a whole ---- */

static int get_store(struct api_call *call, struct error *err)
{
    struct store_report report;
    int r = manager_store_report(call->api->manager, &report, err);
    if (r < 0)
        return r;
    reply_json(call->reply, 200,
               json_pack("{s:I, s:I, s:I, s:I, s:I, s:O?}", "snapshots", (json_int_t)report.snapshots, "layers",
                         (json_int_t)report.layers, "layer_bytes", (json_int_t)report.layer_bytes,
                         "unreachable_bytes", (json_int_t)report.unreachable_bytes, "image_bytes",
                         (json_int_t)report.image_bytes, "image_server", report.image_server));
    store_report_done(&report);
    return 0;
}

static int collect_store(struct api_call *call, struct error *err)
{
    struct store_collection collection;
    int r = manager_store_gc(call->api->manager, &collection, err);
    if (r == 0)
        reply_json(call->reply, 200,
                   json_pack("{s:I, s:I}", "layers_removed", (json_int_t)collection.layers_removed, "bytes_removed",
                             (json_int_t)collection.bytes_removed));
    return r;
}

const struct api_route native_store_routes[] = {
    {"GET", "/dormouse/v1/store", get_store},
    {"POST", "/dormouse/v1/store/gc", collect_store},
    {"POST", "/dormouse/v1/store/verify", verify_store},
    {"GET", "/dormouse/v1/snapshots/{}/inspect", inspect_snapshot},
    {"POST", "/dormouse/v1/snapshots/{}/verify", verify_snapshot},
    {"POST", "/dormouse/v1/snapshots/{}/compact", compact_snapshot},
    {"GET", "/dormouse/v1/snapshots/{}/diff/{}", diff_snapshots},
    {"GET", "/dormouse/v1/snapshots/{}/disk", get_disk},
    {0},
};
