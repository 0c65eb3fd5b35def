// SPDX-License-Identifier: Apache-2.0
// What Swift cannot say to libsystemd and to its own runtime.
#include "CSystemdShim.h"

typedef __attribute__((swiftcall)) void (*original)(void *job);
extern __attribute__((swiftcall)) void (*swift_task_enqueueGlobal_hook)(void *job, original);

static void (*take)(void *job);

static __attribute__((swiftcall)) void enqueue_global(void *job, original unused) {
    (void)unused;
    take(job);
}

void nv_take_global_jobs(void (*enqueue)(void *job)) {
    take = enqueue;
    swift_task_enqueueGlobal_hook = enqueue_global;
}
