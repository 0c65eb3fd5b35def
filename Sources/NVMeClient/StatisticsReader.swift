// SPDX-License-Identifier: Apache-2.0
// Reads a worker's statistics (Proto/statistics.md, version 1) without disturbing it.

internal import CMemory
internal import CStatistics
internal import Glibc
public import Linux

/// What is wrong with memory that should be statistics.
public struct StatisticsError: Error, CustomStringConvertible {
    /// What is wrong, in words.
    public let description: String
}

/// How long the requests of a kind took: buckets of latencies, eight for each power of two.
public struct StatisticsHistogram: Sendable, Equatable {
    /// How many requests each bucket counts.
    public private(set) var buckets: [UInt64]

    /// No requests.
    public init() { buckets = Array(repeating: 0, count: NV_STATISTICS_BUCKETS) }

    init(_ buckets: [UInt64]) { self.buckets = buckets }

    /// How many requests there are.
    public var count: UInt64 { buckets.reduce(0, &+) }

    /// The latency that the given share of the requests (0 to 1) did not exceed, in nanoseconds:
    /// the end of its bucket, at most an eighth too much. nil: no requests.
    public func percentile(_ share: Double) -> UInt64? {
        let ticks = unsafe buckets.withUnsafeBufferPointer { all -> UInt64 in
            guard let first = all.baseAddress, all.count == NV_STATISTICS_BUCKETS else { return 0 }
            return unsafe nv_statistics_percentile(first, share)
        }
        return ticks > 0 ? ticks * 256 : nil
    }

    /// The requests of both.
    public static func + (first: Self, second: Self) -> Self {
        Self(zip(first.buckets, second.buckets).map { $0 &+ $1 })
    }

    /// The requests of the first that came after the second was taken.
    public static func - (later: Self, earlier: Self) -> Self {
        Self(zip(later.buckets, earlier.buckets).map { $0 > $1 ? $0 - $1 : 0 })
    }
}

/// Numbers that only rise; the difference of two is what happened in between.
public struct StatisticsNumbers: Sendable, Equatable {
    /// Counters by their index in the memory.
    var counters: [UInt64] = Array(repeating: 0, count: NV_STATISTICS_COUNTERS)
    /// Reads that ended.
    public internal(set) var reads = StatisticsHistogram()
    /// Writes that ended.
    public internal(set) var writes = StatisticsHistogram()
    /// Other requests that ended.
    public internal(set) var others = StatisticsHistogram()

    /// Zeroes.
    public init() {}

    /// Requests that were taken.
    public var submitted: UInt64 { counters[NV_STATISTICS_SUBMITTED] }
    /// Bytes of the reads that were taken.
    public var bytesRead: UInt64 { counters[NV_STATISTICS_BYTES_READ] }
    /// Bytes of the writes that were taken.
    public var bytesWritten: UInt64 { counters[NV_STATISTICS_BYTES_WRITTEN] }
    /// Flushes that ended.
    public var flushes: UInt64 { counters[NV_STATISTICS_FLUSHES] }
    /// Requests that ended with an error.
    public var errors: UInt64 { counters[NV_STATISTICS_ERRORS] }
    /// Requests whose data was copied.
    public var bounced: UInt64 { counters[NV_STATISTICS_BOUNCED] }
    /// Times that a request waited for the limits of its disk.
    public var limited: UInt64 { counters[NV_STATISTICS_LIMITED] }
    /// Times that the client woke the worker.
    public var kicks: UInt64 { counters[NV_STATISTICS_KICKS] }
    /// Times that the worker woke the client.
    public var wakes: UInt64 { counters[NV_STATISTICS_WAKES] }
    /// Writes of doorbell registers.
    public var doorbells: UInt64 { counters[NV_STATISTICS_DOORBELLS] }
    /// Turns of a thread around its queue pair.
    public var rounds: UInt64 { counters[NV_STATISTICS_ROUNDS] }
    /// Turns that found nothing to do.
    public var spins: UInt64 { counters[NV_STATISTICS_SPINS] }
    /// Times that the thread slept.
    public var sleeps: UInt64 { counters[NV_STATISTICS_SLEEPS] }
    /// Interrupts that were taken.
    public var interrupts: UInt64 { counters[NV_STATISTICS_INTERRUPTS] }

    /// All requests that ended.
    public var all: StatisticsHistogram { reads + writes + others }
    /// Requests that have not ended.
    public var inFlight: UInt64 {
        let ended = all.count
        return submitted > ended ? submitted - ended : 0
    }

