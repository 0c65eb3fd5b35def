// SPDX-License-Identifier: Apache-2.0
// The layout of a worker's statistics (Proto/statistics.md, version 1), and the arithmetic of its histograms.
// Writer and readers share it.
#pragma once

#include <stdint.h>

// The bytes "NVMEDSTA" as a little-endian number.
#define NV_STATISTICS_MAGIC 0x415453444553564EULL

enum {
    NV_STATISTICS_VERSION = 1,
    NV_STATISTICS_HEADER_BYTES = 4096,
    NV_STATISTICS_BLOCK_BYTES = 6144,
    NV_STATISTICS_BLOCKS = 1024,

    // The header.
    NV_STATISTICS_OFFSET_MAGIC = 0,
    NV_STATISTICS_OFFSET_VERSION = 8,
    NV_STATISTICS_OFFSET_HEADER_BYTES = 12,
    NV_STATISTICS_OFFSET_BLOCK_BYTES = 16,
    NV_STATISTICS_OFFSET_BLOCKS = 20,
    NV_STATISTICS_OFFSET_BUCKETS = 24,
    NV_STATISTICS_OFFSET_TICK_NS = 28,
    NV_STATISTICS_OFFSET_START_NS = 32,
    NV_STATISTICS_OFFSET_PID = 40,
    NV_STATISTICS_OFFSET_SEQUENCE = 64,
    NV_STATISTICS_OFFSET_USED = 68,

    // A block.
    NV_STATISTICS_BLOCK_KIND = 0,
    NV_STATISTICS_BLOCK_QUEUE = 4,
    NV_STATISTICS_BLOCK_SESSION = 8,
    NV_STATISTICS_BLOCK_RING = 16,
    NV_STATISTICS_BLOCK_NAMESPACE = 20,
    NV_STATISTICS_BLOCK_NAME_BYTES = 24,
    NV_STATISTICS_BLOCK_NAME = 32,
    NV_STATISTICS_NAME_BYTES = 64,
    NV_STATISTICS_BLOCK_COUNTERS = 128,
    NV_STATISTICS_COUNTERS = 32,
    NV_STATISTICS_BLOCK_HISTOGRAMS = 384,
    NV_STATISTICS_HISTOGRAMS = 3,
    NV_STATISTICS_BUCKETS = 240,
    NV_STATISTICS_HISTOGRAM_BYTES = NV_STATISTICS_BUCKETS * 8,

    // What a block is about.
    NV_STATISTICS_KIND_FREE = 0,
    NV_STATISTICS_KIND_QUEUE = 1,
    NV_STATISTICS_KIND_RING = 2,
    NV_STATISTICS_KIND_SESSION = 3,
    NV_STATISTICS_KIND_NAMESPACE = 4,

    // Counters, by index.
    NV_STATISTICS_SUBMITTED = 0,
    NV_STATISTICS_BYTES_READ = 1,
    NV_STATISTICS_BYTES_WRITTEN = 2,
    NV_STATISTICS_FLUSHES = 3,
    NV_STATISTICS_ERRORS = 4,
    NV_STATISTICS_BOUNCED = 5,
    NV_STATISTICS_LIMITED = 6,
    NV_STATISTICS_KICKS = 7,
    NV_STATISTICS_WAKES = 8,
    NV_STATISTICS_DOORBELLS = 9,
    NV_STATISTICS_ROUNDS = 10,
    NV_STATISTICS_SPINS = 11,
    NV_STATISTICS_SLEEPS = 12,
    NV_STATISTICS_INTERRUPTS = 13,

    // Histograms, by index.
    NV_STATISTICS_READ = 0,
    NV_STATISTICS_WRITE = 1,
    NV_STATISTICS_OTHER = 2,
};

// The bucket of a time in ticks: each tick below 16 has its own, then eight for each power of two.
static inline __attribute__((always_inline)) uint32_t nv_statistics_bucket(uint32_t ticks) {
    uint32_t shift = 28 - (uint32_t)__builtin_clz(ticks | 8);
    return (shift << 3) + (ticks >> shift);
}

// The first time in ticks that belongs to a bucket, or behind the last one: to where those before it reach.
static inline uint64_t nv_statistics_bucket_start(uint32_t bucket) {
    if (bucket < 16) return bucket;
    return (uint64_t)(8 + (bucket & 7)) << ((bucket >> 3) - 1);
}

// The end, in ticks, of the bucket that the given share (0 to 1) of a histogram's counts does not exceed; 0: no counts.
// The buckets may be counted in meanwhile.
static inline uint64_t nv_statistics_percentile(const uint64_t *_Nonnull buckets, double share) {
    uint64_t copy[NV_STATISTICS_BUCKETS], total = 0, sum = 0;
    for (uint32_t i = 0; i < NV_STATISTICS_BUCKETS; i++) {
        copy[i] = ((const volatile uint64_t *)buckets)[i];
        total += copy[i];
    }
    if (total == 0) return 0;
    double wanted = (double)total * share;
    uint32_t last = 0;
    for (uint32_t i = 0; i < NV_STATISTICS_BUCKETS; i++) {
        if (copy[i] == 0) continue;
        sum += copy[i];
        last = i;
        if ((double)sum >= wanted) break;
    }
    return nv_statistics_bucket_start(last + 1);
}
