/* Which snapshots' memory can go on on which hosts. */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "sandbox/compatibility.h"
#include "vmm/cpu_model.h"

static bool any_cpu(const char *model, char *ret_lacking, size_t size)
{
    (void)model;
    (void)ret_lacking;
    (void)size;
    return true;
}

static bool old_cpu(const char *model, char *ret_lacking, size_t size)
{
    (void)model;
    snprintf(ret_lacking, size, "+aes");
    return false;
}

static const struct compatibility_host usual = {
    .vmm = "qemu 7.2.22", .machine_revision = 2, .kvm = true, .cpu_fits = any_cpu};

/* "" when it fits, else the difference; a refusal says which snapshot, and its reason. */
static char *difference(const char *vmm, unsigned revision, const char *accelerator,
                        const struct compatibility_host *host)
{
    CLEANUP_ERROR struct error err = ERROR_INIT;
    struct snapshot_manifest manifest = {.id = (char *)"snap1",
                                         .vmm = (char *)vmm,
                                         .accelerator = (char *)accelerator,
                                         .cpu_model = (char *)CPU_MODEL,
                                         .machine_revision = revision};
    int r = compatibility_check(&manifest, host, &err);
    if (r == 0)
        return strdup("");
    assert_int_equal(r, -EBUSY);
    assert_string_equal(err.reason, "snapshot_incompatible");
    assert_non_null(strstr(error_message(&err), "snap1"));
    return strdup(error_message(&err));
}

static void expect(const char *vmm, unsigned revision, const char *accelerator,
                   const struct compatibility_host *host, const char *part)
{
    CLEANUP_FREE char *text = difference(vmm, revision, accelerator, host);
    if (part == NULL)
        assert_string_equal(text, "");
    else if (strstr(text, part) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

static void test_versions(void **state)
{
    (void)state;
    expect("qemu 7.2.22", 2, "tcg", &usual, NULL);
    expect("qemu 7.2.9", 2, "tcg", &usual, NULL);
    expect("qemu 7.2", 2, "tcg", &usual, NULL);
    expect("qemu 6.9.99", 2, "kvm", &usual, NULL);
    expect("qemu", 2, "tcg", &usual, NULL);
    expect("qemu 7.2.23", 2, "tcg", &usual, "qemu 7.2.22, which is older");
    expect("qemu 7.2.22.1", 2, "tcg", &usual, "older");
    expect("qemu 7.10", 2, "tcg", &usual, "older");
    expect("qemu 10.0.2", 2, "tcg", &usual, "qemu 10.0.2");
    expect("firecracker 1.0", 2, "tcg", &usual, "firecracker 1.0");
    expect("qem 7.2.22", 2, "tcg", &usual, "this host has qemu");
    expect("qemux 7.2.22", 2, "tcg", &usual, "this host has qemu");
}

static void test_machine(void **state)
{
    (void)state;
    expect("qemu 7.2.22", 1, "tcg", &usual, "machine revision 1; this is revision 2");
    expect("qemu 7.2.22", 3, "tcg", &usual, "machine revision 3");
}

static void test_accelerator_and_cpu(void **state)
{
    (void)state;
    struct compatibility_host host = usual;
    host.kvm = false;
    expect("qemu 7.2.22", 2, "tcg", &host, NULL);
    expect("qemu 7.2.22", 2, "kvm", &host, "KVM");
    host = usual;
    host.cpu_fits = old_cpu;
    expect("qemu 7.2.22", 2, "tcg", &host, NULL); /* emulated: the host's CPU doesn't matter */
    expect("qemu 7.2.22", 2, "kvm", &host, "lacks +aes");
    struct snapshot_manifest strange = {
        .id = (char *)"s", .vmm = (char *)"qemu 1", .accelerator = (char *)"xen", .machine_revision = 2};
    assert_int_equal(compatibility_check(&strange, &usual, NULL), -EBADMSG);
}

static void test_cpu_models(void **state)
{
    (void)state;
    char lacking[32];
    assert_true(cpu_model_fits_host("qemu64", lacking, sizeof(lacking)));
    assert_true(cpu_model_fits_host("qemu64,+arat", lacking, sizeof(lacking)));
    static const struct {
        const char *model;
        const char *lacking;
    } unknown[] = {
        {"", ""},
        {"EPYC", "EPYC"},
        {"qemu64x", "qemu64x"},
        {"qemu64,+warp", "+warp"},
        {"qemu64,+arat,+", "+"},
        {"qemu64,arat", "arat"},
        {"qemu64,-arat", "-arat"},
        {"qemu64,,+arat", ""},
        {"qemu64,+a-feature-with-a-name-longer-than-the-buffer", "+a-feature-with-a-name-longer-t"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
        assert_false(cpu_model_fits_host(unknown[i].model, lacking, sizeof(lacking)));
        assert_string_equal(lacking, unknown[i].lacking);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_machine),
        cmocka_unit_test(test_accelerator_and_cpu),
        cmocka_unit_test(test_cpu_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
