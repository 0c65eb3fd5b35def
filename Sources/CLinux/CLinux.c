// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define RETRY(expression)                                                                                  \
    ({                                                                                                     \
        __typeof__(expression) result_;                                                                    \
        do {                                                                                               \
            result_ = (expression);                                                                        \
        } while (result_ < 0 && errno == EINTR);                                                           \
        result_ < 0 ? (__typeof__(expression)) - errno : result_;                                          \
    })

int nv_memfd_create(const char *name, int huge_2m) {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (huge_2m) flags |= MFD_HUGETLB | (21u << 26);
    return RETRY(memfd_create(name, flags));
}
int nv_memfd_add_seals(int fd, int seals) { return RETRY(fcntl(fd, F_ADD_SEALS, seals)); }
int nv_memfd_get_seals(int fd) { return RETRY(fcntl(fd, F_GET_SEALS)); }
int nv_ftruncate(int fd, int64_t size) { return RETRY(ftruncate(fd, size)); }

int64_t nv_file_size(int fd) {
    struct stat s;
    if (fstat(fd, &s) < 0) return -errno;
    return s.st_size;
}

int nv_is_shmem(int fd) {
    struct statfs s;
    if (fstatfs(fd, &s) < 0) return -errno;
    return s.f_type == TMPFS_MAGIC;
}

void *nv_map_huge_pages(int fd, const int64_t *offsets, size_t count, int *error) {
    const size_t page = (size_t)1 << 21;
    // Room for the alignment, which is given back.
    char *room = mmap(NULL, (count + 1) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) { *error = -errno; return NULL; }
    char *base = (char *)(((uintptr_t)room + page - 1) & ~(page - 1));
    if (base > room) munmap(room, (size_t)(base - room));
    char *end = room + (count + 1) * page;
    if (end > base + count * page) munmap(base + count * page, (size_t)(end - (base + count * page)));
    for (size_t i = 0; i < count; i++) {
        void *at = mmap(base + i * page, page, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, offsets[i]);
        if (at == MAP_FAILED) {
            *error = -errno;
            munmap(base, count * page);
            return NULL;
        }
    }
    *error = 0;
    return base;
}

int nv_is_hugetlb(int fd) {
    struct statfs s;
    if (fstatfs(fd, &s) < 0) return -errno;
    return s.f_type == HUGETLBFS_MAGIC;
}

int64_t nv_huge_page_size(int fd) {
    struct statfs s;
    if (fstatfs(fd, &s) < 0) return -errno;
    return s.f_type == HUGETLBFS_MAGIC ? (int64_t)s.f_bsize : 0;
}

int64_t nv_character_device(int fd) {
    struct statx s;
    // What the kernel knows without asking: a file system in user space could keep fstat waiting for ever.
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &s) < 0) return -errno;
    return S_ISCHR(s.stx_mode) ? (int64_t)makedev(s.stx_rdev_major, s.stx_rdev_minor) : 0;
}

static void *close_one(void *argument) {
    close((int)(intptr_t)argument);
    return NULL;
}

struct closing {
    int fd, done;
};

static void *close_and_tell(void *argument) {
    struct closing *closing = argument;
    close(closing->fd);
    eventfd_write(closing->done, 1);
    close(closing->done);
    free(closing);
    return NULL;
}

static int in_background(void *(*body)(void *), void *argument) {
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return -ENOMEM;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    // Signals are the main thread's.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

int nv_run_in_background(void *(*body)(void *), void *argument) { return in_background(body, argument); }

int nv_close_in_background(int fd) { return in_background(close_one, (void *)(intptr_t)fd); }

int nv_close_within(int fd, int timeout_ms) {
    int done = eventfd(0, EFD_CLOEXEC);
    int told = done < 0 ? -1 : fcntl(done, F_DUPFD_CLOEXEC, 0);
    struct closing *closing = told < 0 ? NULL : malloc(sizeof *closing);
    if (closing) {
        *closing = (struct closing){.fd = fd, .done = told};
        if (in_background(close_and_tell, closing) == 0) {
            int ready = nv_poll1(done, POLLIN, timeout_ms);
            close(done);
            return ready > 0;
        }
    }
    // Without a thread it is closed here, however long that takes.
    free(closing);
    if (told >= 0) close(told);
    if (done >= 0) close(done);
    close(fd);
    return 1;
}

int nv_punch_hole(int fd, int64_t offset, int64_t length) {
    return RETRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length));
}
int nv_zero_range(int fd, int64_t offset, int64_t length) {
    return RETRY(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length));
}

