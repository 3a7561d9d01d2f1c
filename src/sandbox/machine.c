/* What a guest runs on: set when its VMM is started, kept in its record, written into its snapshots. */
#include <errno.h>
#include <stdlib.h>

#include "base/json.h"
#include "sandbox/internal.h"
#include "vmm/cpu_model.h"

void machine_done(struct machine *machine)
{
    free(machine->vmm);
    free(machine->cpu_model);
    *machine = (struct machine){0};
}

int machine_set(struct machine *machine, enum vmm_accelerator accelerator, struct error *err)
{
    CLEANUP_FREE char *version = NULL;
    int r = vmm_version(accelerator, &version, err);
    if (r == 0)
        r = replace_text(&machine->vmm, version, err);
    if (r == 0)
        r = replace_text(&machine->cpu_model, CPU_MODEL, err);
    machine->accelerator = accelerator;
    machine->revision = VMM_MACHINE_REVISION;
    return r;
}

json_t *machine_json(const struct machine *machine)
{
    if (machine->vmm == NULL)
        return NULL;
    return json_pack("{s:s, s:s, s:s, s:I}", "vmm", machine->vmm, "cpu_model", machine->cpu_model, "accelerator",
                     vmm_accelerator_name(machine->accelerator), "revision", (json_int_t)machine->revision);
}

int machine_read(const json_t *object, struct machine *ret, struct error *err)
{
    if (object == NULL)
        return 0;
    CLEANUP(machine_done) struct machine machine = {0};
    CLEANUP_FREE char *accelerator = NULL;
    int64_t revision = 0;
    int r;
    if ((r = json_read_text(object, "vmm", &machine.vmm, err)) < 0 ||
        (r = json_read_text(object, "cpu_model", &machine.cpu_model, err)) < 0 ||
        (r = json_read_text(object, "accelerator", &accelerator, err)) < 0 ||
        (r = json_read_integer(object, "revision", 1, INT32_MAX, 0, &revision, err)) < 0)
        return r;
    if (vmm_accelerator_parse(accelerator, &machine.accelerator) < 0)
        return error_set(err, EINVAL, "there is no accelerator %.16s", accelerator);
    machine.revision = (unsigned)revision;
    *ret = machine;
    machine = (struct machine){0};
    return 0;
}
