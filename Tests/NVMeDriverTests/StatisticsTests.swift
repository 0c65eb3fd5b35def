// SPDX-License-Identifier: Apache-2.0
// Statistics as they are written and as they are read (Proto/statistics.md).

import CMemory
import CStatistics
import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("Statistics")
struct StatisticsTests {
    private static let session = StatisticsIdentity(
        kind: .session, queue: 1, sessionID: 0x1_0000_0001, namespaceID: 7, disk: "größe")
    private static let ring = StatisticsIdentity(
        kind: .ring, queue: 2, sessionID: 9, ringID: 3, namespaceID: 7, disk: "vol1")

    private static func count(_ block: StatisticsBlock, _ requests: Int) {
        for index in 0..<requests {
            block.submitted(operation: IOOperation.read, byteCount: 4096)
            block.submitted(operation: IOOperation.write, byteCount: 512)
            block.completed(
                operation: IOOperation.read, age: UInt32(index), failed: index % 10 == 0)
            block.completed(operation: IOOperation.write, age: 1000, failed: false)
        }
    }

    // MARK: Buckets

    @Test("every time has a bucket that contains it, at most an eighth wide")
    func buckets() {
        var times: [UInt64] = Array(0..<1000)
        for power in 10..<32 as Range<UInt64> {
            for sub in 0..<8 as Range<UInt64> {
                let start = (8 + sub) << (power - 3)
                times += [start - 1, start, start + 1]
            }
        }
        times.append(UInt64(UInt32.max))
        for time in times {
            let bucket = nv_statistics_bucket(UInt32(time))
            let start = nv_statistics_bucket_start(bucket)
            let end = nv_statistics_bucket_start(bucket + 1)
            #expect(bucket < UInt32(NV_STATISTICS_BUCKETS))
            #expect(start <= time && time < end, "\(time) in \(bucket): \(start)..<\(end)")
            #expect(end - start == 1 || (end - start) * 8 <= start)
        }
        #expect(nv_statistics_bucket(.max) == UInt32(NV_STATISTICS_BUCKETS) - 1)
    }

    @Test("percentiles are the ends of their buckets")
    func percentiles() throws {
        // Given: 1 to 1000 ticks, each once
        let statistics = try Statistics(pid: 1)
        let block = try requireValue(statistics.assign(Self.session))
        for age in 1...1000 as ClosedRange<UInt32> {
            block.completed(operation: IOOperation.read, age: age, failed: false)
        }
        // When
        let reads = try StatisticsReader(statistics.fd).snapshot().blocks[0].numbers.reads
        // Then: 500 lies in 480..<512, 990 and 999 in 960..<1024
        #expect(reads.count == 1000)
        #expect(reads.percentile(0.5) == 512 * 256)
        #expect(reads.percentile(0.99) == 1024 * 256)
        #expect(reads.percentile(0.999) == 1024 * 256)
        #expect(reads.percentile(0) == 2 * 256)
        #expect(StatisticsHistogram().percentile(0.5) == nil)
        #expect(Statistics.percentile(block.histogram(0), 0.5) == 512 * 256)
        #expect(Statistics.percentile(block.histogram(1), 0.5) == nil)
    }

    // MARK: Writer and reader

    @Test("what is counted is read, by whom it is about")
    func roundTrip() throws {
        // Given
        let statistics = try Statistics(pid: 4711)
        let session = try requireValue(statistics.assign(Self.session))
        let ring = try requireValue(statistics.assign(Self.ring))
        Self.count(session, 100)
        session.submitted(operation: IOOperation.flush, byteCount: 0)
        ring.completed(operation: IOOperation.flush, age: 5, failed: false)
        for (index, counter) in StatisticsCounter.allCases.enumerated() where index > 4 {
            ring.add(counter, UInt64(index))
        }
        // When
        let snapshot = try StatisticsReader(statistics.fd).snapshot()
        // Then
        #expect(snapshot.pid == 4711)
        #expect(snapshot.blocks.count == 2)
        let (first, second) = (snapshot.blocks[0], snapshot.blocks[1])
        #expect(first.subject.disk == "größe")
        #expect(first.subject.sessionID == 0x1_0000_0001)
        #expect(second.subject.ringID == 3)
        #expect(first.numbers.reads.count == 100)
        #expect(first.numbers.writes.count == 100)
        #expect(first.numbers.bytesRead == 409_600)
        #expect(first.numbers.bytesWritten == 51_200)
        #expect(first.numbers.errors == 10)
        #expect(first.numbers.inFlight == 1)
        #expect(second.numbers.flushes == 1)
        #expect(second.numbers.bounced == 5)
        #expect(second.numbers.interrupts == 13)
        #expect(snapshot.namespace(7).all.count == 201)
        #expect(snapshot.namespace(8).all.count == 0)
        #expect(snapshot.queue(2).all.count == 1)
    }

