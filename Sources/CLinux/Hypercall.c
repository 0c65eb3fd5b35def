// SPDX-License-Identifier: Apache-2.0
// Hypercalls through the device of the VTL driver. Its header is not in the kernel's installed ones everywhere, so that
// the two requests are spelled out here.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/ioctl.h>
#include <sys/ioctl.h>

struct hvcall_setup {
    uint64_t bitmap_byte_count, bitmap;
};
struct hvcall {
    uint64_t control, input_byte_count, input, status, output_byte_count, output;
};
_Static_assert(sizeof(struct hvcall_setup) == 16 && sizeof(struct hvcall) == 48, "as the kernel has them");
#define HVCALL_SETUP _IOW(0xB8, 0x1E, struct hvcall_setup)
#define HVCALL _IOWR(0xB8, 0x1F, struct hvcall)

static int kernel(int fd, unsigned long request, void *argument) {
    int value;
    do {
        value = ioctl(fd, request, argument);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int nv_mshv_allow(int fd, const uint64_t *bitmap, size_t length, nv_ioctl_function instead) {
    struct hvcall_setup setup = {.bitmap_byte_count = length, .bitmap = (uintptr_t)bitmap};
    return (instead ? instead : kernel)(fd, HVCALL_SETUP, &setup);
}

int nv_mshv_hypercall(int fd, uint64_t control, const void *input, size_t length, uint64_t *status,
                      nv_ioctl_function instead) {
    struct hvcall call = {.control = control, .input_byte_count = length, .input = (uintptr_t)input, .status = ~0ull};
    int value = (instead ? instead : kernel)(fd, HVCALL, &call);
    *status = call.status;
    return value;
}
