// SPDX-License-Identifier: Apache-2.0
// Files that a pool of DMA memory lies in, where its pages are placed, and hypercalls that protect them: functions
// that return a value >= 0 or -errno.
#pragma once

#include <stddef.h>
#include <stdint.h>

// What a file is (fstat, fstatfs), asked of its descriptor and of nothing that could change meanwhile.
struct nv_file_facts {
    uint32_t mode, uid, gid, links;
    int64_t size;
    uint64_t device;         // of the node, when it is one
    int64_t file_system;     // f_type
    int64_t block_size;      // f_bsize: of hugetlbfs the bytes of a page
};
int nv_file_facts(int fd, struct nv_file_facts *_Nonnull facts);
// The same under a name that Swift can tell from the struct's.
static inline int nv_describe_file(int fd, struct nv_file_facts *_Nonnull facts) { return nv_file_facts(fd, facts); }
static const int64_t NV_TMPFS = 0x01021994, NV_HUGETLBFS = 0x958458f6;
// Opens without following any symbolic link on the way (ELOOP); `directory` -1: where the process is, for paths that do
// not begin at the root.
int nv_open_no_links(int directory, const char *_Nonnull path, int flags, unsigned mode);
int nv_mkdir_at(int directory, const char *_Nonnull name, unsigned mode);
int nv_unlink_at(int directory, const char *_Nonnull name);
// An exclusive lock of the open file (flock), or -EAGAIN when another still has it after so many milliseconds.
int nv_lock_open_file(int fd, int milliseconds);
// Takes memory for a stretch of a file, so that no access can fail later.
int nv_reserve_range(int fd, int64_t offset, int64_t length);

// Has pages of a mapping, also those that are there, lie on a NUMA node while that has room (mbind, MPOL_PREFERRED
// with MPOL_MF_MOVE). Of a shared mapping this is remembered with the file: also pages that others make obey it.
int nv_prefer_node(void *_Nonnull address, size_t length, int node);
// The node that a page lies on, which is made when it is not there yet.
int nv_node_of_page(void *_Nonnull address);
// Keeps pages in memory (mlock).
int nv_lock_memory(void *_Nonnull address, size_t length);

// --- hypercalls through /dev/mshv_hvcall (linux/mshv.h of the VTL driver) --------------------------------------
// What is called instead of ioctl in a test.
typedef int (*nv_ioctl_function)(int fd, unsigned long request, void *_Nonnull argument);
// Allows this open file the hypercalls that the bitmap of `length` bytes names (MSHV_HVCALL_SETUP).
int nv_mshv_allow(int fd, const uint64_t *_Nonnull bitmap, size_t length, nv_ioctl_function _Nullable instead);
// Makes a hypercall (MSHV_HVCALL); *status is what the hypervisor answered.
int nv_mshv_hypercall(int fd, uint64_t control, const void *_Nonnull input, size_t length, uint64_t *_Nonnull status,
                      nv_ioctl_function _Nullable instead);
