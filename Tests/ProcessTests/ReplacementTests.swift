// SPDX-License-Identifier: Apache-2.0
// Workers that are killed with requests in flight: what clients see of it, which is nothing.

import Glibc
import Linux
import NVMeClient
import TestSupport
import Testing
import Wire

/// Bound on every wait of these tests: 60 s.
private var deadline: UInt64 { Deadline.after(milliseconds: 60_000) }

/// Blocks of 4 KiB, side by side in a buffer and on the disk.
private struct Blocks {
    static let count = 64
    static let byteCount = 4096
    let buffer: IOBuffer
    let blockCount: UInt32

    init(_ disk: Disk) throws {
        buffer = try IOBuffer(byteCount: 2 * Self.count * Self.byteCount)
        blockCount = UInt32(Self.byteCount / disk.blockByteCount)
    }

    func lba(_ index: Int) -> UInt64 { UInt64(index) * UInt64(blockCount) }
    /// What is written lies in the first half of the buffer, what is read in the second.
    func written(_ index: Int) -> Int { index * Self.byteCount }
    func read(_ index: Int) -> Int { (Self.count + index) * Self.byteCount }

    /// Fills the first half with data of its own for each round.
    func fill(round: Int) {
        DataPattern(seed: UInt64(round)).fill(
            buffer, offset: 0, count: Self.count * Self.byteCount, diskByteOffset: 0)
    }

    /// The first byte at which the halves differ.
    var difference: Int? {
        buffer.firstDifference(
            offset: 0, count: Self.count * Self.byteCount, from: buffer, otherOffset: read(0))
    }
}

extension DiskRing {
    /// Takes so many completions; what went wrong.
    fileprivate func collect(_ count: Int) throws -> [WireError] {
        var room = [RingCompletion](repeating: RingCompletion(), count: count)
        var errors: [WireError] = []
        var taken = 0
        while taken < count {
            let some = reap(into: &room)
            taken += some
            errors += room[..<some].compactMap { $0.error() }
            if some == 0 {
                let woken = try wait(deadlineNanoseconds: deadline)
                try #require(woken != .timedOut)
            }
        }
        return errors
    }
}

extension ProcessTests {
    @Suite("Workers that are replaced", .timeLimit(.minutes(5)))
    struct ReplacementTests {
        @Test("a ring goes on through five deaths: each write once, each read what was written")
        func ring() throws {
            // Given
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let blocks = try Blocks(disk)
            let region = try disk.registerMemory(blocks.buffer)
            let ring = try disk.openRing(entries: 64)
            var victim = try service.workerPID("a")
            // When
            for round in 1...5 {
                blocks.fill(round: round)
                for index in 0..<Blocks.count {
                    let data = RingData.region(region, offset: UInt64(blocks.written(index)))
                    _ = ring.prepareWrite(
                        lba: blocks.lba(index), blockCount: blocks.blockCount, data: data, tag: 0)
                }
                ring.submit()
                kill(victim, SIGKILL)
                let writeErrors = try ring.collect(Blocks.count)
                for index in 0..<Blocks.count {
                    let data = RingData.region(region, offset: UInt64(blocks.read(index)))
                    _ = ring.prepareRead(
                        lba: blocks.lba(index), blockCount: blocks.blockCount, data: data, tag: 0)
                }
                ring.submit()
                let readErrors = try ring.collect(Blocks.count)
                // Then
                #expect(writeErrors.isEmpty)
                #expect(readErrors.isEmpty)
                #expect(blocks.difference == nil)
                victim = try service.successor(of: victim, "a")
            }
            let device = try service.connect().device("a")
            let session = try service.connect().listSessions().first
            #expect(disk.ended == nil)
            #expect(ring.isOpen)
            #expect(device.restarts == 5)
            #expect(device.continuity?.adoptions == 5)
            #expect(device.continuity?.resets == 0)
            #expect(session?.continuity?.adoptions == 5)
        }

