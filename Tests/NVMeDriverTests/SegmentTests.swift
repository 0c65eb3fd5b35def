// SPDX-License-Identifier: Apache-2.0
// Scatter/gather: any list of segments gives the right data on the right blocks, in as few commands
// as PRP entries allow, and touches nothing else.

import CMemory
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

@Suite("Scatter and gather")
struct SegmentTests {
    // MARK: Shapes

    @Test("32 scattered pages are one command without a copy or a record, with a list")
    func guestPages() throws {
        // Given
        let rig = try EngineRig()
        let segments = (0..<32).map {
            DataSegment(
                region: rig.region, offset: UInt64($0 * 7 % 32) * 4096 + 0x10_0000,
                byteCount: 4096)
        }
        // When
        #expect(rig.submit(rig.request(IOOperation.write, blocks: 256), segments) == .accepted)
        rig.ring()
        let commands = rig.takeCommands()
        // Then
        let command = try requireValue(commands.first)
        #expect(commands.count == 1)
        #expect(
            rig.pages(of: command, byteCount: 131_072)
                == segments.map { EngineRig.regionIOVA + $0.offset })
        #expect(rig.freePageCount == 256)
        #expect(rig.requestsInUse == 0)
    }

    @Test(
        "the first segment may begin and the last end anywhere dword aligned",
        arguments: [
            [4092, 516], [512], [100, 412], [4, 508], [2048, 4096, 2048],
            [508, 4096, 4096, 4],
        ])
    func ragged(lengths: [Int]) throws {
        // Given: the first ends at a page boundary, the others begin at one
        let rig = try EngineRig()
        var segments: [DataSegment] = []
        for (index, length) in lengths.enumerated() {
            let page = UInt64(index * 3 + 1) * 4096
            segments.append(
                DataSegment(
                    region: rig.region, offset: index == 0 ? page - UInt64(length) % 4096 : page,
                    byteCount: UInt32(length)))
        }
        let blocks = UInt32(lengths.reduce(0, +) / 512)
        // When
        #expect(rig.submit(rig.request(IOOperation.read, blocks: blocks), segments) == .accepted)
        rig.ring()
        // Then
        #expect(rig.serveAll().count == 1)
        #expect(rig.freePageCount == 256)
        #expect(rig.reap().map(\.status) == [0])
    }

    @Test("segments that follow each other in the device's addresses are one stretch")
    func adjacent() throws {
        // Given: 8 KiB in pieces of 100 bytes and a rest
        let rig = try EngineRig()
        var segments = (0..<81).map {
            DataSegment(region: rig.region, offset: UInt64($0) * 100, byteCount: 100)
        }
        segments.append(DataSegment(region: rig.region, offset: 8100, byteCount: 92))
        // When
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 16), segments) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        // Then
        #expect(command.prp1 == EngineRig.regionIOVA)
        #expect(command.prp2 == EngineRig.regionIOVA + 4096)
    }

    @Test(
        "lists of more entries than a page of them go on in the next page",
        arguments: [
            (first: UInt32(4096), pages: 512), (4096, 513), (4096, 514), (4, 513), (4, 514),
            (4096, 1023), (4096, 1024), (4092, 1025),
        ])
    func chains(first: UInt32, pages: Int) throws {
        // Given: `pages` pages, of which the first is used from its end on, and the last so far
        // that the sum is whole blocks
        let rig = try EngineRig(entries: 4)
        var segments = [
            DataSegment(region: rig.region, offset: 8192 - UInt64(first), byteCount: first)
        ]
        var addresses = [EngineRig.regionIOVA + 8192 - UInt64(first)]
        var left = pages - 1
        // Stretches of 3 pages, every second one from the far end.
        while left > 0 {
            let count = min(left, 3)
            let place = UInt64(left % 2 == 0 ? 4000 - left : left) * 4096
            segments.append(
                DataSegment(region: rig.region, offset: place, byteCount: UInt32(count * 4096)))
            addresses += (0..<UInt64(count)).map { EngineRig.regionIOVA + place + $0 * 4096 }
            left -= count
        }
        let sum = segments.reduce(0) { $0 + UInt64($1.byteCount) }
        segments[segments.count - 1].byteCount -= UInt32(sum % 512)
        let blocks = UInt32(sum / 512)
        var request = rig.request(IOOperation.write, blocks: blocks)
        request.maxBlocksPerCommand = 16384
        // When
        #expect(rig.submit(request, segments) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        // Then
        #expect(rig.pages(of: command, byteCount: UInt64(blocks) * 512) == addresses)
    }

    @Test("the largest command is one; a block more makes two, and the second goes on where it was")
    func maximum() throws {
        // Given
        let rig = try EngineRig()
        func segments(_ blocks: Int) -> [DataSegment] {
            [
                DataSegment(region: rig.region, offset: 1536, byteCount: 2560),
                DataSegment(
                    region: rig.region, offset: 81920, byteCount: UInt32(blocks * 512 - 2560)),
            ]
        }
        // When
        #expect(
            rig.submit(rig.request(IOOperation.read, blocks: 256), segments(256)) == .accepted)
        #expect(
            rig.submit(rig.request(IOOperation.read, blocks: 257), segments(257)) == .accepted)
        rig.ring()
        let commands = rig.takeCommands()
        // Then
        #expect(commands.map { $0.cdw12 & 0xFFFF } == [255, 255, 0])
        #expect(commands.map(\.cdw10) == [0, 0, 256])
        #expect(commands[2].prp1 == EngineRig.regionIOVA + 81920 + 256 * 512 - 2560)
        #expect(commands[2].prp2 == 0)
    }

    @Test("only the blocks that straddle a boundary are copied")
    func straddling() throws {
        // Given: 1300 bytes, then 4096, then the rest of 12 blocks; all dword aligned
        let rig = try SegmentRig()
        var random = SplitMix64(state: 1)
        rig.regions[0].fill(&random)
        let segments = [
            DataSegment(region: rig.regions[0].index, offset: 0, byteCount: 1300),
            DataSegment(region: rig.regions[0].index, offset: 8192, byteCount: 4096),
            DataSegment(region: rig.regions[0].index, offset: 40960, byteCount: 748),
        ]
        let request = rig.request(IOOperation.write, lba: 4, blocks: 12)
        rig.applyToModel(request, segments)
        // When
        #expect(rig.rig.submit(request, segments) == .accepted)
        let ended = rig.finish(&random)
        // Then: two blocks directly, the third copied, nine directly: the boundary between the
        // second and the third segment is that of a page
        #expect(ended.map(\.status) == [0])
        #expect(rig.bouncedBlocks == [1])
        #expect(rig.commandCount == 3)
        #expect(rig.findings.isEmpty)
        #expect(rig.diskIsAsItShouldBe)
    }

    // MARK: Refusals

    @Test("a list that is not the request's data is refused, and the device hears nothing")
    func refusals() throws {
        // Given
        let rig = try EngineRig()
        let request = rig.request(IOOperation.read, blocks: 8)
        let good = DataSegment(region: rig.region, offset: 0, byteCount: 4096)
        func segment(_ region: UInt32, _ offset: UInt64, _ count: UInt32) -> DataSegment {
            DataSegment(region: region, offset: offset, byteCount: count)
        }
        let end: UInt64 = 16 << 20
        let lists: [[DataSegment]] = [
            [], [segment(rig.region, 0, 4095)], [segment(rig.region, 0, 4097)],
            [good, segment(rig.region, 8192, 0)], [segment(rig.region, 0, 0), good], [good, good],
            [segment(rig.region, end - 4095, 4096)], [segment(rig.region, end, 4096)],
            [segment(rig.region, .max - 4095, 4096)], [segment(rig.region, .max, 4096)],
            [segment(900, 0, 4096)], [segment(.max, 0, 4096)],
            [segment(rig.region, 0, 2048), segment(900, 0, 2048)],
            [segment(rig.region, 0, .max), segment(rig.region, 0, .max)],
            Array(repeating: segment(rig.region, 0, 8), count: 513),
        ]
        var foreign = request
        foreign.session = 8
        var flush = request
        flush.operation = IOOperation.flush
        var zeroes = request
        zeroes.operation = IOOperation.writeZeroes
        var none = request
        none.blockCount = 0
        // Then
        for list in lists { #expect(rig.submit(request, list) == .invalid, "\(list)") }
        for other in [foreign, flush, zeroes, none] {
            #expect(rig.submit(other, [good]) == .invalid)
        }
        rig.ring()
        #expect(rig.takeCommands().isEmpty)
        #expect(rig.isIdle)
    }

    @Test("memory that the device must not write takes no read, by list, in one piece or bounced")
    func readOnly() throws {
        // Given
        let rig = try EngineRig()
        let region = try requireValue(
            unsafe rig.regions.insert(
                session: EngineRig.session, iova: 0, byteCount: 65536, base: rig.clientMemory,
                flags: [.bounced, .readOnly]))
        let list = [
            DataSegment(region: region, offset: 0, byteCount: 512),
            DataSegment(region: rig.region, offset: 65536, byteCount: 3584),
        ]
        var piece = rig.request(IOOperation.read, blocks: 8)
        piece.region = region
        // Then
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 8), list) == .invalid)
        #expect(rig.submit(piece) == .invalid)
        piece.operation = IOOperation.write
        #expect(rig.submit(piece) == .accepted)
        #expect(rig.submit(rig.request(IOOperation.compare, blocks: 8), list) == .accepted)
    }

    @Test("bytes beyond the end of a bounced region are refused like any")
    func bouncedRange() throws {
        // Given
        let rig = try SegmentRig()
        var request = rig.request(IOOperation.read, lba: 0, blocks: 8)
        request.region = rig.regions[2].index
        let end = UInt64(SegmentRig.regionByteCount)
        // Then
        let beyond: [UInt64] = [end - 4095, end, end + 4096, 1 << 32, .max - 4095]
        for offset in beyond {
            request.offset = offset
            #expect(rig.rig.submit(request) == .invalid)
        }
        request.offset = end - 4096
        #expect(rig.rig.submit(request) == .accepted)
        request.session = 8
        #expect(rig.rig.submit(request) == .invalid)
    }

    // MARK: Errors and shortage

    @Test("the first error of a list is its status, and stops the rest")
    func firstError() throws {
        // Given: every block is a command
        let rig = try EngineRig(entries: 8)
        var request = rig.request(IOOperation.write, blocks: 100, token: 3)
        request.maxBlocksPerCommand = 1
        let segments = (0..<100).map {
            DataSegment(region: rig.region, offset: UInt64($0) * 8192 + 4, byteCount: 512)
        }
        #expect(rig.submit(request, segments) == .accepted)
        rig.ring()
        // When
        let first = rig.takeCommands()
        rig.post(commandID: first[1].commandID, status: .lbaOutOfRange)
        var ended = rig.reap()
        let later = rig.takeCommands()
        for command in first where command.commandID != first[1].commandID {
            rig.post(commandID: command.commandID)
        }
        ended += rig.reap()
        // Then
        #expect(first.count == 6)
        #expect(later.isEmpty)
        #expect(ended.map(\.status) == [Status.lbaOutOfRange.rawValue])
        #expect(ended.map(\.token) == [3])
        #expect(rig.isIdle)
        #expect(rig.requestsInUse == 0)
    }

    @Test("a bounced read that fails writes nothing into the client's memory")
    func failedBounce() throws {
        // Given
        let rig = try EngineRig()
        let segments = [
            DataSegment(region: rig.region, offset: 1, byteCount: 511),
            DataSegment(region: rig.region, offset: 9999, byteCount: 1),
        ]
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 1), segments) == .accepted)
        rig.ring()
        let command = try requireValue(rig.takeCommands().first)
        for index in 0..<512 {
            unsafe nv_store8(
                rig.bounceMemory + Int(command.prp1 - EngineRig.bounceIOVA) + index, 0xA5)
        }
        // When
        rig.post(commandID: command.commandID, status: .lbaOutOfRange)
        let ended = rig.reap()
        // Then
        #expect(ended.count == 1)
        #expect((0..<16384).allSatisfy { unsafe nv_load8(rig.clientMemory + $0) == 0 })
        #expect(rig.freePageCount == 256)
    }

    @Test("one that waits for bounce pages holds up nobody, and goes out when there are some")
    func shortage() throws {
        // Given: all pages are taken
        let rig = try EngineRig()
        let first = try requireValue(rig.takePages(byteCount: 256 * 4096))
        let odd = [DataSegment(region: rig.region, offset: 1, byteCount: 4096)]
        let even = (0..<8).map {
            DataSegment(region: rig.region, offset: UInt64($0) * 8192 + 512, byteCount: 512)
        }
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 8, token: 1), odd) == .accepted)
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 8, token: 2), even) == .accepted)
        rig.ring()
        // When
        #expect(rig.serveAll().count == 8)
        let second = rig.reap().map(\.token)
        rig.releasePages(first: first, count: 255)
        rig.ring()
        let commands = rig.serveAll()
        // Then
        #expect(second == [2])
        #expect(commands.map { $0.cdw12 & 0xFFFF } == [7])
        #expect(rig.reap().map(\.token) == [1])
    }

    @Test("with a single page free a bounced list goes through it piece by piece")
    func onePage() throws {
        // Given
        let rig = try SegmentRig()
        var random = SplitMix64(state: 2)
        rig.regions[2].fill(&random)
        _ = try requireValue(rig.rig.takePages(byteCount: 255 * 4096))
        let request = rig.request(IOOperation.write, lba: 3, blocks: 100)
        let segments = [
            DataSegment(region: rig.regions[2].index, offset: 3, byteCount: 51100),
            DataSegment(region: rig.regions[2].index, offset: 77777, byteCount: 100),
        ]
        rig.applyToModel(request, segments)
        // When
        #expect(rig.rig.submit(request, segments) == .accepted)
        let ended = rig.finish(&random)
        // Then
        #expect(ended.map(\.status) == [0])
        #expect(rig.bouncedBlocks.allSatisfy { $0 <= 8 })
        #expect(rig.diskIsAsItShouldBe)
        #expect(rig.rig.freePageCount == 1)
    }

    // MARK: The log

    @Test("a request of several commands keeps its list in the state area, under a checksum")
    func logged() throws {
        // Given
        let rig = try EngineRig()
        let segments = (0..<8).map {
            DataSegment(region: rig.region, offset: UInt64($0) * 8192 + 512, byteCount: 512)
        }
        #expect(rig.submit(rig.request(IOOperation.read, blocks: 8), segments) == .accepted)
        let list = unsafe rig.state + rig.layout.segmentListsOffset(1, epoch: 1)
        let intact = rig.recordIsIntact(0)
        // When
        let offset = unsafe nv_load64(list + 16)
        unsafe nv_store8(list + 7 * 16 + 13, 1)
        // Then
        #expect(intact)
        #expect(offset == 8192 + 512)
        #expect(!rig.recordIsIntact(0))
    }

    // MARK: Any list

    @Test(
        "random lists over three regions move exactly the right bytes",
        arguments: [UInt8(9), 12])
    func anyList(shift: UInt8) throws {
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try SegmentRig(shift: shift)
        rig.fillDisk(&random)
        for region in rig.regions { region.fill(&random) }
        for round in 0..<400 {
            // Given
            let blocks = UInt32(1 + random.next() % (shift == 9 ? 128 : 24))
            let operation = [IOOperation.read, IOOperation.write, IOOperation.compare][
                Int(random.next() % 3)]
            let lba = random.next() % (UInt64(SegmentRig.diskByteCount) >> UInt64(shift) - 128)
            let request = rig.request(
                operation, lba: lba, blocks: blocks, maxBlocks: UInt32(1 + random.next() % 128))
            let segments = rig.randomSegments(Int(blocks) << Int(shift), &random)
            if operation == IOOperation.compare, random.next() % 2 == 0 {
                rig.makeEqual(request, segments)
            }
            let isEqual = rig.applyToModel(request, segments)
            // When
            #expect(rig.rig.submit(request, segments) == .accepted, "seed \(seed), round \(round)")
            let ended = rig.finish(&random)
            // Then
            let expected = isEqual ? 0 : Status.compareFailure.rawValue
            #expect(ended.map(\.status) == [expected], "seed \(seed), round \(round)")
            #expect(rig.findings == [], "seed \(seed), round \(round)")
            #expect(rig.diskIsAsItShouldBe, "seed \(seed), round \(round)")
            #expect(
                rig.memoryIsAsItShouldBe,
                "seed \(seed), round \(round): \(request) \(segments)")
            #expect(rig.rig.freePageCount == 256, "seed \(seed), round \(round)")
            guard rig.findings.isEmpty, rig.diskIsAsItShouldBe else { return }
        }
        #expect(!rig.bouncedBlocks.isEmpty)
    }

    @Test("many at a time, with few pages and few slots, all end, each with its own data")
    func crowd() throws {
        // Given: 64 writes of 8 KiB of their own to 16 blocks of their own
        let seed = seed()
        var random = SplitMix64(state: seed)
        let rig = try SegmentRig(entries: 8)
        rig.regions[2].fill(&random)
        rig.regions[0].fill(&random)
        _ = try requireValue(rig.rig.takePages(byteCount: 254 * 4096))
        var accepted: [UInt64] = []
        for token in 0..<64 as Range<UInt64> {
            let request = rig.request(
                IOOperation.write, lba: token * 16, blocks: 16, maxBlocks: 7, token: token)
            let region = rig.regions[token % 3 == 0 ? 2 : 0].index
            let segments = [
                DataSegment(region: region, offset: token * 16384 + token, byteCount: 5000),
                DataSegment(region: region, offset: token * 16384 + 6000, byteCount: 3192),
            ]
            guard rig.rig.submit(request, segments) == .accepted else { continue }
            rig.applyToModel(request, segments)
            accepted.append(token)
        }
        // When
        let ended = rig.finish(&random)
        // Then
        #expect(ended.map(\.token).sorted() == accepted, "seed \(seed)")
        #expect(accepted.count >= 2)
        #expect(ended.allSatisfy { $0.status == 0 })
        #expect(rig.findings.isEmpty)
        #expect(rig.diskIsAsItShouldBe, "seed \(seed)")
        #expect(rig.rig.isIdle)
    }
}

