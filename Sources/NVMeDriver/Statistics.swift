// SPDX-License-Identifier: Apache-2.0
// Counters and latencies in memory that others may map to read (Proto/statistics.md, version 1).
//
// A block has one writer, so that counting is a load, an addition and a store. Readers see counters
// that only rise, each whole; what is assigned to whom is guarded by a sequence number. When a ring
// or a session ends, the control thread adds its block to that of its namespace and to that of its
// queue pair, so that sums never fall.
//
// Nobody can write to the memory but the process that made it, so a successor, whom the manager
// hands it, copies it and goes on in its own.

internal import CMemory
internal import CStatistics
public import Linux

/// The statistics of a worker. Control thread only; the blocks go to those who count.
@safe
public final class Statistics {
    private static let byteCount =
        NV_STATISTICS_HEADER_BYTES
        + NV_STATISTICS_BLOCKS * NV_STATISTICS_BLOCK_BYTES
    private static let maxNamespaces = 512

    /// The memory file: others may map it for reading only.
    public let fd: OwnedFD
    private let memory: Mapping
    /// The blocks by whom they are about.
    private var places: [StatisticsIdentity.Owner: Int] = [:]
    private var namespaceCount = 0
    /// No block before this one is free.
    private var firstFree = 0

    /// Memory without blocks. Nothing of it is touched before it is used.
    public init(pid: Int32) throws(SystemCallError) {
        // Sealed once it is mapped here: from then on nobody else can write.
        fd = try MemFD.create(name: "nvmed-stats", byteCount: Self.byteCount)
        memory = try Mapping(fd, byteCount: Self.byteCount)
        try MemFD.addSeals(fd, [.futureWrite, .seal])
        let base = unsafe memory.base
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_VERSION, UInt32(NV_STATISTICS_VERSION))
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_HEADER_BYTES,
            UInt32(NV_STATISTICS_HEADER_BYTES))
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_BLOCK_BYTES,
            UInt32(NV_STATISTICS_BLOCK_BYTES))
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_BLOCKS, UInt32(NV_STATISTICS_BLOCKS))
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_BUCKETS, UInt32(NV_STATISTICS_BUCKETS))
        unsafe nv_store32(base + NV_STATISTICS_OFFSET_TICK_NS, 256)
        unsafe nv_store64(
            base + NV_STATISTICS_OFFSET_START_NS, MonotonicClock.nowNanoseconds)
        unsafe nv_store32(
            base + NV_STATISTICS_OFFSET_PID, UInt32(bitPattern: pid))
        // The magic vouches for the rest.
        unsafe nv_store_release64(
            base + NV_STATISTICS_OFFSET_MAGIC, NV_STATISTICS_MAGIC)
    }

    /// Memory that goes on with what a predecessor counted in its own, whose end may have torn a
    /// number; memory that is none of this version counts for nothing.
    public convenience init(
        pid: Int32, continuing predecessor: borrowing OwnedFD
    ) throws(SystemCallError) {
        try self.init(pid: pid)
        guard let found = Self.predecessor(predecessor) else { return }
        let header = unsafe found.base
        let start = unsafe nv_load64(header + NV_STATISTICS_OFFSET_START_NS)
        if start > 0, start < MonotonicClock.nowNanoseconds {
            unsafe nv_store64(memory.base + NV_STATISTICS_OFFSET_START_NS, start)
        }
        let count = Int(unsafe nv_load32(header + NV_STATISTICS_OFFSET_USED))
        for index in 0..<min(count, Self.blockCount) {
            let source = unsafe found.base + Self.offset(index)
            guard let identity = unsafe StatisticsIdentity(at: source),
                places[identity.owner] == nil, let copy = assign(identity)
            else { continue }
            unsafe copy.add(StatisticsBlock(base: source), exactly: true)
            // What a thread says of itself begins with the thread.
            for counter in StatisticsCounter.ofThread where identity.kind == .queue {
                copy.set(counter, 0)
            }
        }
    }

    private static func predecessor(_ fd: borrowing OwnedFD) -> Mapping? {
        guard (try? MemFD.byteCount(of: fd)) == byteCount,
            let found = try? Mapping(fd, byteCount: byteCount, writable: false)
        else { return nil }
        let base = unsafe found.base
        guard unsafe nv_load64(base + NV_STATISTICS_OFFSET_MAGIC) == NV_STATISTICS_MAGIC,
            unsafe nv_load32(base + NV_STATISTICS_OFFSET_VERSION) == UInt32(NV_STATISTICS_VERSION)
        else { return nil }
        return found
    }

    /// Bytes of the memory.
    public var byteCount: Int { memory.byteCount }

    // MARK: Blocks

    /// The block of whom `identity` names: the one that is there, or one of zeroes; nil when all
    /// are in use.
    public func assign(_ identity: StatisticsIdentity) -> StatisticsBlock? {
        let known = places[identity.owner]
        if known == nil { skipBlocksInUse() }
        let index = known ?? firstFree
        guard index < Self.blockCount else { return nil }
        let base = unsafe block(index)
        changing {
            // Behind what was ever used all is zero.
            if known == nil, index < used { unsafe Self.clear(base) }
            unsafe identity.write(to: base)
            if index >= used {
                unsafe nv_store32(
                    memory.base + NV_STATISTICS_OFFSET_USED, UInt32(index + 1))
            }
        }
        places[identity.owner] = index
        if known == nil, identity.kind == .namespace { namespaceCount += 1 }
        return unsafe StatisticsBlock(base: base)
    }

    private func skipBlocksInUse() {
        while firstFree < Self.blockCount, unsafe nv_load32(block(firstFree)) != Self.free {
            firstFree += 1
        }
    }

    /// The block of a namespace, made when it is new: what its ended rings and sessions did. A
    /// hostile controller must not use all blocks up: those beyond the bound are counted nowhere.
    private func namespaceBlock(_ id: UInt32) -> StatisticsBlock? {
        let identity = StatisticsIdentity(kind: .namespace, namespaceID: id)
        guard places[identity.owner] != nil || namespaceCount < Self.maxNamespaces else {
            return nil
        }
        return assign(identity)
    }

    /// Takes a ring's or session's block back when nobody counts there any more; what it counted
    /// stays in the sums of its namespace and of its queue pair.
    public func release(_ block: StatisticsBlock) {
        guard let identity = unsafe StatisticsIdentity(at: block.base) else { return }
        let sum = namespaceBlock(identity.namespaceID)
        let queue = StatisticsIdentity(kind: .queue, queue: identity.queue)
        changing {
            sum?.add(block)
            if let index = places[queue.owner] {
                unsafe StatisticsBlock(base: self.block(index)).add(block)
            }
            free(identity)
        }
    }

    private func free(_ identity: StatisticsIdentity) {
        guard let index = places.removeValue(forKey: identity.owner) else { return }
        firstFree = min(firstFree, index)
        unsafe nv_store32(block(index), Self.free)
    }

    /// The latency in nanoseconds that the given share of what `buckets` count did not exceed; nil:
    /// they count nothing.
    public static func percentile(_ buckets: [UInt64], _ share: Double) -> UInt64? {
        let ticks = unsafe buckets.withUnsafeBufferPointer { all -> UInt64 in
            guard let first = all.baseAddress, all.count == NV_STATISTICS_BUCKETS else { return 0 }
            return unsafe nv_statistics_percentile(first, share)
        }
        return ticks > 0 ? ticks * 256 : nil
    }

    /// Takes the blocks of queue pairs back: the controller is gone.
    public func releaseQueues() {
        forEach { identity, _ in
            if identity.kind == .queue { changing { free(identity) } }
        }
    }

    /// All blocks in use.
    public func forEach(_ body: (StatisticsIdentity, StatisticsBlock) -> Void) {
        for index in 0..<used {
            let base = unsafe block(index)
            guard let identity = unsafe StatisticsIdentity(at: base) else { continue }
            body(identity, unsafe StatisticsBlock(base: base))
        }
    }

    // MARK: Memory

    private static var free: UInt32 { UInt32(NV_STATISTICS_KIND_FREE) }
    private static var blockCount: Int { NV_STATISTICS_BLOCKS }

    private var used: Int {
        Int(unsafe nv_load32(memory.base + NV_STATISTICS_OFFSET_USED))
    }

    private func block(_ index: Int) -> UnsafeMutableRawPointer {
        unsafe memory.base + Self.offset(index)
    }

    private static func offset(_ index: Int) -> Int {
        NV_STATISTICS_HEADER_BYTES + index * NV_STATISTICS_BLOCK_BYTES
    }

    private static func clear(_ base: UnsafeMutableRawPointer) {
        for word in 0..<NV_STATISTICS_BLOCK_BYTES / 8 {
            unsafe nv_store64(base + word * 8, 0)
        }
    }

    /// Changes what belongs to whom: the sequence number is odd meanwhile.
    private func changing(_ body: () -> Void) {
        let sequence = unsafe memory.base + NV_STATISTICS_OFFSET_SEQUENCE
        let before = unsafe nv_load32(sequence)
        unsafe nv_store32(sequence, before &+ 1)
        // A reader that sees any of the changes sees the odd number too.
        nv_full_fence()
        body()
        // The changes are visible before the even number.
        unsafe nv_store_release32(sequence, before &+ 2)
    }
}

