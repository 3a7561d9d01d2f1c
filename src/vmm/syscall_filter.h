/*
 * syscall_filter.h: what a VMM may not ask of the kernel, whoever controls it.
 *
 * Stock QEMU opens its memory image for writing, although it maps it privately. The image server refuses writes;
 * but a VMM that its guest has taken over could map the image *shared*, and change pages in the page cache under
 * every guest that uses them. So there are no shared mappings here, in whatever way one would be made or grown;
 * what looks like a call by another ABI isn't answered, since its numbers mean other calls.
 *
 * Installed last before the program is executed, with privileges gone; for good, and for all its children. QEMU's
 * own sandbox adds to it. Uses nothing but a system call (jail.h says why).
 */
#ifndef DORMOUSE_VMM_SYSCALL_FILTER_H
#define DORMOUSE_VMM_SYSCALL_FILTER_H

#include <stdbool.h>

/*
 * With `kvm`, what KVM shares with its user may be mapped: three pages at offset 0 of a vCPU. Of an image that is
 * its first 12 KiB, memory that Linux doesn't use (it reserves the first MiB).
 * Returns 0, or -1 and errno.
 */
int syscall_filter_install(bool kvm);

#endif
