// SPDX-License-Identifier: Apache-2.0
// Statistics through all processes: the library's reader, nvmectl top, and who may look.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

extension ProcessTests {
    @Suite("Statistics", .timeLimit(.minutes(5)))
    struct StatisticsTests {
        @Test("an operator sees what every disk does, with the reader and with nvmectl top")
        func top() throws {
            let service = try RunningService(files: [
                "n.device": "[Device]\nTransport=null\nSize=64M\n",
                "disk-n.disk": "[Disk]\nDevice=n\nNamespace=1\n",
            ])
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-n")
            let buffer = try IOBuffer(byteCount: 4096)
            for _ in 0..<100 { try disk.write(from: buffer, byteOffset: 0, byteCount: 4096) }

            let reader = try StatisticsReader(try backend.openStatistics("n"))
            let snapshot = try reader.snapshot()
            let table = try Programs.run(
                Programs.path("nvmectl"),
                ["top", "--once", "--interval", "0.1", "--socket", service.socket])
            let json = try Programs.run(
                Programs.path("nvmectl"),
                [
                    "top", "--once", "--interval", "0.1", "--socket", service.socket, "--output",
                    "json", "--by", "namespace", "--device", "n",
                ])

            #expect(snapshot.namespace(1).writes.count == 100)
            #expect(snapshot.namespace(1).bytesWritten == 409_600)
            #expect(snapshot.pid == (try service.workerPID("n")))
            #expect(table.status == 0, "\(table.output)")
            #expect(table.output.contains("disk-n"))
            #expect(table.output.contains("P99.9"))
            #expect(json.status == 0, "\(json.output)")
            #expect(json.output.contains("\"what\":\"namespace 1\""))
            #expect(json.output.contains("\"writes\":100"))
        }

        @Test("a ring is counted by itself, and its namespace keeps what it did")
        func ring() throws {
            let service = try RunningService(files: [
                "n.device": "[Device]\nTransport=null\nSize=64M\n",
                "disk-n.disk": "[Disk]\nDevice=n\nNamespace=1\n",
            ])
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-n")
            let buffer = try IOBuffer(byteCount: 1 << 20)
            let region = try disk.registerMemory(buffer)
            let ring = try disk.openRing(entries: 64)
            let reader = try StatisticsReader(try backend.openStatistics("n"))
            for _ in 0..<50 { try Self.readBatch(ring, region) }

            let open = try reader.snapshot()
            try disk.closeRing(ring)
            let closed = try reader.snapshot()

            let block = try #require(open.blocks.first { $0.subject.kind == .ring })
            #expect(block.subject.disk == "disk-n")
            #expect(block.subject.queue == 2)
            #expect(block.numbers.reads.count == 1600)
            #expect(block.numbers.bytesRead == 1600 * 4096)
            #expect(block.numbers.inFlight == 0)
            #expect(open.queueIDs == [1, 2])
            #expect(!closed.blocks.contains { $0.subject.kind == .ring })
            #expect(closed.namespace(1).reads == open.namespace(1).reads)
            #expect(closed.queue(2).reads == open.queue(2).reads)
        }

        @Test(
            "workers that follow killed ones go on counting, also when they reset the device",
            arguments: ["", "Quirks=do-not-adopt\n"])
        func continued(keys: String) throws {
            // Given: a ring that stays, one that is closed, and messages
            let service = try RunningService(keys: keys)
            let emulator = try #require(service.emulators["a"])
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-a")
            let buffer = try IOBuffer(byteCount: 1 << 20)
            let region = try disk.registerMemory(buffer)
            let (kept, closed) = (try disk.openRing(entries: 64), try disk.openRing(entries: 64))
            for _ in 0..<10 { try Self.readBatch(kept, region) }
            for _ in 0..<5 { try Self.readBatch(closed, region) }
            for _ in 0..<7 { try disk.write(from: buffer, byteOffset: 0, byteCount: 4096) }
            try disk.closeRing(closed)
            let before = try StatisticsReader(try backend.openStatistics("a")).snapshot()
            // When: a worker dies with nothing in flight, and the next one with answers that it
            // has not seen
            let first = try service.workerPID("a")
            #expect(kill(first, SIGKILL) == 0)
            try Self.readBatch(kept, region)
            let second = try service.successor(of: first, "a")
            #expect(
                try emulator.command("fault command:delay=600000,queue=io,opcode=2") == "ok")
            Self.submitBatch(kept, region)
            let end = Deadline.after(milliseconds: 60_000)
            while try !emulator.command("stats").contains("\"heldCommands\":32,"),
                MonotonicClock.nowNanoseconds < end
            { sched_yield() }
            #expect(kill(second, SIGSTOP) == 0)
            #expect(try emulator.command("clear") == "ok")
            #expect(try emulator.command("release") == "ok 32")
            #expect(kill(second, SIGKILL) == 0)
            try Self.awaitBatch(kept)
            try disk.write(from: buffer, byteOffset: 0, byteCount: 4096)
            // Then
            _ = try service.successor(of: second, "a")
            let after = try StatisticsReader(try backend.openStatistics("a")).snapshot()
            let ring = try #require(after.blocks.first { $0.subject.kind == .ring }).numbers
            let session = try #require(after.blocks.first { $0.subject.kind == .session }).numbers
            #expect(after.startNanoseconds == before.startNanoseconds)
            #expect(ring.reads.count == 12 * 32)
            #expect(session.writes.count == 8)
            #expect(after.namespace(1).reads.count == 17 * 32)
            #expect(after.namespace(1).bytesRead == 17 * 32 * 4096)
            #expect(after.namespace(1).inFlight == 0)
            let listed = try #require(backend.listSessions().first).counters
            #expect(listed.reads == 17 * 32)
            #expect(listed.writes == 8)
            #expect(listed.inFlight == 0)
            #expect(after.queue(2).reads.count == 17 * 32)
        }

