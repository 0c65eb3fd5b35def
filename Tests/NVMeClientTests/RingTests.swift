// SPDX-License-Identifier: Apache-2.0
// Rings of the client library against a worker's end that was written from Proto/ring.md.

import CRing
import Glibc
import Linux
import NVMeClient
import Testing
import Wire

/// A ring on a fake service, with memory.
private struct RingRig {
    let service: FakeService
    let disk: Disk
    let buffer: IOBuffer
    let region: UInt32
    let ring: DiskRing

    /// Bound on every wait of these tests: 30 s.
    static var deadline: UInt64 { Deadline.after(milliseconds: 30_000) }

    /// The next completions, at least one.
    func take(_ limit: Int = 64) throws -> [RingCompletion] {
        var room = [RingCompletion](repeating: RingCompletion(), count: limit)
        while true {
            let count = unsafe room.withUnsafeMutableBufferPointer { unsafe ring.reap(into: $0) }
            if count > 0 { return Array(room[..<count]) }
            let woken = try ring.wait(deadlineNanoseconds: Self.deadline)
            try #require(woken != .timedOut)
        }
    }

    /// So many completions.
    func collect(_ count: Int) throws -> [RingCompletion] {
        var all: [RingCompletion] = []
        while all.count < count { all += try take() }
        return all
    }
}

/// Runs `body` with an open ring and ends the service afterwards.
private func withRing(
    _ script: RingScript = RingScript(), entries: UInt32 = 8, options: RingOptions = RingOptions(),
    _ body: (RingRig) throws -> Void
) throws {
    let service = try FakeService(script: script)
    defer { service.join() }
    let backend = try NVMeBackend.connect(service.socketPath)
    let disk = try backend.openDisk("vol0", access: .readWrite)
    defer { disk.close() }
    let buffer = try IOBuffer(byteCount: 1 << 20)
    let region = try disk.registerMemory(buffer)
    let ring = try disk.openRing(entries: entries, options: options)
    try body(
        RingRig(service: service, disk: disk, buffer: buffer, region: region, ring: ring))
}

