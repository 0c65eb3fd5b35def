// SPDX-License-Identifier: Apache-2.0
// Several sessions of one device: who gets how much, and who pays for memory that goes away.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

/// A session that only reads, with a ring that is always full.
private struct Reader {
    let disk: Disk
    let ring: DiskRing
    let region: UInt32
    private(set) var completed = 0

    init(_ service: RunningService, entries: UInt32) throws {
        disk = try service.connect().openDisk("disk-a", access: .readOnly)
        region = try disk.registerMemory(try IOBuffer(byteCount: 1 << 20))
        ring = try disk.openRing(entries: entries)
    }

    /// Fills the ring.
    func fill() {
        while ring.prepareRead(lba: 0, blockCount: 1, data: .region(region, offset: 0), tag: 1) {}
        ring.submit()
    }

    /// Takes what has ended.
    mutating func reap(_ room: inout [RingCompletion]) {
        completed += unsafe room.withUnsafeMutableBufferPointer { unsafe ring.reap(into: $0) }
    }
}

extension ProcessTests {
    @Suite("Sessions that share a device", .timeLimit(.minutes(5)))
    struct RingShareTests {
        @Test(
            "two sessions that saturate one device get within 10 % of each other",
            arguments: [UInt32(512), 2048])
        func fair(entries: UInt32) throws {
            // Given: two rings that are kept full, of a device that has room for half of one
            let service = try RunningService()
            var readers = [
                try Reader(service, entries: entries), try Reader(service, entries: entries),
            ]
            let statistics = try StatisticsReader(try service.connect().openStatistics("a"))
            #expect(
                try service.emulators["a"]?.command("fault command:delay=2,queue=io,opcode=2")
                    == "ok")
            var room = [RingCompletion](repeating: RingCompletion(), count: 1024)
            let deadline = Deadline.after(milliseconds: 120_000)
            // When: counted over completions, whatever time they take
            while readers.reduce(0, { $0 + $1.completed }) < 40_000 {
                for index in readers.indices {
                    readers[index].fill()
                    readers[index].reap(&room)
                }
                guard MonotonicClock.nowNanoseconds < deadline else {
                    throw SetUpError("40000 reads took two minutes")
                }
                sched_yield()
            }
            // Then: by the worker's counters of the two rings
            let rings = try statistics.snapshot().blocks.filter { $0.subject.kind == .ring }
            let counts = rings.map(\.numbers.reads.count).sorted()
            #expect(counts.count == 2)
            let (less, more) = (try #require(counts.first), try #require(counts.last))
            #expect(Double(less) >= 0.9 * Double(more), "\(less) and \(more)")
        }

        @Test(
            "memory that goes away ends the session whose ring uses it, and no other",
            .enabled(if: HugePages.free >= 4, "needs four free huge pages"),
            arguments: ["data", "a segment list"])
        func gone(_ what: String) throws {
            // Given: a region of two huge pages, both there, and a copy in between because of the
            // alignment
            let service = try RunningService()
            let ring = try RawRing(service)
            let size = HugePages.byteCount
            let memory = try MemFD.create(name: "huge", byteCount: 2 * size, hugePages: true)
            try ring.connection.channel.send(
                request: .registerMemory(
                    regionID: 7, byteCount: UInt64(2 * size), readOnly: false),
                fds: [memory.raw])
            #expect(ring.connection.answer() == .answered)
            let other = try Reader(service, entries: 16)
            let list: UInt64 = what == "data" ? 0 : 4 << 8
            let place: UInt64 = what == "data" ? 7 : 1 << 32 | 7
            let offset = UInt64(size) + (what == "data" ? 1 : 0)
            ring.write(2 | 8 << 32, tag: 1, place: 7, offset: UInt64(size) + 1)
            ring.publish()
            try ring.waitForCompletions(1)
            // When: the second page goes, and somebody else has all that are free
            try MemFD.punchHole(memory, offset: Int64(size), byteCount: Int64(size))
            let taken = try takeAllHugePages()
            ring.write(2 | list | 8 << 32, tag: 2, place: place, offset: offset)
            ring.publish()
            let reason = try #require(try ring.connection.waitForEnd())
            // Then
            #expect(reason.code == .invalidArgument)
            #expect(
                reason.message.contains("region 7") || reason.message.contains("punched"),
                "\(reason)")
            other.fill()
            let wait = try other.ring.wait(
                deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            #expect(wait == .completions)
            withExtendedLifetime(taken) {}
        }

        /// Buffers of all huge pages that are free, present.
        private func takeAllHugePages() throws -> [IOBuffer] {
            var taken: [IOBuffer] = []
            // Bounded: each turn leaves one page less.
            while HugePages.free > 0, taken.count < 4096 {
                let buffer = try IOBuffer(byteCount: HugePages.byteCount, hugePages: true)
                buffer.copyIn([1])
                taken.append(buffer)
            }
            return taken
        }
    }
}
