#include "store/description.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#define CPUS_MAX  4096
#define IMAGE_MAX (INT64_C(1) << 44)

void snapshot_manifest_done(struct snapshot_manifest *manifest)
{
    free(manifest->id);
    free(manifest->parent_id);
    free(manifest->sandbox_id);
    free(manifest->template_id);
    free(manifest->vmm);
    free(manifest->accelerator);
    free(manifest->cpu_model);
    free(manifest->kernel);
    free(manifest->disk_consistency);
    *manifest = (struct snapshot_manifest){0};
}

int description_encode(const struct snapshot_manifest *m, char **ret, size_t *ret_length, struct error *err)
{
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", m->id, "parent",
        m->parent_id, "sandbox", m->sandbox_id, "template", m->template_id, "vmm", m->vmm, "accelerator",
        m->accelerator, "cpu_model", m->cpu_model != NULL ? m->cpu_model : "", "kernel", m->kernel,
        "disk_consistency", m->disk_consistency != NULL ? m->disk_consistency : "", "machine_revision",
        (json_int_t)m->machine_revision, "cpus", (json_int_t)m->cpus, "memory_bytes", (json_int_t)m->memory_bytes,
        "disk_bytes", (json_int_t)m->disk_bytes, "created_ns", (json_int_t)m->created_ns);
    if (object == NULL)
        return error_set(err, EINVAL, "the snapshot's description is incomplete or not UTF-8");
    CLEANUP_FREE char *text = json_dumps(object, JSON_INDENT(2));
    json_decref(object);
    if (text == NULL)
        return error_set(err, ENOMEM, "no memory for a snapshot's description");
    size_t length = strlen(text);
    if (length > DESCRIPTION_BYTES_MAX)
        return error_set(err, E2BIG, "the snapshot's description has more than %u bytes", DESCRIPTION_BYTES_MAX);
    /* Whoever writes one that can't be read learns it now. */
    struct snapshot_manifest readable = {0};
    int r = description_decode(text, length, &readable, err);
    if (r < 0)
        return error_wrap(err, -EINVAL, "the snapshot's description");
    snapshot_manifest_done(&readable);
    *ret = TAKE_PTR(text);
    *ret_length = length;
    return 0;
}

static int read_texts(const json_t *object, struct snapshot_manifest *m, struct error *err)
{
    const struct {
        const char *key;
        char **value;
    } texts[] = {
        {"id", &m->id},
        {"parent", &m->parent_id},
        {"sandbox", &m->sandbox_id},
        {"template", &m->template_id},
        {"vmm", &m->vmm},
        {"accelerator", &m->accelerator},
        {"cpu_model", &m->cpu_model},
        {"kernel", &m->kernel},
        {"disk_consistency", &m->disk_consistency},
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        if (json_object_get(object, texts[i].key) == NULL)
            return error_set(err, EBADMSG, "%s is missing", texts[i].key);
        int r = json_read_text(object, texts[i].key, texts[i].value, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_numbers(const json_t *object, struct snapshot_manifest *m, struct error *err)
{
    int64_t revision = 0;
    int64_t cpus = 0;
    int64_t memory = 0;
    int64_t disk = 0;
    const struct {
        const char *key;
        int64_t minimum;
        int64_t maximum;
        int64_t *value;
    } numbers[] = {
        {"machine_revision", 1, INT32_MAX, &revision}, {"cpus", 1, CPUS_MAX, &cpus},
        {"memory_bytes", 0, IMAGE_MAX, &memory},       {"disk_bytes", 0, IMAGE_MAX, &disk},
        {"created_ns", 0, INT64_MAX, &m->created_ns},
    };
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        if (json_object_get(object, numbers[i].key) == NULL)
            return error_set(err, EBADMSG, "%s is missing", numbers[i].key);
        int r = json_read_integer(object, numbers[i].key, numbers[i].minimum, numbers[i].maximum, 0,
                                  numbers[i].value, err);
        if (r < 0)
            return r;
    }
    if (memory % IMAGE_PAGE_BYTES != 0 || disk % IMAGE_PAGE_BYTES != 0)
        return error_set(err, EBADMSG, "an image's size is not a number of whole pages");
    m->machine_revision = (unsigned)revision;
    m->cpus = (unsigned)cpus;
    m->memory_bytes = (uint64_t)memory;
    m->disk_bytes = (uint64_t)disk;
    return 0;
}

int description_decode(const void *text, size_t length, struct snapshot_manifest *ret, struct error *err)
{
    json_error_t where;
    json_t *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(object)) {
        json_decref(object);
        return error_set(err, EBADMSG, "line %d: %s", where.line, object == NULL ? where.text : "not an object");
    }
    struct snapshot_manifest manifest = {0};
    int r = read_texts(object, &manifest, err);
    if (r == 0)
        r = read_numbers(object, &manifest, err);
    json_decref(object);
    if (r < 0) {
        snapshot_manifest_done(&manifest);
        return r == -ENOMEM ? r : -EBADMSG;
    }
    *ret = manifest;
    return 0;
}
