// SPDX-License-Identifier: Apache-2.0
// A worker dies at every step of submitting and completing, and its successor, at some of its own:
// nothing is lost, nothing is done twice, nothing comes from nowhere.

import CMemory
import CRing
import NVMeSpec
import TestSupport
import Testing

@testable import NVMeDriver

/// Makes a copy of the world at each crash point and lets a successor go on in it.
private final class Cutter {
    static let adoption: [CrashPoint] = [
        .adoptDelivered, .adoptResubmitted, .adoptProbeStaged, .adoptProbeRung,
    ]
    private var current: CrashWorld
    private var depth = 0
    private var random: SplitMix64
    private let seed: UInt64
    /// How often a successor went on from a point, and how often one's successor did.
    private(set) var cuts: [CrashPoint: Int] = [:]
    private(set) var secondCuts: [CrashPoint: Int] = [:]
    /// The richest world that was cut.
    private(set) var fullest: CrashWorld?
    private var fullness = 0

    init(_ world: CrashWorld, seed: UInt64) {
        current = world
        self.seed = seed
        random = SplitMix64(state: seed)
    }

    func hit(_ point: CrashPoint) {
        // A successor dies now and then, its successor lives.
        let isOften = Self.adoption.contains(point) || random.next() % 6 == 0
        guard depth == 0 || depth == 1 && isOften else { return }
        let predecessor = current
        depth += 1
        defer {
            depth -= 1
            current = predecessor
        }
        if depth == 1 { cuts[point, default: 0] += 1 } else { secondCuts[point, default: 0] += 1 }
        do {
            let world = try CrashWorld(copying: predecessor)
            current = world
            keep(predecessor)
            try world.adopt()
            var order = random
            _ = random.next()
            let isFinished = world.finish(&order)
            #expect(isFinished, "\(point), depth \(depth), seed \(seed): \(world.fault)")
            check(world, "\(point), depth \(depth), seed \(seed)")
        } catch {
            Issue.record("\(point), depth \(depth), seed \(seed): \(error)")
        }
    }

    private func keep(_ world: CrashWorld) {
        let inFlight = Int(CrashWorld.entries - 2) - Int(world.freeSlotCount)
        guard depth == 1, inFlight > fullness, let copy = try? CrashWorld(copying: world) else {
            return
        }
        fullness = inFlight
        fullest = copy
    }
}

/// Whether everything that was asked for was done and answered, once.
private func check(_ world: CrashWorld, _ comment: String) {
    let flushes = world.expected.count { $0.isFlush }
    if world.hasMessages {
        // An answer may come again when nobody knows whether it was sent.
        #expect(
            Set(world.delivered.map(\.token)) == Set(world.expected.map(\.tag)), "\(comment)")
    } else {
        let codes = world.received.map { "\($0.tag): \($0.code)" }.sorted()
        #expect(codes == world.expected.map { "\($0.tag): \($0.code)" }.sorted(), "\(comment)")
    }
    var done: [UInt64: Int] = [:]
    for expectation in world.expected {
        for lba in expectation.blocks { done[lba] = 1 }
        if let offset = expectation.offset {
            let isThere = world.memoryHas(
                offset, lba: expectation.blocks.lowerBound, blocks: expectation.blocks.count)
            #expect(isThere, "\(comment): data of \(expectation.tag)")
        }
    }
    let wrong = Set(world.done.keys).union(done.keys).filter { world.done[$0] != done[$0] }
    #expect(wrong.isEmpty, "\(comment): blocks \(wrong.sorted())")
    #expect(world.flushes == flushes, "\(comment)")
    #expect(world.wrongData.isEmpty, "\(comment)")
    #expect(world.freeSlotCount == CrashWorld.entries - 2, "\(comment)")
    #expect(world.freePageCount == CrashWorld.bouncePages, "\(comment)")
}

@Suite("A successor goes on where its predecessor died", .serialized)
struct CrashTests {
    // MARK: Scenarios

    private static func read(
        _ world: CrashWorld, tag: UInt64, lba: UInt64, blocks: UInt32, offset: Int
    ) {
        world.submitToRing(
            .read(lba: lba, blocks: blocks, tag: tag, offset: UInt64(offset)),
            Expectation(tag: tag, blocks: lba..<(lba + UInt64(blocks)), offset: offset))
    }

