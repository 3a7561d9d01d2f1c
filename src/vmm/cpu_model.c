#include "vmm/cpu_model.h"

#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "base/macro.h"

enum cpu_register { EBX, ECX, EDX, CPU_REGISTERS };

struct feature {
    const char *name; /* as QEMU has it */
    unsigned leaf;    /* 0: KVM itself provides it, on any CPU */
    enum cpu_register where;
    unsigned bit;
};

static const struct feature features[] = {
    {"pni", 1, ECX, 0},     {"pclmulqdq", 1, ECX, 1}, {"ssse3", 1, ECX, 9},   {"cx16", 1, ECX, 13},
    {"sse4.1", 1, ECX, 19}, {"sse4.2", 1, ECX, 20},   {"popcnt", 1, ECX, 23}, {"aes", 1, ECX, 25},
    {"rdrand", 1, ECX, 30}, {"fsgsbase", 7, EBX, 0},  {"smep", 7, EBX, 7},    {"arat", 0, EBX, 0},
};

static bool host_has(const struct feature *feature)
{
    if (feature->leaf == 0)
        return true;
    unsigned eax = 0;
    unsigned values[CPU_REGISTERS] = {0};
    if (__get_cpuid_count(feature->leaf, 0, &eax, &values[EBX], &values[ECX], &values[EDX]) == 0)
        return false;
    return (values[feature->where] >> feature->bit & 1) != 0;
}

static bool host_has_named(const char *name, size_t length)
{
    for (size_t i = 0; i < ARRAY_SIZE(features); i++)
        if (strlen(features[i].name) == length && strncmp(features[i].name, name, length) == 0)
            return host_has(&features[i]);
    return false;
}

bool cpu_model_fits_host(const char *model, char *ret_lacking, size_t size)
{
    static const char base[] = "qemu64";
    size_t length = strcspn(model, ",");
    bool fits = length == strlen(base) && strncmp(model, base, length) == 0;
    const char *part = model;
    while (fits && part[length] == ',') {
        part += length + 1;
        length = strcspn(part, ",");
        fits = part[0] == '+' && host_has_named(part + 1, length - 1);
    }
    if (!fits)
        snprintf(ret_lacking, size, "%.*s", (int)length, part);
    return fits;
}
