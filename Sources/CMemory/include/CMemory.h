// SPDX-License-Identifier: Apache-2.0
// Volatile access, ordering and checksums over memory that another agent (a device, another process) also
// touches. Header only, so that every function inlines into Swift: the optimiser deletes a polling loop over a
// plain Swift pointer, because Swift has no `volatile`.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NV_INLINE static inline __attribute__((always_inline))

NV_INLINE uint8_t nv_load8(const void *_Nonnull p) { return *(const volatile uint8_t *)p; }
NV_INLINE uint16_t nv_load16(const void *_Nonnull p) { return *(const volatile uint16_t *)p; }
NV_INLINE uint32_t nv_load32(const void *_Nonnull p) { return *(const volatile uint32_t *)p; }
NV_INLINE uint64_t nv_load64(const void *_Nonnull p) { return *(const volatile uint64_t *)p; }
NV_INLINE void nv_store8(void *_Nonnull p, uint8_t v) { *(volatile uint8_t *)p = v; }
NV_INLINE void nv_store16(void *_Nonnull p, uint16_t v) { *(volatile uint16_t *)p = v; }
NV_INLINE void nv_store32(void *_Nonnull p, uint32_t v) { *(volatile uint32_t *)p = v; }
NV_INLINE void nv_store64(void *_Nonnull p, uint64_t v) { *(volatile uint64_t *)p = v; }

// Between processes: C11 acquire and release.
NV_INLINE uint32_t nv_load_acquire32(const void *_Nonnull p) {
    return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE);
}
NV_INLINE uint64_t nv_load_acquire64(const void *_Nonnull p) {
    return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE);
}
NV_INLINE void nv_store_release32(void *_Nonnull p, uint32_t v) {
    __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE);
}
NV_INLINE void nv_store_release64(void *_Nonnull p, uint64_t v) {
    __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE);
}

// Between threads that decide who sleeps: sequentially consistent.
NV_INLINE uint32_t nv_exchange32(void *_Nonnull p, uint32_t v) {
    return __atomic_exchange_n((uint32_t *)p, v, __ATOMIC_SEQ_CST);
}
NV_INLINE void nv_store_seq32(void *_Nonnull p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_SEQ_CST); }
NV_INLINE uint32_t nv_load_seq32(const void *_Nonnull p) {
    return __atomic_load_n((const uint32_t *)p, __ATOMIC_SEQ_CST);
}

NV_INLINE uint32_t nv_or32(void *_Nonnull p, uint32_t v) {
    return __atomic_fetch_or((uint32_t *)p, v, __ATOMIC_SEQ_CST);
}

// Orders reads of DMA memory: what follows is read after what came before (phase bit, then the entry).
NV_INLINE void nv_dma_rmb(void) {
#if defined(__x86_64__)
    __asm__ volatile("" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dmb oshld" ::: "memory");
#else
#error "unsupported architecture"
#endif
}

// Orders writes to DMA memory among themselves, for whoever watches that memory (the log, then the queue entry).
NV_INLINE void nv_dma_wmb(void) {
#if defined(__x86_64__)
    __asm__ volatile("" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dmb oshst" ::: "memory");
#endif
}

// Orders writes to DMA memory before a write to a device register (queue entries, then the doorbell).
NV_INLINE void nv_io_wmb(void) {
#if defined(__x86_64__)
    __asm__ volatile("sfence" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dsb st" ::: "memory");
#endif
}

// The full fence: a store before it is visible before a load after it is done (shadow doorbell, then EventIdx).
NV_INLINE void nv_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Tells the core that this is a spin loop.
NV_INLINE void nv_pause(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// CRC-32C (Castagnoli) of eight bytes, one instruction. x86-64-v2 (2009) and ARMv8.1 have it;
// programs check `nv_has_crc32c` once at start. The value stays in a 64-bit register between steps,
// its upper half zero: narrowing it each time would cost an instruction a step.
NV_INLINE uint64_t nv_crc32c_step(uint64_t crc, uint64_t value) {
#if defined(__x86_64__)
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(value));
    return crc;
#elif defined(__aarch64__)
    uint32_t out;
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w1, %x2" : "=r"(out) : "r"((uint32_t)crc), "r"(value));
    return out;
#endif
}
NV_INLINE uint32_t nv_crc32c_64(uint32_t crc, uint64_t value) { return (uint32_t)nv_crc32c_step(crc, value); }

NV_INLINE int nv_has_crc32c(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2") != 0;
#else
    return 1;
#endif
}

// The same of any number of bytes, bit by bit: for processors without the instruction, and for what
// is left behind the last eight bytes.
NV_INLINE uint32_t nv_crc32c_portable(uint32_t crc, const void *_Nullable bytes, size_t count) {
    const uint8_t *byte = (const uint8_t *)bytes;
    for (size_t index = 0; index < count; index++) {
        crc ^= byte[index];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return crc;
}

// CRC-32C of any number of bytes, which any processor can do. Neither begun nor ended here: give
// and take what comes before and after.
NV_INLINE uint32_t nv_crc32c_bytes(uint32_t crc, const void *_Nullable bytes, size_t count) {
    const uint8_t *byte = (const uint8_t *)bytes;
    if (nv_has_crc32c()) {
        for (; count >= 8; byte += 8, count -= 8) {
            uint64_t word;
            __builtin_memcpy(&word, byte, 8);
            crc = nv_crc32c_64(crc, word);
        }
    }
    return nv_crc32c_portable(crc, byte, count);
}