    private static func write(
        _ world: CrashWorld, tag: UInt64, lba: UInt64, blocks: UInt32, offset: Int
    ) {
        world.fillMemory(offset, lba: lba, blocks: Int(blocks))
        world.submitToRing(
            RawEntry(
                IOOperation.write, blocks: blocks, lba: lba, tag: tag, offset: UInt64(offset)),
            Expectation(tag: tag, blocks: lba..<(lba + UInt64(blocks))))
    }

    /// An entry that the device does not see.
    private static func refused(_ world: CrashWorld, tag: UInt64) {
        world.submitToRing(
            .read(lba: CrashWorld.blockCount, tag: tag),
            Expectation(tag: tag, code: RingCode.outOfRange))
    }

    private static func first(_ world: CrashWorld) {
        read(world, tag: 1, lba: 1000, blocks: 8, offset: 0)
        write(world, tag: 2, lba: 2000, blocks: 8, offset: 4096)
        refused(world, tag: 3)
        world.submitToRing(.flush(tag: 4), Expectation(tag: 4, isFlush: true))
        write(world, tag: 5, lba: 3000, blocks: 80, offset: 8192)
        world.publishTail()
    }

    private static func second(_ world: CrashWorld) {
        // At an address that is not dword aligned: through bounce pages.
        read(world, tag: 6, lba: 4000, blocks: 8, offset: 49154)
        world.submitToRing(
            RawEntry(IOOperation.writeZeroes, blocks: 100, lba: 5000, tag: 7),
            Expectation(tag: 7, blocks: 5000..<5100))
        world.submitToRing(
            RawEntry(IOOperation.deallocate, blocks: 10, lba: 6000, tag: 8),
            Expectation(tag: 8, blocks: 6000..<6010))
        // Two pages apart, and in one command.
        world.putSegments(61440, [(65536, 4096), (73728, 4096)])
        world.submitToRing(
            RawEntry(
                IOOperation.read, flags: UInt8(NV_RING_FLAG_INDIRECT), blocks: 16, lba: 7000,
                tag: 9, segments: 2, offset: 61440),
            Expectation(tag: 9, blocks: 7000..<7016))
        // A block in two pieces, and a part that begins in the middle of a page.
        world.putSegments(61504, [(81920, 512), (90112, 100), (94208, 412)])
        world.fillMemory(81920, lba: 8000, blocks: 1)
        world.fillMemory(90112, lba: 8001, blocks: 1)
        world.fillMemory(94208, lba: 8001, blocks: 1)
        world.submitToRing(
            RawEntry(
                IOOperation.write, flags: UInt8(NV_RING_FLAG_INDIRECT), blocks: 2, lba: 8000,
                tag: 10, segments: 3, offset: 61504),
            Expectation(tag: 10, blocks: 8000..<8002))
        world.publishTail()
    }

    private static func third(_ world: CrashWorld) {
        refused(world, tag: 11)
        read(world, tag: 12, lba: 9000, blocks: 1, offset: 98304)
        refused(world, tag: 13)
        world.publishTail()
    }

    private static func some(_ world: CrashWorld, _ random: inout SplitMix64) {
        world.take()
        world.takeCommands()
        for _ in 0..<3 where !world.outstanding.isEmpty {
            world.answer(Int(random.next() % UInt64(world.outstanding.count)))
        }
        world.reap()
        world.receive()
    }

    private static func ringScenario(_ world: CrashWorld, _ random: inout SplitMix64) -> Bool {
        first(world)
        some(world, &random)
        second(world)
        some(world, &random)
        third(world)
        some(world, &random)
        return world.finish(&random)
    }

    private static func request(
        _ world: CrashWorld, _ operation: UInt8, token: UInt64, lba: UInt64, blocks: UInt32,
        offset: UInt64 = 0
    ) {
        var request = IORequest(
            operation: operation, namespaceID: 1, session: CrashWorld.session, token: token)
        request.lba = lba
        request.blockCount = blocks
        request.maxBlocksPerCommand = 32
        request.region = world.region
        request.offset = offset
        let isRead = operation == IOOperation.read
        world.expect(
            Expectation(
                tag: token, blocks: lba..<(lba + UInt64(blocks)),
                isFlush: operation == IOOperation.flush, offset: isRead ? Int(offset) : nil))
        world.submit(request)
    }

