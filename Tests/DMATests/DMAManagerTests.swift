// SPDX-License-Identifier: Apache-2.0
// The DMA manager: which memory a client gets, who may have how much, saving and restoring, and a
// model of it all under random use.

import Linux
import TestSupport
import Testing

@testable import DMA

@Suite("The DMA manager")
struct DMAManagerTests {
    static let persistent = DMAClientParameters(name: "nvme0")

    static func memory(
        _ counts: [Int] = [64], address: UInt64 = 1 << 32
    ) throws -> PoolMemory {
        var ranges: [PoolRange] = []
        for count in counts {
            let first = ranges.last?.pages.end ?? 0
            // Ranges are far from each other for the device.
            ranges.append(
                PoolRange(
                    pages: PageRun(first: first, count: count),
                    address: address + UInt64(ranges.count) << 30))
        }
        return try PoolMemory(
            Mapping(anonymous: (ranges.last?.pages.end ?? 1) * 4096), ranges: ranges)
    }

    static func restored(_ memory: PoolMemory, _ saved: SavedDMAPool?) throws -> PoolMemory {
        try PoolMemory(
            Mapping(anonymous: memory.byteCount), ranges: memory.ranges,
            restoring: #require(saved))
    }

    @Test(
        "each kind of client gets its memory as the table has it",
        arguments: [
            (DMAVisibility.shared, false, LowerVTLPolicy.any, DMABacking.Memory.sharedPool, false),
            (.shared, true, .vtl0, .sharedPool, false),
            (.private, true, .any, .privatePool, false),
            (.private, true, .vtl0, .privatePool, true),
            (.private, false, .any, .lockedMemory, false),
            (.private, false, .vtl0, .lockedMemory, true),
        ])
    func table(
        visibility: DMAVisibility, isPersistent: Bool, policy: LowerVTLPolicy,
        memory: DMABacking.Memory, changes: Bool
    ) {
        // When
        let parameters = DMAClientParameters(
            name: "c", lowerVTLPolicy: policy, visibility: visibility, isPersistent: isPersistent)
        // Then
        #expect(parameters.backing == DMABacking(memory: memory, changesPermissions: changes))
    }

    @Test("a client whose memory is not there gets an error, not other memory")
    func notConfigured() throws {
        // Given
        let manager = DMAManager(privatePool: try Self.memory())
        // When
        let shared = #expect(throws: DMAError.self) {
            try manager.makeClient(DMAClientParameters(name: "s", visibility: .shared))
        }
        let locked = #expect(throws: DMAError.self) {
            try manager.makeClient(DMAClientParameters(name: "l", isPersistent: false))
        }
        let levels = #expect(throws: DMAError.self) {
            try manager.makeClient(DMAClientParameters(name: "v", lowerVTLPolicy: .vtl0))
        }
        // Then
        #expect(shared == .notConfigured(client: "s", memory: .sharedPool))
        #expect(locked == .notConfigured(client: "l", memory: .lockedMemory))
        #expect(levels?.description.contains("no way to change permissions") == true)
    }

    @Test("a name is unique while its client lives; the next of that name has what was left")
    func names() throws {
        // Given
        let manager = DMAManager(privatePool: try Self.memory())
        var first: DMAClient? = try manager.makeClient(Self.persistent)
        let buffer = try #require(try first?.allocate(8192, tag: "queue 1"))
        let taken = #expect(throws: DMAError.self) { try manager.makeClient(Self.persistent) }
        // When
        first = nil
        let second = try manager.makeClient(Self.persistent)
        // Then
        #expect(taken == .nameInUse("nvme0"))
        #expect(second.buffers == [buffer])
        try second.release(buffer)
        #expect(manager.privatePool?.slots.freeCount == 64)
    }

    @Test(
        "names, tags and lengths beyond their bounds are refused",
        arguments: ["", String(repeating: "x", count: 65)])
    func bounds(text: String) throws {
        // Given
        let manager = DMAManager(privatePool: try Self.memory())
        let client = try manager.makeClient(Self.persistent)
        // Then
        #expect(throws: DMAError.self) { try manager.makeClient(DMAClientParameters(name: text)) }
        #expect(throws: DMAError.self) { try client.allocate(4096, tag: text) }
        for byteCount in [0, -1, .min, .max, DMAClient.byteCountMax + 1, 65 * 4096] {
            #expect(throws: DMAError.self) { try client.allocate(byteCount, tag: "t") }
        }
        #expect(manager.privatePool?.slots.freeCount == 64)
    }

    @Test("memory is full of zeroes, of whole pages, and the device finds it where it says")
    func contents() throws {
        // Given
        let pool = try Self.memory([4, 8])
        unsafe pool.base.initializeMemory(as: UInt8.self, repeating: 0xFF, count: pool.byteCount)
        let client = try DMAManager(privatePool: pool).makeClient(Self.persistent)
        // When
        let buffer = try client.allocate(5 * 4096 - 1, tag: "t")
        // Then
        #expect(buffer.runs.map(\.pages) == [PageRun(first: 4, count: 5)])
        #expect(buffer.runs[0].address == 1 << 32 + 1 << 30)
        let base = unsafe UInt(bitPattern: pool.base)
        #expect(buffer.runs[0].base == base + 4 * 4096)
        let isZero = unsafe UnsafeRawBufferPointer(
            start: pool.base + 4 * 4096, count: 5 * 4096
        ).allSatisfy { $0 == 0 }
        #expect(isZero)
        let before = unsafe pool.base.load(fromByteOffset: 4 * 4096 - 1, as: UInt8.self)
        let after = unsafe pool.base.load(fromByteOffset: 9 * 4096, as: UInt8.self)
        #expect(before == 0xFF)
        #expect(after == 0xFF)
    }

    @Test("contiguity is a request: in a row, in few pieces, or out of the small holes")
    func contiguity() throws {
        // Given: holes of 2, 3 and 20 pages.
        let client = try DMAManager(privatePool: Self.memory([2, 3, 20]))
            .makeClient(Self.persistent)
        // When
        let small = try client.allocate(4 * 4096, contiguity: .none, tag: "t")
        let large = #expect(throws: DMAError.self) {
            try client.allocate(21 * 4096, contiguity: .required, tag: "t")
        }
        let row = try client.allocate(20 * 4096, contiguity: .preferred, tag: "t")
        // Then
        #expect(small.runs.map(\.pages.count) == [2, 2])
        #expect(large != nil)
        #expect(row.runs.map(\.pages.count) == [20])
        #expect(small.byteCount == 4 * 4096)
    }

    @Test("only its owner gives memory back, whole, once")
    func release() throws {
        // Given
        let manager = DMAManager(privatePool: try Self.memory())
        let (a, b) = (
            try manager.makeClient(Self.persistent),
            try manager.makeClient(DMAClientParameters(name: "nvme1"))
        )
        let buffer = try a.allocate(8192, tag: "t")
        // When
        let stranger = #expect(throws: DMAError.self) { try b.release(buffer) }
        try a.release(buffer)
        let twice = #expect(throws: DMAError.self) { try a.release(buffer) }
        // Then
        #expect(stranger == .notOwned(client: "nvme1"))
        #expect(twice == .notOwned(client: "nvme0"))
    }

    @Test("a device at its quota cannot starve another, also after a restore")
    func quota() throws {
        // Given
        let memory = try Self.memory([100])
        var manager = DMAManager(privatePool: memory)
        try manager.setShare("greedy", .init(quota: 40))
        try manager.setShare("modest", .init(reserved: 60, quota: 60))
        do {
            let greedy = try manager.makeClient(DMAClientParameters(name: "greedy"))
            for _ in 0..<40 { _ = try greedy.allocate(4096, tag: "t") }
        }
        // When
        manager = DMAManager(privatePool: try Self.restored(memory, manager.save().privatePool))
        let greedy = try manager.makeClient(DMAClientParameters(name: "greedy"))
        let refused = #expect(throws: DMAError.self) { try greedy.allocate(4096, tag: "t") }
        // Then
        #expect(
            refused == .slots(.overQuota(owner: "greedy", wanted: 1, used: 40, quota: 40)))
        let modest = try manager.makeClient(DMAClientParameters(name: "modest"))
        _ = try modest.allocate(60 * 4096, tag: "t")
    }

    @Test("after a restore memory is claimed by owner and address; the rest is lost for its device")
    func restore() throws {
        // Given
        let memory = try Self.memory([50, 50])
        let old = DMAManager(privatePool: memory)
        let before = try old.makeClient(Self.persistent)
        let ring = try before.allocate(3 * 4096, tag: "queue 1")
        let list = try before.allocate(5 * 4096, tag: "lists")
        let other = try old.makeClient(DMAClientParameters(name: "nvme1"))
            .allocate(4096, tag: "queue 1")
        // When
        let manager = DMAManager(
            privatePool: try Self.restored(memory, old.save().privatePool))
        let client = try manager.makeClient(Self.persistent)
        let stranger = #expect(throws: DMAError.self) { try client.attach(other.runs[0].pages) }
        let claimed = try client.attach(
            address: try #require(ring.runs[0].address), byteCount: ring.byteCount)
        let lost = manager.leakUnclaimed(of: "nvme0")
        // Then
        #expect(stranger != nil)
        #expect(claimed.tag == "queue 1")
        #expect(claimed.runs.map(\.pages) == ring.runs.map(\.pages))
        #expect(lost.map(\.pages) == list.runs.map(\.pages))
        #expect(manager.losses == lost)
        #expect(manager.missingOwners == ["nvme1"])
        #expect(throws: DMAError.self) { try client.attach(list.runs[0].pages) }
        let again = try manager.makeClient(DMAClientParameters(name: "nvme1")).attachAll()
        #expect(again.map(\.tag) == ["queue 1"])
    }

    @Test("a saved pool of other ranges is refused; what was lost stays lost")
    func mismatch() throws {
        // Given
        let memory = try Self.memory([50])
        let manager = DMAManager(privatePool: memory)
        _ = try manager.makeClient(Self.persistent).allocate(4096, tag: "t")
        let once = DMAManager(privatePool: try Self.restored(memory, manager.save().privatePool))
        once.leakUnclaimed(of: "nvme0")
        // When
        let error = #expect(throws: DMAError.self) {
            try Self.restored(Self.memory([49]), once.save().privatePool)
        }
        let twice = try Self.restored(memory, once.save().privatePool)
        // Then
        #expect(error != nil)
        #expect(twice.slots.leakedCount == 1)
        #expect(twice.slots.missingOwners == [])
    }

    @Test("locked memory is bounded, and given back")
    func locked() throws {
        // Given
        let manager = DMAManager(lockedByteCountMax: 16384)
        let client = try manager.makeClient(
            DMAClientParameters(name: "nvme0", isPersistent: false))
        let buffer = try client.allocate(8192, tag: "t")
        // When
        let refused = #expect(throws: DMAError.self) { try client.allocate(12288, tag: "t") }
        try client.release(buffer)
        // Then
        #expect(
            refused
                == .lockedMemoryLimit(client: "nvme0", wanted: 12288, used: 8192, limit: 16384))
        #expect(buffer.runs.count == 1)
        let whole = try client.allocate(16384, tag: "t")
        #expect(client.buffers == [whole])
        #expect(throws: DMAError.self) { try client.release(buffer) }
    }

    @Test(
        "the manager does what a map of pages does, over random use, exhaustion and restores")
    func model() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
        let memory = try Self.memory([100, 1, 60])
        var manager = DMAManager(privatePool: memory)
        let names = ["nvme0", "nvme1", "nvme2"]
        try manager.setShare("nvme2", .init(reserved: 20, quota: 70))
        var clients = try names.map { try manager.makeClient(DMAClientParameters(name: $0)) }
        var held: [(owner: Int, buffer: DMABuffer)] = []
        var owners = [Int?](repeating: nil, count: 161)
        // When
        for step in 0..<(environmentNumber("STEPS") ?? 4_000) {
            let who = below(3)
            switch below(24) {
            case 0..<12:
                let contiguity = DMAContiguity.allCases[below(3)]
                guard
                    let buffer = try? clients[who].allocate(
                        (1 + below(24)) * 4096, contiguity: contiguity, tag: "t\(step)")
                else { continue }
                #expect(contiguity != .required || buffer.runs.count == 1)
                for run in buffer.runs {
                    for page in run.pages.first..<run.pages.end {
                        #expect(owners[page] == nil, "seed \(seed), step \(step)")
                        owners[page] = who
                    }
                }
                held.append((who, buffer))
            case 12..<23:
                guard !held.isEmpty else { continue }
                let (owner, buffer) = held.remove(at: below(held.count))
                try clients[owner].release(buffer)
                for run in buffer.runs {
                    for page in run.pages.first..<run.pages.end { owners[page] = nil }
                }
            default:
                let saved = manager.save()
                clients = []
                manager = DMAManager(privatePool: try Self.restored(memory, saved.privatePool))
                clients = try names.map { try manager.makeClient(DMAClientParameters(name: $0)) }
                held = []
                for (owner, client) in clients.enumerated() {
                    held += try client.attachAll().map { (owner, $0) }
                }
            }
            let used = (0..<3).map { who in owners.count { $0 == who } }
            let pool = try #require(manager.privatePool)
            #expect(names.map { pool.slots.usedCount($0) } == used, "seed \(seed), step \(step)")
            #expect(used[0] + used[1] <= 161 - 20, "seed \(seed): what is reserved stays")
            #expect(used[2] <= 70, "seed \(seed)")
        }
        // Then
        for (owner, buffer) in held { try clients[owner].release(buffer) }
        #expect(manager.privatePool?.slots.slots.map(\.run) == memory.ranges.map(\.pages))
    }
}
