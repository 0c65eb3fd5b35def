// SPDX-License-Identifier: Apache-2.0
// Taking over the engine of a predecessor that died: queue, request records and pages are checked
// against each other, and everything goes on as it was (DESIGN, section 5).
//
// The order of calls: `adopt` (nothing that the device or a client can see has changed when it
// throws); `ringAdopted`; then, when sessions and rings are there, `recoverAnswered` and
// `recoverFinished` (or `recover`), deliver, `retire`. From then on everything is as always.

internal import CMemory
internal import DMA
internal import Linux
internal import NVMeSpec

/// A request that is under way, for whoever asked for it in another life.
public struct InFlightRequest: Sendable, Equatable {
    /// Who asked.
    public var session: UInt32
    /// What the asker calls it.
    public var token: UInt64
    /// The ring that it came through; 0: none.
    public var ring: UInt16
    /// An opcode of `IOOperation`.
    public var operation: UInt8
    /// The namespace.
    public var namespaceID: UInt32
    /// The first block; 0 of a list of ranges.
    public var lba: UInt64
    /// Blocks of all of it.
    public var blockCount: UInt64
    /// Bytes of a block as a power of two.
    public var blockShift: UInt8
    /// Where its data is, or the first segment of it.
    public var region: UInt32
    /// Bytes from the start of the region.
    public var offset: UInt64
    /// The first pool page that it owns.
    public var firstPage: UInt32
    /// How many.
    public var pageCount: UInt16
    /// Its data is a list of segments.
    public var isSegmented: Bool
    /// It has a request record, because it became several commands.
    public var isRecord: Bool
    /// It was answered, and its completion is delivered by `recover…`.
    public var hasEnded: Bool
    /// Force Unit Access.
    public var forceUnitAccess: Bool
    /// Write Zeroes may deallocate.
    public var mayDeallocate: Bool

    init(_ command: CommandSlot, blockCount: UInt64, isRecord: Bool, hasEnded: Bool) {
        session = command.session
        token = command.token
        ring = UInt16(command.ring)
        operation = command.opcode
        namespaceID = command.namespaceID
        lba = command.flags & CommandSlot.flagRanges != 0 ? 0 : command.lba
        self.blockCount = blockCount
        blockShift = UInt8(command.blockShift)
        region = command.region
        offset = command.offset
        firstPage = command.firstPage
        pageCount = command.pageCount
        isSegmented = command.flags & CommandSlot.flagSegmented != 0
        self.isRecord = isRecord
        self.hasEnded = hasEnded
        forceUnitAccess = command.flags & CommandSlot.flagForceUnitAccess != 0
        mayDeallocate = command.flags & CommandSlot.flagDeallocate != 0
    }
}

/// How the device was told of a predecessor's last commands.
public enum AdoptedDoorbell: Sendable, Equatable {
    /// It knew of all.
    case known
    /// So many commands that it never saw were submitted; their doorbell covers the others.
    case resubmitted(Int)
    /// One more command was sent.
    case probed
    /// There was no room for one: the same doorbell was written again.
    case repeated
}

extension Engine {
    /// The engine of a queue, request records and bounce pages that were made over what a
    /// predecessor left. Regions are registered again before. `tick` is the coarse clock: the age
    /// of what is in flight, and of which nothing is on record, counts from here.
    ///
    /// Throws `notAdoptable`.
    static func adopt(
        queue: consuming QueuePair, regions: RegionView, requests: consuming RequestRecords,
        bouncePages: consuming PageAllocator, firstBouncePage: Int, tick: UInt32
    ) throws(DriverError) -> Engine {
        var engine = Engine(
            queue: queue, regions: regions, requests: requests, bouncePages: bouncePages,
            firstBouncePage: firstBouncePage)
        engine.queue.tick = tick
        try engine.requests.adopt(queueID: engine.queue.queueID, tick: tick)
        try engine.adoptCommands()
        try engine.adoptRequests()
        guard let unseen = engine.queue.unseenSlots() else {
            throw engine.notAdoptable("its commands do not follow each other")
        }
        for slot in unseen { try engine.writeAgain(slot) }
        return engine
    }

    private func notAdoptable(_ what: String) -> DriverError {
        .notAdoptable("queue \(queue.queueID): \(what)")
    }

