// SPDX-License-Identifier: Apache-2.0
// What holds of a pool whatever its devices do: nobody is starved by another at its quota, what
// leaked is never used again, and holes stay usable over a million operations.

import TestSupport
import Testing

@testable import DMA

/// A pool, and what must be true of it, page by page.
private struct Modelled {
    var pool: SlotPool
    /// Whose each page is; nil: free. An owner that is -1 has leaked it.
    var pages: [Int?]
    var runs: [(run: PageRun, owner: Int)] = []
    var random: SplitMix64

    static let owners = ["greedy", "modest", "small", "guest"]
    /// Of 600 pages; "guest" has no share.
    static let shares = [
        SlotPool.Share(reserved: 0, quota: 300), SlotPool.Share(reserved: 150, quota: 250),
        SlotPool.Share(reserved: 60, quota: 60),
    ]

    init(_ seed: UInt64) throws {
        random = SplitMix64(state: seed)
        pool = try SlotPoolTests.pool(400, 50, 150)
        pages = [Int?](repeating: nil, count: pool.pageCount)
        try setShares()
    }

    mutating func setShares() throws {
        for (name, share) in zip(Self.owners, Self.shares) { try pool.setShare(name, share) }
    }

    mutating func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }

    func used(_ owner: Int) -> Int {
        runs.reduce(0) { $0 + ($1.owner == owner ? $1.run.count : 0) }
    }

    mutating func take(_ owner: Int) {
        let count = 1 + below(below(6) == 0 ? 90 : 14)
        let name = Self.owners[owner]
        let isScattered = below(4) == 0
        let found =
            isScattered
            ? (try? pool.allocateScattered(count, owner: name, tag: "t")) ?? []
            : (try? pool.allocate(count, owner: name, tag: "t")).map { [$0] } ?? []
        #expect(found.isEmpty || found.reduce(0) { $0 + $1.count } == count)
        for run in found {
            #expect(pages[run.first..<run.end].allSatisfy { $0 == nil })
            for page in run.first..<run.end { pages[page] = owner }
            runs.append((run, owner))
        }
    }

    mutating func giveBack() throws {
        guard !runs.isEmpty else { return }
        let (run, owner) = runs.remove(at: below(runs.count))
        try pool.release(run, owner: Self.owners[owner])
        for page in run.first..<run.end { pages[page] = nil }
    }

    /// Everything stops and comes back, but for one owner now and then, whose pages leak.
    mutating func restore(leaking: Int?) throws {
        pool = try SlotPool(ranges: pool.ranges, saved: pool.slots)
        for (run, owner) in runs where owner != leaking {
            _ = try pool.claim(run, owner: Self.owners[owner])
        }
        try setShares()
        guard let leaking else { return }
        let leaked = pool.leakUnclaimed(of: Self.owners[leaking])
        #expect(leaked.reduce(0) { $0 + $1.run.count } == used(leaking))
        for (run, owner) in runs where owner == leaking {
            for page in run.first..<run.end { pages[page] = -1 }
        }
        runs.removeAll { $0.owner == leaking }
    }

    /// Whether each owner could have, now and all at once, what is reserved for it.
    func starved() -> [String] {
        var trial = pool
        var starved: [String] = []
        for (name, share) in zip(Self.owners, Self.shares) {
            let open = share.reserved - trial.usedCount(name)
            guard open > 0 else { continue }
            if (try? trial.allocateScattered(open, owner: name, tag: "t")) == nil {
                starved.append(name)
            }
        }
        return starved
    }
}