void *nv_map_shared(int fd, int64_t offset, size_t length, int writable, int *error) {
    void *p = mmap(NULL, length, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, offset);
    *error = p == MAP_FAILED ? -errno : 0;
    return p == MAP_FAILED ? NULL : p;
}
void *nv_map_anonymous(size_t length, int *error) {
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *error = p == MAP_FAILED ? -errno : 0;
    return p == MAP_FAILED ? NULL : p;
}
int nv_unmap(void *address, size_t length) { return RETRY(munmap(address, length)); }
int nv_dont_dump(void *address, size_t length) { return RETRY(madvise(address, length, MADV_DONTDUMP)); }
int nv_advise_random(void *address, size_t length) {
    return RETRY(madvise(address, length, MADV_RANDOM));
}
int nv_msync(void *address, size_t length) { return RETRY(msync(address, length, MS_SYNC)); }

int nv_open(const char *path, int flags, unsigned mode) { return RETRY(open(path, flags | O_CLOEXEC, mode)); }
// Not retried on EINTR: Linux has closed the descriptor by then.
int nv_close(int fd) { return close(fd) < 0 ? -errno : 0; }
int nv_dup_cloexec(int fd) { return RETRY(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

int nv_set_cloexec(int fd, int on) { return RETRY(fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0)); }

int nv_set_nonblocking(int fd, int on) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return -errno;
    flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    return RETRY(fcntl(fd, F_SETFL, flags));
}

int nv_eventfd(void) { return RETRY(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

int nv_eventfd_signal(int fd) {
    uint64_t one = 1;
    ssize_t n = RETRY(write(fd, &one, sizeof one));
    // A full counter is already signalled.
    return n < 0 && n != -EAGAIN ? (int)n : 0;
}

int64_t nv_eventfd_drain(int fd) {
    uint64_t count = 0;
    ssize_t n = RETRY(read(fd, &count, sizeof count));
    if (n == -EAGAIN) return 0;
    return n < 0 ? n : (int64_t)(count & INT64_MAX);
}

int nv_lock_exclusive(int fd, int32_t *holder) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    *holder = 0;
    if (fcntl(fd, F_SETLK, &lock) == 0) return 0;
    if (errno != EACCES && errno != EAGAIN) return -errno;
    lock.l_type = F_WRLCK;
    if (fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) *holder = lock.l_pid;
    return -EAGAIN;
}

ssize_t nv_read(int fd, void *buffer, size_t length) { return RETRY(read(fd, buffer, length)); }
ssize_t nv_write(int fd, const void *buffer, size_t length) { return RETRY(write(fd, buffer, length)); }
ssize_t nv_pread(int fd, void *buffer, size_t length, int64_t offset) {
    return RETRY(pread(fd, buffer, length, offset));
}
ssize_t nv_pwrite(int fd, const void *buffer, size_t length, int64_t offset) {
    return RETRY(pwrite(fd, buffer, length, offset));
}
int nv_fdatasync(int fd) { return RETRY(fdatasync(fd)); }

int nv_poll1(int fd, short events, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = events};
    return RETRY(poll(&p, 1, timeout_ms));
}

int nv_socket_pair(int type, int nonblocking, int *fds) {
    int flags = SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0);
    return RETRY(socketpair(AF_UNIX, type | flags, 0, fds));
}

static int fill_address(struct sockaddr_un *address, const char *path) {
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address->sun_path) return -ENAMETOOLONG;
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length);
    return 0;
}