    /// Pages and parts of what is in the slots.
    private mutating func adoptCommands() throws(DriverError) {
        let now = CommandAges.milliseconds(MonotonicClock.nowNanoseconds)
        for index in 0...queue.slotCount {
            let slot = unsafe queue.slots + Int(index) * 64
            let word = unsafe nv_load64(slot + 56)
            let state = word & SlotState.mask
            guard state != SlotState.free else { continue }
            let command = unsafe CommandSlot(at: slot)
            let isStaged = state == SlotState.staged
            unsafe queue.ticks[Int(index)] = queue.inheritedTick(index, nowMilliseconds: now)
            if command.isPart {
                try adoptPart(
                    command, isStaged: isStaged,
                    status: isStaged ? 0 : UInt16(truncatingIfNeeded: (word >> 17) & 0x7FFF))
            } else if command.request == CommandSlot.noRequest {
                guard command.ring <= UInt8(DataQueue.ringCapacity) else {
                    throw notAdoptable("slot \(index) names ring \(command.ring)")
                }
            } else if command.request != CommandSlot.probeRequest {
                throw notAdoptable("slot \(index) names request \(command.request)")
            }
            // The pages of a part that was answered were given back, and may have been given to
            // somebody else.
            if isStaged || command.request == CommandSlot.noRequest { try claim(command) }
        }
    }

    private mutating func adoptPart(
        _ command: CommandSlot, isStaged: Bool, status: UInt16
    ) throws(DriverError) {
        let index = UInt32(command.request)
        let record = requests.load(index)
        guard record.state != RequestRecords.stateFree,
            record.command.session == command.session, record.command.token == command.token,
            record.command.opcode == command.opcode
        else { throw notAdoptable("a command belongs to request \(index), which is not there") }
        guard record.state == RequestRecords.stateActive else {
            // All parts of one that has ended were answered.
            guard !isStaged else { throw notAdoptable("request \(index) ended before its parts") }
            return
        }
        let before = Self.movesData(command.opcode) ? UInt64(command.position) : command.offset
        let (end, overflow) = before.addingReportingOverflow(UInt64(command.blockCount))
        guard !overflow, end <= record.total else {
            throw notAdoptable("a command lies outside of request \(index)")
        }
        requests.raiseIssued(index, to: end)
        requests.setStatus(index, status)
        if isStaged { requests.children[Int(index)] += 1 }
    }

    private mutating func claim(_ command: CommandSlot) throws(DriverError) {
        guard command.pageCount > 0 else { return }
        guard claimPages(first: Int(command.firstPage), count: Int(command.pageCount)) else {
            throw notAdoptable("page \(command.firstPage) has two owners, or does not exist")
        }
    }

