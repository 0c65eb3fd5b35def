// SPDX-License-Identifier: Apache-2.0
// Files that a pool of DMA memory lies in, and where its pages are placed.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

static int result(long value) { return value < 0 ? -errno : (int)value; }

int nv_file_facts(int fd, struct nv_file_facts *facts) {
    struct stat s;
    struct statfs f;
    if (fstat(fd, &s) < 0 || fstatfs(fd, &f) < 0) return -errno;
    *facts = (struct nv_file_facts){
        .mode = s.st_mode,
        .uid = s.st_uid,
        .gid = s.st_gid,
        .links = s.st_nlink > UINT32_MAX ? UINT32_MAX : (uint32_t)s.st_nlink,
        .size = s.st_size,
        .device = s.st_rdev,
        .file_system = f.f_type,
        .block_size = f.f_bsize,
    };
    return 0;
}

int nv_open_no_links(int directory, const char *path, int flags, unsigned mode) {
    struct open_how how = {
        .flags = (unsigned)flags | O_CLOEXEC,
        .mode = flags & O_CREAT ? mode : 0,
        .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    long fd;
    do {
        fd = syscall(SYS_openat2, directory < 0 ? AT_FDCWD : directory, path, &how, sizeof how);
    } while (fd < 0 && errno == EINTR);
    return result(fd);
}

int nv_mkdir_at(int directory, const char *name, unsigned mode) { return result(mkdirat(directory, name, mode)); }
int nv_unlink_at(int directory, const char *name) { return result(unlinkat(directory, name, 0)); }

int nv_lock_open_file(int fd) { return result(flock(fd, LOCK_EX | LOCK_NB)); }

int nv_reserve_range(int fd, int64_t offset, int64_t length) {
    int value;
    do {
        value = fallocate(fd, 0, offset, length);
    } while (value < 0 && errno == EINTR);
    return result(value);
}

int nv_bind_to_node(void *address, size_t length, int node) {
    unsigned long mask[16] = {0};
    const int bits = 8 * sizeof mask[0];
    if (node < 0 || node >= 16 * bits - 1) return -EINVAL;
    mask[node / bits] = 1UL << (node % bits);
    // The kernel takes one bit less than it is told.
    return result(syscall(SYS_mbind, address, length, MPOL_BIND, mask, 16UL * bits, MPOL_MF_MOVE));
}

int nv_node_of_page(void *address) {
    int status = -ENOENT;
    if (syscall(SYS_move_pages, 0, 1UL, &address, NULL, &status, 0) < 0) return -errno;
    return status;
}

int nv_lock_memory(void *address, size_t length) { return result(mlock(address, length)); }
