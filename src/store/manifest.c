#include "store/manifest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"

#define MANIFEST_SIZE_MAX (64u << 10)

#define CPUS_MAX   4096
#define MEMORY_MAX (INT64_C(1) << 50)

void snapshot_manifest_done(struct snapshot_manifest *manifest)
{
    free(manifest->id);
    free(manifest->parent_id);
    free(manifest->sandbox_id);
    free(manifest->template_id);
    free(manifest->vmm);
    free(manifest->accelerator);
    free(manifest->kernel);
    *manifest = (struct snapshot_manifest){0};
}

int manifest_write(const char *path, const struct snapshot_manifest *m, struct error *err)
{
    json_t *object =
        json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "version",
                  SNAPSHOT_FORMAT_VERSION, "id", m->id, "parent", m->parent_id, "sandbox", m->sandbox_id,
                  "template", m->template_id, "vmm", m->vmm, "accelerator", m->accelerator, "kernel", m->kernel,
                  "machine_revision", (json_int_t)m->machine_revision, "cpus", (json_int_t)m->cpus, "memory_bytes",
                  (json_int_t)m->memory_bytes, "disk_bytes", (json_int_t)m->disk_bytes, "state_bytes",
                  (json_int_t)m->state_bytes, "created_ns", (json_int_t)m->created_ns);
    CLEANUP_FREE char *text = object != NULL ? json_dumps(object, JSON_INDENT(2)) : NULL;
    json_decref(object);
    if (text == NULL)
        return error_set(err, ENOMEM, "out of memory");
    int r = io_write_file_atomic(path, text, strlen(text), 0600);
    return r < 0 ? error_code(err, r, "cannot write %s", path) : 0;
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
        {"kernel", &m->kernel},
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
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
    int64_t state = 0;
    const struct {
        const char *key;
        int64_t minimum;
        int64_t maximum;
        int64_t *value;
    } numbers[] = {
        {"machine_revision", 1, INT32_MAX, &revision}, {"cpus", 1, CPUS_MAX, &cpus},
        {"memory_bytes", 4096, MEMORY_MAX, &memory},   {"disk_bytes", 0, MEMORY_MAX, &disk},
        {"state_bytes", 0, INT32_MAX, &state},         {"created_ns", 0, INT64_MAX, &m->created_ns},
    };
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        /* Absent is outside the range of what must be there. */
        int r = json_read_integer(object, numbers[i].key, numbers[i].minimum, numbers[i].maximum, -1,
                                  numbers[i].value, err);
        if (r < 0)
            return r;
        if (*numbers[i].value < numbers[i].minimum)
            return error_set(err, EBADMSG, "%s is missing", numbers[i].key);
    }
    m->machine_revision = (unsigned)revision;
    m->cpus = (unsigned)cpus;
    m->memory_bytes = (uint64_t)memory;
    m->disk_bytes = (uint64_t)disk;
    m->state_bytes = (uint64_t)state;
    return 0;
}

int manifest_read(const char *path, struct snapshot_manifest *ret, struct error *err)
{
    json_t *object = NULL;
    int r = json_read_file(path, MANIFEST_SIZE_MAX, &object, err);
    if (r < 0)
        return r;
    struct snapshot_manifest manifest = {0};
    int64_t version = 0;
    r = json_read_integer(object, "version", 1, INT32_MAX, 0, &version, err);
    if (r == 0 && version > SNAPSHOT_FORMAT_VERSION)
        r = error_set(err, EPROTONOSUPPORT, "it was written by a later version of dormouse (format %lld)",
                      (long long)version);
    if (r == 0)
        r = read_texts(object, &manifest, err);
    if (r == 0)
        r = read_numbers(object, &manifest, err);
    json_decref(object);
    if (r < 0) {
        snapshot_manifest_done(&manifest);
        return error_wrap(err, r == -EPROTONOSUPPORT ? r : -EBADMSG, "%s", path);
    }
    *ret = manifest;
    return 0;
}