    /// Pages of the records, and where their next commands start.
    private mutating func adoptRequests() throws(DriverError) {
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state != RequestRecords.stateFree else { continue }
            try claim(record.command)
            guard record.issued <= record.total,
                record.command.ring <= UInt8(DataQueue.ringCapacity)
            else { throw notAdoptable("request \(index) makes no sense") }
            if record.isSegmented {
                requests.setPlace(
                    index,
                    requests.segments(index).skip(ListPlace(), record.issued << record.blockShift))
            } else if record.hasRanges {
                requests.setPlace(index, requests.place(index, after: record.issued))
            }
        }
    }

    // MARK: Pages

    /// Takes pool pages that something else is known to own; false when they are not free.
    public mutating func claimPages(first: Int, count: Int) -> Bool {
        guard first >= firstBouncePage, first - firstBouncePage <= bouncePages.pageCount else {
            return false
        }
        return bouncePages.claim(first - firstBouncePage, count)
    }

    // MARK: Commands that the device never saw

    private mutating func writeAgain(_ slot: UInt32) throws(DriverError) {
        let command = unsafe CommandSlot(at: queue.slots + Int(slot) * 64)
        guard Self.movesData(command.opcode) else {
            if command.opcode == IOOperation.flush {
                queue.writeAgain(slot, prp1: 0, prp2: 0, dword10And11: 0, dword12And13: 0)
            } else {
                let entry = rangeEntry(slot, command)
                queue.writeAgain(
                    slot, prp1: entry.prp1, prp2: 0, dword10And11: entry.dword10And11,
                    dword12And13: entry.dword12And13)
            }
            return
        }
        let byteCount = UInt64(command.blockCount) << command.blockShift
        guard command.blockCount > 0, command.blockCount <= 65536,
            PhysicalRegionPages.listByteCount(transfer: byteCount) <= queue.listByteCount,
            let pages = pages(of: command, byteCount, slot)
        else { throw notAdoptable("the data of slot \(slot) is not there any more") }
        queue.writeAgain(
            slot, prp1: pages.prp1, prp2: pages.prp2, dword10And11: command.lba,
            dword12And13: command.dword12)
    }

    private func pages(
        of command: CommandSlot, _ byteCount: UInt64, _ slot: UInt32
    ) -> (prp1: UInt64, prp2: UInt64)? {
        let isOwn =
            command.flags & CommandSlot.flagBounced != 0
            || command.request == CommandSlot.probeRequest
        let isList = command.flags & CommandSlot.flagSegmented != 0 && !isOwn
        let address = regions.deviceAddress(
            region: isOwn ? RegionTable.bounceRegion : command.region,
            offset: isOwn ? UInt64(command.firstPage) * 4096 : command.offset,
            byteCount: isList ? 1 : byteCount, session: command.session)
        guard address != 0, address & 3 == 0 else { return nil }
        guard isList else {
            let second = unsafe PhysicalRegionPages.second(
                address: address, byteCount: byteCount, list: queue.list(slot),
                listIOVA: queue.listIOVA(slot))
            return (address, second)
        }
        // The rest of a list was written before its slot; only the device's own memory is there.
        let end = (address & 4095) + byteCount
        if end <= 4096 { return (address, 0) }
        return (
            address, end <= 8192 ? unsafe nv_load64(queue.list(slot)) : queue.listIOVA(slot)
        )
    }

    /// Tells the device of everything that a predecessor wrote down: the commands that it never
    /// saw, or, when its last doorbell may not have been written, a probe: a read of one block of
    /// that namespace.
    public mutating func ringAdopted(namespaceID: UInt32, blockShift: UInt8) -> AdoptedDoorbell {
        queue.tellHeadAgain()
        queue.keepInheritedAges(
            nowMilliseconds: CommandAges.milliseconds(MonotonicClock.nowNanoseconds))
        let unseen = queue.unseenCount
        guard unseen == 0 else {
            queue.ring()
            return .resubmitted(Int(unseen))
        }
        guard queue.doorbellIsDoubtful else { return .known }
        let isProbed = pushProbe(namespaceID, min(max(blockShift, 9), 16))
        queue.ring()
        CrashPoint.hit(.adoptProbeRung)
        return isProbed ? .probed : .repeated
    }

    private mutating func pushProbe(_ namespaceID: UInt32, _ blockShift: UInt8) -> Bool {
        var command = CommandSlot()
        command.namespaceID = namespaceID
        command.flags = (blockShift - 9) << CommandSlot.shiftOfFlags
        command.opcode = IOOperation.read
        command.blockCount = 1
        var address: UInt64 = 0
        // Pages in a row for a larger block would need a list; and all pages may be in use.
        if blockShift <= 12 { address = takeBouncePages(&command, UInt64(blockShift)) ?? 0 }
        if address == 0 {
            command.opcode = IOOperation.flush
            command.blockCount = 0
        }
        if queue.pushProbe(command, prp1: address, dword10And11: 0, dword12And13: 0) {
            return true
        }
        if command.pageCount > 0 {
            bouncePages.release(
                Int(command.firstPage) - firstBouncePage, Int(command.pageCount))
        }
        return false
    }

    // MARK: What is under way

    /// Every request that is under way or whose completion may not have been delivered.
    public func forEachRequest(_ body: (InFlightRequest) -> Void) {
        for index in 0..<queue.slotCount {
            let slot = unsafe queue.slots + Int(index) * 64
            let state = unsafe nv_load64(slot + 56) & SlotState.mask
            guard state != SlotState.free else { continue }
            let command = unsafe CommandSlot(at: slot)
            guard command.request == CommandSlot.noRequest else { continue }
            body(
                InFlightRequest(
                    command, blockCount: UInt64(command.blockCount), isRecord: false,
                    hasEnded: state == SlotState.completing))
        }
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state != RequestRecords.stateFree else { continue }
            var request = InFlightRequest(
                record.command, blockCount: record.total, isRecord: true,
                hasEnded: record.state == RequestRecords.stateDone)
            if record.isSegmented || record.hasRanges { request.offset = 0 }
            body(request)
        }
    }

    /// What is under way of a ring that has taken `head` entries at least: how many it has taken,
    /// and how many requests have not been retired. Nil when that cannot be.
    func use(ofRing number: UInt8, head: UInt32) -> (head: UInt32, requestCount: UInt32)? {
        var newHead = head
        var count: UInt32 = 0
        var isPossible = true
        func add(_ command: CommandSlot) {
            guard command.ring == number else { return }
            count += 1
            let after = command.position &+ 1
            guard Int32(bitPattern: after &- newHead) > 0 else { return }
            newHead = after
            if after &- head > Self.maxRingEntries { isPossible = false }
        }
        queue.forEachInFlight { _, command in
            if command.request == CommandSlot.noRequest { add(command) }
        }
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            if record.state != RequestRecords.stateFree { add(record.command) }
        }
        return isPossible ? (newHead, count) : nil
    }

    /// Entries that a ring can have taken since its positions were written down.
    private static let maxRingEntries: UInt32 = 4096

    // MARK: Completions of a predecessor

    /// What the predecessor had taken from the device and perhaps not delivered: calls `deliver`
    /// with each completion and its position in its ring. `completionTails` say what each ring has
    /// published.
    mutating func recoverAnswered(_ deliver: (IOCompletion, UInt32) -> Void) {
        queue.forEachCompleting { slot, command, status, word in
            guard command.request == CommandSlot.noRequest else { return }
            var completion = IOCompletion()
            unsafe Self.fill(&completion, command, status)
            completion.result = queue.resultOfTaken(slot)
            let tail = unsafe completionTails[Int(command.ring)]
            deliver(completion, command.completionPosition(word, tail: tail))
        }
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state == RequestRecords.stateDone else { continue }
            var completion = IOCompletion()
            unsafe Self.fill(&completion, record.command, record.status)
            deliver(completion, record.progress.position)
        }
    }

    /// Requests of several commands whose last one was answered, and of which nobody had said so:
    /// they get their positions now.
    mutating func recoverFinished(_ deliver: (IOCompletion) -> Void) {
        for index in 0..<RequestRecords.capacity {
            let record = requests.load(index)
            guard record.state == RequestRecords.stateActive, record.isIssued,
                record.children == 0
            else { continue }
            var completion = IOCompletion()
            unsafe finish(index, record, &completion)
            deliver(completion)
        }
    }

    /// Everything that a predecessor had taken from the device and perhaps not delivered, for a
    /// queue without rings. The asker may have it already. `retire` must follow.
    public mutating func recover(_ deliver: (IOCompletion) -> Void) {
        recoverAnswered { completion, _ in deliver(completion) }
        recoverFinished(deliver)
    }
}

