// SPDX-License-Identifier: Apache-2.0
// Rings through real processes: data, every operation, wrap-around, wake-ups, ends, another
// language.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

/// A disk of a running service with a ring and registered memory.
private struct RingRig {
    static let bufferByteCount = 4 << 20
    let service: RunningService
    let disk: Disk
    let buffer: IOBuffer
    let region: UInt32
    let ring: DiskRing
    var deadline: UInt64 { Deadline.after(milliseconds: 60_000) }

    init(
        device: String = "a", entries: UInt32 = 64, options: RingOptions = RingOptions(),
        service: RunningService? = nil
    ) throws {
        self.service = try service ?? RunningService()
        disk = try self.service.connect().openDisk("disk-\(device)")
        buffer = try IOBuffer(byteCount: Self.bufferByteCount)
        region = try disk.registerMemory(buffer)
        ring = try disk.openRing(entries: entries, options: options)
    }

    /// Waits for completions and takes at most so many.
    func take(_ limit: Int = 256) throws -> [RingCompletion] {
        var room = [RingCompletion](repeating: RingCompletion(), count: limit)
        while true {
            let count = unsafe room.withUnsafeMutableBufferPointer { unsafe ring.reap(into: $0) }
            if count > 0 { return Array(room[..<count]) }
            guard try ring.wait(deadlineNanoseconds: deadline) != .timedOut else {
                throw SetUpError("no completion within 60 s")
            }
        }
    }

    /// Submits what was prepared and waits for one completion.
    func one() throws -> RingCompletion {
        ring.submit()
        return try take(1)[0]
    }

    func place(_ offset: Int) -> RingData { .region(region, offset: UInt64(offset)) }
}

extension ProcessTests {
    @Suite("Rings", .timeLimit(.minutes(5)))
    struct RingTests {
        @Test(
            "random writes and reads through a ring never differ", arguments: ["a", "b"], [1, 64])
        func data(_ device: String, _ depth: Int) throws {
            // Given: one slot of 16 KiB for each request in flight, and what the disk must have
            let rig = try RingRig(device: device, entries: UInt32(max(depth, 2)))
            let slotByteCount = 16384
            let blocks = UInt32(slotByteCount / rig.disk.blockByteCount)
            let slots = Int(RunningService.diskByteCount) / slotByteCount
            var random = SplitMix64(state: seed())
            var seeds = [UInt64](repeating: 0, count: slots)
            var busy: [Int: (place: Int, seed: UInt64?)] = [:]
            var touched: Set<Int> = []
            var left = 1500
            var differences: [Int] = []
            func begin(_ slot: Int) {
                var place = Int(random.next() % UInt64(slots))
                while touched.contains(place) { place = (place + 1) % slots }
                touched.insert(place)
                let lba = UInt64(place) * UInt64(blocks)
                let data = rig.place(slot * slotByteCount)
                let isWrite = seeds[place] == 0 || random.next() % 2 == 0
                let new = random.next() | 1
                busy[slot] = (place, isWrite ? new : nil)
                let taken: Bool
                if isWrite {
                    DataPattern(seed: new).fill(
                        rig.buffer, offset: slot * slotByteCount, count: slotByteCount,
                        diskByteOffset: UInt64(place * slotByteCount))
                    taken = rig.ring.prepareWrite(
                        lba: lba, blockCount: blocks, data: data, tag: UInt64(slot))
                } else {
                    taken = rig.ring.prepareRead(
                        lba: lba, blockCount: blocks, data: data, tag: UInt64(slot))
                }
                #expect(taken)
                left -= 1
            }
            // When
            for slot in 0..<depth { begin(slot) }
            rig.ring.submit()
            while !busy.isEmpty {
                for completion in try rig.take() {
                    #expect(completion.isDone)
                    let slot = Int(completion.tag)
                    let removed = busy.removeValue(forKey: slot)
                    let (place, seed) = try #require(removed)
                    touched.remove(place)
                    if let seed {
                        seeds[place] = seed
                    } else if DataPattern(seed: seeds[place]).firstMismatch(
                        rig.buffer, offset: slot * slotByteCount, count: slotByteCount,
                        diskByteOffset: UInt64(place * slotByteCount)) != nil
                    {
                        differences.append(place)
                    }
                    if left > 0 { begin(slot) }
                }
                rig.ring.submit()
            }
            // Then
            #expect(differences.isEmpty)
            #expect(seeds.contains { $0 != 0 })
        }