    /// The sum.
    public static func + (first: Self, second: Self) -> Self {
        var sum = first
        sum.counters = zip(first.counters, second.counters).map { $0 &+ $1 }
        sum.reads = first.reads + second.reads
        sum.writes = first.writes + second.writes
        sum.others = first.others + second.others
        return sum
    }

    /// What happened after `earlier` was taken.
    public static func - (later: Self, earlier: Self) -> Self {
        var difference = later
        difference.counters = zip(later.counters, earlier.counters).map { $0 > $1 ? $0 - $1 : 0 }
        difference.reads = later.reads - earlier.reads
        difference.writes = later.writes - earlier.writes
        difference.others = later.others - earlier.others
        return difference
    }
}

/// Whom numbers are about.
public struct StatisticsSubject: Sendable, Hashable {
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
    public var queue: UInt32
    /// The session; 0: none.
    public var sessionID: UInt64
    /// The ring.
    public var ringID: UInt32
    /// The namespace; 0: none.
    public var nsid: UInt32
    /// The disk's name.
    public var disk: String
}

/// A consistent copy of a worker's statistics.
public struct StatisticsSnapshot: Sendable {
    /// No numbers, taken when a worker began to count.
    public init(startingAt nanoseconds: UInt64 = 0, pid: Int32 = 0) {
        takenNanoseconds = nanoseconds
        startNanoseconds = nanoseconds
        self.pid = pid
    }

    /// When it was taken, CLOCK_MONOTONIC.
    public var takenNanoseconds: UInt64 = 0
    /// When counting began, CLOCK_MONOTONIC.
    public var startNanoseconds: UInt64 = 0
    /// The worker's process.
    public var pid: Int32 = 0
    /// The numbers, by whom they are about, in the order of the memory.
    public var blocks: [(subject: StatisticsSubject, numbers: StatisticsNumbers)] = []

    /// All that a namespace has done; 0: all namespaces.
    public func namespace(_ nsid: UInt32) -> StatisticsNumbers {
        blocks.reduce(into: StatisticsNumbers()) { sum, block in
            guard block.subject.kind != .queue, nsid == 0 || block.subject.nsid == nsid
            else { return }
            sum = sum + block.numbers
        }
    }

    /// All that a queue pair has done.
    public func queue(_ queue: UInt32) -> StatisticsNumbers {
        blocks.reduce(into: StatisticsNumbers()) { sum, block in
            guard block.subject.kind != .namespace, block.subject.queue == queue else { return }
            sum = sum + block.numbers
        }
    }

    /// The namespaces that anything was done to, rising.
    public var namespaceIDs: [UInt32] {
        Set(blocks.filter { $0.subject.kind != .queue }.map(\.subject.nsid)).sorted()
    }

    /// The queue pairs, rising.
    public var queueIDs: [UInt32] {
        Set(blocks.filter { $0.subject.kind == .queue }.map(\.subject.queue)).sorted()
    }
}

/// A worker's statistics, mapped for reading.
@safe
public struct StatisticsReader: ~Copyable {
    /// The most bytes that are mapped: far more than any worker has.
    private static let maxByteCount = 64 << 20
    /// For how long copies may be spoilt by changes before the worker counts as ill: changes are
    /// rare and short, but it may lose its processor in the middle of one.
    private static let patienceNanoseconds: UInt64 = 1_000_000_000

    private let memory: Mapping
    private let blockByteCount: Int
    private let blockCount: Int

    /// Maps the memory that OpenStatistics returned.
    public init(_ fd: borrowing OwnedFD) throws {
        let byteCount = try MemFD.byteCount(of: fd)
        guard byteCount >= NV_STATISTICS_HEADER_BYTES, byteCount <= Self.maxByteCount else {
            throw StatisticsError(description: "statistics of \(byteCount) bytes are none")
        }
        let mapping = try Mapping(fd, byteCount: byteCount, writable: false)
        let sizes = try unsafe Self.check(mapping.base, byteCount)
        memory = mapping
        blockByteCount = sizes.block
        blockCount = sizes.count
    }

