// SPDX-License-Identifier: Apache-2.0
// What was with the device before it was reset: read from the bank of the old epoch, and written
// into that of the new one, where it is taken over like a predecessor's (DESIGN, section 5).
//
//   before                          after
//   answered, not delivered         the same
//   with the device, may be done    staged, as never seen by the device, in the old order
//     again
//   with the device, otherwise      answered: nobody knows whether it was done
//   a read into pages of the pool   like one that was not answered: what was read has not come to
//     that only the last look found   its client
//     answered
//   a part of a larger request      nothing: the request begins again, or ends as above, unless all
//                                     of its parts were answered
//
// The old bank stays as it is until the controller's record is that of the new epoch: who dies in
// between begins again. What the device had answered when it was stopped is written into the old
// bank first, with its place in its ring, so that beginning again finds the same.

internal import CMemory
internal import NVMeSpec

/// An I/O queue of the old epoch.
@safe
struct SalvagedQueue: ~Copyable {
    /// The effect of a command that nobody answered: "aborted due to SQ deletion", which clients
    /// are told as `outcomeUnknown`.
    static let unknown = Status.abortedQueueDeletion.rawValue

    private let queueID: Int
    private let entries: UInt32
    private let slots: UnsafeMutableRawPointer
    private let slotKey: UInt32
    private let lists: UnsafeMutableRawPointer
    private var requests: RequestRecords
    /// Where the next completion of each ring goes.
    private var tails = [UInt32](repeating: 0, count: 256)
    /// How many completions each ring has published.
    private var published = [UInt32](repeating: 0, count: 256)
    /// Which parts of requests were answered: errors by request, and those without an answer.
    private var unanswered: [UInt8: Int] = [:]
    /// The pool is the one that the commands were made for; otherwise what lies there is lost, and
    /// so are the lists of their pages.
    var hasPool = true
    /// The namespaces that are the disks that the commands were made for.
    var sameNamespaces: Set<UInt32> = []
    /// Those that another controller's host may have written to meanwhile.
    var sharedNamespaces: Set<UInt32> = []

    private var slotCount: UInt32 { entries - 2 }

    /// The queue as the state area has it. Throws `notAdoptable` when anything of it is damaged.
    init(_ queueID: Int, entries: UInt32, in state: borrowing StateArea) throws(DriverError) {
        let epoch = state.salvageEpoch
        self.queueID = queueID
        self.entries = entries
        unsafe slots = state.address(state.layout.slotsOffset(queueID, epoch: epoch))
        slotKey = Checksum.key(Checksum.slotKind, queue: UInt32(queueID), epoch: epoch)
        unsafe lists = state.address(state.layout.segmentListsOffset(queueID, epoch: epoch))
        requests = unsafe RequestRecords(
            at: state.address(state.layout.requestsOffset(queueID, epoch: epoch)),
            lists: lists, queue: UInt32(queueID), epoch: epoch)
        try requests.adopt(queueID: UInt16(queueID), tick: 0)
        for index in 0..<slotCount {
            guard unsafe CommandSlot.isIntact(at: slots + Int(index) * 64, key: slotKey &+ index)
            else { throw .notAdoptable("queue \(queueID): slot \(index) is damaged") }
        }
        try findTails(state)
    }

    private func word(_ index: UInt32) -> UInt64 { unsafe nv_load64(slots + Int(index) * 64 + 56) }

    private func command(_ index: UInt32) -> CommandSlot {
        unsafe CommandSlot(at: slots + Int(index) * 64)
    }

    private static func status(_ word: UInt64) -> UInt16 {
        UInt16(truncatingIfNeeded: (word >> 17) & 0x7FFF)
    }

    private func position(_ index: UInt32) -> UInt32 {
        let command = command(index)
        return command.completionPosition(word(index), tail: published[Int(command.ring)])
    }

