// SPDX-License-Identifier: Apache-2.0
// What Swift cannot say to libsystemd and to its own runtime.
#pragma once

// From now on, jobs that belong to no particular executor go to `enqueue` instead of the thread pool of Dispatch.
// The runtime offers this as a variable of its own calling convention, which only C can fill. Needed because a task
// without an executor preference resumes from `await` by way of the global executor, even on its way to an actor.
void nv_take_global_jobs(void (*_Nonnull enqueue)(void *_Nonnull job));
