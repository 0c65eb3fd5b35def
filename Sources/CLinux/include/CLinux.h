// SPDX-License-Identifier: Apache-2.0
// System calls that Swift cannot reach: GNU-only functions, variadics, CMSG macros, ioctl numbers.
// Every function returns a value >= 0, or -errno; nothing here sets or reads errno for its caller.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "CLinuxPool.h"
#include "CLinuxVFIO.h"

// The most file descriptors one message may carry.
#define NV_MAX_MESSAGE_FDS 16

// --- memory files -------------------------------------------------------------------------------------------
int nv_memfd_create(const char *_Nonnull name, int huge_2m);
int nv_memfd_add_seals(int fd, int seals);
int nv_memfd_get_seals(int fd);
int nv_ftruncate(int fd, int64_t size);
int64_t nv_file_size(int fd);
// 1 when the file lives on tmpfs (what memfd_create without hugetlb gives), 0 when not.
int nv_is_shmem(int fd);
// 1 when the file is made of huge pages, 0 when not.
int nv_is_hugetlb(int fd);
// Bytes of a page of a file of huge pages; 0 when it is not one.
int64_t nv_huge_page_size(int fd);
// The number (st_rdev) of the character device that a descriptor is open on; 0 when it is something else. Never
// waits for a file system.
int64_t nv_character_device(int fd);
int nv_punch_hole(int fd, int64_t offset, int64_t length);
int nv_zero_range(int fd, int64_t offset, int64_t length);
static const int NV_SEAL_SEAL = 1, NV_SEAL_SHRINK = 2, NV_SEAL_GROW = 4, NV_SEAL_WRITE = 8;

// Maps `length` bytes of `fd` shared; NULL and *error = -errno on failure.
void *_Nullable nv_map_shared(int fd, int64_t offset, size_t length, int writable, int *_Nonnull error);
// Maps huge pages (2 MiB) of `fd` at these offsets one after the other, shared and present.
void *_Nullable nv_map_huge_pages(int fd, const int64_t *_Nonnull offsets, size_t count, int *_Nonnull error);
// Maps `length` bytes of private anonymous zeroes.
void *_Nullable nv_map_anonymous(size_t length, int *_Nonnull error);
int nv_unmap(void *_Nonnull address, size_t length);
int nv_dont_dump(void *_Nonnull address, size_t length);
// Random access: a fault reads its own page, not its neighbours.
int nv_advise_random(void *_Nonnull address, size_t length);
int nv_msync(void *_Nonnull address, size_t length);

// --- descriptors --------------------------------------------------------------------------------------------
int nv_open(const char *_Nonnull path, int flags, unsigned mode);
int nv_close(int fd);
// Closes in a thread of its own: the last close of a VFIO device may sleep in a reset of the function.
int nv_close_in_background(int fd);
// Closes in a thread of its own and waits for that, but no longer than so many milliseconds: the last
// close of a VFIO device may sleep for minutes in a reset. Returns whether it has been closed by now.
int nv_close_within(int fd, int timeout_ms);
int nv_dup_cloexec(int fd);
int nv_set_cloexec(int fd, int on);
int nv_set_nonblocking(int fd, int on);
int nv_eventfd(void);
int nv_eventfd_signal(int fd);
// The counter, which it resets; 0 when nothing was signalled.
int64_t nv_eventfd_drain(int fd);
// A POSIX write lock on the whole file (F_SETLK): 0, or -EAGAIN with *holder the pid that has it.
int nv_lock_exclusive(int fd, int32_t *_Nonnull holder);
ssize_t nv_read(int fd, void *_Nonnull buffer, size_t length);
ssize_t nv_write(int fd, const void *_Nonnull buffer, size_t length);
ssize_t nv_pread(int fd, void *_Nonnull buffer, size_t length, int64_t offset);
ssize_t nv_pwrite(int fd, const void *_Nonnull buffer, size_t length, int64_t offset);
int nv_fdatasync(int fd);
// Waits for readiness: 1 ready, 0 timed out, -errno. timeout_ms < 0 waits for ever.
int nv_poll1(int fd, short events, int timeout_ms);
static const int16_t NV_POLLIN = 1, NV_POLLOUT = 4;

