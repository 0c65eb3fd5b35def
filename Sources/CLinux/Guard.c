// SPDX-License-Identifier: Apache-2.0
// Survives SIGBUS in memory that somebody else may truncate.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

// Regions, rings and BARs of one process: the most a vfio-user client may map (4096) and as many again for others.
#define GUARDS 8192

// The handler runs on the faulting thread and may meet a guard that another thread is adding: `length` is written
// last and cleared first, so a guard is seen whole or not at all.
static struct guard {
    atomic_uintptr_t base;
    atomic_size_t length;
    atomic_size_t page_size;
    atomic_uint faults;
} guards[GUARDS];
static atomic_int used;  // guards at and above this index were never taken
static atomic_ullong survived;

static struct guard *find(uintptr_t address) {
    int count = atomic_load(&used);
    for (int i = 0; i < count; i++) {
        size_t length = atomic_load(&guards[i].length);
        if (length && address - atomic_load(&guards[i].base) < length) return &guards[i];
    }
    return NULL;
}

static void handle(int number, siginfo_t *info, void *context) {
    (void)context;
    int saved = errno;
    uintptr_t address = (uintptr_t)info->si_addr;
    struct guard *guard = info->si_code > 0 ? find(address) : NULL;
    if (guard) {
        size_t size = atomic_load(&guard->page_size);
        void *page = (void *)(address & ~(uintptr_t)(size - 1));
        // mmap is a bare system call: safe in a handler. The page is writable whatever the mapping was, so that
        // a store cannot fault for ever.
        if (mmap(page, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page) {
            atomic_fetch_add(&guard->faults, 1);
            atomic_fetch_add(&survived, 1);
            errno = saved;
            return;
        }
    }
    // Not ours: the default action when the instruction faults again (a sent signal is raised again).
    signal(number, SIG_DFL);
    if (info->si_code <= 0) raise(number);
    errno = saved;
}

int nv_install_sigbus_handler(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

int nv_guard_add(const void *base, size_t length, size_t page_size) {
    if (!base || !length || !page_size || (page_size & (page_size - 1))) return -EINVAL;
    for (int i = 0; i < GUARDS; i++) {
        if (atomic_load(&guards[i].length)) continue;
        atomic_store(&guards[i].base, (uintptr_t)base);
        atomic_store(&guards[i].page_size, page_size);
        atomic_store(&guards[i].faults, 0);
        atomic_store(&guards[i].length, length);
        if (i >= atomic_load(&used)) atomic_store(&used, i + 1);
        return i;
    }
    return -ENOSPC;
}

void nv_guard_remove(int guard) {
    if (guard >= 0 && guard < GUARDS) atomic_store(&guards[guard].length, 0);
}

uint32_t nv_guard_faults(int guard) {
    return guard >= 0 && guard < GUARDS ? atomic_load(&guards[guard].faults) : 0;
}

uint64_t nv_sigbus_count(void) { return atomic_load(&survived); }