@Suite("Rings of the client library")
struct RingTests {
    @Test("what was written through a ring is read back through it")
    func roundTrip() throws {
        try withRing { rig in
            // Given
            DataPattern(seed: 1).fill(rig.buffer, offset: 0, count: 8192, diskByteOffset: 0)
            // When
            let writes = rig.ring.prepareWrite(
                lba: 3, blockCount: 16, data: .region(rig.region, offset: 0), tag: 10, fua: true)
            rig.ring.submit()
            let written = try rig.collect(1)
            let reads = rig.ring.prepareRead(
                lba: 3, blockCount: 16, data: .region(rig.region, offset: 65536), tag: .max)
            rig.ring.submit()
            let read = try rig.collect(1)
            // Then
            #expect(writes && reads)
            #expect(written == [RingCompletion(tag: 10)])
            #expect(read == [RingCompletion(tag: .max)])
            #expect(
                rig.buffer.firstDifference(
                    offset: 0, count: 8192, from: rig.buffer, otherOffset: 65536) == nil)
        }
    }

    @Test("every operation is written as the document says, byte by byte")
    func entries() throws {
        try withRing { rig in
            // When
            let ring = rig.ring
            let data = RingData.region(rig.region, offset: 0x1000)
            let prepared = [
                ring.prepareFlush(tag: 1),
                ring.prepareWrite(lba: 0x0102, blockCount: 3, data: data, tag: 2, fua: true),
                ring.prepareRead(lba: 1, blockCount: 1, data: data, tag: 0x0807_0605_0403_0201),
                ring.prepareCompare(lba: 9, blockCount: 1, data: data, tag: 4),
                ring.prepareWriteZeroes(
                    lba: 7, blockCount: 2, tag: 5, deallocate: true, fua: true),
                ring.prepareDeallocate(lba: 7, blockCount: 2, tag: 6),
                ring.prepareVerify(lba: 7, blockCount: 2, tag: 7),
                ring.prepareRead(
                    lba: 1, blockCount: 1,
                    data: .segments(listRegion: rig.region, offset: 0x2000, count: 0), tag: 8),
            ]
            ring.submit()
            _ = try rig.collect(8)
            // Then
            #expect(prepared == [Bool](repeating: true, count: 8))
            let entries = rig.service.rings[0].record.entries.map(hex)
            #expect(entries[0] == "0000000000000000 0000000000000000 0100000000000000" + data0)
            #expect(entries[1] == "0101000003000000 0201000000000000 0200000000000000" + data1)
            #expect(entries[2] == "0200000001000000 0100000000000000 0102030405060708" + data1)
            #expect(entries[3] == "0500000001000000 0900000000000000 0400000000000000" + data1)
            #expect(entries[4] == "0803000002000000 0700000000000000 0500000000000000" + data0)
            #expect(entries[5] == "0900000002000000 0700000000000000 0600000000000000" + data0)
            #expect(entries[6] == "0c00000002000000 0700000000000000 0700000000000000" + data0)
        }
    }

    /// No data; and region 0 from byte 1000h on.
    private let data0 = String(repeating: " 0000000000000000", count: 5)
    private let data1 =
        " 0000000000000000 0010000000000000" + String(repeating: " 0000000000000000", count: 3)

    private func hex(_ bytes: [UInt8]) -> String {
        stride(from: 0, to: bytes.count, by: 8).map { start in
            bytes[start..<start + 8].map { byte in
                let text = String(byte, radix: 16)
                return text.count == 1 ? "0" + text : text
            }.joined()
        }.joined(separator: " ")
    }

    @Test("a segment list scatters and gathers")
    func segments() throws {
        try withRing { rig in
            // Given: 512 bytes in three pieces, and the list behind them
            DataPattern(seed: 5).fill(rig.buffer, offset: 0, count: 4096, diskByteOffset: 0)
            let pieces = [(100, 12), (8, 300), (1000, 200)]
            let stored = pieces.enumerated().map { index, piece in
                rig.buffer.storeSegment(
                    RingSegment(
                        region: rig.region, offset: UInt64(piece.0), byteCount: UInt32(piece.1)),
                    listOffset: 8192, index: index)
            }
            let list = RingData.segments(listRegion: rig.region, offset: 8192, count: 3)
            // When
            let prepared = rig.ring.prepareWrite(lba: 5, blockCount: 1, data: list, tag: 1)
            rig.ring.submit()
            _ = try rig.collect(1)
            // Then
            #expect(stored == [true, true, true])
            #expect(prepared)
            let expected = pieces.flatMap { rig.buffer.copyOut(offset: $0.0, count: $0.1) }
            #expect(Array(rig.service.contents[5 * 512..<6 * 512]) == expected)
            let entry = rig.service.rings[0].record.entries[0]
            #expect(entry[1] == 4)
            #expect(entry[28] == 3)
        }
    }

    @Test("a segment that does not fit the buffer or the list is refused")
    func segmentBounds() throws {
        let buffer = try IOBuffer(byteCount: 4096)
        let segment = RingSegment(region: 0, offset: 0, byteCount: 1)
        #expect(buffer.storeSegment(segment, listOffset: 4080, index: 0))
        #expect(!buffer.storeSegment(segment, listOffset: 4080, index: 1))
        #expect(!buffer.storeSegment(segment, listOffset: 4, index: 0))
        #expect(!buffer.storeSegment(segment, listOffset: -8, index: 0))
        #expect(!buffer.storeSegment(segment, listOffset: 0, index: -1))
        #expect(!buffer.storeSegment(segment, listOffset: 0, index: 512))
        #expect(!buffer.storeSegment(segment, listOffset: .max - 7, index: 0))
    }

    @Test("a full ring takes no more, and completions make room")
    func full() throws {
        var script = RingScript()
        script.startsHeld = true
        try withRing(script, entries: 4) { rig in
            // When
            let first = (0..<5).map { rig.ring.prepareFlush(tag: $0) }
            rig.ring.submit()
            let held = rig.ring.prepareFlush(tag: 5)
            rig.service.rings[0].release()
            let done = try rig.collect(4)
            let room = rig.ring.room
            // Then
            #expect(first == [true, true, true, true, false])
            #expect(!held)
            #expect(Set(done.map(\.tag)) == [0, 1, 2, 3])
            #expect(room == 4)
        }
    }

    @Test(
        "indexes wrap at 2^32 and at the end of the ring",
        arguments: [UInt32(0), 0xFFFF_FFF5, 0x7FFF_FFFE], [UInt32(2), 16])
    func wrap(firstIndex: UInt32, entries: UInt32) throws {
        var script = RingScript()
        script.firstIndex = firstIndex
        script.reversed = true
        var options = RingOptions()
        options.completionEntryCount = 4
        try withRing(script, entries: entries, options: options) { rig in
            // When
            var submitted: UInt64 = 0
            var tags: [UInt64] = []
            while tags.count < 100 {
                while submitted < 100, rig.ring.prepareFlush(tag: submitted) { submitted += 1 }
                rig.ring.submit()
                tags += try rig.take(3).map(\.tag)
            }
            // Then
            #expect(tags.sorted() == (0..<100).map { UInt64($0) })
            #expect(rig.service.rings[0].record.mostTaken <= 4)
        }
    }

    @Test("from idle: one kick, one sleep, one wake")
    func idle() throws {
        var script = RingScript()
        script.waitsForSleep = true
        var options = RingOptions()
        options.spinNanosecondsMax = 0
        try withRing(script, options: options) { rig in
            // Given
            while rig.service.rings[0].record.sleeps == 0 { sched_yield() }
            // When
            for tag in 0..<4 { #expect(rig.ring.prepareFlush(tag: UInt64(tag))) }
            rig.ring.submit()
            rig.ring.submit()
            _ = try rig.collect(4)
            // Then
            let record = rig.service.rings[0].record
            #expect(rig.ring.kickCount == 1)
            #expect(record.kicks == 1)
            #expect(record.wakes == 1)
            #expect(rig.ring.sleepCount == 1)
        }
    }

    @Test("an error of the device comes with its completion, and the ring goes on")
    func errors() throws {
        try withRing { rig in
            // When
            let prepared = rig.ring.prepareRead(
                lba: 4096, blockCount: 1, data: .region(rig.region, offset: 0), tag: 1)
            rig.ring.submit()
            let failed = try rig.collect(1)[0]
            let again = rig.ring.prepareFlush(tag: 2)
            rig.ring.submit()
            let done = try rig.collect(1)[0]
            // Then
            #expect(prepared && again)
            #expect(failed.error()?.code == .outOfRange)
            #expect(done.error() == nil)
            #expect(rig.ring.isOpen)
        }
    }

    @Test("the deadline ends a wait", arguments: [UInt64(0), 50_000])
    func deadline(spin: UInt64) throws {
        var options = RingOptions()
        options.spinNanosecondsMax = spin
        try withRing(options: options) { rig in
            let woken = try rig.ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 2))
            #expect(woken == .timedOut)
        }
    }

    @Test("a request by message is heard while its owner waits for a ring")
    func event() throws {
        try withRing { rig in
            let id = try rig.disk.submit(.flush)
            let woken = try rig.ring.wait(deadlineNanoseconds: RingRig.deadline)
            #expect(woken == .event)
            #expect(try rig.disk.pollCompletion()?.id == id)
        }
    }
}