@Suite("Properties of pools")
struct PoolPropertyTests {
    @Test("whatever owners do, none has more than its quota, and each gets what is reserved for it")
    func shares() throws {
        // Given
        let seed = seed()
        var model = try Modelled(seed)
        let steps = environmentNumber("STEPS") ?? 20_000
        var (refused, atQuota) = (0, 0)
        for step in 0..<steps {
            // When: greedy asks more often than all others.
            switch model.below(40) {
            case 0..<14: model.take(0)
            case 14..<26:
                let before = model.runs.count
                model.take(1 + model.below(3))
                refused += model.runs.count == before ? 1 : 0
            case 26..<39: try model.giveBack()
            default: try model.restore(leaking: nil)
            }
            // Then
            for (owner, share) in Modelled.shares.enumerated() {
                let used = model.used(owner)
                #expect(used <= share.quota, "seed \(seed), step \(step)")
                atQuota += owner == 0 && used > share.quota - 5 ? 1 : 0
            }
            #expect(model.starved() == [], "seed \(seed), step \(step)")
            guard step % 16 == 0 else { continue }
            let free = model.pages.count { $0 == nil }
            #expect(model.pool.freeCount == free, "seed \(seed), step \(step)")
        }
        // The pool was full, and somebody at its quota, or it has shown nothing.
        #expect(refused > 0)
        #expect(atQuota > 0)
    }

    @Test("what leaked stays leaked over every restore, and everything else is found again")
    func leaks() throws {
        // Given
        let seed = seed()
        var model = try Modelled(seed)
        // When: the guest, for whom nothing is reserved, does not come back, three times.
        for _ in 0..<3 {
            for _ in 0..<60 { model.take(model.below(4)) }
            for _ in 0..<40 { try model.giveBack() }
            try model.restore(leaking: 3)
            try model.restore(leaking: nil)
        }
        let leaked = model.pages.count { $0 == -1 }
        while !model.runs.isEmpty { try model.giveBack() }
        // Then
        #expect(model.pool.leakedCount == leaked, "seed \(seed)")
        #expect(model.pool.freeCount == model.pool.pageCount - leaked)
        #expect(model.pool.releaseAll(of: "guest") == 0)
        for slot in model.pool.slots {
            let isLeaked = slot.state == .leaked
            #expect(
                (slot.run.first..<slot.run.end).allSatisfy {
                    (model.pages[$0] == -1) == isLeaked
                })
        }
    }

    @Test("a million takes and returns at three quarters full leave holes that can be used")
    func fragmentation() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
        var pool = try SlotPoolTests.pool(512)
        let full = 384
        var runs: [PageRun] = []
        var (tried, failed, samples, worst) = (0, 0, 0, 512)
        var lost = 0.0
        // When: sizes of queues, lists and buffers, the largest a quarter of what is free.
        let steps = environmentNumber("STEPS") ?? 1_000_000
        for step in 0..<steps {
            let count = 1 << below(6)
            if pool.pageCount - pool.freeCount + count <= full {
                tried += 1
                if let run = try? pool.allocate(count, owner: "a", tag: "t") {
                    runs.append(run)
                } else {
                    failed += 1
                }
            } else {
                let index = below(runs.count)
                runs.swapAt(index, runs.count - 1)
                try pool.release(runs.removeLast(), owner: "a")
            }
            guard step % 64 == 0 else { continue }
            let (free, largest) = (pool.freeCount, pool.largestFree)
            samples += 1
            worst = min(worst, largest)
            lost += 1 - Double(largest) / Double(max(free, 1))
        }
        let holes = pool.slots.count { $0.state == .free }
        let (share, mean) = (Double(failed) / Double(tried), lost / Double(samples))
        print(
            "\(steps) operations: \(failed) of \(tried) takes found no hole (\(share)); of what is "
                + "free \(mean) lies outside the largest hole on average; that had \(worst) pages "
                + "at worst")
        // Then
        #expect(share < 0.01, "seed \(seed)")
        #expect(mean < 0.7, "seed \(seed)")
        // Neighbours that are free are one hole.
        #expect(holes <= pool.slots.count / 2 + 1)
        for run in runs { try pool.release(run, owner: "a") }
        #expect(pool.largestFree == 512)
    }
}
