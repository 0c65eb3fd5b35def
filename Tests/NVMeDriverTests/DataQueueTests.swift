// SPDX-License-Identifier: Apache-2.0
// Many rings on one queue pair: fairness, isolation, and what the control thread hears.

import CMemory
import CRing
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("Rings that share a queue pair")
struct DataQueueTests {
    /// Keeps every ring full for `rounds` rounds with a device that answers `answers` commands a
    /// round; how many requests of each ring were completed. Every completion has to come in order
    /// and once.
    private func saturate(
        _ rig: QueueRig, _ clients: [RingClient], rounds: Int, answers: Int,
        blocks: [UInt32] = [1]
    ) -> [Int] {
        var next = clients.map { _ in UInt64(0) }
        var done = clients.map { _ in 0 }
        var pending: [SubmissionEntry] = []
        for _ in 0..<rounds {
            for (index, client) in clients.enumerated() {
                for _ in 0..<client.room {
                    client.write(
                        .read(blocks: blocks[index % blocks.count], tag: next[index]))
                    next[index] += 1
                }
                client.publish()
            }
            pending += rig.commands()
            rig.answer(Array(pending.prefix(answers)))
            pending.removeFirst(min(answers, pending.count))
            for (index, client) in clients.enumerated() { done[index] += client.reap().count }
        }
        return done
    }

    @Test(
        "rings that are always full get the same within 10 %",
        arguments: [
            (2, 64, 64), (2, 64, 42), (2, 64, 40), (2, 16, 14), (2, 64, 1), (2, 256, 64),
            (3, 64, 50), (3, 16, 1), (5, 64, 33), (16, 64, 64), (16, 16, 3), (64, 64, 62),
            (64, 256, 7),
        ] as [(Int, UInt32, Int)])
    func fairness(rings: Int, entries: UInt32, answers: Int) throws {
        // Given
        let rig = try QueueRig(entries: entries)
        let clients = try (0..<rings).map { try rig.openStranger($0, 64, 64) }
        // When: as long as each ring could have had its share twenty times
        let rounds = max(100, rings * 20 * 64 / answers)
        let done = saturate(rig, clients, rounds: rounds, answers: answers)
        // Then
        let low = try requireValue(done.min())
        let high = try requireValue(done.max())
        #expect(Double(low) >= 0.9 * Double(high), "\(done)")
        #expect(low > 100)
    }

    @Test("a client that reads no completions delays nobody")
    func slowClient() throws {
        // Given
        let rig = try QueueRig()
        let slow = try rig.openStranger(0, 64, 64)
        let quick = try rig.openStranger(1, 8, 8)
        for tag in 0..<64 as Range<UInt64> { slow.write(.read(tag: tag)) }
        slow.publish()
        rig.settle()
        for tag in 64..<128 as Range<UInt64> { slow.write(.read(tag: tag)) }
        slow.publish()
        // When
        let done = saturate(rig, [quick], rounds: 100, answers: 62)
        // Then: all that the ring takes is done in each round
        #expect(done == [800])
        #expect(slow.look().count == 64)
        #expect(slow.submissionHead == 64)
        #expect(rig.prepareToSleep() == (quick.room == 8))
    }

    @Test("requests of many commands leave others their turn")
    func largeRequests() throws {
        // Given
        let rig = try QueueRig()
        let large = try rig.open(64, 64)
        let small = try rig.open(8, 8)
        for tag in 0..<64 {
            large.write(RawEntry(IOOperation.writeZeroes, blocks: 1 << 29, tag: UInt64(tag)))
        }
        large.publish()
        // When
        let done = saturate(rig, [small], rounds: 200, answers: 8)
        // Then: of 1600 commands they got what 8 of 62 in flight get
        #expect(done[0] >= 180)
    }