        /// Has 4 KiB read 32 times, all at once.
        private static func submitBatch(_ ring: DiskRing, _ region: UInt32) {
            for tag in 0..<32 as Range<UInt64> {
                let taken = ring.prepareRead(
                    lba: tag * 8, blockCount: 8, data: .region(region, offset: tag * 4096),
                    tag: tag)
                #expect(taken)
            }
            ring.submit()
        }

        private static func awaitBatch(_ ring: DiskRing) throws {
            var room = [RingCompletion](repeating: RingCompletion(), count: 64)
            var left = 32
            while left > 0 {
                left -= unsafe room.withUnsafeMutableBufferPointer {
                    unsafe ring.reap(into: $0)
                }
                if left > 0 {
                    let end = Deadline.after(milliseconds: 60_000)
                    #expect(try ring.wait(deadlineNanoseconds: end) != .timedOut)
                }
            }
        }

        private static func readBatch(_ ring: DiskRing, _ region: UInt32) throws {
            submitBatch(ring, region)
            try awaitBatch(ring)
        }

        @Test("copies and interrupts are counted where they happen")
        func copies() throws {
            // Given: a device whose first read takes so long that the data thread sleeps
            let service = try RunningService()
            let emulator = try #require(service.emulators["a"])
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-a")
            let buffer = try IOBuffer(byteCount: 65536)
            let region = try disk.registerMemory(buffer)
            let ring = try disk.openRing(entries: 8)
            let reader = try StatisticsReader(try backend.openStatistics("a"))
            #expect(try emulator.command("fault command:delay=100,queue=io,times=1") == "ok")
            func read(_ data: RingData) throws {
                #expect(ring.prepareRead(lba: 0, blockCount: 8, data: data, tag: 1))
                ring.submit()
                var room = [RingCompletion](repeating: RingCompletion(), count: 8)
                let end = Deadline.after(milliseconds: 60_000)
                while unsafe room.withUnsafeMutableBufferPointer({ unsafe ring.reap(into: $0) })
                    == 0
                { #expect(try ring.wait(deadlineNanoseconds: end) != .timedOut) }
            }
            for (index, segment) in [(4096, 2048), (8193, 2048)].enumerated() {
                let stored = buffer.storeSegment(
                    RingSegment(
                        region: region, offset: UInt64(segment.0), byteCount: UInt32(segment.1)),
                    listOffset: 0, index: index)
                #expect(stored)
            }
            // When: as it is; at an odd address; a list of which a half is; by message
            try read(.region(region, offset: 16384))
            try read(.region(region, offset: 16385))
            try read(.segments(listRegion: region, offset: 0, count: 2))
            try read(.region(region, offset: 16384))
            try disk.read(into: buffer, bufferOffset: 16386, byteOffset: 0, byteCount: 4096)
            // Then
            var queue = try reader.snapshot().queue(2)
            let end = Deadline.after(milliseconds: 60_000)
            while queue.interrupts == 0, MonotonicClock.nowNanoseconds < end {
                queue = try reader.snapshot().queue(2)
            }
            let blocks = try reader.snapshot().blocks
            let ringBlock = try #require(blocks.first { $0.subject.kind == .ring })
            let messages = try #require(blocks.first { $0.subject.kind == .session })
            #expect(queue.interrupts > 0)
            #expect(queue.sleeps > 0)
            #expect(ringBlock.numbers.bounced == 2)
            #expect(messages.numbers.bounced == 1)
            let shown = try backend.inspect("device/a/")
            let values = Set(shown.filter { $0.path.hasSuffix("/bounced") }.map(\.value))
            #expect(values.isSuperset(of: ["1", "2", "3"]))
        }

        @Test("a device without a worker has none, and says what to do")
        func absent() throws {
            let service = try RunningService(files: [
                "n.device": "[Device]\nTransport=null\n"
            ])
            let backend = try service.connect()

            let unknown = clientFailure { _ = try backend.openStatistics("none") }

            #expect(unknown?.wireError?.code == .notFound)
        }
    }
}
