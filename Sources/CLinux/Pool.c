// SPDX-License-Identifier: Apache-2.0
// Files that a pool of DMA memory lies in, and where its pages are placed.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <stdbool.h>
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

static int open_at(int directory, const char *name, int flags, unsigned mode) {
    int fd;
    do {
        fd = openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    if (fd >= 0) return fd;
    // Of a directory that is wanted and is a link the kernel says ENOTDIR.
    struct stat s;
    const int error = errno;
    if (error != ENOTDIR || fstatat(directory, name, &s, AT_SYMLINK_NOFOLLOW) < 0) return -error;
    return S_ISLNK(s.st_mode) ? -ELOOP : -error;
}

// One name after the other: openat2 (RESOLVE_NO_SYMLINKS) does it at once, but a unit with RestrictSUIDSGID= has none.
int nv_open_no_links(int directory, const char *path, int flags, unsigned mode) {
    char names[PATH_MAX];
    const size_t length = strlen(path);
    if (length == 0) return -ENOENT;
    if (length >= sizeof names) return -ENAMETOOLONG;
    memcpy(names, path, length + 1);
    int from = directory < 0 ? AT_FDCWD : directory;
    int between = path[0] == '/' ? open_at(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0) : -1;
    if (between < 0 && path[0] == '/') return between;
    char *rest = names + strspn(names, "/");
    for (;;) {
        char *end = rest + strcspn(rest, "/");
        char *next = end + strspn(end, "/");
        const bool is_last = *next == 0;
        *end = 0;
        const int fd = open_at(
            between < 0 ? from : between, *rest ? rest : ".", is_last ? flags : O_PATH | O_DIRECTORY,
            is_last && (flags & O_CREAT) ? mode : 0);
        if (between >= 0) close(between);
        if (fd < 0 || is_last) return fd;
        between = fd;
        rest = next;
    }
}

int nv_mkdir_at(int directory, const char *name, unsigned mode) { return result(mkdirat(directory, name, mode)); }
int nv_unlink_at(int directory, const char *name) { return result(unlinkat(directory, name, 0)); }

int nv_lock_open_file(int fd, int milliseconds) {
    // No event tells of the end of a lock: like a register without an interrupt it has to be asked.
    const int interval = 5;
    for (;; milliseconds -= interval) {
        const int value = result(flock(fd, LOCK_EX | LOCK_NB));
        if (value != -EAGAIN || milliseconds <= 0) return value;
        poll(NULL, 0, interval);
    }
}

int nv_reserve_range(int fd, int64_t offset, int64_t length) {
    int value;
    do {
        value = fallocate(fd, 0, offset, length);
    } while (value < 0 && errno == EINTR);
    return result(value);
}

int nv_prefer_node(void *address, size_t length, int node) {
    unsigned long mask[16] = {0};
    const int bits = 8 * sizeof mask[0];
    if (node < 0 || node >= 16 * bits - 1) return -EINVAL;
    mask[node / bits] = 1UL << (node % bits);
    // The kernel takes one bit less than it is told.
    return result(syscall(SYS_mbind, address, length, MPOL_PREFERRED, mask, 16UL * bits, MPOL_MF_MOVE));
}

int nv_node_of_page(void *address) {
    // move_pages would tell too, without making the page; but a unit that is not to do anything to other processes
    // has not got it.
    int node = -1;
    if (syscall(SYS_get_mempolicy, &node, NULL, 0UL, address, MPOL_F_NODE | MPOL_F_ADDR) < 0) return -errno;
    return node;
}

int nv_lock_memory(void *address, size_t length) { return result(mlock(address, length)); }