    @Test("small requests leave those of many commands their turn")
    func smallRequests() throws {
        // Given
        let rig = try QueueRig()
        let large = try rig.open(64, 64)
        let small = try rig.open(64, 64)
        large.submit(RawEntry(IOOperation.verify, blocks: 200 * 65536, tag: 7))
        // When
        let done = saturate(rig, [small], rounds: 400, answers: 1)
        _ = saturate(rig, [small], rounds: 200, answers: 8)
        // Then
        #expect(done[0] > 100)
        #expect(large.look().map(\.tag) == [7])
    }

    @Test("a fault of one ring leaves the others as they are, and its own requests are answered")
    func isolation() throws {
        // Given
        let rig = try QueueRig(entries: 256)
        let clients = try (0..<6).map { try rig.openStranger($0) }
        for client in clients {
            for tag in 0..<8 as Range<UInt64> { client.write(.read(tag: tag)) }
            client.publish()
        }
        let commands = rig.commands()
        // When
        for client in clients[0..<3] { client.submit(.read(tag: 8)) }
        clients[0].submit(RawEntry(0x7F))
        clients[1].set(NV_RING_OFFSET_SUBMISSION_TAIL, 77)
        try MemFD.punchHole(clients[2].fd, offset: 0, byteCount: 4096)
        for client in clients[3...] { client.submit(.read(tag: 8)) }
        let more = rig.commands()
        rig.answer(commands + more)
        // Then
        #expect(
            clients.map(rig.fault)
                == [.opcode, .submissionTail, .submissionTail, .none, .none, .none])
        #expect(more.count == 4)
        for client in clients[3...] { #expect(client.reap().map(\.tag) == Array(0...8)) }
        #expect(clients[0].look().map(\.tag) == Array(0...8))
        #expect(clients[1].look().map(\.tag) == Array(0..<8))
        #expect(clients.allSatisfy { rig.inFlight($0) == 0 })
        #expect(rig.device.isIdle)
    }

    @Test("every command of a stranger stays within that stranger's memory")
    func ownMemory() throws {
        // Given: the block says whose entry a command comes from
        let rig = try QueueRig(entries: 256)
        let clients = try (0..<8).map { try rig.openStranger($0) }
        for (number, client) in clients.enumerated() {
            for (index, blocks) in [1, 8, 128, 3].enumerated() {
                client.write(
                    .read(
                        lba: UInt64(number), blocks: UInt32(blocks),
                        offset: index == 2 ? 0 : 65536 - UInt64(blocks) * 512))
            }
            client.publish()
        }
        // When
        let commands = rig.commands()
        // Then
        #expect(commands.count == 32)
        for command in commands {
            let start = QueueRig.iova(ofStranger: Int(command.lba))
            let pages = rig.device.pages(of: command, byteCount: UInt64(command.blockCount) * 512)
            #expect(pages.allSatisfy { $0 >= start && $0 < start + 65536 })
        }
    }