// Removes a socket file that nobody listens on any more; a live one stays, and bind then says EADDRINUSE.
static void remove_stale_socket(const struct sockaddr_un *address, int type) {
    struct stat s;
    if (lstat(address->sun_path, &s) < 0 || !S_ISSOCK(s.st_mode)) return;
    int probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return;
    if (connect(probe, (const struct sockaddr *)address, sizeof *address) < 0 && errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(probe);
}

int nv_unix_listen(const char *path, int type, int backlog, unsigned mode) {
    struct sockaddr_un address;
    int result = fill_address(&address, path);
    if (result < 0) return result;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    remove_stale_socket(&address, type);
    // No window in which the file has wider permissions than asked for: fchmod before bind sets them.
    if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        chmod(path, mode) < 0 || listen(fd, backlog) < 0) {
        result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

int nv_unix_bind_dgram(const char *path) {
    struct sockaddr_un address;
    int result = fill_address(&address, path);
    if (result < 0) return result;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || chmod(path, 0600) < 0) {
        result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

int nv_unix_connect(const char *path, int type, int nonblocking) {
    struct sockaddr_un address;
    int result = fill_address(&address, path);
    if (result < 0) return result;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (fd < 0) return -errno;
    result = RETRY(connect(fd, (struct sockaddr *)&address, sizeof address));
    if (result < 0) {
        close(fd);
        return result;
    }
    return fd;
}

int nv_accept(int fd, int nonblocking) {
    return RETRY(accept4(fd, NULL, NULL, SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0)));
}
int nv_shutdown(int fd) { return RETRY(shutdown(fd, SHUT_RDWR)); }

int nv_set_buffers(int fd, int bytes) {
    int sent = setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    int received = setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    return sent < 0 || received < 0 ? -errno : 0;
}

int nv_peer_credentials(int fd, struct nv_credentials *out) {
    struct ucred credentials;
    socklen_t length = sizeof credentials;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0) return -errno;
    out->pid = credentials.pid;
    out->uid = credentials.uid;
    out->gid = credentials.gid;
    return 0;
}

int nv_peer_groups(int fd, uint32_t *groups, int capacity) {
    socklen_t length = (socklen_t)capacity * (socklen_t)sizeof *groups;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) < 0) return -errno;
    return (int)(length / sizeof *groups);
}

ssize_t nv_send_message(int fd, const void *head, size_t head_length, const void *body, size_t body_length,
                        const int *fds, int fd_count, int nonblocking) {
    struct iovec parts[2] = {
        {.iov_base = (void *)head, .iov_len = head_length},
        {.iov_base = (void *)body, .iov_len = body_length},
    };
    union {
        char bytes[CMSG_SPACE(sizeof(int) * NV_MAX_MESSAGE_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = body_length ? 2 : 1};
    if (fd_count > NV_MAX_MESSAGE_FDS) return -EMSGSIZE;
    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)fd_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)fd_count);
    }
    return RETRY(sendmsg(fd, &message, MSG_NOSIGNAL | (nonblocking ? MSG_DONTWAIT : 0)));
}

static void collect_control(struct msghdr *message, int *fds, struct nv_message_info *info) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_RIGHTS) {
            int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (int i = 0; i < count; i++) {
                int received;
                memcpy(&received, CMSG_DATA(c) + sizeof(int) * (size_t)i, sizeof received);
                if (fds && info->fd_count < NV_MAX_MESSAGE_FDS) fds[info->fd_count++] = received;
                else close(received);
            }
        } else if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred sender;
            memcpy(&sender, CMSG_DATA(c), sizeof sender);
            info->sender.pid = sender.pid;
            info->sender.uid = sender.uid;
            info->sender.gid = sender.gid;
            info->has_sender = 1;
        }
    }
}