extension SegmentRig {
    /// Segments of `byteCount` bytes in all, apart from each other, of one random style.
    func randomSegments(_ byteCount: Int, _ random: inout SplitMix64) -> [DataSegment] {
        let unit = [1, 4, 512, 4096][Int(random.next() % 4)]
        let longest = [16, 1024, 8192, 65536][Int(random.next() % 4)]
        let isBounced = random.next() % 4 == 0
        var cursors = regions.map { _ in Int(random.next() % 65536) }
        var segments: [DataSegment] = []
        var left = byteCount
        while left > 0 {
            let number = Int(random.next() % (isBounced ? 3 : 2))
            let start = (cursors[number] + unit - 1) / unit * unit
            let rounded = max(unit, Int(random.next() % UInt64(longest)) / unit * unit)
            // The last of as many as there can be takes the rest.
            let length = segments.count >= 400 ? left : min(left, rounded)
            segments.append(
                DataSegment(
                    region: regions[number].index, offset: UInt64(start),
                    byteCount: UInt32(length)))
            cursors[number] = start + length + Int(random.next() % 3) * unit
            left -= length
        }
        return segments
    }

    /// Gives the memory the contents of the disk.
    func makeEqual(_ request: IORequest, _ segments: [DataSegment]) {
        var position = Int(request.lba) << Int(shift)
        for segment in segments {
            guard let region = region(segment.region) else { return }
            for index in 0..<Int(segment.byteCount) {
                let byte = unsafe nv_load8(diskModel + position + index)
                unsafe nv_store8(region.memory + Int(segment.offset) + index, byte)
                unsafe nv_store8(region.model + Int(segment.offset) + index, byte)
            }
            position += Int(segment.byteCount)
        }
    }
}