        @Test("every operation does what it says, and failures come with their code")
        func operations() throws {
            let rig = try RingRig()
            let ring = rig.ring
            DataPattern(seed: 4).fill(rig.buffer, offset: 0, count: 8192, diskByteOffset: 0)
            func done(_ prepared: Bool) throws -> UInt16 {
                #expect(prepared)
                return try rig.one().code
            }
            // When
            let write = try done(
                ring.prepareWrite(lba: 8, blockCount: 16, data: rig.place(0), tag: 1, fua: true))
            let flush = try done(ring.prepareFlush(tag: 2))
            let compare = try done(
                ring.prepareCompare(lba: 8, blockCount: 16, data: rig.place(0), tag: 3))
            let verify = try done(ring.prepareVerify(lba: 8, blockCount: 16, tag: 4))
            let differs = try done(
                ring.prepareCompare(lba: 8, blockCount: 8, data: rig.place(4096), tag: 5))
            let zeroes = try done(
                ring.prepareWriteZeroes(lba: 8, blockCount: 8, tag: 6, deallocate: true))
            let deallocate = try done(ring.prepareDeallocate(lba: 16, blockCount: 8, tag: 7))
            let read = try done(
                ring.prepareRead(lba: 8, blockCount: 8, data: rig.place(65536), tag: 8))
            let past = try done(
                ring.prepareRead(
                    lba: rig.disk.info.blockCount, blockCount: 1, data: rig.place(0), tag: 9))
            // Then
            #expect(
                [write, flush, compare, verify, zeroes, deallocate, read] == [0, 0, 0, 0, 0, 0, 0])
            #expect(UInt32(differs) == ErrorCode.compareFailed.rawValue)
            #expect(UInt32(past) == ErrorCode.outOfRange.rawValue)
            #expect(rig.buffer.firstNonzero(offset: 65536, count: 4096) == nil)
            #expect(ring.isOpen)
        }

        @Test("segment lists scatter and gather, whatever their alignment")
        func segments() throws {
            // Given: 64 KiB in pieces of all sizes, backwards in memory, and the list behind
            let rig = try RingRig()
            var random = SplitMix64(state: seed())
            var pieces: [(offset: Int, count: Int)] = []
            var left = 65536
            var place = 1 << 20
            while left > 0 {
                let count = min(left, 1 + Int(random.next() % 1500))
                place -= count + Int(random.next() % 100)
                pieces.append((place, count))
                left -= count
            }
            let listOffset = 2 << 20
            for (index, piece) in pieces.enumerated() {
                let stored = rig.buffer.storeSegment(
                    RingSegment(
                        region: rig.region, offset: UInt64(piece.offset),
                        byteCount: UInt32(piece.count)), listOffset: listOffset, index: index)
                #expect(stored)
            }
            let bytes = (0..<65536).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            var from = 0
            for piece in pieces {
                rig.buffer.copyIn(Array(bytes[from..<from + piece.count]), offset: piece.offset)
                from += piece.count
            }
            let list = RingData.segments(
                listRegion: rig.region, offset: UInt64(listOffset), count: UInt32(pieces.count))
            // When: out by the list, back in one piece, and back by the list into zeroes
            #expect(rig.ring.prepareWrite(lba: 0, blockCount: 128, data: list, tag: 1))
            let written = try rig.one()
            #expect(
                rig.ring.prepareRead(lba: 0, blockCount: 128, data: rig.place(3 << 20), tag: 2))
            let read = try rig.one()
            rig.buffer.copyIn([UInt8](repeating: 0, count: 1 << 20))
            #expect(rig.ring.prepareRead(lba: 0, blockCount: 128, data: list, tag: 3))
            let scattered = try rig.one()
            // Then
            #expect([written.code, read.code, scattered.code] == [0, 0, 0])
            #expect(rig.buffer.copyOut(offset: 3 << 20, count: 65536) == bytes)
            let back = pieces.flatMap { rig.buffer.copyOut(offset: $0.offset, count: $0.count) }
            #expect(back == bytes)
        }

        @Test("a small ring goes round many times", arguments: [UInt32(2), 8], [UInt32(2), 4])
        func wrap(entries: UInt32, completions: UInt32) throws {
            var options = RingOptions()
            options.completionEntryCount = completions
            let rig = try RingRig(entries: entries, options: options)
            var submitted: UInt64 = 0
            var tags: [UInt64] = []
            while tags.count < 300 {
                while submitted < 300, rig.ring.prepareVerify(lba: 0, blockCount: 1, tag: submitted)
                { submitted += 1 }
                rig.ring.submit()
                tags += try rig.take().map(\.tag)
            }
            #expect(tags.sorted() == (0..<300).map { UInt64($0) })
        }

        @Test("a batch from idle is one kick, and its owner sleeps until it is woken")
        func idle() throws {
            var options = RingOptions()
            options.spinNanosecondsMax = 0
            let rig = try RingRig(options: options)
            // Given: nothing to do for long enough that the worker sleeps
            #expect(
                try rig.ring.wait(deadlineNanoseconds: Deadline.after(milliseconds: 300))
                    == .timedOut)
            let before = rig.ring.kickCount
            // When
            for tag in 0..<16 { #expect(rig.ring.prepareFlush(tag: UInt64(tag))) }
            rig.ring.submit()
            var count = 0
            while count < 16 { count += try rig.take().count }
            // Then
            #expect(rig.ring.kickCount == before + 1)
        }
    }
}