ssize_t nv_receive_message(int fd, void *buffer, size_t length, int *fds, struct nv_message_info *info, int peek,
                           int nonblocking) {
    union {
        char bytes[CMSG_SPACE(sizeof(int) * NV_MAX_MESSAGE_FDS) + CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = buffer, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    memset(info, 0, sizeof *info);
    int flags = MSG_CMSG_CLOEXEC | MSG_TRUNC | (peek ? MSG_PEEK : 0) | (nonblocking ? MSG_DONTWAIT : 0);
    ssize_t n = RETRY(recvmsg(fd, &message, flags));
    if (n < 0) return n;
    collect_control(&message, fds, info);
    info->full_length = n;
    info->truncated = (message.msg_flags & MSG_TRUNC) != 0;
    if (message.msg_flags & MSG_CTRUNC) {
        info->fds_truncated = 1;
        for (int i = 0; i < info->fd_count; i++) close(fds[i]);
        info->fd_count = 0;
    }
    return n > (ssize_t)length ? (ssize_t)length : n;
}

ssize_t nv_peek(int fd, void *buffer, size_t length) {
    return RETRY(recv(fd, buffer, length, MSG_DONTWAIT | MSG_PEEK));
}

int nv_discard_message(int fd) {
    char nothing;
    // No control buffer: the kernel drops the descriptors that came along.
    ssize_t n = RETRY(recv(fd, &nothing, sizeof nothing, MSG_DONTWAIT | MSG_TRUNC));
    return n < 0 ? (int)n : 0;
}

int nv_set_passcred(int fd) {
    int on = 1;
    return RETRY(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
}

// Writes `value` in decimal; only what is safe between fork and exec.
static void write_decimal(char *out, long value) {
    char digits[24];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (count > 0) *out++ = digits[--count];
    *out = 0;
}

static void set_listen_pid(char *const *envp) {
    for (; *envp; envp++)
        if (strncmp(*envp, "LISTEN_PID=", 11) == 0) write_decimal(*envp + 11, (long)getpid());
}

// The child between fork and exec: only async-signal-safe calls.
__attribute__((noreturn)) static void become(const struct nv_spawn *spec, const int *moved, pid_t parent) {
    if (spec->die_with_parent) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(127);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (spec->output >= 0) {
        dup2(spec->output, 1);
        dup2(spec->output, 2);
    }
    for (int i = 0; i < spec->fd_count; i++)
        if (dup2(moved[i], 3 + i) < 0) _exit(126);
    if (spec->set_listen_pid) set_listen_pid(spec->envp);
    execve(spec->path, spec->argv, spec->envp);
    _exit(127);
}

int nv_spawn(const struct nv_spawn *spec, int *pidfd) {
    // The descriptors are first moved above their final places, so that dup2 in the child overwrites none of them.
    int *moved = calloc((size_t)spec->fd_count + 1, sizeof *moved);
    if (!moved) return -ENOMEM;
    int result = 0, count = 0;
    for (; count < spec->fd_count; count++) {
        moved[count] = fcntl(spec->fds[count], F_DUPFD_CLOEXEC, 3 + spec->fd_count);
        if (moved[count] < 0) {
            result = -errno;
            break;
        }
    }
    if (result == 0) {
        pid_t parent = getpid();
        pid_t pid = fork();
        if (pid == 0) become(spec, moved, parent);
        result = pid < 0 ? -errno : pid;
    }
    for (int i = 0; i < count; i++) close(moved[i]);
    free(moved);
    if (result > 0) *pidfd = nv_pidfd_open(result);
    return result;
}

char **nv_environment(void) { return environ; }

int nv_same_open_file(int first, int second) {
    pid_t self = getpid();
    // KCMP_FILE; the header is linux/kcmp.h.
    long result = syscall(SYS_kcmp, self, self, 0, (unsigned long)first, (unsigned long)second);
    return result < 0 ? -errno : result == 0;
}

int nv_pidfd_open(int32_t pid) { return RETRY((int)syscall(SYS_pidfd_open, pid, 0)); }
int nv_pidfd_kill(int pidfd, int signal) {
    return RETRY((int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}
int nv_gettid(void) { return (int)syscall(SYS_gettid); }

int nv_set_affinity(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0 || cpu >= CPU_SETSIZE) return -EINVAL;
    CPU_SET((size_t)cpu, &set);
    return RETRY(sched_setaffinity(0, sizeof set, &set));
}

int nv_prefer_processors(const uint32_t *processors, size_t count) {
    cpu_set_t now, wanted;
    CPU_ZERO(&wanted);
    // More than CPU_SETSIZE of them: EINVAL.
    if (sched_getaffinity(0, sizeof now, &now) < 0) return -errno;
    for (size_t i = 0; i < count; i++)
        if (processors[i] < CPU_SETSIZE && CPU_ISSET(processors[i], &now)) CPU_SET(processors[i], &wanted);
    if (CPU_COUNT(&wanted) == 0 || CPU_EQUAL(&wanted, &now)) return 0;
    return sched_setaffinity(0, sizeof wanted, &wanted) < 0 ? -errno : 1;
}

int nv_set_thread_name(const char *name) { return -pthread_setname_np(pthread_self(), name); }

uint64_t nv_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int nv_raise_nofile_limit(uint64_t wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -errno;
    if (limit.rlim_cur >= wanted) return 0;
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
}

int nv_ignore_sigpipe(void) { return signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -errno : 0; }

int nv_random(void *buffer, size_t length) {
    ssize_t n = RETRY(getrandom(buffer, length, 0));
    return n < 0 ? (int)n : 0;
}

int64_t nv_resident_bytes(int32_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *file = fopen(path, "re");
    if (!file) return -errno;
    long total = 0, resident = 0;
    int fields = fscanf(file, "%ld %ld", &total, &resident);
    fclose(file);
    return fields == 2 ? (int64_t)resident * sysconf(_SC_PAGESIZE) : -EIO;
}
