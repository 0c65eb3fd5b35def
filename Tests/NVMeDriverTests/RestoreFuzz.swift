// SPDX-License-Identifier: Apache-2.0
// Saved values that somebody changed, behind checksums that hold: whatever is made of them, nothing
// stops the process. `make fuzz` runs it for longer.

import Linux
import NVMeSpec
import SavedState
import TestSupport
import Testing

@testable import NVMeDriver

/// Changes of a seed to what was saved of a controller.
private struct Mutation {
    var random: SplitMix64

    private mutating func pick(_ count: Int) -> Int { Int(random.next() % UInt64(max(count, 1))) }

    /// A number that is near another, at an edge, or anything.
    private mutating func number<Value: FixedWidthInteger>(_ near: Value) -> Value {
        switch random.next() % 6 {
        case 0: near &+ 1
        case 1: near &- 1
        case 2: 0
        case 3: .max
        case 4: 1 << Value(truncatingIfNeeded: random.next() % UInt64(Value.bitWidth))
        default: Value(truncatingIfNeeded: random.next())
        }
    }

    mutating func apply(to saved: inout SavedController) {
        switch random.next() % 4 {
        case 0: controller(&saved)
        case 1: queue(&saved.queues[pick(saved.queues.count)])
        case 2: command(&saved.queues[pick(saved.queues.count)])
        default: request(&saved.queues[1 + pick(saved.queues.count - 1)])
        }
    }

    private mutating func controller(_ saved: inout SavedController) {
        switch random.next() % 16 {
        case 0: saved.epoch = number(saved.epoch)
        case 1: saved.generation = number(saved.generation)
        case 2: saved.configuration = number(saved.configuration)
        case 3: saved.adminSubmissionAddress = number(saved.adminSubmissionAddress)
        case 4: saved.poolReadsAddress = number(saved.poolReadsAddress)
        case 5: saved.poolWritesAddress = number(saved.poolWritesAddress)
        case 6: saved.poolByteCount = number(saved.poolByteCount)
        case 7: saved.plannedQueueCount = number(saved.plannedQueueCount)
        case 8: saved.queueEntries = number(saved.queueEntries)
        case 9: saved.maxTransferByteCount = number(saved.maxTransferByteCount)
        case 10: saved.bounceByteCount = number(saved.bounceByteCount)
        case 11: saved.interruptCount = number(saved.interruptCount)
        case 12: saved.hasShadowDoorbells.toggle()
        case 13: saved.identifyController[pick(4096)] ^= 0xFF
        case 14: saved.namespaces[0].id = number(saved.namespaces[0].id)
        default:
            saved.regions.append(
                SavedRegion(
                    address: number(0x1000) & ~4095, byteCount: number(0x1000) & ~4095,
                    session: 1))
        }
    }

    private mutating func queue(_ queue: inout SavedQueue) {
        switch random.next() % 9 {
        case 0: queue.entries = number(queue.entries)
        case 1: queue.tailOrdinal = number(queue.tailOrdinal)
        case 2: queue.doorbellOrdinal = number(queue.doorbellOrdinal)
        case 3: queue.completionHead = number(queue.completionHead)
        case 4: queue.phase.toggle()
        case 5: queue.submissionAddress = number(queue.submissionAddress)
        case 6: queue.vector = number(queue.vector)
        case 7: queue.commands.removeAll()
        default: queue.requests.removeAll()
        }
    }

    private mutating func command(_ queue: inout SavedQueue) {
        guard !queue.commands.isEmpty else { return }
        var command = queue.commands[pick(queue.commands.count)]
        switch random.next() % 12 {
        case 0: command.sequence = number(command.sequence)
        case 1: command.ordinal = number(command.ordinal)
        case 2: command.opcode = number(command.opcode)
        case 3: command.lba = number(command.lba)
        case 4: command.blockCount = number(command.blockCount)
        case 5: command.blockShift = number(command.blockShift)
        case 6: command.session = number(command.session)
        case 7: command.firstPage = number(command.firstPage)
        case 8: command.pageCount = number(command.pageCount)
        case 9: command.purpose = .part(request: number(0), blocksBefore: number(0))
        case 10: command.purpose = .whole
        default: command.purpose = .abort(queueID: number(1), commandID: number(0))
        }
        // In its place, or in another.
        if random.next() % 2 == 0 { command.slot = number(command.slot) }
        queue.commands.removeAll { $0.slot == command.slot }
        queue.commands.append(command)
    }