/// Whom a block is about.
@safe
public struct StatisticsIdentity: Sendable, Equatable {
    /// The kinds of blocks.
    public enum Kind: UInt32, Sendable {
        /// A queue pair, and the rings and sessions on it that have ended.
        case queue = 1
        /// A ring.
        case ring = 2
        /// The messages of a session.
        case session = 3
        /// The rings and sessions of a namespace that have ended.
        case namespace = 4
    }

    /// What kind it is.
    public var kind: Kind
    /// The I/O queue pair, from 1 on; 0: none.
    public var queue: UInt32 = 0
    /// The session; 0: none.
    public var sessionID: UInt64 = 0
    /// The ring.
    public var ringID: UInt32 = 0
    /// The namespace; 0: none.
    public var namespaceID: UInt32 = 0
    /// The disk's name, cut to 64 bytes.
    public var disk = ""

    /// Somebody of a kind.
    public init(
        kind: Kind, queue: UInt32 = 0, sessionID: UInt64 = 0, ringID: UInt32 = 0,
        namespaceID: UInt32 = 0, disk: String = ""
    ) {
        self.kind = kind
        self.queue = queue
        self.sessionID = sessionID
        self.ringID = ringID
        self.namespaceID = namespaceID
        self.disk = disk
    }

    /// Whom it is about, whatever else is said of them.
    fileprivate struct Owner: Hashable {
        let kind: Kind
        let first: UInt64
        let second: UInt32
    }

