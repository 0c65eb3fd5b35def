// SPDX-License-Identifier: Apache-2.0
// VFIO and iommufd requests as functions.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

static int result(int value) { return value < 0 ? -errno : value; }

int nv_vfio_info(int fd, int what, void *buffer, uint32_t length) {
    static const unsigned long requests[] = {VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO,
                                             VFIO_DEVICE_GET_IRQ_INFO, VFIO_IOMMU_GET_INFO};
    if (what < 0 || what > NV_VFIO_IOMMU_INFO || length < 16) return -EINVAL;
    memcpy(buffer, &length, sizeof length);
    return result(ioctl(fd, requests[what], buffer));
}

int nv_vfio_api_version(int container) { return result(ioctl(container, VFIO_GET_API_VERSION)); }
int nv_vfio_has_extension(int container, uint64_t extension) {
    return result(ioctl(container, VFIO_CHECK_EXTENSION, extension));
}
int nv_vfio_set_iommu(int container, uint64_t type) { return result(ioctl(container, VFIO_SET_IOMMU, type)); }

int nv_vfio_group_flags(int group) {
    struct vfio_group_status status = {.argsz = sizeof status};
    int value = result(ioctl(group, VFIO_GROUP_GET_STATUS, &status));
    return value < 0 ? value : (int)(status.flags & 3);
}
int nv_vfio_set_container(int group, int container) {
    return result(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
}
int nv_vfio_device_fd(int group, const char *name) { return result(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name)); }

int nv_vfio_map_dma(int container, uint64_t address, uint64_t iova, uint64_t length, int device_writes) {
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof map,
        .flags = VFIO_DMA_MAP_FLAG_READ | (device_writes ? VFIO_DMA_MAP_FLAG_WRITE : 0),
        .vaddr = address,
        .iova = iova,
        .size = length,
    };
    return result(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

int64_t nv_vfio_unmap_dma(int container, uint64_t iova, uint64_t length) {
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = iova, .size = length};
    int value = result(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap));
    return value < 0 ? value : (int64_t)unmap.size;
}

int nv_vfio_unmap_all(int container) {
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .flags = VFIO_DMA_UNMAP_FLAG_ALL};
    return result(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap));
}

int nv_vfio_set_irqs(int device, uint32_t index, const int *fds, uint32_t count) {
    size_t length = sizeof(struct vfio_irq_set) + (size_t)count * sizeof(int);
    struct vfio_irq_set *set = calloc(1, length);
    if (!set) return -ENOMEM;
    set->argsz = (uint32_t)length;
    set->flags = VFIO_IRQ_SET_ACTION_TRIGGER | (count ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE);
    set->index = index;
    set->count = count;
    if (count) memcpy(set->data, fds, (size_t)count * sizeof(int));
    int value = result(ioctl(device, VFIO_DEVICE_SET_IRQS, set));
    free(set);
    return value;
}

int nv_vfio_hot_reset_possible(int device) {
    struct vfio_pci_hot_reset_info info = {.argsz = sizeof info};
    int value = result(ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info));
    // ENOSPC: the functions that it would concern do not fit into this structure.
    return value == -ENOSPC ? 0 : value;
}

int nv_vfio_reset(int device) { return result(ioctl(device, VFIO_DEVICE_RESET)); }

// Newer than the headers that may be required: the numbers and layouts of the kernel's interface.
struct bind_iommufd { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct attach_ioas { uint32_t argsz, flags, id; };
struct ioas_alloc { uint32_t size, flags, out_id; };
struct iova_range { uint64_t first, last; };
struct ioas_ranges { uint32_t size, id, count, reserved; uint64_t ranges, out_alignment; };
struct ioas_map { uint32_t size, flags, id, reserved; uint64_t address, length, iova; };
struct ioas_unmap { uint32_t size, id; uint64_t iova, length; };
#define BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define ATTACH_IOAS _IO(VFIO_TYPE, VFIO_BASE + 19)
#define IOAS_ALLOC _IO(VFIO_TYPE, 0x81)
#define IOAS_RANGES _IO(VFIO_TYPE, 0x84)
#define IOAS_MAP _IO(VFIO_TYPE, 0x85)
#define IOAS_UNMAP _IO(VFIO_TYPE, 0x86)
enum { MAP_FIXED_IOVA = 1, MAP_WRITEABLE = 2, MAP_READABLE = 4 };

int nv_vfio_bind_iommufd(int device, int iommufd) {
    struct bind_iommufd bind = {.argsz = sizeof bind, .iommufd = iommufd};
    return result(ioctl(device, BIND_IOMMUFD, &bind));
}

int nv_vfio_attach_ioas(int device, uint32_t ioas) {
    struct attach_ioas attach = {.argsz = sizeof attach, .id = ioas};
    return result(ioctl(device, ATTACH_IOAS, &attach));
}

int nv_iommufd_alloc_ioas(int iommufd, uint32_t *ioas) {
    struct ioas_alloc alloc = {.size = sizeof alloc};
    int value = result(ioctl(iommufd, IOAS_ALLOC, &alloc));
    *ioas = alloc.out_id;
    return value;
}

int nv_iommufd_map(int iommufd, uint32_t ioas, uint64_t address, uint64_t iova, uint64_t length, int device_writes) {
    struct ioas_map map = {
        .size = sizeof map,
        .flags = MAP_FIXED_IOVA | MAP_READABLE | (device_writes ? MAP_WRITEABLE : 0),
        .id = ioas,
        .address = address,
        .length = length,
        .iova = iova,
    };
    return result(ioctl(iommufd, IOAS_MAP, &map));
}

int64_t nv_iommufd_unmap(int iommufd, uint32_t ioas, uint64_t iova, uint64_t length) {
    struct ioas_unmap unmap = {.size = sizeof unmap, .id = ioas, .iova = iova, .length = length};
    int value = result(ioctl(iommufd, IOAS_UNMAP, &unmap));
    return value < 0 ? value : (int64_t)unmap.length;
}

int nv_iommufd_ranges(int iommufd, uint32_t ioas, uint64_t *pairs, uint32_t capacity) {
    struct ioas_ranges ranges = {
        .size = sizeof ranges, .id = ioas, .count = capacity, .ranges = (uint64_t)(uintptr_t)pairs};
    int value = result(ioctl(iommufd, IOAS_RANGES, &ranges));
    // EMSGSIZE: there are more than fit; the first `capacity` were written.
    if (value < 0 && value != -EMSGSIZE) return value;
    return (int)(ranges.count < capacity ? ranges.count : capacity);
}