    @Test("readers cannot write, resize or punch it, while the worker goes on counting")
    func sealed() throws {
        // Given
        let statistics = try Statistics(pid: 1)
        let block = try requireValue(statistics.assign(Self.session))
        let fd = try statistics.fd.duplicate()
        var byte: UInt8 = 1
        // When, then
        #expect(throws: SystemCallError.self) {
            _ = try Mapping(fd, byteCount: 4096, writable: true)
        }
        #expect(unsafe pwrite(fd.raw, &byte, 1, 0) == -1)
        #expect(ftruncate(fd.raw, 0) == -1)
        #expect(ftruncate(fd.raw, 1 << 30) == -1)
        #expect(throws: SystemCallError.self) {
            try MemFD.punchHole(fd, offset: 0, byteCount: 4096)
        }
        Self.count(block, 3)
        #expect(try StatisticsReader(fd).snapshot().blocks[0].numbers.submitted == 6)
    }

    @Test("sums over a namespace and a queue pair stay when a session ends")
    func ended() throws {
        // Given
        let statistics = try Statistics(pid: 1)
        _ = statistics.assign(StatisticsIdentity(kind: .queue, queue: 1))
        let block = try requireValue(statistics.assign(Self.session))
        Self.count(block, 50)
        let reader = try StatisticsReader(statistics.fd)
        let before = try reader.snapshot()
        // When
        statistics.release(block)
        let after = try reader.snapshot()
        let again = try requireValue(statistics.assign(Self.session))
        let reused = try reader.snapshot()
        // Then
        #expect(before.namespace(7) == after.namespace(7))
        #expect(before.queue(1) == after.queue(1))
        #expect(after.namespace(7).reads.count == 50)
        #expect(after.blocks.map(\.subject.kind) == [.queue, .namespace])
        #expect(again.value(.submitted) == 0)
        #expect(reused.namespace(7) == before.namespace(7))
    }

    @Test("what was taken and never ended is not in flight for ever")
    func dropped() throws {
        // Given
        let statistics = try Statistics(pid: 1)
        let block = try requireValue(statistics.assign(Self.session))
        block.submitted(operation: IOOperation.read, byteCount: 4096)
        // When
        statistics.release(block)
        // Then
        #expect(try StatisticsReader(statistics.fd).snapshot().namespace(7).inFlight == 0)
    }

    @Test("when all blocks are in use there is none, until one is given back")
    func full() throws {
        // Given
        let statistics = try Statistics(pid: 1)
        let blocks = (1...UInt64(NV_STATISTICS_BLOCKS)).map {
            statistics.assign(
                StatisticsIdentity(kind: .session, sessionID: $0, namespaceID: 1))
        }
        #expect(blocks.allSatisfy { $0 != nil })
        #expect(statistics.assign(Self.ring) == nil)
        // When
        for block in blocks.prefix(2) { statistics.release(try requireValue(block)) }
        // Then: one of them is the namespace's
        #expect(statistics.assign(Self.ring) != nil)
        let snapshot = try StatisticsReader(statistics.fd).snapshot()
        #expect(snapshot.blocks.count == NV_STATISTICS_BLOCKS)
    }

    @Test("numbers read while they are counted only rise, and add up in the end")
    func concurrent() async throws {
        // Given
        let statistics = try Statistics(pid: 1)
        nonisolated(unsafe) let block = try requireValue(statistics.assign(Self.session))
        let reader = try StatisticsReader(statistics.fd)
        let counting = Task.detached { unsafe Self.count(block, 100_000) }
        // When
        var last = StatisticsNumbers()
        var falls = 0
        while last.all.count < 200_000 {
            let next = try reader.snapshot().namespace(7)
            if (last - next) != StatisticsNumbers() { falls += 1 }
            last = next
        }
        await counting.value
        // The numbers of one snapshot are read one after the other: only one that is taken when
        // nothing counts any more has to add up.
        last = try reader.snapshot().namespace(7)
        // Then
        #expect(falls == 0)
        #expect(last.bytesRead == 409_600_000)
        withExtendedLifetime(statistics) {}
    }

    // MARK: A predecessor's

    @Test("a successor goes on with what was counted, for the same sessions, rings and queues")
    func continued() throws {
        // Given
        let first = try Statistics(pid: 1)
        let queue = try requireValue(
            first.assign(StatisticsIdentity(kind: .queue, queue: 2)))
        var gone = Self.ring
        gone.ringID = 4
        for (identity, requests) in [(Self.session, 10), (Self.ring, 20), (gone, 30)] {
            Self.count(try requireValue(first.assign(identity)), requests)
        }
        queue.set(.sleeps, 77)
        first.release(try requireValue(first.assign(gone)))
        let before = try StatisticsReader(first.fd).snapshot()
        // When
        let second = try Statistics(pid: 2, continuing: first.fd)
        let copied = try StatisticsReader(second.fd).snapshot()
        let again = try requireValue(second.assign(Self.ring))
        Self.count(again, 1)
        let after = try StatisticsReader(second.fd).snapshot()
        // Then
        #expect(copied.pid == 2)
        #expect(copied.startNanoseconds == before.startNanoseconds)
        #expect(copied.namespace(7) == before.namespace(7))
        #expect(copied.queue(2).reads == before.queue(2).reads)
        #expect(copied.queue(2).sleeps == 0)
        #expect(again.value(.submitted) == 42)
        #expect(after.blocks.count == before.blocks.count)
        #expect(after.namespace(7).reads.count == 61)
    }

    @Test("what a death left uncounted is not in flight for ever")
    func settled() throws {
        // Given: 20 were taken and 20 ended; then more were taken than were ever counted as ended
        let statistics = try Statistics(pid: 1)
        let block = try requireValue(statistics.assign(Self.session))
        Self.count(block, 10)
        for _ in 0..<5 { block.submitted(operation: IOOperation.read, byteCount: 512) }
        // When
        block.settle(inFlight: 3)
        // Then
        #expect(try StatisticsReader(statistics.fd).snapshot().namespace(7).inFlight == 3)
    }

    @Test(
        "a predecessor's memory that is none, or is of another version, counts for nothing",
        arguments: [
            (NV_STATISTICS_OFFSET_MAGIC, 0), (NV_STATISTICS_OFFSET_VERSION, 2),
            (NV_STATISTICS_OFFSET_USED, 0), (NV_STATISTICS_HEADER_BYTES, 77),
        ] as [(Int, UInt32)])
    func unlike(offset: Int, value: UInt32) throws {
        // Given
        let first = try Self.writable { $0.assign(Self.session).map { Self.count($0, 10) } }
        unsafe nv_store32(first.memory.base + offset, value)
        // When
        let second = try Statistics(pid: 2, continuing: first.fd)
        // Then
        #expect(try StatisticsReader(second.fd).snapshot().blocks.isEmpty)
    }

    @Test("a predecessor's damaged memory takes no more room than there is")
    func wild() throws {
        // Given: every word of it says something
        let first = try Self.writable { _ in }
        for word in 0..<first.memory.byteCount / 8
        where word >= NV_STATISTICS_HEADER_BYTES / 8 {
            unsafe nv_store64(
                first.memory.base + word * 8, 3 | UInt64(truncatingIfNeeded: word) << 32)
        }
        unsafe nv_store32(first.memory.base + NV_STATISTICS_OFFSET_USED, .max)
        let short = try MemFD.create(name: "short", byteCount: 4096)
        // When
        let second = try Statistics(pid: 2, continuing: first.fd)
        let third = try Statistics(pid: 3, continuing: short)
        // Then
        let snapshot = try StatisticsReader(second.fd).snapshot()
        #expect(snapshot.blocks.count == NV_STATISTICS_BLOCKS)
        #expect(try StatisticsReader(third.fd).snapshot().blocks.isEmpty)
    }

    /// A copy that can be written of statistics in which something was counted.
    private static func writable(_ body: (Statistics) -> Void) throws -> WritableStatistics {
        let statistics = try Statistics(pid: 1)
        body(statistics)
        return try WritableStatistics(statistics)
    }

    // MARK: Memory that is no statistics

    /// A memory file with a good header, changed in one place.
    private static func memory(_ offset: Int, _ value: UInt32) throws -> OwnedFD {
        let fd = try MemFD.create(name: "bad", byteCount: 16384)
        let mapping = try Mapping(fd, byteCount: 16384)
        let base = unsafe mapping.base
        unsafe nv_store64(base, NV_STATISTICS_MAGIC)
        let header: [(Int, Int)] = [
            (NV_STATISTICS_OFFSET_VERSION, NV_STATISTICS_VERSION),
            (NV_STATISTICS_OFFSET_BLOCK_BYTES, NV_STATISTICS_BLOCK_BYTES),
            (NV_STATISTICS_OFFSET_BLOCKS, 2), (NV_STATISTICS_OFFSET_USED, 2),
        ]
        for (place, number) in header { unsafe nv_store32(base + place, UInt32(number)) }
        unsafe nv_store32(base + offset, value)
        return fd
    }

    @Test(
        "a header that contradicts itself is refused",
        arguments: [
            (NV_STATISTICS_OFFSET_MAGIC, 0), (NV_STATISTICS_OFFSET_VERSION, 2),
            (NV_STATISTICS_OFFSET_BLOCK_BYTES, 6143), (NV_STATISTICS_OFFSET_BLOCK_BYTES, .max),
            (NV_STATISTICS_OFFSET_BLOCKS, 3), (NV_STATISTICS_OFFSET_BLOCKS, .max),
        ] as [(Int, UInt32)])
    func header(offset: Int, value: UInt32) throws {
        let fd = try Self.memory(offset, value)
        #expect(throws: StatisticsError.self) { _ = try StatisticsReader(fd).snapshot() }
    }

    @Test("a count beyond the memory and a long name are cut")
    func cut() throws {
        // Given
        let name = 4096 + NV_STATISTICS_BLOCK_NAME_BYTES
        let many = try Self.memory(NV_STATISTICS_OFFSET_USED, .max)
        let long = try Self.memory(name, .max)
        let mapping = try Mapping(long, byteCount: 16384)
        unsafe nv_store32(mapping.base + 4096, UInt32(NV_STATISTICS_KIND_RING))
        // When, then
        #expect(try StatisticsReader(many).snapshot().blocks.isEmpty)
        #expect(try StatisticsReader(long).snapshot().blocks.count == 1)
    }

    @Test("a change that never ends is an error, not a wrong number")
    func changing() throws {
        let fd = try Self.memory(NV_STATISTICS_OFFSET_SEQUENCE, 1)
        #expect(throws: StatisticsError.self) { _ = try StatisticsReader(fd).snapshot() }
    }
}

/// Statistics that anybody may change.
private struct WritableStatistics: ~Copyable {
    let fd: OwnedFD
    let memory: Mapping

    init(_ statistics: Statistics) throws {
        let original = try Mapping(
            statistics.fd, byteCount: statistics.byteCount, writable: false)
        let copy = try MemFD.create(name: "stats", byteCount: statistics.byteCount)
        let mapping = try Mapping(copy, byteCount: statistics.byteCount)
        unsafe mapping.base.copyMemory(from: original.base, byteCount: original.byteCount)
        fd = copy
        memory = mapping
    }
}