    fileprivate var owner: Owner {
        switch kind {
        case .queue: Owner(kind: kind, first: UInt64(queue), second: 0)
        case .ring: Owner(kind: kind, first: sessionID, second: ringID)
        case .session: Owner(kind: kind, first: sessionID, second: 0)
        case .namespace: Owner(kind: kind, first: UInt64(namespaceID), second: 0)
        }
    }

    fileprivate func write(to base: UnsafeMutableRawPointer) {
        unsafe nv_store32(base + NV_STATISTICS_BLOCK_QUEUE, queue)
        unsafe nv_store64(base + NV_STATISTICS_BLOCK_SESSION, sessionID)
        unsafe nv_store32(base + NV_STATISTICS_BLOCK_RING, ringID)
        unsafe nv_store32(base + NV_STATISTICS_BLOCK_NAMESPACE, namespaceID)
        let name = disk.utf8.prefix(NV_STATISTICS_NAME_BYTES)
        unsafe nv_store32(
            base + NV_STATISTICS_BLOCK_NAME_BYTES, UInt32(name.count))
        for (index, byte) in name.enumerated() {
            unsafe nv_store8(base + (NV_STATISTICS_BLOCK_NAME + index), byte)
        }
        unsafe nv_store32(base, kind.rawValue)
    }

    fileprivate init?(at base: UnsafeMutableRawPointer) {
        guard let kind = unsafe Kind(rawValue: nv_load32(base)) else { return nil }
        let length = unsafe nv_load32(base + NV_STATISTICS_BLOCK_NAME_BYTES)
        let count = min(Int(length), NV_STATISTICS_NAME_BYTES)
        let bytes = (0..<count).map {
            unsafe nv_load8(base + (NV_STATISTICS_BLOCK_NAME + $0))
        }
        self.init(
            kind: kind,
            queue: unsafe nv_load32(base + NV_STATISTICS_BLOCK_QUEUE),
            sessionID: unsafe nv_load64(base + NV_STATISTICS_BLOCK_SESSION),
            ringID: unsafe nv_load32(base + NV_STATISTICS_BLOCK_RING),
            namespaceID: unsafe nv_load32(base + NV_STATISTICS_BLOCK_NAMESPACE),
            disk: String(decoding: bytes, as: UTF8.self))
    }
}