        @Test("messages in flight are answered by the successor, inline and in registered memory")
        func messages() throws {
            // Given
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let blocks = try Blocks(disk)
            var victim = try service.workerPID("a")
            for round in 1...4 {
                if round == 3 { try disk.registerMemory(blocks.buffer) }
                blocks.fill(round: round)
                // When
                for index in 0..<Blocks.count {
                    _ = try disk.submit(
                        .write(
                            lba: blocks.lba(index), blockCount: blocks.blockCount,
                            from: blocks.buffer, bufferOffset: blocks.written(index), fua: false))
                }
                kill(victim, SIGKILL)
                let writeErrors = try errors(disk)
                for index in 0..<Blocks.count {
                    _ = try disk.submit(
                        .read(
                            lba: blocks.lba(index), blockCount: blocks.blockCount,
                            into: blocks.buffer, bufferOffset: blocks.read(index)))
                }
                let readErrors = try errors(disk)
                // Then
                #expect(writeErrors.isEmpty)
                #expect(readErrors.isEmpty)
                #expect(blocks.difference == nil)
                victim = try service.successor(of: victim, "a")
            }
            #expect(disk.ended == nil)
        }

        /// What went wrong with everything that is in flight.
        private func errors(_ disk: Disk) throws -> [WireError] {
            var errors: [WireError] = []
            while let completion = try disk.nextCompletion(deadlineNanoseconds: deadline) {
                if let error = completion.error { errors.append(error) }
            }
            return errors
        }

        @Test("memory, rings and disks are registered, opened and closed while the worker dies")
        func control() throws {
            // Given
            let service = try RunningService()
            let backend = try service.connect()
            let disk = try backend.openDisk("disk-a", access: .readOnly)
            var victim = try service.workerPID("a")
            for _ in 0..<5 {
                // When
                kill(victim, SIGKILL)
                let buffer = try IOBuffer(byteCount: 65536)
                try disk.registerMemory(buffer, deadlineNanoseconds: deadline)
                let ring = try disk.openRing(entries: 8, deadlineNanoseconds: deadline)
                let other = try backend.openDisk(
                    "disk-a", access: .readOnly, deadlineNanoseconds: deadline)
                try disk.closeRing(ring, deadlineNanoseconds: deadline)
                try disk.unregisterMemory(buffer, deadlineNanoseconds: deadline)
                other.close()
                // A worker that completes nothing counts as one that does not get anywhere.
                try disk.verify(byteOffset: 0, byteCount: 4096, deadlineNanoseconds: deadline)
                victim = try service.successor(of: victim, "a")
            }
            // Then
            #expect(disk.ended == nil)
        }

        @Test("a controller that breaks the rules is reset, and a ring loses nothing")
        func reset() throws {
            // Given
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let blocks = try Blocks(disk)
            let region = try disk.registerMemory(blocks.buffer)
            let ring = try disk.openRing(entries: 64)
            let victim = try service.workerPID("a")
            let fault = "fault completion:cid=invented,queue=io,times=1"
            _ = try service.emulators["a"]?.command(fault)
            blocks.fill(round: 1)
            // When
            for index in 0..<Blocks.count {
                let data = RingData.region(region, offset: UInt64(blocks.written(index)))
                _ = ring.prepareWrite(
                    lba: blocks.lba(index), blockCount: blocks.blockCount, data: data, tag: 0)
            }
            ring.submit()
            let writeErrors = try ring.collect(Blocks.count)
            for index in 0..<Blocks.count {
                let data = RingData.region(region, offset: UInt64(blocks.read(index)))
                _ = ring.prepareRead(
                    lba: blocks.lba(index), blockCount: blocks.blockCount, data: data, tag: 0)
            }
            ring.submit()
            let readErrors = try ring.collect(Blocks.count)
            _ = try service.successor(of: victim, "a")
            let device = try service.connect().device("a")
            // Then
            #expect(writeErrors.isEmpty)
            #expect(readErrors.isEmpty)
            #expect(blocks.difference == nil)
            #expect(disk.ended == nil)
            #expect(device.continuity?.resets == 1)
        }

        @Test("worker and supervisor die at once: the session goes on and stays exclusive")
        func both() throws {
            // Given
            let service = try RunningService()
            let disk = try service.connect().openDisk("disk-a")
            let before = try service.connect().listSessions()
            // When
            kill(try service.workerPID("a"), SIGKILL)
            kill(try service.supervisorPID(), SIGKILL)
            let backend = try service.connect()
            let second = clientFailure { _ = try backend.openDisk("disk-a") }
            let after = try backend.listSessions()
            try disk.flush(deadlineNanoseconds: deadline)
            // Then
            #expect(second?.wireError?.code == .busy)
            #expect(before.map(\.sessionID) == after.map(\.sessionID))
            #expect(disk.ended == nil)
        }
    }
}