extension ProcessTests {
    @Suite("Rings that end", .timeLimit(.minutes(5)))
    struct RingEndTests {
        /// Waits until the ring says why it is over.
        private func reason(_ rig: RingRig) -> ClientError? {
            clientFailure {
                while try rig.ring.wait(deadlineNanoseconds: rig.deadline) == .event {}
            }
        }

        @Test("an idle ring of a killed worker goes on, and the disk gives out another one")
        func killed() throws {
            let rig = try RingRig()
            #expect(rig.ring.prepareFlush(tag: 1))
            _ = try rig.one()
            // When
            kill(try rig.service.workerPID("a"), SIGKILL)
            #expect(rig.ring.prepareFlush(tag: 2))
            let kept = try rig.one()
            let ring = try rig.disk.openRing(entries: 4)
            #expect(
                ring.prepareRead(lba: 0, blockCount: 1, data: rig.place(0), tag: 3))
            ring.submit()
            let woken = try ring.wait(deadlineNanoseconds: rig.deadline)
            // Then
            #expect(kept.isDone && kept.tag == 2, "\(kept)")
            #expect(woken == .completions)
            #expect(rig.ring.isOpen)
            #expect(rig.disk.ended == nil)
        }

        @Test("an operator who ends the session is heard by those who wait for its ring")
        func revoked() throws {
            let rig = try RingRig()
            let operators = try rig.service.connect()
            let session = try #require(try operators.listSessions().first)
            try operators.closeSession(session.sessionID, reason: "maintenance")
            #expect(reason(rig)?.wireError?.code == .sessionRevoked)
        }

        @Test("an entry that no correct client writes ends the session with the reason")
        func violation() throws {
            let rig = try RingRig()
            #expect(
                rig.ring.prepareRead(
                    lba: 0, blockCount: 1, data: .region(63, offset: 0), tag: 1))
            rig.ring.submit()
            let error = reason(rig)
            #expect(error?.wireError?.code == .invalidArgument, "\(String(describing: error))")
            // Nobody else notices.
            try rig.service.connect().openDisk("disk-a").flush()
        }

        @Test("a closed ring gives back what it finished, and the disk goes on")
        func closed() throws {
            let rig = try RingRig()
            for tag in 0..<8 { #expect(rig.ring.prepareFlush(tag: UInt64(tag))) }
            rig.ring.submit()
            var count = 0
            while count < 8 { count += try rig.take().count }
            try rig.disk.closeRing(rig.ring)
            let error = reason(rig)
            try rig.disk.unregisterMemory(rig.buffer)
            try rig.disk.flush()
            let again = try rig.disk.openRing(entries: 2)
            #expect(error?.wireError?.code == .cancelled)
            #expect(again.isOpen)
        }
    }
}

