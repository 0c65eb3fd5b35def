// SPDX-License-Identifier: Apache-2.0
// Slots of a pool: owners, quotas, reservations, and coming back after a restart.

import TestSupport
import Testing

@testable import DMA

@Suite("Slots of a pool")
struct SlotPoolTests {
    static func pool(_ counts: Int...) throws -> SlotPool {
        var ranges: [PageRun] = []
        for count in counts { ranges.append(PageRun(first: ranges.last?.end ?? 0, count: count)) }
        return try SlotPool(ranges: ranges)
    }

    @Test("what is taken has an owner and a tag, and is given back whole by its owner only")
    func owner() throws {
        // Given
        var pool = try Self.pool(100)
        let run = try pool.allocate(10, owner: "nvme0", tag: "queue 1")
        // When
        let others = #expect(throws: SlotPoolError.self) { try pool.release(run, owner: "nvme1") }
        let part = #expect(throws: SlotPoolError.self) {
            try pool.release(PageRun(first: run.first, count: 5), owner: "nvme0")
        }
        // Then
        #expect(others == .notOwned(owner: "nvme1", run: run))
        #expect(part != nil)
        #expect(pool.slots(of: "nvme0").map(\.tag) == ["queue 1"])
        try pool.release(run, owner: "nvme0")
        #expect(pool.freeCount == 100)
    }

    @Test("neighbours that become free are one hole again, whatever the order", arguments: 0..<6)
    func merging(order: Int) throws {
        // Given
        var pool = try Self.pool(30)
        let runs = try (0..<3).map { try pool.allocate(10, owner: "a", tag: "\($0)") }
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        // When
        for index in orders[order] { try pool.release(runs[index], owner: "a") }
        // Then
        #expect(pool.slots == [.init(run: PageRun(first: 0, count: 30), state: .free)])
    }

    @Test("ranges that touch stay apart: no run crosses from one to the next")
    func ranges() throws {
        // Given
        var pool = try Self.pool(10, 10)
        // When
        let error = #expect(throws: SlotPoolError.self) {
            try pool.allocate(11, owner: "a", tag: "t")
        }
        // Then
        #expect(error == .exhausted(owner: "a", wanted: 11, free: 20, largest: 10))
        let scattered = try pool.allocateScattered(15, owner: "a", tag: "t")
        #expect(scattered.map(\.count) == [10, 5])
    }

    @Test("the smallest hole that suffices is used")
    func bestFit() throws {
        // Given: holes of 5 and of 80 pages.
        var pool = try Self.pool(100)
        let first = try pool.allocate(5, owner: "a", tag: "t")
        _ = try pool.allocate(15, owner: "a", tag: "t")
        try pool.release(first, owner: "a")
        // When
        let run = try pool.allocate(5, owner: "a", tag: "t")
        // Then
        #expect(run == first)
        #expect(pool.largestFree == 80)
    }

    @Test("an aligned run is aligned, and what is before it stays free")
    func alignment() throws {
        // Given
        var pool = try SlotPool(ranges: [PageRun(first: 3, count: 40)])
        // When
        let run = try pool.allocate(8, owner: "a", tag: "t", alignment: 16)
        // Then
        #expect(run == PageRun(first: 16, count: 8))
        #expect(pool.freeCount == 32)
    }

    @Test("a device at its quota gets no more, and takes nothing from another")
    func quota() throws {
        // Given
        var pool = try Self.pool(100)
        try pool.setShare("greedy", .init(quota: 40))
        try pool.setShare("modest", .init(reserved: 60, quota: 60))
        _ = try pool.allocate(40, owner: "greedy", tag: "t")
        // When
        let error = #expect(throws: SlotPoolError.self) {
            try pool.allocate(1, owner: "greedy", tag: "t")
        }
        // Then
        #expect(error == .overQuota(owner: "greedy", wanted: 1, used: 40, quota: 40))
        _ = try pool.allocate(60, owner: "modest", tag: "t")
    }

    @Test("what is reserved for one is not given to another, and cannot be promised twice")
    func reservation() throws {
        // Given
        var pool = try Self.pool(100)
        try pool.setShare("a", .init(reserved: 70))
        // When
        let taken = #expect(throws: SlotPoolError.self) {
            try pool.allocate(31, owner: "b", tag: "t")
        }
        let promised = #expect(throws: SlotPoolError.self) {
            try pool.setShare("b", .init(reserved: 31))
        }
        // Then
        #expect(taken == .promised(owner: "b", wanted: 31, free: 100, promised: 70))
        #expect(promised == .overcommitted(owner: "b", pages: 31, available: 30))
        _ = try pool.allocate(30, owner: "b", tag: "t")
        _ = try pool.allocate(70, owner: "a", tag: "t")
    }

    @Test("after a restore each owner claims its own; what nobody claims is leaked for that owner")
    func restore() throws {
        // Given
        var pool = try Self.pool(50, 50)
        let mine = try pool.allocate(10, owner: "nvme0", tag: "queue")
        _ = try pool.allocate(20, owner: "nvme1", tag: "queue")
        var next = try SlotPool(ranges: pool.ranges, saved: pool.slots)
        // When
        let slot = try next.claim(mine, owner: "nvme0")
        let leaked = next.leakUnclaimed(of: "nvme1")
        // Then
        #expect(slot.state == .allocated)
        #expect(slot.tag == "queue")
        #expect(leaked.map(\.run.count) == [20])
        #expect(next.leakedCount == 20)
        #expect(next.missingOwners == [])
        #expect(next.freeCount == 70)
        #expect(next.releaseAll(of: "nvme1") == 0)
    }

    @Test("a claim by another owner, of other pages, or made twice is refused")
    func wrongClaims() throws {
        // Given
        var pool = try Self.pool(50)
        let run = try pool.allocate(10, owner: "nvme0", tag: "queue")
        var next = try SlotPool(ranges: pool.ranges, saved: pool.slots)
        // When
        let stranger = #expect(throws: SlotPoolError.self) { try next.claim(run, owner: "x") }
        let other = #expect(throws: SlotPoolError.self) {
            try next.claim(PageRun(first: run.first, count: 9), owner: "nvme0")
        }
        _ = try next.claim(run, owner: "nvme0")
        let twice = #expect(throws: SlotPoolError.self) { try next.claim(run, owner: "nvme0") }
        // Then
        #expect(stranger == .notOwned(owner: "x", run: run))
        #expect(other != nil)
        #expect(twice == .notOwned(owner: "nvme0", run: run))
    }

    @Test(
        "saved slots that overlap, leave a gap or leave their range are refused",
        arguments: [
            [(0, 10), (5, 15)], [(0, 10), (11, 9)], [(0, 10), (10, 11)], [(0, 19)], [(1, 19)],
            [(0, 20), (20, 1)], [(0, 0), (0, 20)], [(0, -1), (-1, 21)], [],
        ])
    func mismatch(runs: [(Int, Int)]) throws {
        // Given
        let saved = runs.map {
            SlotPool.Slot(
                run: PageRun(first: $0.0, count: $0.1), state: .allocated, owner: "a", tag: "t")
        }
        // When
        let error = #expect(throws: SlotPoolError.self) {
            try SlotPool(ranges: [PageRun(first: 0, count: 20)], saved: saved)
        }
        // Then
        #expect(error != nil)
    }

    @Test("a pool does what a map of pages does, over random takes, returns, saves and restores")
    func model() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
        var pool = try Self.pool(300, 1, 200)
        var pages = [Int?](repeating: nil, count: pool.pageCount)
        var runs: [(run: PageRun, owner: Int)] = []
        // When
        for step in 0..<20_000 {
            let owner = below(3)
            switch below(20) {
            case 0..<10:
                let count = 1 + below(random.next() % 8 == 0 ? 120 : 12)
                let run = try? pool.allocate(count, owner: "o\(owner)", tag: "t")
                guard let run else {
                    #expect(pool.largestFree < count)
                    continue
                }
                #expect(pages[run.first..<run.end].allSatisfy { $0 == nil })
                for page in run.first..<run.end { pages[page] = owner }
                runs.append((run, owner))
            case 10..<19:
                guard !runs.isEmpty else { continue }
                let (run, owner) = runs.remove(at: below(runs.count))
                try pool.release(run, owner: "o\(owner)")
                for page in run.first..<run.end { pages[page] = nil }
            default:
                pool = try SlotPool(ranges: pool.ranges, saved: pool.slots)
                for (run, owner) in runs { _ = try pool.claim(run, owner: "o\(owner)") }
            }
            #expect(pool.freeCount == pages.count { $0 == nil }, "step \(step)")
        }
        // Then
        for owner in 0..<3 {
            #expect(pool.usedCount("o\(owner)") == pages.count { $0 == owner })
        }
        for (run, owner) in runs { try pool.release(run, owner: "o\(owner)") }
        #expect(pool.slots.map(\.run) == pool.ranges)
    }
}