@Suite("Rings whose worker is replaced", .timeLimit(.minutes(5)))
struct RingReplacementTests {
    @Test(
        "whatever a worker dies in the middle of, no entry, completion or wake-up is lost",
        arguments: RingDeath.allCases, [UInt64(0), 50_000])
    func replaced(death: RingDeath, spin: UInt64) throws {
        var script = RingScript()
        script.dies = death
        // The worst moment: the client sleeps when the worker dies.
        script.waitsForSleep = spin == 0 || death == .unsent
        var options = RingOptions()
        options.spinNanosecondsMax = spin
        try withRing(script, entries: 4, options: options) { rig in
            // Given
            let service = rig.service
            let successor = TestThread()
            successor.start { service.rings[0].succeed() }
            // When: more than the ring holds, so that room is waited for, too
            var tags: [UInt64] = []
            for round in UInt64(0)..<3 {
                for index in UInt64(0)..<4 {
                    #expect(rig.ring.prepareFlush(tag: round * 4 + index))
                }
                rig.ring.submit()
                tags += try rig.collect(4).map(\.tag)
            }
            successor.join()
            // Then
            #expect(tags.sorted() == (0..<12).map { UInt64($0) })
            #expect(service.rings[0].record.entries.count == 12)
            #expect(rig.ring.isOpen)
            #expect(rig.disk.ended == nil)
        }
    }

