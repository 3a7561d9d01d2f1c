#include "vmm/syscall_filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/macro.h"

/* Calls of the x32 ABI have this bit in their number. */
#define X32_CALLS 0x40000000u

/* KVM_GET_VCPU_MMAP_SIZE: kvm_run, a page for port I/O, the ring of coalesced MMIO (virt/kvm/kvm_main.c). */
#define KVM_SHARED_BYTES (3u * 4096)

#define LOAD(field)               BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_LOW(number)          LOAD(args[number])
#define LOAD_HIGH(number)         BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[number]) + 4)
#define UNLESS_EQUAL(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)
#define IF_EQUAL(value, skip)     BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, skip, 0)
#define IF_ABOVE(value, skip)     BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, value, skip, 0)
#define IF_AT_LEAST(value, skip)  BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, value, skip, 0)
#define UNLESS_SET(bits, skip)    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, skip)
#define SKIP(count)               BPF_JUMP(BPF_JMP | BPF_JA, count, 0, 0)
#define RETURN_ERROR(code)        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (code))
#define RETURN_ALLOW              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

int syscall_filter_install(bool kvm)
{
    struct sock_filter filter[] = {
        LOAD(arch),
        UNLESS_EQUAL(AUDIT_ARCH_X86_64, 5),
        LOAD(nr),
        IF_AT_LEAST(X32_CALLS, 3),
        /* Both make a mapping of other pages of its file. glibc's realloc does without. */
        IF_EQUAL(__NR_mremap, 2),
        IF_EQUAL(__NR_remap_file_pages, 1),
        SKIP(1),
        RETURN_ERROR(ENOSYS),

        /*
         * QEMU asks for huge pages for the guest's memory. In a private mapping of a file they come to nothing, but
         * the kernel then reads 4 MiB around each page that is missing (do_sync_mmap_readahead in mm/filemap.c),
         * whatever the file's own read-ahead is. The call does nothing and succeeds.
         */
        UNLESS_EQUAL(__NR_madvise, 4),
        LOAD_LOW(2),
        UNLESS_EQUAL(MADV_HUGEPAGE, 1),
        RETURN_ERROR(0),
        RETURN_ALLOW,

        /* MAP_SHARED_VALIDATE has the bit, too. */
        UNLESS_EQUAL(__NR_mmap, 11),
        LOAD_LOW(3),
        UNLESS_SET(MAP_SHARED, 9),
        SKIP(kvm ? 0 : 9),
        LOAD_HIGH(1),
        UNLESS_EQUAL(0, 7),
        LOAD_LOW(1),
        IF_ABOVE(KVM_SHARED_BYTES, 5),
        LOAD_HIGH(5),
        UNLESS_EQUAL(0, 3),
        LOAD_LOW(5),
        UNLESS_EQUAL(0, 1),
        RETURN_ALLOW,
        RETURN_ERROR(EACCES),
    };
    struct sock_fprog program = {.len = ARRAY_SIZE(filter), .filter = filter};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
