// SPDX-License-Identifier: Apache-2.0
// What a data thread needs of the kernel: a thread, a futex, epoll with edges, and a wake that never blocks.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct start {
    void (*body)(void *);
    void *argument;
    char name[16];
    int cpu;
};

static void *run(void *argument) {
    struct start start = *(struct start *)argument;
    free(argument);
    // Signals are the control thread's.
    sigset_t all;
    sigfillset(&all);
    // A fault in memory of others has to be handled where it happens.
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    nv_set_thread_name(start.name);
    if (start.cpu >= 0) nv_set_affinity(start.cpu);
    start.body(start.argument);
    return NULL;
}

int nv_thread_start(void (*body)(void *), void *argument, const char *name, int cpu, uint64_t *thread) {
    struct start *start = calloc(1, sizeof *start);
    if (!start) return -ENOMEM;
    start->body = body;
    start->argument = argument;
    start->cpu = cpu;
    for (size_t i = 0; i + 1 < sizeof start->name && name[i]; i++) start->name[i] = name[i];
    // Signals that come before the thread has blocked them would be handled by it.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t handle;
    int failed = pthread_create(&handle, NULL, run, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(start);
        return -failed;
    }
    *thread = (uint64_t)handle;
    return 0;
}

int nv_thread_join(uint64_t thread) { return -pthread_join((pthread_t)thread, NULL); }

int nv_futex_wait(void *word, uint32_t expected, int64_t timeout_ns) {
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    long result = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_ns < 0 ? NULL : &timeout, NULL, 0);
    return result < 0 ? -errno : 0;
}

int nv_futex_wake(void *word) {
    long result = syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    return result < 0 ? -errno : (int)result;
}

int nv_epoll_create(void) {
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int nv_epoll_add_edge(int epoll, int fd, uint64_t data) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u64 = data}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int nv_epoll_remove(int epoll, int fd) {
    struct epoll_event event = {0};
    return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &event) < 0 ? -errno : 0;
}

int nv_epoll_wait(int epoll, int64_t timeout_ns, uint64_t *seen) {
    struct epoll_event events[16];
    struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int count = epoll_pwait2(epoll, events, 16, timeout_ns < 0 ? NULL : &timeout, NULL);
    if (count < 0 && errno == ENOSYS) {
        int64_t milliseconds = timeout_ns < 0 ? -1 : (timeout_ns + 999999) / 1000000;
        count = epoll_wait(epoll, events, 16, milliseconds > INT32_MAX ? INT32_MAX : (int)milliseconds);
    }
    *seen = 0;
    for (int i = 0; i < count; i++) *seen |= 1ull << (events[i].data.u64 < 63 ? events[i].data.u64 : 63);
    return count < 0 ? -errno : count;
}

void nv_give_way(void) { sched_yield(); }

int nv_send_wake(int fd) {
    char byte = 1;
    ssize_t sent = send(fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent < 0 ? -errno : 0;
}
