// SPDX-License-Identifier: Apache-2.0
// Reading and writing of files that may block in the kernel for ever: a sysfs write that unbinds a driver waits,
// uninterruptibly, for whoever has the device open, and takes a lock for which every other access then waits.
// A thread in there would keep its process from ever ending, so a process of its own does it, and nobody's child.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// What the process writes to its pipe: the first as soon as it runs, the second when it is done; then data.
struct done { int32_t result; int32_t step; };

// Leaves nothing of the caller in the process but the pipe, as descriptor 3.
static void isolate(int pipe_fd) {
    setsid();
    int null_fd = open("/dev/null", O_RDWR);
    if (pipe_fd == 3) {
        fcntl(3, F_SETFD, 0);
    } else {
        dup2(pipe_fd, 3);
    }
    for (int fd = 0; fd < 3 && null_fd >= 0; fd++) {
        dup2(null_fd, fd);
    }
    syscall(SYS_close_range, 4u, ~0u, 0u);
}

static void tell(const void *bytes, size_t length) {
    ssize_t ignored = write(3, bytes, length);
    (void)ignored;
}

static _Noreturn void run_writes(const char *steps, int count) {
    struct done done = {0, 0};
    for (int i = 0; i < count && done.result == 0; i++) {
        const char *path = steps;
        const char *value = path + strlen(path) + 1;
        steps = value + strlen(value) + 1;
        done.step = i;
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, value, strlen(value)) < 0) {
            done.result = -errno;
        }
        if (fd >= 0) {
            close(fd);
        }
    }
    tell(&done, sizeof done);
    _exit(0);
}

static _Noreturn void run_read(const char *path) {
    struct done done = {0, 0};
    char data[NV_BOUNDED_READ_MAX];
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (fd >= 0 && length < sizeof data) {
        ssize_t count = read(fd, data + length, sizeof data - length);
        if (count <= 0) {
            done.result = count < 0 ? -errno : 0;
            break;
        }
        length += (size_t)count;
    }
    if (fd < 0) {
        done.result = -errno;
    }
    tell(&done, sizeof done);
    tell(data, length);
    _exit(0);
}

// Starts the process as nobody's child; the reading end of its pipe, or -errno.
static int start(const char *steps, int count) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        return -errno;
    }
    pid_t child = fork();
    if (child == 0) {
        if (fork() != 0) {
            _exit(0);
        }
        isolate(fds[1]);
        int32_t pid = getpid();
        tell(&pid, sizeof pid);
        if (count > 0) {
            run_writes(steps, count);
        }
        run_read(steps);
    }
    int error = child < 0 ? -errno : 0;
    close(fds[1]);
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    if (error < 0) {
        close(fds[0]);
        return error;
    }
    return fds[0];
}

static int remaining_ms(uint64_t deadline) {
    uint64_t now = nv_monotonic_ns();
    uint64_t left = deadline > now ? (deadline - now + 999999) / 1000000 : 0;
    return left > INT32_MAX ? INT32_MAX : (int)left;
}

// Reads the pipe to its end or until `length` bytes are there; -ETIMEDOUT when the time is up.
static ssize_t take(int fd, void *buffer, size_t length, uint64_t deadline) {
    size_t done = 0;
    while (done < length) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        int ready = poll(&entry, 1, remaining_ms(deadline));
        if (ready < 0 && errno != EINTR) {
            return -errno;
        }
        if (ready == 0) {
            return -ETIMEDOUT;
        }
        if (ready < 0) {
            continue;
        }
        ssize_t count = read(fd, (char *)buffer + done, length - done);
        if (count <= 0) {
            break;
        }
        done += (size_t)count;
    }
    return (ssize_t)done;
}

static ssize_t finish(int fd, int timeout_ms, int *step, int32_t *pid, void *buffer, size_t length) {
    uint64_t deadline = nv_monotonic_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;
    struct done done = {0, 0};
    ssize_t count = take(fd, pid, sizeof *pid, deadline);
    if (count == (ssize_t)sizeof *pid) {
        count = take(fd, &done, sizeof done, deadline);
    }
    // Without an answer the process was killed, or never ran.
    ssize_t result = count < 0 ? count : count < (ssize_t)sizeof done ? -ECHILD : done.result;
    *step = done.step;
    if (result == 0 && length > 0) {
        result = take(fd, buffer, length, deadline);
    }
    close(fd);
    return result;
}

int nv_write_bounded(const char *steps, int count, int timeout_ms, int *step, int32_t *pid) {
    *step = 0;
    *pid = 0;
    int fd = count > 0 ? start(steps, count) : -EINVAL;
    return fd < 0 ? fd : (int)finish(fd, timeout_ms, step, pid, NULL, 0);
}

ssize_t nv_read_bounded(const char *path, void *buffer, size_t length, int timeout_ms, int32_t *pid) {
    int step = 0;
    *pid = 0;
    int fd = start(path, 0);
    return fd < 0 ? fd : finish(fd, timeout_ms, &step, pid, buffer, length);
}