    @Test("the control thread is told of a fault once, however long the ring stays")
    func toldOnce() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        let other = try rig.open()
        client.submit(.read(tag: 1))
        let commands = rig.commands()
        client.submit(RawEntry(0x7F))
        // When, then
        rig.take()
        #expect(rig.notices().contains(.ringFault))
        for _ in 0..<10 {
            rig.take()
            rig.reap()
            #expect(!rig.notices().contains(.ringFault))
        }
        #expect(rig.prepareToSleep())
        // A ring in the same place is a new one.
        rig.answer(commands)
        rig.close(client)
        let again = try rig.open()
        #expect(again.index == client.index)
        again.submit(RawEntry(0x7F))
        rig.take()
        #expect(rig.notices().contains(.ringFault))
        #expect(rig.fault(other) == .none)
    }

    @Test("a fault that is seen on the way to sleep is told, without a kick")
    func faultBeforeSleep() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(8, 8)
        rig.take()
        // When
        client.set(NV_RING_OFFSET_SUBMISSION_TAIL, 9)
        // Then
        #expect(!rig.prepareToSleep())
        #expect(rig.notices().contains(.ringFault))
        #expect(rig.prepareToSleep())
    }

    @Test("a fault is found although the engine is full")
    func faultWhileFull() throws {
        // Given
        let rig = try QueueRig(entries: 4)
        let client = try rig.open(8, 8)
        let bad = try rig.open(8, 8)
        client.submit(.read(tag: 1), .read(tag: 2), .read(tag: 3))
        #expect(rig.commands().count == 2)
        // When
        bad.set(NV_RING_OFFSET_SUBMISSION_TAIL, 9)
        rig.take()
        // Then
        #expect(rig.fault(bad) == .submissionTail)
        #expect(rig.notices().contains(.ringFault))
    }

    @Test("a completion of no ring, or of one that is gone, is posted to nobody")
    func foreignCompletions() throws {
        // Given: all 64 rings are open, and a request that none of them made
        let rig = try QueueRig(entries: 256)
        let clients = try (0..<64).map { _ in try rig.open(2, 2) }
        #expect(throws: Missing.self) { _ = try rig.open(2, 2) }
        #expect(rig.device.submit(rig.device.read(token: 1)) == .accepted)
        for ring in [65, 0x8000, .max] as [UInt16] {
            var request = rig.device.read(token: 2)
            request.ring = ring
            #expect(rig.device.submit(request) == .accepted)
        }
        rig.device.ring()
        // When
        rig.answer(rig.device.takeCommands())
        // Then
        #expect(rig.device.isIdle)
        #expect(clients.allSatisfy { $0.completionTail == 0 && rig.inFlight($0) == 0 })
    }

    @Test("the client is woken once for each time that it asked")
    func wakes() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(.read(tag: 1))
        rig.settle()
        client.set(NV_RING_OFFSET_COMPLETION_NEED_WAKE, 1)
        client.submit(.read(tag: 2), .read(tag: 3))
        rig.settle()
        client.submit(.read(tag: 4))
        rig.settle()
        // Then
        #expect(client.word(NV_RING_OFFSET_COMPLETION_NEED_WAKE) == 0)
        #expect(try UnixSocket.receiveByte(client.wake))
        #expect(try !UnixSocket.receiveByte(client.wake))
    }

    @Test("a client that never reads its wake-ups stops nothing")
    func wakeFull() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When: more than any socket holds
        for tag in 0..<2000 {
            client.set(NV_RING_OFFSET_COMPLETION_NEED_WAKE, .max)
            client.submit(.read(tag: UInt64(tag)))
            rig.settle()
            #expect(client.reap().map(\.tag) == [UInt64(tag)])
        }
        // Then
        #expect(try UnixSocket.receiveByte(client.wake))
    }

    @Test("the end of a ring shows in its memory, and wakes a client that sleeps")
    func end() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        client.set(NV_RING_OFFSET_COMPLETION_NEED_WAKE, 1)
        // When
        rig.close(client)
        // Then
        #expect(client.word(NV_RING_OFFSET_STATE) == UInt32(NV_RING_STATE_ENDED))
        #expect(try UnixSocket.receiveByte(client.wake))
    }

    @Test("a frozen queue takes nothing and posts what comes")
    func frozen() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        client.submit(.read(tag: 1))
        let commands = rig.commands()
        // When
        unsafe rig.queue.pointee.isFrozen = true
        client.submit(.read(tag: 2))
        #expect(rig.commands().isEmpty)
        rig.answer(commands)
        // Then
        #expect(client.reap().map(\.tag) == [1])
        #expect(rig.prepareToSleep())
        unsafe rig.queue.pointee.isFrozen = false
        #expect(rig.settle() == 1)
    }
}

extension UnixSocket {
    /// Whether a message was there; it is taken.
    fileprivate static func receiveByte(_ fd: borrowing OwnedFD) throws -> Bool {
        guard try fd.waitReadable(timeoutMilliseconds: 0) else { return false }
        try discard(fd)
        return true
    }
}