// --- Unix sockets -------------------------------------------------------------------------------------------
static const int NV_SEQPACKET = 5, NV_STREAM = 1, NV_DGRAM = 2;
// Sockets are born close-on-exec; `nonblocking` is per call.
int nv_socket_pair(int type, int nonblocking, int *_Nonnull fds);
// Binds (replacing a stale socket file), sets `mode` on the file, listens.
int nv_unix_listen(const char *_Nonnull path, int type, int backlog, unsigned mode);
int nv_unix_bind_dgram(const char *_Nonnull path);
int nv_unix_connect(const char *_Nonnull path, int type, int nonblocking);
int nv_accept(int fd, int nonblocking);
int nv_shutdown(int fd);
int nv_set_buffers(int fd, int bytes);
struct nv_credentials { int32_t pid; uint32_t uid; uint32_t gid; };
int nv_peer_credentials(int fd, struct nv_credentials *_Nonnull out);
// The peer's supplementary groups at connect time: how many were written, or -errno.
int nv_peer_groups(int fd, uint32_t *_Nonnull groups, int capacity);

struct nv_message_info {
    int fd_count;        // descriptors received, close-on-exec
    int truncated;       // payload larger than the buffer
    int fds_truncated;   // more descriptors than NV_MAX_MESSAGE_FDS; those received were closed
    int64_t full_length; // the payload's true length (SEQPACKET, DGRAM)
    struct nv_credentials sender;  // of datagrams on a socket with nv_set_passcred
    int has_sender;
};
ssize_t nv_send_message(int fd, const void *_Nullable head, size_t head_length, const void *_Nullable body,
                        size_t body_length, const int *_Nullable fds, int fd_count, int nonblocking);
ssize_t nv_receive_message(int fd, void *_Nullable buffer, size_t length, int *_Nullable fds,
                           struct nv_message_info *_Nonnull info, int peek, int nonblocking);
// Copies what waits on a stream socket and leaves it there, without its descriptors: bytes up to and including those
// that came with the next descriptor; 0 at the end, -EAGAIN when nothing waits. Never waits.
ssize_t nv_peek(int fd, void *_Nonnull buffer, size_t length);
// Takes the next message off a SEQPACKET socket and throws it and its descriptors away.
int nv_discard_message(int fd);
int nv_set_passcred(int fd);

// --- processes, threads, time -------------------------------------------------------------------------------
struct nv_spawn {
    const char *_Nonnull path;
    char *const _Nullable *_Nonnull argv;
    char *const _Nullable *_Nonnull envp;
    const int *_Nullable fds;   // become 3, 4, 5… in the child
    int fd_count;
    int output;                 // becomes stdout and stderr; -1 leaves them
    int set_listen_pid;         // replace the value of LISTEN_PID= in envp by the child's pid
    int die_with_parent;        // SIGKILL when the parent's thread ends
};
// The child's pid, with *pidfd a pidfd of it.
int nv_spawn(const struct nv_spawn *_Nonnull spec, int *_Nonnull pidfd);
// The same under a name that Swift can tell from the struct's.
static inline int nv_spawn_process(const struct nv_spawn *_Nonnull spec, int *_Nonnull pidfd) {
    return nv_spawn(spec, pidfd);
}
// The variables of this process, `NAME=value` each, ended by NULL.
char *_Nullable *_Nonnull nv_environment(void);
// 1 when both descriptors of this process are the same open file (kcmp), 0 when not; -errno where kcmp is forbidden.
int nv_same_open_file(int first, int second);
int nv_pidfd_open(int32_t pid);
int nv_pidfd_kill(int pidfd, int signal);
int nv_gettid(void);
int nv_set_affinity(int cpu);
// Keeps this thread on those of the processors that it may run on now: 1; 0 when these are none, or all it has.
int nv_prefer_processors(const uint32_t *_Nonnull processors, size_t count);
// Runs `body` in a detached thread that takes no signals.
int nv_run_in_background(void *_Nullable (*_Nonnull body)(void *_Nullable), void *_Nullable argument);
int nv_set_thread_name(const char *_Nonnull name);
uint64_t nv_monotonic_ns(void);
int nv_raise_nofile_limit(uint64_t wanted);
int nv_ignore_sigpipe(void);
int nv_random(void *_Nonnull buffer, size_t length);
int64_t nv_resident_bytes(int32_t pid);

