// SPDX-License-Identifier: Apache-2.0
// The allocators of pages and of I/O virtual addresses, against a model.

import DMA
import TestSupport
import Testing

@Suite("Allocators of DMA memory")
struct AllocatorTests {
    @Test(
        "random allocation and release of page runs agrees with a model, and the end is as free as the start"
    )
    func pagesAgreeWithModel() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        var pages = try PageAllocator(pageCount: 257)
        var model = [Bool](repeating: false, count: 257)
        var runs: [(first: Int, count: Int)] = []
        // When
        for _ in 0..<20_000 {
            let count = Int(random.next() % 40) + 1
            if random.next() % 2 == 0, let first = pages.allocate(count) {
                #expect(model[first..<(first + count)].allSatisfy { !$0 }, "seed \(seed)")
                model.replaceSubrange(
                    first..<(first + count), with: repeatElement(true, count: count))
                runs.append((first, count))
            } else if let run = runs.popLast() {
                do {
                    let result = pages.release(run.first, run.count);
                    #expect(result, "seed \(seed)")
                }
                model.replaceSubrange(
                    run.first..<(run.first + run.count),
                    with: repeatElement(false, count: run.count))
            }
            #expect(pages.freeCount == model.count(where: { !$0 }), "seed \(seed)")
        }
        for run in runs { pages.release(run.first, run.count) }
        // Then
        #expect(pages.freeCount == 257)
        do { let result = pages.allocate(257); #expect(result == 0) }
    }

    @Test("a run is refused when nothing of that length is free", arguments: [0, -1, 5, 1000])
    func refusesTooLong(count: Int) throws {
        var pages = try PageAllocator(pageCount: 4)
        do { let result = pages.allocate(count); #expect(result == nil) }
        #expect(pages.freeCount == 4)
    }

    @Test(
        "releasing what is not taken changes nothing", arguments: [(0, 1), (3, 2), (-1, 1), (0, 5)])
    func refusesForeignRelease(first: Int, count: Int) throws {
        var pages = try PageAllocator(pageCount: 4)
        do { let result = pages.allocate(0x7FFF_FFFF); #expect(result == nil) }
        do { let result = pages.release(first, count); #expect(!result) }
        #expect(pages.freeCount == 4)
    }

    @Test("stretches of I/O virtual addresses never overlap, are aligned, and merge when released")
    func addressesNeverOverlap() {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        var space = IOVASpace(first: 0x10000, end: 0x10000 + 1024 * 4096)
        var taken: [Range<UInt64>] = []
        // When
        for _ in 0..<5_000 {
            let pages = random.next() % 50 + 1
            if random.next() % 5 < 3, let start = space.allocate(byteCount: pages * 4096) {
                let range = start..<(start + pages * 4096)
                #expect(!taken.contains { $0.overlaps(range) }, "seed \(seed)")
                #expect(start % 4096 == 0)
                taken.append(range)
            } else if !taken.isEmpty {
                let index = Int(random.next() % UInt64(taken.count))
                do {
                    let result = space.release(taken.remove(at: index).lowerBound); #expect(result)
                }
            }
        }
        for range in taken { space.release(range.lowerBound) }
        // Then
        #expect(space.usedByteCount == 0)
        do { let result = space.allocate(byteCount: 1024 * 4096); #expect(result == 0x10000) }
        do { let result = space.allocate(byteCount: 1); #expect(result == nil) }
    }
}