    @Test("the deadline ends a wait for a worker that is dead; the ring goes on with the next one")
    func deadline() throws {
        var script = RingScript()
        script.dies = .taken
        try withRing(script) { rig in
            // Given
            #expect(rig.ring.prepareFlush(tag: 1))
            rig.ring.submit()
            // When
            let woken = try rig.ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 2))
            rig.service.rings[0].succeed()
            let done = try rig.collect(1)
            // Then
            #expect(woken == .timedOut)
            #expect(done.map(\.tag) == [1])
        }
    }
}

@Suite("Rings that end, and rings that are none")
struct RingEndTests {
    @Test("the end of the session is noticed with its reason, after the completions")
    func sessionEnd() throws {
        var script = RingScript()
        script.endsAfter = 1
        try withRing(script) { rig in
            // Given
            #expect(rig.ring.prepareFlush(tag: 7))
            rig.ring.submit()
            // When
            let done = try rig.collect(1)
            let error = #expect(throws: ClientError.self) {
                while try rig.ring.wait(deadlineNanoseconds: RingRig.deadline) == .event {}
            }
            // Then
            #expect(done.map(\.tag) == [7])
            #expect(error?.wireError?.code == .sessionRevoked)
            #expect(!rig.ring.isOpen)
        }
    }

    @Test("a ring on another thread than its disk notices the end as well")
    func endWithoutSession() throws {
        var script = RingScript()
        script.endsAfter = 1
        var options = RingOptions()
        options.watchesSession = false
        try withRing(script, options: options) { rig in
            #expect(rig.ring.prepareFlush(tag: 7))
            rig.ring.submit()
            _ = try rig.collect(1)
            let error = #expect(throws: ClientError.self) {
                try rig.ring.wait(deadlineNanoseconds: RingRig.deadline)
            }
            #expect(error?.isWorkerRestarted == true)
        }
    }

    @Test("a closed ring gives what it has and then says that it is closed")
    func close() throws {
        try withRing { rig in
            #expect(rig.ring.prepareFlush(tag: 7))
            rig.ring.submit()
            _ = try rig.collect(1)
            try rig.disk.closeRing(rig.ring)
            let error = #expect(throws: ClientError.self) { try rig.ring.wait() }
            #expect(error?.wireError?.code == .cancelled)
            // The disk is open, and another ring as well.
            try rig.disk.flush()
            _ = try rig.disk.openRing(entries: 2)
        }
    }

    static let wrongHeaders: [(Int, UInt32, String)] = [
        (NV_RING_OFFSET_MAGIC, 0, "magic"),
        (NV_RING_OFFSET_VERSION, 2, "version 2"),
        (NV_RING_OFFSET_HEADER_BYTES, 4095, "header_byte_count"),
        (NV_RING_OFFSET_SUBMISSION_ENTRIES, 0, "submission_entry_count 0"),
        (NV_RING_OFFSET_SUBMISSION_ENTRIES, 7, "submission_entry_count 7"),
        (NV_RING_OFFSET_SUBMISSION_ENTRIES, 8192, "submission_entry_count 8192"),
        (NV_RING_OFFSET_COMPLETION_ENTRIES, .max, "completion_entry_count"),
        (NV_RING_OFFSET_SUBMISSION_OFFSET, 0, "submission_offset 0"),
        (NV_RING_OFFSET_SUBMISSION_OFFSET, 4097, "submission_offset 4097"),
        (NV_RING_OFFSET_SUBMISSION_OFFSET, 7744, "submission_offset 7744"),
        (NV_RING_OFFSET_COMPLETION_OFFSET, .max - 63, "completion_offset"),
        (NV_RING_OFFSET_COMPLETION_OFFSET, 4096, "completion_offset 4096"),
        (NV_RING_OFFSET_BYTES, 1, "byte_count"),
        (NV_RING_OFFSET_BYTES + 4, 1, "byte_count"),
        (NV_RING_OFFSET_RING_ID, 9, "ring_id"),
    ]

    @Test(
        "a header that is wrong in any field is refused with its name",
        arguments: Self.wrongHeaders)
    func header(offset: Int, value: UInt32, says: String) throws {
        var script = RingScript()
        script.patches = [offset: value]
        let error = #expect(throws: ClientError.self) { try withRing(script) { _ in } }
        #expect(error?.description.contains(says) == true, "\(String(describing: error))")
    }

    @Test("memory that is not sealed, or shorter than said, is refused")
    func memory() throws {
        var unsealed = RingScript()
        unsealed.seals = [.shrink]
        var long = RingScript()
        long.surplusByteCount = 4096
        var huge = RingScript()
        huge.surplusByteCount = .max - (1 << 20)
        for (script, says) in [(unsealed, "not sealed"), (long, "8192 bytes of"), (huge, "has")] {
            let error = #expect(throws: ClientError.self) { try withRing(script) { _ in } }
            #expect(error?.description.contains(says) == true, "\(String(describing: error))")
        }
    }

    @Test(
        "indexes that cannot be are an error, not a crash",
        arguments: [UInt32(10), .max, 0x8000_0000])
    func indexes(value: UInt32) throws {
        var script = RingScript()
        script.lie = (NV_RING_OFFSET_COMPLETION_TAIL, value)
        try withRing(script) { rig in
            // Given: the lie replaces the index of a true completion
            #expect(rig.ring.prepareFlush(tag: 1))
            rig.ring.submit()
            // When
            let error = #expect(throws: ClientError.self) { while true { _ = try rig.take() } }
            // Then
            #expect(error?.description.contains("impossible") == true)
            #expect(!rig.ring.isOpen)
        }
    }

    @Test("a worker that took more than there was is an error, not a crash")
    func submissionHead() throws {
        var script = RingScript()
        script.lie = (NV_RING_OFFSET_SUBMISSION_HEAD, 100)
        try withRing(script, entries: 2) { rig in
            #expect(rig.ring.prepareFlush(tag: 1))
            rig.ring.submit()
            _ = try rig.take()
            #expect(rig.ring.prepareFlush(tag: 2))
            #expect(!rig.ring.prepareFlush(tag: 3))
            #expect(!rig.ring.isOpen)
        }
    }

    @Test(
        "an entry count that is no power of two is refused without a message",
        arguments: [UInt32(0), 1, 3, 8192, .max])
    func entryCounts(count: UInt32) throws {
        let service = try FakeService()
        defer { service.join() }
        let disk = try NVMeBackend.connect(service.socketPath).openDisk("vol0")
        let error = #expect(throws: ClientError.self) { try disk.openRing(entries: count) }
        #expect(error?.wireError?.code == .invalidArgument)
        #expect(service.record.requests.isEmpty)
        disk.close()
    }

    @Test("region ids are the lowest that are free")
    func regionIDs() throws {
        try withRing { rig in
            let buffers = try (0..<3).map { _ in try IOBuffer(byteCount: 4096) }
            let ids = try buffers.map { try rig.disk.registerMemory($0) }
            try rig.disk.unregisterMemory(buffers[1])
            let again = try rig.disk.registerMemory(try IOBuffer(byteCount: 4096))
            #expect(ids == [1, 2, 3])
            #expect(again == 2)
            #expect(rig.disk.regionID(of: buffers[1]) == nil)
        }
    }
}
