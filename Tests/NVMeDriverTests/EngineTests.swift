// SPDX-License-Identifier: Apache-2.0
// The engine against a device that is the test: commands, splitting, bouncing, the log, and
// completions that lie.

import CMemory
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("The engine")
struct EngineTests {
    @Test("a read becomes one command with the client's pages, and its answer comes back once")
    func readRoundTrip() throws {
        // Given
        let rig = try EngineRig()
        // When
        #expect(
            rig.submit(rig.read(lba: 0x1122_3344_5566, offset: 4096, token: 99)) == .accepted
        )
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        rig.post(commandID: command.commandID)
        let completions = rig.reap()
        // Then
        #expect(command.opcode == 0x02)
        #expect(command.namespaceID == 1)
        #expect(command.lba == 0x1122_3344_5566)
        #expect(command.blockCount == 8)
        #expect(command.prp1 == EngineRig.regionIOVA + 4096)
        #expect(command.prp2 == 0)
        #expect(completions.map(\.token) == [99])
        #expect(completions.map(\.status) == [0])
        #expect(rig.reap().isEmpty)
        #expect(rig.isIdle)
    }

    @Test("the submission entry of a write with FUA is, byte for byte, what the specification says")
    func writeEntryBytes() throws {
        // Given
        let rig = try EngineRig()
        var request = rig.request(IOOperation.write, lba: 0x0102_0304, blocks: 8, offset: 512)
        request.forceUnitAccess = true
        // When
        #expect(rig.submit(request) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        // Then
        let bytes = unsafe withUnsafeBytes(of: command) { unsafe Array($0) }
        #expect(
            bytes
                == [
                    0x01, 0x00, 0x00, 0x00,  // OPC Write, command id 0
                    0x01, 0x00, 0x00, 0x00,  // NSID 1
                    0, 0, 0, 0, 0, 0, 0, 0,  // CDW2, CDW3
                    0, 0, 0, 0, 0, 0, 0, 0,  // MPTR
                    0x00, 0x02, 0x00, 0x70, 0, 0, 0, 0,  // PRP1: region + 512
                    0x00, 0x10, 0x00, 0x70, 0, 0, 0, 0,  // PRP2: the next page
                    0x04, 0x03, 0x02, 0x01,  // SLBA low
                    0x00, 0x00, 0x00, 0x00,  // SLBA high
                    0x07, 0x00, 0x00, 0x40,  // NLB 7, FUA
                    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  // CDW13-15
                ])
    }

    @Test(
        "PRP entries name exactly the pages of a transfer, over chained lists",
        arguments: [
            (0, 512), (4, 4092), (4, 4096), (0, 8192), (2048, 8192), (0, 12288),
            (0, 513 * 4096), (0, 514 * 4096), (8, 514 * 4096), (0, 1025 * 4096), (4, 8 << 20),
        ] as [(UInt64, UInt64)])
    func prpPages(offset: UInt64, byteCount: UInt64) throws {
        // Given
        let rig = try EngineRig()
        var request = rig.read(blocks: UInt32(byteCount / 4), offset: offset)
        request.blockShift = 2
        request.maxBlocksPerCommand = .max
        // When
        #expect(rig.submit(request) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        // Then
        let first = EngineRig.regionIOVA + offset
        let last = (first + byteCount - 1) & ~4095
        let expected = [first] + stride(from: (first & ~4095) + 4096, through: last, by: 4096)
        #expect(rig.pages(of: command, byteCount: byteCount) == expected)
    }

    @Test("the pages for PRP lists suffice for the largest transfer at the worst offset")
    func listPagesSuffice() {
        // 1 page: 512 entries; with PRP1 that is 513 pages of data, one of them lost to a start in
        // the middle.
        #expect(PhysicalRegionPages.listByteCount(transfer: 4096) == 4096)
        #expect(PhysicalRegionPages.listByteCount(transfer: 512 * 4096) == 4096)
        #expect(PhysicalRegionPages.listByteCount(transfer: 513 * 4096) == 2 * 4096)
        #expect(PhysicalRegionPages.listByteCount(transfer: 8 << 20) == 5 * 4096)
    }

    @Test("a request larger than a command is split, issued concurrently, and completes once")
    func splitting() throws {
        // Given
        let rig = try EngineRig(entries: 64)
        var request = rig.read(lba: 1000, blocks: 1000, token: 5)
        request.maxBlocksPerCommand = 64
        // When
        #expect(rig.submit(request) == .accepted)
        rig.ring()
        let commands = rig.takeCommands()
        // Then
        #expect(commands.count == 16)
        #expect(commands.map(\.lba) == (0..<16).map { 1000 + 64 * UInt64($0) })
        #expect(commands.map(\.blockCount) == Array(repeating: 64, count: 15) + [40])
        #expect(
            commands.map(\.prp1) == (0..<16).map { EngineRig.regionIOVA + 64 * 512 * UInt64($0) })
        for command in commands.reversed().dropLast() { rig.post(commandID: command.commandID) }
        #expect(rig.reap().isEmpty)
        rig.post(commandID: commands[0].commandID)
        #expect(rig.reap().map(\.token) == [5])
        #expect(rig.isIdle)
    }

    @Test("large requests take turns, and more of them than fit are refused without loss")
    func manyLargeRequests() throws {
        // Given
        let rig = try EngineRig(entries: 16)
        var accepted = 0
        for token in 0..<200 {
            var request = rig.read(blocks: 600, token: UInt64(token))
            request.maxBlocksPerCommand = 10
            accepted += rig.submit(request) == .accepted ? 1 : 0
        }
        rig.ring()
        // When
        var ended: [UInt64] = []
        for _ in 0..<10_000 where !rig.isIdle {
            _ = rig.serveAll()
            ended += rig.reap().map(\.token)
        }
        // Then
        #expect(accepted >= 1 && accepted <= 64)
        #expect(ended.sorted() == (0..<UInt64(accepted)).map { $0 })
        #expect(rig.isIdle)
    }

    @Test("the first error of a split request is its status, and no further commands are issued")
    func splitError() throws {
        // Given
        let rig = try EngineRig(entries: 8)
        var request = rig.request(IOOperation.write, blocks: 100, token: 3)
        request.maxBlocksPerCommand = 1
        #expect(rig.submit(request) == .accepted)
        rig.ring()
        // When
        let first = rig.takeCommands()
        rig.post(commandID: first[0].commandID, status: .lbaOutOfRange)
        var ended = rig.reap()
        let later = rig.takeCommands()
        for command in first.dropFirst() { rig.post(commandID: command.commandID) }
        ended += rig.reap()
        // Then
        #expect(first.count == 6)
        #expect(later.isEmpty)
        #expect(ended.map(\.status) == [Status.lbaOutOfRange.rawValue])
        #expect(rig.failed == 1)
    }

    @Test("data at an address that PRP entries cannot name is bounced, in both directions")
    func bouncing() throws {
        // Given
        let rig = try EngineRig()
        for index in 0..<8192 {
            unsafe nv_store8(rig.clientMemory + 3 + index, UInt8(index & 0x7F))
        }
        // When: a write
        #expect(
            rig.submit(rig.request(IOOperation.write, blocks: 16, offset: 3)) == .accepted)
        rig.ring()
        let write = try requireValue(rig.takeCommands().first)
        let page = Int(write.prp1 - EngineRig.bounceIOVA)
        let sent = (0..<8192).map { unsafe nv_load8(rig.bounceMemory + page + $0) }
        rig.post(commandID: write.commandID)
        #expect(rig.reap().map(\.status) == [0])
        // And: a read
        #expect(rig.submit(rig.read(blocks: 1, offset: 1_000_001)) == .accepted)
        rig.ring()
        let read = try requireValue(rig.takeCommands().first)
        for index in 0..<512 {
            unsafe nv_store8(
                rig.bounceMemory + Int(read.prp1 - EngineRig.bounceIOVA) + index, 0xA5)
        }
        rig.post(commandID: read.commandID)
        #expect(rig.reap().map(\.status) == [0])
        // Then
        #expect(sent == (0..<8192).map { UInt8($0 & 0x7F) })
        #expect((0..<512).allSatisfy { unsafe nv_load8(rig.clientMemory + 1_000_001 + $0) == 0xA5 })
        #expect(unsafe nv_load8(rig.clientMemory + 1_000_000) == 0)
        #expect(unsafe nv_load8(rig.clientMemory + 1_000_513) == 0)
        #expect(rig.freePageCount == 256)
    }

    @Test("a request that waits for bounce pages goes out when the last of them are given back")
    func bouncePagesComeBack() throws {
        // Given: inline transfers have all pages, and nothing is with the device
        let rig = try EngineRig()
        let first = try requireValue(rig.takePages(byteCount: 256 * 4096))
        #expect(rig.submit(rig.read(blocks: 8, offset: 3)) == .accepted)
        rig.ring()
        #expect(rig.takeCommands().isEmpty)
        // When
        rig.releasePages(first: first, count: 256)
        // Then
        #expect(rig.serveAll().count == 1)
        #expect(rig.reap().map(\.status) == [0])
        #expect(rig.isIdle)
    }

    @Test("deallocate names its range in memory, with the attribute bit")
    func deallocate() throws {
        // Given
        let rig = try EngineRig()
        var request = rig.request(IOOperation.deallocate, lba: 0x1234, blocks: 70_000)
        request.maxBlocksPerCommand = .max
        // When
        #expect(rig.submit(request) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        // Then
        #expect(command.opcode == 0x09)
        #expect(command.datasetDeallocate)
        #expect(command.datasetRangeCount == 1)
        #expect(command.prp1 >= EngineRig.listsIOVA)
    }

    @Test(
        "a region of another session, or bytes beyond its end, are refused before the device hears of them"
    )
    func regionChecks() throws {
        // Given
        let rig = try EngineRig()
        var foreign = rig.read()
        foreign.session = 8
        var missing = rig.read()
        missing.region = 900
        var absurd = rig.read()
        absurd.region = .max
        let beyond = rig.read(blocks: 8, offset: (16 << 20) - 2048)
        let wrapping = rig.read(blocks: 8, offset: .max - 3)
        let unalignedBeyond = rig.read(blocks: 8, offset: (16 << 20) - 4095)
        var empty = rig.read()
        empty.blockCount = 0
        // Then
        for request in [foreign, missing, absurd, beyond, wrapping, unalignedBeyond, empty] {
            #expect(rig.submit(request) == .invalid)
        }
        rig.ring()
        #expect(rig.takeCommands().isEmpty)
    }

    @Test(
        "the queue is full two entries before its end, and takes more after completions were retired"
    )
    func fullQueue() throws {
        // Given
        let rig = try EngineRig(entries: 16)
        let results = (0..<15).map { rig.submit(rig.read(token: UInt64($0))) }
        rig.ring()
        // Then
        #expect(results == Array(repeating: .accepted, count: 14) + [.full])
        // When
        let commands = rig.takeCommands()
        rig.post(commandID: commands[3].commandID)
        #expect(rig.reap().map(\.token) == [3])
        #expect(rig.submit(rig.read(token: 77)) == .accepted)
        #expect(rig.submit(rig.read(token: 78)) == .full)
    }

    @Test("a hundred thousand random commands complete once each, in any order, over many wraps")
    func randomOrder() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try EngineRig(entries: 32)
        var waiting: [SubmissionEntry] = []
        var expected: Set<UInt64> = []
        var token: UInt64 = 0
        // When
        for _ in 0..<100_000 {
            if random.next() % 2 == 0, rig.submit(rig.read(token: token)) == .accepted {
                expected.insert(token)
                token += 1
            }
            rig.ring()
            waiting += rig.takeCommands()
            if !waiting.isEmpty, random.next() % 2 == 0 {
                let index = Int(random.next() % UInt64(waiting.count))
                rig.post(commandID: waiting.remove(at: index).commandID)
                for completion in rig.reap() {
                    #expect(expected.remove(completion.token) != nil, "seed \(seed)")
                }
            }
        }
        // Then
        #expect(expected.count == waiting.count, "seed \(seed)")
        #expect(rig.fault == .none)
    }

    @Test("the log: free, staged with a checksum, completing until retired, free again")
    func logFollowsTheCommand() throws {
        // Given
        let rig = try EngineRig()
        #expect(rig.slotStates.allSatisfy { $0 == 0 })
        // When: submitted
        #expect(rig.submit(rig.read(token: 0xDEAD)) == .accepted)
        // Then: staged, but the tail does not cover it yet
        #expect(rig.slotStates[0] == 1)
        #expect(rig.slotIsIntact(0))
        #expect(rig.loggedTail == 0)
        // When: rung
        rig.ring()
        #expect(rig.loggedTail == 1)
        #expect(rig.submissionTail == 1)
        // When: answered and reaped, not retired
        let command = try requireValue(rig.takeCommands().first)
        rig.post(commandID: command.commandID)
        var completion = IOCompletion()
        let reaped = unsafe rig.engine.reap(into: &completion, capacity: 1)
        #expect(reaped == 1)
        #expect(rig.slotStates[0] == 2)
        #expect(rig.slotIsIntact(0))
        #expect(rig.completionHead == 0)
        // When: delivered
        rig.engine.retire()
        #expect(rig.slotStates[0] == 0)
        #expect(rig.slotIsIntact(0))
        #expect(rig.completionHead == 1)
    }

    @Test("a command id that an Abort names is not used again before the Aborts have ended")
    func heldCommandID() throws {
        // Given: a full queue, one command of it named by two Aborts
        let rig = try EngineRig(entries: 4)
        for token in 0..<2 { #expect(rig.submit(rig.read(token: UInt64(token))) == .accepted) }
        rig.ring()
        let held = try requireValue(rig.takeCommands().first).commandID
        rig.engine.queue.hold(held)
        rig.engine.queue.hold(held)
        // When: it is answered
        rig.post(commandID: held)
        #expect(rig.reap().count == 1)
        // Then: its slot comes back with the end of the second Abort, and not before
        #expect(rig.submit(rig.read(token: 7)) == .full)
        rig.engine.queue.letGo(held)
        #expect(rig.submit(rig.read(token: 7)) == .full)
        rig.engine.queue.letGo(held)
        #expect(rig.submit(rig.read(token: 7)) == .accepted)
    }

    @Test("every single changed bit of a staged slot is seen")
    func everyBitCounts() throws {
        // Given
        let rig = try EngineRig()
        #expect(rig.submit(rig.read(lba: 0x55AA, token: 0x1234_5678_9ABC)) == .accepted)
        let slot = unsafe rig.state + rig.layout.slotsOffset(1, epoch: 1)
        // Then
        for bit in 0..<512 {
            let byte = unsafe nv_load8(slot + bit / 8)
            unsafe nv_store8(slot + bit / 8, byte ^ (1 << UInt8(bit % 8)))
            #expect(!rig.slotIsIntact(0), "bit \(bit)")
            unsafe nv_store8(slot + bit / 8, byte)
        }
        #expect(rig.slotIsIntact(0))
    }

    @Test("a completion that cannot be right stops the trust in the device, and never the process")
    func lyingCompletions() throws {
        let lies: [(QueueFault, (EngineRig, UInt16) -> Void)] = [
            (.inventedCommandID, { rig, _ in rig.post(commandID: 0x03FF) }),
            (.staleCommandID, { rig, id in rig.post(commandID: id ^ 0x0400) }),
            (.staleCommandID, { rig, id in rig.post(commandID: id + 1) }),
            (.wrongQueueID, { rig, id in rig.post(commandID: id, queueID: 2) }),
            (.badHeadPointer, { rig, id in rig.post(commandID: id, head: 16) }),
        ]
        for (expected, lie) in lies {
            // Given
            let rig = try EngineRig()
            #expect(rig.submit(rig.read()) == .accepted)
            rig.ring()
            let command = try requireValue(rig.takeCommands().first)
            // When
            lie(rig, command.commandID)
            let completions = rig.reap()
            // Then
            #expect(completions.isEmpty)
            #expect(rig.fault == expected)
            #expect(!rig.hasAnswer)
        }
    }

    @Test("SQ head pointers that come out of order are no fault")
    func headsOutOfOrder() throws {
        // Given
        let rig = try EngineRig()
        for token in 0..<3 { #expect(rig.submit(rig.read(token: UInt64(token))) == .accepted) }
        rig.ring()
        let commands = rig.takeCommands()
        // When
        for (command, head) in zip(commands, [3, 1, 2] as [UInt16]) {
            rig.post(commandID: command.commandID, head: head)
        }
        let completions = rig.reap()
        // Then
        #expect(completions.map(\.token) == [0, 1, 2])
        #expect(rig.fault == .none)
    }

    @Test("the same completion twice is a fault, not a second completion")
    func duplicateCompletion() throws {
        // Given
        let rig = try EngineRig()
        #expect(rig.submit(rig.read()) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        rig.post(commandID: command.commandID)
        rig.post(commandID: command.commandID)
        // When
        let completions = rig.reap()
        // Then
        #expect(completions.count == 1)
        #expect(rig.fault == .staleCommandID)
    }

    @Test("random completion entries never trap and never complete what is not in flight")
    func randomCompletions() throws {
        // Given
        let seed = seed()
        var random = SplitMix64(state: seed)
        for _ in 0..<2_000 {
            let rig = try EngineRig(entries: 8)
            for token in 0..<4 { _ = rig.submit(rig.read(token: UInt64(token))) }
            rig.ring()
            _ = rig.takeCommands()
            // When
            for _ in 0..<4 {
                rig.post(
                    commandID: UInt16(truncatingIfNeeded: random.next() % 8),
                    status: Status(rawValue: UInt16(truncatingIfNeeded: random.next())),
                    queueID: UInt16(random.next() % 3), head: UInt16(random.next() % 10))
            }
            let completions = rig.reap()
            // Then
            #expect(Set(completions.map(\.token)).count == completions.count, "seed \(seed)")
            #expect(completions.allSatisfy { $0.token < 4 }, "seed \(seed)")
        }
    }

    @Test("what is in flight when the device fails ends once each")
    func abandoning() throws {
        // Given
        let rig = try EngineRig(entries: 16)
        for token in 0..<3 { _ = rig.submit(rig.read(token: UInt64(token))) }
        var large = rig.read(blocks: 1000, token: 50)
        large.maxBlocksPerCommand = 10
        #expect(rig.submit(large) == .accepted)
        rig.ring()
        // When
        var ended: [UInt64] = []
        rig.engine.abandon(status: 7) { ended.append($0.token) }
        // Then
        #expect(ended.sorted() == [0, 1, 2, 50])
    }
}