    private mutating func request(_ queue: inout SavedQueue) {
        guard !queue.requests.isEmpty else { return }
        switch random.next() % 8 {
        case 0: queue.requests[0].index = number(queue.requests[0].index)
        case 1: queue.requests[0].opcode = number(queue.requests[0].opcode)
        case 2: queue.requests[0].blockCount = number(queue.requests[0].blockCount)
        case 3: queue.requests[0].issuedBlockCount = number(queue.requests[0].issuedBlockCount)
        case 4: queue.requests[0].blockShift = number(queue.requests[0].blockShift)
        case 5: queue.requests[0].firstPage = number(queue.requests[0].firstPage)
        case 6: queue.requests[0].pageCount = number(queue.requests[0].pageCount)
        default: queue.requests[0].status = number(queue.requests[0].status)
        }
    }
}

/// A controller with something of everything under way, and what happened to what was made of it.
private final class RestoreWorld {
    private var rig: AdoptionRig?
    private var saved: SavedDevice?
    private(set) var (refused, adopted) = (0, 0)

    private func prepare() throws -> (AdoptionRig, SavedDevice) {
        if let rig, let saved { return (rig, saved) }
        let rig = try AdoptionRig(
            ["--mdts", "1", "--fault", "command:hang,queue=io,times=40"], queues: 2, depth: 16)
        try rig.submit(IOOperation.write, lba: 0, byteCount: 65536, token: 1)
        try rig.submit(IOOperation.read, lba: 64, token: 2)
        try rig.submitInline(lba: 128, token: 3)
        try rig.submit(IOOperation.read, lba: 0, token: 4, queue: 1)
        try rig.controller.abort(queue: 0, commandID: 1)
        let saved = try rig.saved()
        (self.rig, self.saved) = (rig, saved)
        return (rig, saved)
    }

    /// One round: the values are refused, or adopted, and then the device gets some work.
    func round(_ seed: UInt64) throws {
        let (rig, saved) = try prepare()
        var mutation = Mutation(random: SplitMix64(state: seed))
        var changed = saved.controller
        for _ in 0..<(1 + mutation.random.next() % 3) { mutation.apply(to: &changed) }
        let area: StateArea
        do throws(StateAreaError) {
            area = try StateArea.create(
                restoring: changed, sessions: saved.sessions, layout: rig.stateLayout)
        } catch {
            refused += 1
            return
        }
        try rig.succeed(area)
        do throws(DriverError) {
            try rig.controller.adopt(rig.inheritance())
        } catch {
            // Nothing was changed, so that the next one finds what this one found.
            guard case .notAdoptable = error else { throw error }
            refused += 1
            return try rig.forgetSuccessor()
        }
        adopted += 1
        (self.rig, self.saved) = (nil, nil)
        work(rig)
    }

    /// Whatever the device does now, and the driver finds.
    private func work(_ rig: AdoptionRig) {
        for queue in 0..<rig.controller.queueCount {
            let engine = unsafe rig.controller.engine(queue)
            var completion = IOCompletion()
            unsafe engine.pointee.recover { _ in }
            unsafe engine.pointee.retire()
            for _ in 0..<64 {
                guard unsafe engine.pointee.reap(into: &completion, capacity: 1) == 1 else { break }
                unsafe engine.pointee.retire()
            }
            unsafe engine.pointee.abandon(status: 7) { _ in }
        }
        _ = try? rig.controller.pollAdmin()
        _ = rig.controller.sessionsWithCommands()
        rig.controller.disable()
    }
}

@Suite("Restoring from values that somebody changed", .serialized)
struct RestoreChance {
    @Test("is refused, or goes on")
    func rounds() throws {
        let seed = seed()
        let world = RestoreWorld()
        for round in 0..<120 as Range<UInt64> {
            do {
                try world.round(seed &+ round)
            } catch { throw TestFailure("seed \(seed &+ round): \(error)") }
        }
        #expect(world.refused + world.adopted == 120)
        #expect(world.refused > 0, "seed \(seed)")
    }
}

@Suite("RestoreFuzz", .serialized, .enabled(if: environmentNumber("NVMED_FUZZ_SECONDS") != nil))
struct RestoreFuzz {
    @Test("values that somebody changed are refused, or gone on with")
    func changed() throws {
        let seconds = environmentNumber("NVMED_FUZZ_SECONDS") ?? 1
        var seed = environmentNumber("NVMED_SEED") ?? 1
        let end = ContinuousClock.now + .seconds(Int64(clamping: seconds))
        let world = RestoreWorld()
        repeat {
            do {
                try world.round(seed)
            } catch { throw TestFailure("seed \(seed): \(error)") }
            seed &+= 1
        } while ContinuousClock.now < end
    }
}