// --- memory that somebody else may truncate (Guard.c) ---------------------------------------------------------
// Touching a mapped page past the end of a file raises SIGBUS, and whoever holds the file can bring that about.
// A guarded range survives it: the handler puts a private zero page under the fault, counts it and resumes.
// Everywhere else SIGBUS keeps its meaning: the process dies.
int nv_install_sigbus_handler(void);
// Guards `length` bytes; `page_size` is that of the mapping (larger than 4096 for hugetlb). The number of the
// guard, or -ENOSPC when all are taken. Add after mmap, remove before munmap; one thread adds and removes.
int nv_guard_add(const void *_Nonnull base, size_t length, size_t page_size);
void nv_guard_remove(int guard);
// How many faults the range has had since it was added: not 0 means that its contents are no longer shared.
uint32_t nv_guard_faults(int guard);
// All faults survived since the start.
uint64_t nv_sigbus_count(void);

// --- plain event loops (Loop.c), for programs that do without libsystemd ---------------------------------------
struct nv_poll_entry { int fd; int16_t events; int16_t revents; };  // as struct pollfd
// ppoll: how many are ready, 0 when timeout_ns passed (< 0 waits for ever), -EINTR.
int nv_poll_many(struct nv_poll_entry *_Nonnull entries, int count, int64_t timeout_ns);
// Blocks SIGTERM and SIGINT and returns a descriptor that becomes readable when one arrives.
int nv_termination_fd(void);
// Sends one datagram to $NOTIFY_SOCKET; 0 also when there is none.
int nv_notify_plain(const char *_Nonnull message);

// --- files that may block in the kernel for ever (Bounded.c) ----------------------------------------------------
#define NV_BOUNDED_READ_MAX 4096
// Writes to `count` files in turn, in a process of its own that nobody waits for longer than timeout_ms. `steps` is
// "path NUL value NUL" for each. 0, or -errno with *step the one that failed; -ETIMEDOUT: the process *pid goes on.
int nv_write_bounded(const char *_Nonnull steps, int count, int timeout_ms, int *_Nonnull step, int32_t *_Nonnull pid);
// Reads at most NV_BOUNDED_READ_MAX bytes in the same way: how many, or -errno.
ssize_t nv_read_bounded(const char *_Nonnull path, void *_Nonnull buffer, size_t length, int timeout_ms,
                        int32_t *_Nonnull pid);

// --- data threads (DataThread.c) ---------------------------------------------------------------------------------
// Starts a thread with all signals blocked but those of faults; on processor `cpu` unless that is below 0.
int nv_thread_start(void (*_Nonnull body)(void *_Nullable), void *_Nullable argument, const char *_Nonnull name,
                    int cpu, uint64_t *_Nonnull thread);
int nv_thread_join(uint64_t thread);
// FUTEX_WAIT on a word of this process: 0 woken, -EAGAIN it has another value, -ETIMEDOUT, -EINTR.
int nv_futex_wait(void *_Nonnull word, uint32_t expected, int64_t timeout_ns);
int nv_futex_wake(void *_Nonnull word);
// epoll; descriptors are watched for edges and never read, so that nobody else can make the waiter spin or hang.
int nv_epoll_create(void);
int nv_epoll_add_edge(int epoll, int fd, uint64_t data);
int nv_epoll_remove(int epoll, int fd);
// How many are ready, 0 when timeout_ns passed (< 0 waits for ever), -EINTR. *seen gets a bit for the data of each that
// is ready, bit 63 for all from 63 on.
int nv_epoll_wait(int epoll, int64_t timeout_ns, uint64_t *_Nonnull seen);
// Lets others run on this processor, if any wait for it.
void nv_give_way(void);
// Sends one byte on a socket; -EAGAIN when its peer does not read.
int nv_send_wake(int fd);
