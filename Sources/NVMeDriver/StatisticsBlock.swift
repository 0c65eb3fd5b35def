// SPDX-License-Identifier: Apache-2.0
// A block of the statistics (Proto/statistics.md), for the one who counts there: the hot path's
// side.

internal import CMemory
internal import CStatistics

/// What can be counted, each by its index.
public enum StatisticsCounter: Int, Sendable, CaseIterable {
    /// Requests taken.
    case submitted = 0
    /// Bytes of the reads taken.
    case bytesRead = 1
    /// Bytes of the writes taken.
    case bytesWritten = 2
    /// Flushes that ended.
    case flushes = 3
    /// Requests that ended with an error.
    case errors = 4
    /// Requests whose data was copied, or part of it.
    case bounced = 5
    /// Times that a request waited for the session's limits.
    case limited = 6
    /// Times that the client woke the worker.
    case kicks = 7
    /// Times that the worker woke the client.
    case wakes = 8
    /// Writes of doorbell registers.
    case doorbells = 9
    /// Turns of a thread around its queue pair.
    case rounds = 10
    /// Turns that found nothing to do.
    case spins = 11
    /// Times that a thread slept.
    case sleeps = 12
    /// Interrupts taken.
    case interrupts = 13

    /// What the thread of a queue pair counts of itself.
    public static let ofThread: [Self] = [.doorbells, .rounds, .spins, .sleeps, .interrupts]
}

/// A block of counters and histograms. One writer, one thread at a time; a plain value, valid as
/// long as the statistics live and the block was not released.
@safe
public struct StatisticsBlock {
    let base: UnsafeMutableRawPointer

    init(base: UnsafeMutableRawPointer) { unsafe self.base = base }

    /// A block that nobody reads, for all who have none of their own.
    public static var nowhere: StatisticsBlock { unsafe StatisticsBlock(base: nowhereMemory) }

    nonisolated(unsafe) private static let nowhereMemory = unsafe allocated().base

    /// A block of its own that nobody reads, for `deallocate`.
    static func allocated() -> StatisticsBlock {
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: NV_STATISTICS_BLOCK_BYTES, alignment: 128)
        unsafe memory.initializeMemory(
            as: UInt8.self, repeating: 0, count: NV_STATISTICS_BLOCK_BYTES)
        return unsafe StatisticsBlock(base: memory)
    }

    /// Gives the memory of `allocated` back.
    func deallocate() { unsafe base.deallocate() }

    // MARK: Counting

    /// Adds to a counter.
    @inline(__always)
    public func add(_ counter: StatisticsCounter, _ count: UInt64 = 1) {
        let place = unsafe base + (128 &+ counter.rawValue &* 8)
        unsafe nv_store64(place, nv_load64(place) &+ count)
    }

    /// A request was taken: its opcode, and how many bytes it moves.
    @inline(__always)
    public func submitted(operation: UInt8, byteCount: UInt64) {
        add(.submitted)
        if operation == IOOperation.read {
            add(.bytesRead, byteCount)
        } else if operation == IOOperation.write {
            add(.bytesWritten, byteCount)
        }
    }

    /// So many reads and writes were taken.
    @inline(__always)
    func submitted(_ count: UInt64, bytesRead: UInt64, bytesWritten: UInt64) {
        add(.submitted, count)
        add(.bytesRead, bytesRead)
        add(.bytesWritten, bytesWritten)
    }

    /// A read or a write succeeded: its age in ticks of 256 ns.
    @inline(__always)
    func count(isRead: Bool, age: UInt32) {
        let bucket = Int(truncatingIfNeeded: nv_statistics_bucket(age))
        let place = unsafe base + ((isRead ? 384 : 384 + 1920) &+ bucket &* 8)
        unsafe nv_store64(place, nv_load64(place) &+ 1)
    }

    /// A request ended: its opcode, its age in ticks of 256 ns, and whether it failed.
    @inline(__always)
    public func completed(operation: UInt8, age: UInt32, failed: Bool) {
        // Read is 2 and write 1: their histograms are 0 and 1, the others' is 2.
        let histogram =
            operation == IOOperation.read ? 0 : operation == IOOperation.write ? 1 : 2
        let bucket = Int(truncatingIfNeeded: nv_statistics_bucket(age))
        let place = unsafe base + (384 &+ histogram &* 1920 &+ bucket &* 8)
        unsafe nv_store64(place, nv_load64(place) &+ 1)
        if operation == IOOperation.flush { add(.flushes) }
        if failed { add(.errors) }
    }

    // MARK: Reading

    /// The value of a counter.
    public func value(_ counter: StatisticsCounter) -> UInt64 {
        unsafe nv_load64(base + (128 + counter.rawValue * 8))
    }

    /// A histogram's buckets: 0 reads, 1 writes, 2 others.
    public func histogram(_ index: Int) -> [UInt64] {
        precondition((0..<3).contains(index), "there are three histograms")
        return (0..<NV_STATISTICS_BUCKETS).map {
            unsafe nv_load64(base + (384 + index * 1920 + $0 * 8))
        }
    }

    /// Says what a number is that somebody else counts.
    public func set(_ counter: StatisticsCounter, _ value: UInt64) {
        unsafe nv_store64(base + (128 + counter.rawValue * 8), value)
    }

    /// Requests that ended.
    var ended: UInt64 {
        (0..<NV_STATISTICS_HISTOGRAMS).reduce(0) { $0 &+ histogram($1).reduce(0, &+) }
    }

    /// Requests that were taken and have not ended.
    public var inFlight: UInt64 {
        let (submitted, ended) = (value(.submitted), ended)
        return submitted > ended ? submitted - ended : 0
    }

    /// Says how many requests are with the device, by all that is known of them: a worker that died
    /// between a request and its number leaves a difference, which would stay for ever.
    public func settle(inFlight: Int) {
        set(.submitted, ended &+ UInt64(clamping: inFlight))
    }

    /// Adds what another block has. Unless it is to be taken `exactly`, its owner has ended:
    /// whatever was taken there has ended too.
    func add(_ other: StatisticsBlock, exactly: Bool = false) {
        let submitted = exactly ? other.value(.submitted) : other.ended
        for word in NV_STATISTICS_BLOCK_COUNTERS / 8..<NV_STATISTICS_BLOCK_BYTES / 8 {
            let value = unsafe nv_load64(other.base + word * 8)
            // What the other never counts may be somebody else's to count here at this moment.
            guard value != 0,
                word != NV_STATISTICS_BLOCK_COUNTERS / 8 + StatisticsCounter.submitted.rawValue
            else { continue }
            let place = unsafe base + word * 8
            unsafe nv_store64(place, nv_load64(place) &+ value)
        }
        add(.submitted, submitted)
    }
}
