/* The plain values of manager.h: copying and freeing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sandbox/internal.h"

void string_list_done(struct string_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct string_list){0};
}

int string_list_add(struct string_list *list, const char *text)
{
    char **items = realloc(list->items, (list->count + 1) * sizeof(*items));
    if (items == NULL)
        return -ENOMEM;
    list->items = items;
    char *copy = strdup(text);
    if (copy == NULL)
        return -ENOMEM;
    list->items[list->count++] = copy;
    return 0;
}

int string_list_copy(struct string_list *to, const struct string_list *from)
{
    for (size_t i = 0; i < from->count; i++)
        if (string_list_add(to, from->items[i]) < 0)
            return -ENOMEM;
    return 0;
}

void sandbox_info_done(struct sandbox_info *info)
{
    free(info->id);
    free(info->lost_reason);
    free(info->template_id);
    free(info->template_name);
    free(info->snapshot_id);
    free(info->parent_id);
    free(info->access_token);
    string_list_done(&info->environment);
    string_list_done(&info->metadata);
    *info = (struct sandbox_info){0};
}

/* strdup that keeps NULL. */
static int copy_text(char **to, const char *from)
{
    if (from == NULL)
        return 0;
    *to = strdup(from);
    return *to == NULL ? -ENOMEM : 0;
}

int sandbox_info_copy(struct sandbox_info *to, const struct sandbox_info *from)
{
    struct sandbox_info copy = *from;
    copy.id = copy.lost_reason = copy.template_id = copy.template_name = NULL;
    copy.snapshot_id = copy.parent_id = copy.access_token = NULL;
    copy.environment = copy.metadata = (struct string_list){0};
    if (copy_text(&copy.id, from->id) < 0 || copy_text(&copy.lost_reason, from->lost_reason) < 0 ||
        copy_text(&copy.template_id, from->template_id) < 0 ||
        copy_text(&copy.template_name, from->template_name) < 0 ||
        copy_text(&copy.snapshot_id, from->snapshot_id) < 0 || copy_text(&copy.parent_id, from->parent_id) < 0 ||
        copy_text(&copy.access_token, from->access_token) < 0 ||
        string_list_copy(&copy.environment, &from->environment) < 0 ||
        string_list_copy(&copy.metadata, &from->metadata) < 0) {
        sandbox_info_done(&copy);
        return -ENOMEM;
    }
    *to = copy;
    return 0;
}

void sandbox_list_done(struct sandbox_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        sandbox_info_done(&list->items[i]);
    free(list->items);
    *list = (struct sandbox_list){0};
}

void fork_results_done(struct fork_result *results, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        sandbox_info_done(&results[i].info);
        error_done(&results[i].error);
    }
}

void template_info_done(struct template_info *info)
{
    free(info->id);
    free(info->name);
    free(info->snapshot_id);
    *info = (struct template_info){0};
}

int template_info_copy(struct template_info *to, const struct template_info *from)
{
    struct template_info copy = *from;
    copy.id = copy.name = copy.snapshot_id = NULL;
    if (copy_text(&copy.id, from->id) < 0 || copy_text(&copy.name, from->name) < 0 ||
        copy_text(&copy.snapshot_id, from->snapshot_id) < 0) {
        template_info_done(&copy);
        return -ENOMEM;
    }
    *to = copy;
    return 0;
}

void template_list_done(struct template_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        template_info_done(&list->items[i]);
    free(list->items);
    *list = (struct template_list){0};
}

void snapshot_info_done(struct snapshot_info *info)
{
    free(info->id);
    free(info->problem);
    free(info->sandbox_id);
    free(info->template_id);
    free(info->parent_id);
    free(info->disk_consistency);
    string_list_done(&info->names);
    *info = (struct snapshot_info){0};
}

void snapshot_list_done(struct snapshot_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        snapshot_info_done(&list->items[i]);
    free(list->items);
    *list = (struct snapshot_list){0};
}

void snapshot_inspection_done(struct snapshot_inspection *inspection)
{
    snapshot_info_done(&inspection->info);
    free(inspection->vmm);
    free(inspection->accelerator);
    free(inspection->cpu_model);
    free(inspection->kernel);
    free(inspection->sections);
    for (size_t i = 0; i < inspection->layer_count; i++) {
        free(inspection->layers[i].id);
        free(inspection->layers[i].problem);
    }
    free(inspection->layers);
    *inspection = (struct snapshot_inspection){0};
}

void store_verification_done(struct store_verification *verification)
{
    for (size_t i = 0; i < verification->damaged_count; i++) {
        free(verification->damaged[i].id);
        free(verification->damaged[i].reason);
        free(verification->damaged[i].remedy);
    }
    free(verification->damaged);
    *verification = (struct store_verification){0};
}

void snapshot_difference_done(struct snapshot_difference *difference)
{
    free(difference->ids[0]);
    free(difference->ids[1]);
    free(difference->memory.ranges);
    free(difference->disk.ranges);
    *difference = (struct snapshot_difference){0};
}

void snapshot_compaction_done(struct snapshot_compaction *compaction)
{
    free(compaction->id);
    *compaction = (struct snapshot_compaction){0};
}

void store_report_done(struct store_report *report)
{
    json_decref(report->image_server);
    *report = (struct store_report){0};
}