    /// The bytes of a block, and how many fit.
    private static func check(
        _ base: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(StatisticsError) -> (block: Int, count: Int) {
        guard unsafe nv_load64(base) == NV_STATISTICS_MAGIC,
            unsafe nv_load32(base + NV_STATISTICS_OFFSET_VERSION) == UInt32(NV_STATISTICS_VERSION)
        else {
            throw StatisticsError(
                description: "the worker's statistics are of another version; use its nvmectl")
        }
        let block = Int(unsafe nv_load32(base + NV_STATISTICS_OFFSET_BLOCK_BYTES))
        let count = Int(unsafe nv_load32(base + NV_STATISTICS_OFFSET_BLOCKS))
        let (all, overflow) = block.multipliedReportingOverflow(by: count)
        guard block >= NV_STATISTICS_BLOCK_BYTES, !overflow,
            all <= byteCount - NV_STATISTICS_HEADER_BYTES
        else { throw StatisticsError(description: "the statistics' header contradicts itself") }
        return (block, count)
    }

    /// A copy in which everything belongs to whom it says.
    public func snapshot() throws(StatisticsError) -> StatisticsSnapshot {
        let base = unsafe memory.base
        let end = MonotonicClock.nowNanoseconds + Self.patienceNanoseconds
        repeat {
            let before = unsafe nv_load_acquire32(base + NV_STATISTICS_OFFSET_SEQUENCE)
            guard before & 1 == 0 else {
                sched_yield()
                continue
            }
            let copy = copy()
            // The copies are made before the number is read again.
            nv_full_fence()
            if unsafe nv_load32(base + NV_STATISTICS_OFFSET_SEQUENCE) == before { return copy }
        } while MonotonicClock.nowNanoseconds < end
        throw StatisticsError(
            description: "the worker did not finish a change of its statistics; it may have died")
    }

    private func copy() -> StatisticsSnapshot {
        let base = unsafe memory.base
        var snapshot = StatisticsSnapshot()
        snapshot.takenNanoseconds = MonotonicClock.nowNanoseconds
        snapshot.startNanoseconds = unsafe nv_load64(base + NV_STATISTICS_OFFSET_START_NS)
        snapshot.pid = Int32(
            truncatingIfNeeded: unsafe nv_load32(base + NV_STATISTICS_OFFSET_PID))
        let used = min(Int(unsafe nv_load32(base + NV_STATISTICS_OFFSET_USED)), blockCount)
        for index in 0..<used {
            let block = unsafe base + (NV_STATISTICS_HEADER_BYTES + index * blockByteCount)
            guard let subject = unsafe Self.subject(block) else { continue }
            snapshot.blocks.append((subject, unsafe Self.numbers(block)))
        }
        return snapshot
    }

    private static func subject(_ block: UnsafeMutableRawPointer) -> StatisticsSubject? {
        guard
            let kind = unsafe StatisticsSubject.Kind(
                rawValue: nv_load32(block + NV_STATISTICS_BLOCK_KIND))
        else { return nil }
        let length = Int(unsafe nv_load32(block + NV_STATISTICS_BLOCK_NAME_BYTES))
        let name = (0..<min(length, NV_STATISTICS_NAME_BYTES)).map {
            unsafe nv_load8(block + (NV_STATISTICS_BLOCK_NAME + $0))
        }
        return StatisticsSubject(
            kind: kind, queue: unsafe nv_load32(block + NV_STATISTICS_BLOCK_QUEUE),
            sessionID: unsafe nv_load64(block + NV_STATISTICS_BLOCK_SESSION),
            ringID: unsafe nv_load32(block + NV_STATISTICS_BLOCK_RING),
            nsid: unsafe nv_load32(block + NV_STATISTICS_BLOCK_NAMESPACE),
            disk: String(decoding: name, as: UTF8.self))
    }

    private static func numbers(_ block: UnsafeMutableRawPointer) -> StatisticsNumbers {
        var numbers = StatisticsNumbers()
        numbers.counters = unsafe words(
            block + NV_STATISTICS_BLOCK_COUNTERS, NV_STATISTICS_COUNTERS)
        numbers.reads = unsafe histogram(block, NV_STATISTICS_READ)
        numbers.writes = unsafe histogram(block, NV_STATISTICS_WRITE)
        numbers.others = unsafe histogram(block, NV_STATISTICS_OTHER)
        return numbers
    }

    private static func histogram(
        _ block: UnsafeMutableRawPointer, _ index: Int
    ) -> StatisticsHistogram {
        let offset = NV_STATISTICS_BLOCK_HISTOGRAMS + index * NV_STATISTICS_HISTOGRAM_BYTES
        return StatisticsHistogram(unsafe words(block + offset, NV_STATISTICS_BUCKETS))
    }

    private static func words(_ start: UnsafeMutableRawPointer, _ count: Int) -> [UInt64] {
        (0..<count).map { unsafe nv_load64(start + $0 * 8) }
    }
}