extension ProcessTests {
    @Suite("Rings from elsewhere", .timeLimit(.minutes(5)))
    struct RingClientTests {
        @Test("tasks share a ring: each gets its own data")
        func tasks() async throws {
            let service = try RunningService()
            let disk = try AsyncDisk(try service.connect().openDisk("disk-b"), entries: 8)
            let source = try IOBuffer(byteCount: 1 << 20)
            let target = try IOBuffer(byteCount: 1 << 20)
            DataPattern(seed: 11).fill(source, offset: 0, count: 1 << 20, diskByteOffset: 0)
            try disk.registerMemory(source, readOnly: true)
            try disk.registerMemory(target)
            try await withThrowingTaskGroup(of: Void.self) { group in
                for index in 0..<256 {
                    group.addTask {
                        let (lba, offset) = (UInt64(index), index * 4096)
                        try await disk.write(
                            lba: lba, blockCount: 1, from: source, bufferOffset: offset)
                        try await disk.read(
                            lba: lba, blockCount: 1, into: target, bufferOffset: offset)
                    }
                }
                try await group.waitForAll()
            }
            let difference = source.firstDifference(
                offset: 0, count: 1 << 20, from: target, otherOffset: 0)
            #expect(difference == nil)
            disk.close()
        }

        @Test("memory that is given back while requests wait for a limit is not the next one's")
        func givingBack() async throws {
            // Given: forty reads of a disk that does forty a second, most of which wait in the ring
            // or in line for it
            let slow = "[Disk]\nDevice=b\nNamespace=1\nIOPSMax=40\n"
            let service = try RunningService(files: ["disk-slow.disk": slow])
            let (first, next) = (
                try IOBuffer(byteCount: 40 << 12), try IOBuffer(byteCount: 40 << 12)
            )
            let writer = try service.connect().openDisk("disk-b")
            DataPattern(seed: 12).fill(first, offset: 0, count: 40 << 12, diskByteOffset: 0)
            try writer.write(from: first, byteOffset: 0, byteCount: 40 << 12)
            let expected = first.copyOut(count: 40 << 12)
            first.copyIn([UInt8](repeating: 0, count: 40 << 12))
            writer.close()
            let disk = try AsyncDisk(
                try service.connect().openDisk("disk-slow", access: .readOnly), entries: 8)
            let firstID = try disk.registerMemory(first)
            let (done, tell) = AsyncStream<Bool>.makeStream()
            let reads = (0..<40).map { index in
                Task {
                    let isDone = await Self.isDone(disk, index, first)
                    tell.yield(isDone)
                    return isDone
                }
            }
            // When: after the first of them
            for await isDone in done where isDone { break }
            try disk.unregisterMemory(
                first, deadlineNanoseconds: Deadline.after(milliseconds: 60_000))
            let nextID = try disk.registerMemory(next)
            var results: [Bool] = []
            for read in reads { results.append(await read.value) }
            try await disk.flush()
            // Then: those that began in time have their data, and nobody has that of others
            let right = (0..<40).filter { index in
                let bytes = first.copyOut(offset: index << 12, count: 4096)
                return results[index] == (bytes == Array(expected[index << 12..<(index + 1) << 12]))
            }
            #expect(right.count == 40)
            #expect(nextID == firstID)
            #expect(next.firstNonzero(offset: 0, count: 40 << 12) == nil)
            #expect(disk.ended == nil)
            disk.close()
        }

        /// Reads a block; false: the memory was on its way back already.
        private static func isDone(
            _ disk: AsyncDisk, _ index: Int, _ buffer: IOBuffer
        ) async -> Bool {
            do {
                try await disk.read(
                    lba: UInt64(index), blockCount: 1, into: buffer, bufferOffset: index << 12)
                return true
            } catch {
                #expect(error.wireError?.code == .invalidArgument)
                return false
            }
        }

        @Test(
            "a client in Python, written from Proto/ alone, verifies its data",
            arguments: ["a", "b"])
        func python(_ device: String) throws {
            let service = try RunningService()
            let result = try Programs.run(
                "/usr/bin/python3",
                [
                    Programs.root + "/Tests/Support/ring_client.py", Programs.root + "/Proto",
                    service.socket, "disk-\(device)",
                ])
            #expect(result.status == 0)
            #expect(result.output.contains("verified 1048576 bytes"), "\(result.output)")
        }
    }
}