    /// The completions that have places and may not have been published lie side by side behind
    /// those that were.
    private mutating func findTails(_ state: borrowing StateArea) throws(DriverError) {
        for ring in 1...DataQueue.ringCapacity {
            guard let known = state.knownPositions(queue: queueID, index: ring - 1) else {
                throw .notAdoptable("queue \(queueID): the positions of ring \(ring) are damaged")
            }
            tails[ring] = known.tail
        }
        published = tails
        var behind: [UInt8: Set<UInt32>] = [:]
        forEachAnswered { ring, position in
            let distance = position &- published[Int(ring)]
            guard ring > 0, distance < 4096 else { return }
            behind[ring, default: []].insert(distance)
        }
        for (ring, distances) in behind {
            let count = UInt32(distances.count)
            guard distances == Set(0..<count) else {
                throw .notAdoptable("queue \(queueID): ring \(ring) does not add up")
            }
            tails[Int(ring)] &+= count
        }
    }

    private func forEachAnswered(_ body: (_ ring: UInt8, _ position: UInt32) -> Void) {
        for index in 0..<slotCount where word(index) & SlotState.mask == SlotState.completing {
            let command = command(index)
            guard command.request == CommandSlot.noRequest else { continue }
            body(UInt8(truncatingIfNeeded: command.ring), position(index))
        }
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state == RequestRecords.stateDone else { continue }
            body(UInt8(truncatingIfNeeded: record.command.ring), record.progress.position)
        }
    }

    private mutating func place(_ ring: UInt8) -> UInt32 {
        defer { tails[Int(ring)] &+= 1 }
        return tails[Int(ring)]
    }

    // MARK: The last look at the completion queue

    /// Writes down what the device answered before it was stopped. `queue` is the pair of the old
    /// epoch.
    mutating func takeAnswers(_ queue: inout QueuePair) {
        // As many as 9 bits of a position tell apart; the others count as not answered.
        let limit = SlotState.positionMask / 2
        while (1...DataQueue.ringCapacity).allSatisfy({ tails[$0] &- published[$0] < limit }),
            let answer = queue.nextUntaken()
        {
            let command = command(answer.slot)
            // What was read still lies in pages, and its client would never get it.
            if command.opcode == IOOperation.read, answer.status == 0, command.pageCount > 0 {
                continue
            }
            let isWhole = command.request == CommandSlot.noRequest
            queue.setCompleting(
                answer,
                position: isWhole ? place(UInt8(truncatingIfNeeded: command.ring)) : 0)
        }
    }

    // MARK: Into the new bank

    /// Writes everything that is not over into a new queue, which is empty, and new records.
    mutating func move(
        to queue: borrowing QueuePair, _ records: inout RequestRecords,
        replay: (_ session: UInt32) -> Replay
    ) throws(DriverError) {
        for index in 0..<slotCount {
            let word = word(index)
            let command = command(index)
            switch word & SlotState.mask {
            case SlotState.completing where command.request == CommandSlot.noRequest:
                let isLost = command.opcode == IOOperation.read && needsPool(command)
                queue.place(
                    index, isLost ? withoutPages(command) : command,
                    answered: isLost ? Self.unknown : Self.status(word),
                    position: position(index))
            case SlotState.completing:
                guard command.isPart else { continue }
                requests.setStatus(UInt32(command.request), Self.status(word))
            case SlotState.staged:
                guard command.isPart else { continue }
                unanswered[command.request, default: 0] += 1
            default: continue
            }
            CrashPoint.hit(.resetEntryMoved)
        }
        var ordinal: UInt32 = 0
        for index in stagedInOrder() {
            let command = command(index)
            if !needsPool(command), mayRepeat(command, replay) {
                queue.place(index, command, ordinal: ordinal)
                ordinal += 1
            } else {
                queue.place(
                    index, withoutPages(command), answered: Self.unknown,
                    position: place(UInt8(truncatingIfNeeded: command.ring)))
            }
            CrashPoint.hit(.resetEntryMoved)
        }
        for index in 0..<RequestRecords.capacity { try moveRecord(index, &records, replay) }
    }

    /// Whether it is lost with the pool: its data, or the list of its pages.
    private func needsPool(_ command: CommandSlot) -> Bool {
        !hasPool
            && (command.pageCount > 0 || command.flags & CommandSlot.flagSegmented != 0)
    }

    /// What owns pages of a pool that is gone owns none; otherwise the same.
    private func withoutPages(_ command: CommandSlot) -> CommandSlot {
        guard !hasPool else { return command }
        var command = command
        command.firstPage = 0
        command.pageCount = 0
        return command
    }

    private mutating func moveRecord(
        _ index: UInt32, _ records: inout RequestRecords, _ replay: (_ session: UInt32) -> Replay
    ) throws(DriverError) {
        var old = requests.load(index)
        let isLost = !hasPool && old.command.pageCount > 0
        old.command = withoutPages(old.command)
        guard old.state != RequestRecords.stateFree else { return }
        let new: UInt32?
        if old.isSegmented || old.hasRanges {
            let list = unsafe lists + Int(index) * StateLayout.segmentListByteCount
            new = unsafe records.insert(
                old.command, list: list, count: requests.listCount(index),
                maxBlocks: old.maxBlocksPerCommand, tick: 0)
        } else {
            new = records.insert(old.command, maxBlocks: old.maxBlocksPerCommand, tick: 0)
        }
        guard let new else { throw .notAdoptable("queue \(queueID) has no room for its requests") }
        let ring = UInt8(truncatingIfNeeded: old.command.ring)
        let isAnswered =
            old.isIssued && unanswered[UInt8(truncatingIfNeeded: index), default: 0] == 0
        if old.state == RequestRecords.stateDone {
            records.setStatus(new, isLost ? Self.unknown : old.status)
            records.markDone(new, position: old.progress.position)
        } else if isAnswered, !isLost {
            records.setStatus(new, old.status)
            records.markDone(new, position: place(ring))
        } else if isLost || !mayRepeat(old.command, replay) {
            records.setStatus(new, Self.unknown)
            records.markDone(new, position: place(ring))
        }
        CrashPoint.hit(.resetEntryMoved)
    }

    /// The commands that nobody answered and that are requests of their own, in the order in which
    /// they were pushed: all ordinals are within a small part of their range.
    private func stagedInOrder() -> [UInt32] {
        var found: [(index: UInt32, ordinal: UInt32)] = []
        for index in 0..<slotCount where word(index) & SlotState.mask == SlotState.staged {
            guard command(index).request == CommandSlot.noRequest else { continue }
            let ordinal = UInt32(truncatingIfNeeded: word(index) >> 8) & SlotState.ordinalMask
            found.append((index, ordinal))
        }
        guard let first = found.first?.ordinal else { return [] }
        // Half of the range on either side of any of them.
        let half = SlotState.ordinalMask / 2
        func rank(_ ordinal: UInt32) -> UInt32 {
            (ordinal &- first &+ half) & SlotState.ordinalMask
        }
        return found.sorted { rank($0.ordinal) < rank($1.ordinal) }.map(\.index)
    }

    private func mayRepeat(
        _ command: CommandSlot, _ replay: (_ session: UInt32) -> Replay
    ) -> Bool {
        guard sameNamespaces.contains(command.namespaceID) else { return false }
        let harmless = [
            IOOperation.read, IOOperation.compare, IOOperation.flush, IOOperation.verify,
        ]
        return switch replay(command.session) {
        case .everything where !sharedNamespaces.contains(command.namespaceID): true
        case .everything, .harmless: harmless.contains(command.opcode)
        case .nothing: false
        }
    }
}

extension QueuePair {
    /// Puts a command into a slot of a queue that is not in use yet, as the `ordinal`-th that the
    /// device has not seen.
    func place(_ index: UInt32, _ command: CommandSlot, ordinal: UInt32) {
        unsafe command.stage(
            at: slots + Int(index) * 64, key: slotKey &+ index, sequence: 0, ordinal: ordinal)
    }

    /// Puts a command into a slot of a queue that is not in use yet, as one that was answered.
    func place(_ index: UInt32, _ command: CommandSlot, answered status: UInt16, position: UInt32) {
        var command = command
        command.offset = UInt64(position)
        command.flags |= CommandSlot.flagPosition
        place(index, command, ordinal: 0)
        let slot = unsafe slots + Int(index) * 64
        let low = UInt64((position & SlotState.positionMask) << 8) | UInt64(status & 0x7FFF) << 17
        unsafe CommandSlot.setState(
            at: slot, word6: nv_load64(slot + 48), key: slotKey &+ index,
            low: low | SlotState.completing)
    }
}
