#include "sandbox/compatibility.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vmm.h"

#define REASON "snapshot_incompatible"

/* Versions as numbers with dots between them; what isn't there counts as 0. */
static int compare_versions(const char *a, const char *b)
{
    for (;;) {
        char *end_a;
        char *end_b;
        unsigned long number_a = strtoul(a, &end_a, 10);
        unsigned long number_b = strtoul(b, &end_b, 10);
        if (number_a != number_b)
            return number_a < number_b ? -1 : 1;
        bool more_a = *end_a == '.';
        bool more_b = *end_b == '.';
        if (!more_a && !more_b)
            return 0;
        a = end_a + more_a;
        b = end_b + more_b;
    }
}

static int check_vmm(const struct snapshot_manifest *manifest, const struct compatibility_host *host,
                     struct error *err)
{
    size_t name = strcspn(manifest->vmm, " ");
    if (strcspn(host->vmm, " ") != name || strncmp(manifest->vmm, host->vmm, name) != 0)
        return error_set(err, EBUSY, "snapshot %s was taken by %s; this host has %s", manifest->id, manifest->vmm,
                         host->vmm);
    if (manifest->vmm[name] == '\0' || compare_versions(manifest->vmm + name + 1, host->vmm + name + 1) <= 0)
        return 0;
    return error_set(err, EBUSY, "snapshot %s was taken by %s; this host has %s, which is older", manifest->id,
                     manifest->vmm, host->vmm);
}

static int check_accelerator(const struct snapshot_manifest *manifest, const struct compatibility_host *host,
                             struct error *err)
{
    enum vmm_accelerator accelerator;
    char lacking[64];
    if (vmm_accelerator_parse(manifest->accelerator, &accelerator) < 0)
        return error_set(err, EBADMSG, "snapshot %s names an unknown accelerator", manifest->id);
    if (accelerator == VMM_ACCELERATOR_TCG)
        return 0;
    if (!host->kvm)
        return error_set(err, EBUSY, "snapshot %s was taken under KVM, which does not run guests on this host",
                         manifest->id);
    if (manifest->cpu_model[0] != '\0' && !host->cpu_fits(manifest->cpu_model, lacking, sizeof(lacking)))
        return error_set(err, EBUSY, "snapshot %s was taken with CPU model %s; this host's CPU lacks %s",
                         manifest->id, manifest->cpu_model, lacking);
    return 0;
}

int compatibility_check(const struct snapshot_manifest *manifest, const struct compatibility_host *host,
                        struct error *err)
{
    int r = 0;
    if (manifest->machine_revision != host->machine_revision)
        r = error_set(err, EBUSY, "snapshot %s was taken on machine revision %u; this is revision %u", manifest->id,
                      manifest->machine_revision, host->machine_revision);
    if (r == 0)
        r = check_accelerator(manifest, host, err);
    if (r == 0)
        r = check_vmm(manifest, host, err);
    if (r == -EBUSY)
        error_reason(err, REASON);
    return r;
}