extension RequestRecords {
    /// Checks and counts the records.
    mutating func adopt(queueID: UInt16, tick: UInt32) throws(DriverError) {
        for index in 0..<Self.capacity {
            guard isIntact(index) else {
                throw .notAdoptable("queue \(queueID): request \(index) is damaged")
            }
            let record = load(index)
            setTick(index, tick)
            switch record.state {
            case Self.stateFree: continue
            case Self.stateActive: activeCount += 1
            case Self.stateDone: doneCount += 1
            default: throw .notAdoptable("queue \(queueID): request \(index) has no state")
            }
            guard record.maxBlocksPerCommand > 0, record.total > 0, isWhole(index, record) else {
                throw .notAdoptable("queue \(queueID): request \(index) makes no sense")
            }
        }
    }

    /// Whether a list adds up to what its record says.
    private func isWhole(_ index: UInt32, _ record: Record) -> Bool {
        if record.hasRanges {
            return !Engine.movesData(record.command.opcode)
                && place(index, after: record.total).index == listCount(index)
        }
        guard record.isSegmented else { return true }
        let list = segments(index)
        let byteCount = record.total << record.blockShift
        // One byte more than there should be is one more than there is.
        return Engine.movesData(record.command.opcode)
            && list.skip(ListPlace(), byteCount).index == list.count
            && list.skip(ListPlace(), byteCount - 1).index == list.count - 1
    }

    /// The place so many blocks into a record's list of ranges.
    func place(_ index: UInt32, after blocks: UInt64) -> ListPlace {
        var place = ListPlace()
        var left = blocks
        // Bounded by the entries of the list.
        while left > 0, let range = range(index, place) {
            guard left >= range.blockCount else {
                place.offset = left
                break
            }
            left -= range.blockCount
            place.index += 1
        }
        // More blocks than there are lie behind any place.
        return left > 0 && place.offset == 0 ? ListPlace(index: .max) : place
    }
}