    private static func messageScenario(
        _ world: CrashWorld, _ random: inout SplitMix64
    ) -> Bool {
        world.hasMessages = true
        request(world, IOOperation.read, token: 1, lba: 1000, blocks: 8)
        world.fillMemory(8192, lba: 3000, blocks: 80)
        request(world, IOOperation.write, token: 2, lba: 3000, blocks: 80, offset: 8192)
        world.ringDoorbell()
        some(world, &random)
        request(world, IOOperation.flush, token: 3, lba: 0, blocks: 0)
        var unmap = IORequest(
            operation: IOOperation.deallocate, namespaceID: 1, session: CrashWorld.session,
            token: 4)
        unmap.maxBlocksPerCommand = 40
        for blocks in [5000..<5001, 5100..<5200, 5300..<5340] as [Range<UInt64>] {
            world.expect(Expectation(tag: 4, blocks: blocks))
        }
        world.submit(
            unmap,
            [
                BlockSpan(lba: 5000, blockCount: 1), BlockSpan(lba: 5100, blockCount: 100),
                BlockSpan(lba: 5300, blockCount: 40),
            ])
        request(world, IOOperation.read, token: 5, lba: 4000, blocks: 8, offset: 49154)
        world.ringDoorbell()
        some(world, &random)
        return world.finish(&random)
    }

    /// Cuts a scenario at every crash point.
    private static func cut(
        seed: UInt64, _ scenario: (CrashWorld, inout SplitMix64) -> Bool
    ) throws -> Cutter {
        let world = try CrashWorld()
        try world.start()
        let cutter = Cutter(world, seed: seed)
        var random = SplitMix64(state: seed)
        var isFinished = false
        CrashObserver.observe({ cutter.hit($0) }, { isFinished = scenario(world, &random) })
        #expect(isFinished, "seed \(seed): \(world.fault)")
        check(world, "uncut, seed \(seed)")
        return cutter
    }

    // MARK: Tests

    @Test("a ring's requests of all kinds, cut at every point: each is done and completed once")
    func rings() throws {
        // When
        let seed = seed()
        let cutter = try Self.cut(seed: seed, Self.ringScenario)
        // Then
        let points: [CrashPoint] = [
            .recordSealed, .childIssued, .bounceFilled, .slotFilled, .slotStaged, .entryWritten,
            .tailPublished, .doorbellRung, .doorbellLogged, .ringTaken, .completionSeen,
            .bounceDelivered, .slotCompleting, .childCounted, .recordDone, .ringEntryPosted,
            .ringPositionsLogged, .ringTailPublished, .headPublished, .slotFreed,
            .completionDoorbellRung, .recordFreed, .twinFilled, .twinSealed,
        ]
        #expect(points.filter { cutter.cuts[$0] == nil }.isEmpty, "seed \(seed)")
        let missing = Cutter.adoption.filter { cutter.secondCuts[$0] == nil }
        #expect(missing.isEmpty, "seed \(seed)")
    }

    @Test("requests of messages, cut at every point: each is done once, and answered")
    func messages() throws {
        // When
        let seed = seed()
        let cutter = try Self.cut(seed: seed, Self.messageScenario)
        // Then
        #expect(cutter.cuts.count > 15, "seed \(seed)")
        #expect(!cutter.secondCuts.isEmpty, "seed \(seed)")
    }

    @Test("whatever byte of the log is changed, adoption is refused or correct")
    func damage() throws {
        // Given: a world full of commands
        let seed = seed()
        let world = try requireValue(try Self.cut(seed: seed, Self.ringScenario).fullest)
        var random = SplitMix64(state: seed)
        var refused = 0
        for range in CrashWorld.logged {
            for byte in range {
                let copy = try CrashWorld(copying: world)
                // When
                copy.flip(byte, 1 << UInt8(random.next() % 8))
                do {
                    try copy.adopt()
                } catch {
                    refused += 1
                    continue
                }
                // Then
                let isFinished = copy.finish(&random)
                #expect(isFinished, "byte \(byte), seed \(seed)")
                check(copy, "byte \(byte), seed \(seed)")
            }
        }
        #expect(refused > 500)
    }
}
