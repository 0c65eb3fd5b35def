// SPDX-License-Identifier: Apache-2.0
// The worker's end of a ring against clients that are right, wrong, and hostile.

import CMemory
import CRing
import Linux
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

/// What a disk or a session may be without.
enum Lack: Sendable {
    case compare, writeZeroes, deallocate, verify, writing, blocks

    func take(from rules: inout RingRules) {
        switch self {
        case .compare: rules.canCompare = false
        case .writeZeroes: rules.maxWriteZeroesBlocks = 0
        case .deallocate: rules.maxDeallocateBlocks = 0
        case .verify: rules.maxVerifyBlocks = 0
        case .writing: rules.isWritable = false
        case .blocks: rules.blockCount = 0
        }
    }
}

@Suite("The worker's end of a ring")
struct RingPortTests {
    static let operations: [UInt8] = [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C]
    static let ranges: [UInt8] = [0x08, 0x09, 0x0C]
    static let data: [UInt8] = [0x01, 0x02, 0x05]

    // MARK: What is right

    @Test("a good entry becomes its command and completes with its tag", arguments: operations)
    func good(operation: UInt8) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(.good(operation, tag: 0xFEDC_BA98_7654_3210))
        let commands = rig.commands()
        rig.answer(commands)
        // Then
        #expect(commands.map(\.opcode) == [operation])
        #expect(commands[0].namespaceID == 1)
        #expect(client.submissionHead == 1)
        #expect(client.reap() == [RawCompletion(tag: 0xFEDC_BA98_7654_3210)])
        #expect(rig.fault(client) == .none)
        #expect(rig.inFlight(client) == 0)
    }

    @Test("a read names the blocks and the bytes of its entry")
    func read() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(.read(lba: 0x1234_5678, blocks: 8, tag: 1, offset: 0x2_3000))
        let command = try requireValue(rig.commands().first)
        // Then
        #expect(command.lba == 0x1234_5678)
        #expect(command.blockCount == 8)
        #expect(command.prp1 == EngineRig.regionIOVA + 0x2_3000)
        #expect(command.prp2 == 0)
    }

    @Test(
        "flags become bits of dword 12",
        arguments: [
            (0x01, 0, 0), (0x01, 1, 0x4000_0000), (0x08, 0, 0), (0x08, 1, 0x4000_0000),
            (0x08, 2, 0x0200_0000), (0x08, 3, 0x4200_0000),
        ] as [(UInt8, UInt8, UInt32)])
    func flags(operation: UInt8, flags: UInt8, dword: UInt32) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(RawEntry(operation, flags: flags))
        // Then
        #expect(rig.commands().map(\.cdw12) == [dword])
    }

    @Test("a flush of a disk without a volatile cache is answered without the device")
    func emptyFlush() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(rules: QueueRig.rules { $0.hasVolatileWriteCache = false })
        // When
        client.submit(.flush(tag: 3))
        // Then
        #expect(rig.commands().isEmpty)
        #expect(client.reap() == [RawCompletion(tag: 3)])
    }

    @Test(
        "a status of the device arrives with its code",
        arguments: [
            (0x0080, 11), (0x0107, 25), (0x0007, 25), (0x0281, 20), (0x0285, 21), (0x0182, 10),
            (0x000B, 14), (0x0006, 19), (0x7FFF, 19),
        ] as [(UInt16, UInt16)])
    func statuses(status: UInt16, code: UInt16) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        client.submit(.read(tag: 9))
        let command = try requireValue(rig.commands().first)
        // When
        rig.device.post(
            commandID: command.commandID, status: Status(rawValue: status), result: 0x1122_3344)
        rig.reap()
        // Then
        let expected = RawCompletion(
            tag: 9, status: status, code: RingCode.of(status), result: 0x1122_3344)
        #expect(client.reap() == [expected])
        #expect(RingCode.of(status) == code || status == 0x0107)
    }

    @Test(
        "what a disk does not have or allow is answered, and the ring lives on",
        arguments: [
            (0x05, 24, .compare), (0x08, 24, .writeZeroes),
            (0x09, 24, .deallocate), (0x0C, 24, .verify),
            (0x01, 10, .writing), (0x08, 10, .writing), (0x09, 10, .writing),
            (0x02, 14, .blocks), (0x00, 14, .blocks),
        ] as [(UInt8, UInt16, Lack)])
    func refusals(operation: UInt8, code: UInt16, lack: Lack) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(rules: QueueRig.rules { lack.take(from: &$0) })
        // When
        client.submit(.good(operation, tag: 5), .good(operation, tag: 6))
        // Then
        #expect(rig.commands().isEmpty)
        #expect(client.reap() == [RawCompletion(tag: 5, code: code), .init(tag: 6, code: code)])
        #expect(rig.fault(client) == .none)
    }

    // MARK: Indexes

    @Test(
        "all four indexes wrap at 2^32 without losing or doubling anything",
        arguments: [0xFFFF_FFF0, 0xFFFF_FFFF, 0x7FFF_FFF8, 0x8000_0000] as [UInt32])
    func wrap(start: UInt32) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(8, 16, start: start)
        var next: UInt64 = 0
        var ended: [UInt64] = []
        for round in 0..<40 {
            // When
            for _ in 0..<min(Int(client.room), 1 + round % 8) {
                client.write(.read(lba: next, tag: next))
                next += 1
            }
            client.publish()
            rig.answer(rig.commands())
            ended += client.reap().map(\.tag)
        }
        // Then
        #expect(next > 100)
        #expect(ended == Array(0..<next))
        #expect(client.submissionHead == start &+ UInt32(next))
        #expect(client.completionTail == start &+ UInt32(next))
        #expect(rig.fault(client) == .none)
    }

    @Test("no more is taken than completions have room for; room that appears is used")
    func completionRoom() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(16, 2)
        for tag in 0..<16 { client.write(.read(lba: UInt64(tag), tag: UInt64(tag))) }
        client.publish()
        // When
        let first = rig.commands()
        let second = rig.commands()
        rig.answer(first)
        let third = rig.commands()
        // Then: two are answered and not read
        #expect(first.count == 2)
        #expect(second.isEmpty)
        #expect(third.isEmpty)
        // When: the client takes one
        client.head &+= 1
        client.set(NV_RING_OFFSET_COMPLETION_HEAD, client.head)
        // Then
        let fourth = rig.commands()
        #expect(fourth.count == 1)
        #expect(rig.commands().isEmpty)
        rig.answer(fourth)
        var left = client.reap().map(\.tag)
        for _ in 0..<16 {
            rig.settle()
            left += client.reap().map(\.tag)
        }
        #expect(left == Array(1..<16))
    }

    @Test("entries that wait for room let the worker sleep, and are found when there is room")
    func kickForRoom() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(4, 2)
        for tag in 0..<4 { client.write(.read(tag: UInt64(tag))) }
        client.publish()
        rig.answer(rig.commands())
        // When, then
        #expect(rig.prepareToSleep())
        #expect(client.word(NV_RING_OFFSET_SUBMISSION_NEED_WAKE) == 1)
        #expect(client.reap().count == 2)
        #expect(!rig.prepareToSleep())
        #expect(client.word(NV_RING_OFFSET_SUBMISSION_NEED_WAKE) == 0)
        #expect(rig.commands().count == 2)
    }

    @Test("a full engine leaves entries in the ring, in order")
    func engineFull() throws {
        // Given
        let rig = try QueueRig(entries: 8)
        let client = try rig.open()
        for tag in 0..<32 { client.write(.read(lba: UInt64(tag), tag: UInt64(tag))) }
        client.publish()
        // When
        let first = rig.commands()
        rig.answer(first)
        rig.settle()
        // Then
        #expect(first.map(\.lba) == Array(0..<6))
        #expect(client.reap().map(\.tag) == Array(0..<32))
    }

    @Test("a held ring takes nothing, and goes on when it is let go")
    func held() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        rig.hold(client, true)
        client.submit(.read(tag: 1))
        // When, then
        #expect(rig.commands().isEmpty)
        #expect(rig.prepareToSleep())
        rig.hold(client, false)
        #expect(!rig.prepareToSleep())
        #expect(rig.commands().count == 1)
    }

    @Test(
        "a submission_tail that lies ends the ring",
        arguments: [
            (9, .submissionTail), (10, .submissionTail), (1 << 31, .submissionTail),
            (.max, .submissionTail), (UInt32.max - 7, .submissionTail), (8, .none), (0, .none),
        ] as [(UInt32, RingFault)])
    func tails(ahead: UInt32, fault: RingFault) throws {
        // Given: three entries were taken, one completed
        let rig = try QueueRig()
        let client = try rig.open(8, 8)
        client.submit(.read(tag: 0), .read(tag: 1), .read(tag: 2))
        let commands = rig.commands()
        // When
        client.set(NV_RING_OFFSET_SUBMISSION_TAIL, 3 &+ ahead)
        let more = rig.commands()
        rig.answer(commands)
        // Then: what was taken completes, once
        #expect(rig.fault(client) == fault)
        #expect(fault == .none || more.isEmpty)
        #expect(client.look().prefix(3).map(\.tag) == [0, 1, 2])
    }

    @Test("a submission_tail that runs back over entries that wait ends the ring")
    func tailRunsBack() throws {
        // Given: eight are published, two of them taken
        let rig = try QueueRig()
        let client = try rig.open(8, 2)
        for tag in 0..<8 { client.write(.read(tag: UInt64(tag))) }
        client.publish()
        #expect(rig.commands().count == 2)
        // When
        client.set(NV_RING_OFFSET_SUBMISSION_TAIL, 7)
        // Then
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == .submissionTail)
    }

    @Test("a submission_tail that runs back to what was taken ends the ring")
    func tailRunsBackToHead() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open(8, 2)
        for tag in 0..<8 { client.write(.read(tag: UInt64(tag))) }
        client.publish()
        #expect(rig.commands().count == 2)
        // When
        client.set(NV_RING_OFFSET_SUBMISSION_TAIL, 2)
        // Then
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == .submissionTail)
    }

    @Test(
        "a completion_head that lies ends the ring when it matters",
        arguments: [
            (3, .completionHead), (1 << 31, .completionHead), (.max, .completionHead), (0, .none),
            (1, .none), (2, .none),
        ] as [(UInt32, RingFault)])
    func heads(head: UInt32, fault: RingFault) throws {
        // Given: two completions, which leave no room
        let rig = try QueueRig()
        let client = try rig.open(8, 2)
        for tag in 0..<4 { client.write(.read(tag: UInt64(tag))) }
        client.publish()
        rig.answer(rig.commands())
        // When
        client.set(NV_RING_OFFSET_COMPLETION_HEAD, head)
        let commands = rig.commands()
        // Then
        #expect(rig.fault(client) == fault)
        #expect(commands.count == (fault == .none ? Int(head) : 0))
    }

    @Test("a completion_head ahead of what is published ends the ring, even with work under way")
    func headAheadOfPublished() throws {
        // Given: two taken, none answered
        let rig = try QueueRig()
        let client = try rig.open(8, 2)
        for tag in 0..<4 { client.write(.read(tag: UInt64(tag))) }
        client.publish()
        let commands = rig.commands()
        // When
        client.set(NV_RING_OFFSET_COMPLETION_HEAD, 1)
        // Then: the two still complete where they have to
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == .completionHead)
        rig.answer(commands)
        #expect(client.look().map(\.tag) == [0, 1])
    }

    // MARK: Entries

    @Test("of the 256 opcodes, those that are not on the list end the ring and reach no device")
    func opcodes() throws {
        // Given
        let rig = try QueueRig()
        for opcode in UInt8.min...UInt8.max {
            let client = try rig.open(2, 2)
            let isListed = Self.operations.contains(opcode)
            // When
            client.submit(.good(opcode, tag: UInt64(opcode)), .flush(tag: 1000))
            let commands = rig.commands()
            rig.answer(commands)
            // Then
            #expect(commands.first?.opcode == (isListed ? opcode : nil))
            #expect(client.look().map(\.tag) == (isListed ? [UInt64(opcode), 1000] : []))
            #expect(rig.fault(client) == (isListed ? .none : .opcode))
            #expect(client.submissionHead == (isListed ? 2 : 0))
            rig.close(client)
        }
    }

    @Test("each flag bit ends the ring unless the operation has it", arguments: operations)
    func flagBits(operation: UInt8) throws {
        // Given
        let allowed: [UInt8: UInt8] = [0x01: 1, 0x08: 3]
        let rig = try QueueRig()
        for bit in 0..<8 {
            let flag = UInt8(1) << UInt8(bit)
            let client = try rig.open(2, 2)
            // When
            var entry = RawEntry.good(operation)
            entry.words.0 |= UInt64(flag) << 8
            client.submit(entry)
            let count = rig.settle()
            // Then: an indirect entry without a list is wrong in its own way
            let isGood = allowed[operation, default: 0] & flag != 0
            let fault: RingFault =
                isGood ? .none : flag == 4 && Self.data.contains(operation) ? .segments : .reserved
            #expect(rig.fault(client) == fault, "bit \(bit)")
            #expect(count == (isGood ? 1 : 0))
            rig.close(client)
        }
    }

    @Test("each reserved byte ends the ring", arguments: operations)
    func reservedBytes(operation: UInt8) throws {
        // Given
        let rig = try QueueRig()
        var bytes = [2, 3] + Array(28..<32) + Array(40..<64)
        if operation == 0 { bytes += Array(4..<16) + Array(24..<28) + Array(32..<40) }
        if Self.ranges.contains(operation) { bytes += Array(24..<28) + Array(32..<40) }
        for byte in bytes {
            for value in [0x01, 0x80, 0xFF] as [UInt8] {
                let client = try rig.open(2, 2)
                // When
                var entry = RawEntry.good(operation)
                entry.bytes[byte] = value
                client.submit(entry)
                // Then
                #expect(rig.commands().isEmpty, "byte \(byte)")
                #expect(rig.fault(client) == .reserved, "byte \(byte)")
                rig.close(client)
            }
        }
    }

    @Test(
        "block counts at their bounds",
        arguments: [
            (0x02, 0, 1, 0), (0x02, 1, 0, 1), (0x02, 256, 0, 1), (0x02, 257, 0, 2),
            (0x02, 32768, 0, 128), (0x02, 131_073, 1, 0), (0x02, .max, 11, 0), (0x01, 0, 1, 0),
            (0x05, 0, 1, 0), (0x08, 0, 1, 0), (0x08, 65536, 0, 1), (0x08, 65537, 0, 2),
            (0x09, 0, 1, 0), (0x09, 65537, 0, 2), (0x0C, 0, 1, 0), (0x0C, .max, 11, 0),
            (0x0C, 1 << 20, 0, 16),
        ] as [(UInt8, UInt32, UInt16, Int)])
    func blockCounts(operation: UInt8, blocks: UInt32, code: UInt16, count: Int) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(RawEntry(operation, blocks: blocks, tag: 1))
        let commands = rig.settle()
        // Then
        #expect(commands == count)
        #expect(client.reap() == [RawCompletion(tag: 1, code: code)])
        #expect(rig.fault(client) == .none)
    }

    @Test(
        "blocks past the end of the disk are out of range, however they wrap",
        arguments: operations.dropFirst())
    func lastBlocks(operation: UInt8) throws {
        // Given
        let end = QueueRig.blockCount
        let cases: [(UInt64, UInt32, UInt16)] = [
            (end - 1, 1, 0), (end - 8, 8, 0), (end - 1, 2, 11), (end, 1, 11), (end + 1, 1, 11),
            (.max, 1, 11), (.max, 2, 11), (.max - 6, 8, 11), (1 << 63, 1, 11), (0, .max, 11),
        ]
        let rig = try QueueRig()
        for (lba, blocks, code) in cases {
            let client = try rig.open(2, 2)
            // When
            client.submit(RawEntry(operation, blocks: blocks, lba: lba, tag: 1))
            let commands = rig.settle()
            // Then
            #expect(client.reap() == [RawCompletion(tag: 1, code: code)], "\(lba) \(blocks)")
            #expect(commands == (code == 0 ? 1 : 0))
            #expect(rig.fault(client) == .none)
            rig.close(client)
        }
    }

    @Test("a region that is not the session's ends the ring", arguments: data)
    func regions(operation: UInt8) throws {
        // Given: region 5 is another session's by its table, 6 by the driver's table
        let rig = try QueueRig()
        let stranger = try rig.openStranger(0)
        stranger.regions.set(5, driverRegion: rig.device.region + 1, isReadOnly: false)
        for region in [1, 5, 62, 63, 64, 65, 1 << 31, .max] as [UInt32] {
            let client = try rig.open(2, 2)
            // When
            client.submit(RawEntry(operation, region: region))
            // Then
            #expect(rig.commands().isEmpty)
            #expect(rig.fault(client) == .region, "region \(region)")
            rig.close(client)
        }
        let client = try rig.open(2, 2)
        client.regions.set(6, driverRegion: rig.device.region + 1, isReadOnly: false)
        client.submit(RawEntry(operation, region: 6))
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == .range)
    }

    @Test("a region that was unregistered cannot be named any more; the last id can")
    func unregistered() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        client.regions.set(63, driverRegion: rig.device.region, isReadOnly: false)
        client.regions.set(64, driverRegion: rig.device.region, isReadOnly: false)
        client.submit(.read(tag: 1, region: 63))
        #expect(rig.settle() == 1)
        // When
        client.regions.remove(63)
        client.regions.remove(64)
        client.submit(.read(tag: 2, region: 63))
        // Then
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == .region)
        #expect(client.reap().map(\.tag) == [1])
    }

    @Test(
        "the device writes no read-only region, and reads it",
        arguments: [(0x02, .region, 0), (0x01, .none, 1), (0x05, .none, 1)]
            as [(UInt8, RingFault, Int)])
    func readOnlyRegion(operation: UInt8, fault: RingFault, count: Int) throws {
        // Given: aligned and bounced, direct and split
        for (offset, blocks) in [(0, 1), (1, 1), (0, 1000), (2, 1000)] as [(UInt64, UInt32)] {
            let rig = try QueueRig()
            let client = try rig.open()
            client.regions.set(1, driverRegion: rig.device.region, isReadOnly: true)
            // When
            client.submit(RawEntry(operation, blocks: blocks, region: 1, offset: offset))
            let commands = rig.settle()
            // Then
            #expect(rig.fault(client) == fault)
            #expect((commands > 0) == (count > 0))
        }
    }

    @Test("bytes outside of their region end the ring", arguments: data)
    func offsets(operation: UInt8) throws {
        // Given
        let size = QueueRig.regionByteCount
        let cases: [(UInt64, UInt32, RingFault)] = [
            (0, 1, .none), (size - 512, 1, .none), (size - 511, 1, .range), (size - 1, 1, .range),
            (size, 1, .range), (size + 1, 1, .range), (.max, 1, .range), (.max - 511, 1, .range),
            (.max - 510, 1, .range), (0, 32768, .none), (4, 32768, .range), (1, 32768, .range),
            (512, 32768, .range), (.max - 4095, 8, .range), (1 << 63, 8, .range),
            (size - 513, 1, .none), (3, 1, .none),
        ]
        let rig = try QueueRig()
        for (offset, blocks, fault) in cases {
            let client = try rig.open(2, 2)
            // When
            client.submit(RawEntry(operation, blocks: blocks, offset: offset))
            let commands = rig.settle()
            // Then
            #expect(rig.fault(client) == fault, "offset \(offset) blocks \(blocks)")
            #expect((commands > 0) == (fault == .none))
            rig.close(client)
        }
        #expect(rig.device.freePageCount == 256)
    }

    @Test(
        "segment counts that cannot be end the ring",
        arguments: [0, 513, 1 << 31, .max] as [UInt32])
    func segmentCounts(count: UInt32) throws {
        // Given
        let rig = try QueueRig()
        for operation in Self.data {
            let client = try rig.open(2, 2)
            // When
            client.submit(RawEntry(operation, flags: 4, segments: count))
            // Then
            #expect(rig.commands().isEmpty)
            #expect(rig.fault(client) == .segments)
            rig.close(client)
        }
    }

    @Test(
        "a segment list that lies ends the ring",
        arguments: [
            ([(0, 0, 512), (4096, 0, 512)], .none), ([(0, 0, 1), (7, 0, 1023)], .none),
            ([(0, 0, 512)], .segments), ([(0, 0, 512), (512, 0, 513)], .segments),
            ([(0, 0, 0), (512, 0, 1024)], .segments), ([(0, 0, .max)], .segments),
            ([(0, 0, 512), (512, 0, .max)], .segments), ([(0, 1, 1024)], .region),
            ([(0, 64, 1024)], .region), ([(0, .max, 1024)], .region),
            ([(0, 0, 512), (0, 3, 512)], .region),
            ([(16 << 20, 0, 1024)], .range), ([((16 << 20) - 1023, 0, 1024)], .range),
            ([(.max, 0, 1024)], .range), ([(.max - 1023, 0, 1024)], .range),
            ([(0, 0, 512), (.max - 511, 0, 512)], .range),
        ] as [([(UInt64, UInt32, UInt32)], RingFault)])
    func segmentLists(list: [(UInt64, UInt32, UInt32)], fault: RingFault) throws {
        // Given: region 3 may not be written by the device
        let rig = try QueueRig()
        let client = try rig.open()
        client.regions.set(3, driverRegion: rig.device.region, isReadOnly: true)
        let place = unsafe rig.device.clientMemory + 65536
        for (index, segment) in list.enumerated() {
            unsafe nv_store64(place + index * 16, segment.0)
            unsafe nv_store32(place + index * 16 + 8, segment.1)
            unsafe nv_store32(place + index * 16 + 12, segment.2)
        }
        // When
        client.submit(
            RawEntry(
                IOOperation.read, flags: 4, blocks: 2, tag: 1, segments: UInt32(list.count),
                offset: 65536))
        let commands = rig.settle()
        // Then
        #expect(rig.fault(client) == fault)
        #expect((commands > 0) == (fault == .none))
        #expect(client.look().map(\.tag) == (fault == .none ? [1] : []))
        #expect(rig.device.freePageCount == 256)
    }

    @Test(
        "a segment list that is not where lists may be ends the ring",
        arguments: [
            (1, 0, .segments), (4, 0, .segments), (0, 1, .region), (0, 64, .region),
            ((16 << 20) - 8, 0, .range), ((16 << 20), 0, .range), (.max - 7, 0, .range),
            (.max - 15, 0, .range),
        ] as [(UInt64, UInt32, RingFault)])
    func segmentListPlaces(offset: UInt64, region: UInt32, fault: RingFault) throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(
            RawEntry(
                IOOperation.read, flags: 4, region: region, segments: 1, offset: offset))
        // Then
        #expect(rig.commands().isEmpty)
        #expect(rig.fault(client) == fault)
    }

    @Test("what comes before an entry at fault is done; what comes after is not")
    func faultInTheMiddle() throws {
        // Given
        let rig = try QueueRig()
        let client = try rig.open()
        // When
        client.submit(.read(tag: 1), .read(tag: 2), RawEntry(0xFF, tag: 3), .read(tag: 4))
        rig.settle()
        // Then
        #expect(client.look().map(\.tag) == [1, 2])
        #expect(client.submissionHead == 2)
        // When: the entry is made good
        client.tail = 2
        client.submit(.read(tag: 3), .read(tag: 4))
        rig.settle()
        // Then: the ring has ended for good
        #expect(client.look().map(\.tag) == [1, 2])
    }
}
