// SPDX-License-Identifier: Apache-2.0
// VFIO and iommufd requests (linux/vfio.h of 6.1, linux/iommufd.h of 6.2 and later), as functions that return a
// value >= 0 or -errno. What the kernel tells comes back as bytes, which the caller checks.
#pragma once

#include <stddef.h>
#include <stdint.h>

// --- any info request: {argsz, flags, …}; `argsz` is set to `length` here ---------------------------------------
enum { NV_VFIO_DEVICE_INFO = 0, NV_VFIO_REGION_INFO = 1, NV_VFIO_IRQ_INFO = 2, NV_VFIO_IOMMU_INFO = 3 };
int nv_vfio_info(int fd, int what, void *_Nonnull buffer, uint32_t length);

// --- container and group (the classic interface) --------------------------------------------------------------
static const uint64_t NV_VFIO_TYPE1V2 = 3, NV_VFIO_NOIOMMU = 8, NV_VFIO_UNMAP_ALL = 9;
int nv_vfio_api_version(int container);
int nv_vfio_has_extension(int container, uint64_t extension);
int nv_vfio_set_iommu(int container, uint64_t type);
int nv_vfio_group_flags(int group);
static const int NV_VFIO_GROUP_VIABLE = 1, NV_VFIO_GROUP_HAS_CONTAINER = 2;
int nv_vfio_set_container(int group, int container);
int nv_vfio_device_fd(int group, const char *_Nonnull name);
int nv_vfio_map_dma(int container, uint64_t address, uint64_t iova, uint64_t length, int device_writes);
// How many bytes were unmapped.
int64_t nv_vfio_unmap_dma(int container, uint64_t iova, uint64_t length);
int nv_vfio_unmap_all(int container);

// --- device ------------------------------------------------------------------------------------------------------
// Connects interrupts 0…count-1 of an index with eventfds; count 0 disconnects all.
int nv_vfio_set_irqs(int device, uint32_t index, const int *_Nullable fds, uint32_t count);
int nv_vfio_reset(int device);
// Whether the slot or the bus of the device could be reset: 0, or -ENODEV when neither can.
int nv_vfio_hot_reset_possible(int device);

// --- iommufd -------------------------------------------------------------------------------------------------------
int nv_vfio_bind_iommufd(int device, int iommufd);
int nv_vfio_attach_ioas(int device, uint32_t ioas);
int nv_iommufd_alloc_ioas(int iommufd, uint32_t *_Nonnull ioas);
int nv_iommufd_map(int iommufd, uint32_t ioas, uint64_t address, uint64_t iova, uint64_t length, int device_writes);
// How many bytes were unmapped.
int64_t nv_iommufd_unmap(int iommufd, uint32_t ioas, uint64_t iova, uint64_t length);
// Writes at most `capacity` pairs {first, last} and returns how many there are.
int nv_iommufd_ranges(int iommufd, uint32_t ioas, uint64_t *_Nonnull pairs, uint32_t capacity);
