// SPDX-License-Identifier: Apache-2.0
// What a planned stop of all of nvmed writes down of a controller that goes on (DESIGN, section 5,
// the last paragraph). `StateArea.create(restoring:)` is the way back.
//
// Nothing is written down of what is over: free slots, requests of which nothing is with the device
// and that therefore never go on, and the answers that clients wait for. Sessions do not survive a
// full stop; what they have with the device is reaped by the successor, and its answers dropped.

internal import CMemory
internal import DMA
public import SavedState
internal import VFIO

extension NVMeController {
    /// What there is to know of the running controller, for a successor in another life.
    ///
    /// The controller has to be quiet: no data thread touches a queue, nothing is submitted, and
    /// what was reaped was retired. What is with the device stays there. A doorbell that is due is
    /// written first; nothing else is changed. Throws `notAdoptable` when a successor could not go
    /// on with it: it is not up, or a queue is being replaced, or at fault.
    public func snapshot() throws(DriverError) -> SavedController {
        guard let record = state.controller.record, record.epoch == state.epoch,
            state.salvageEpoch == 0, queueCount > 0, queueCount == Int(record.queueCount)
        else { throw .notAdoptable("its bring-up has not come to an end") }
        try tellAll()
        var saved = SavedController(generation: state.generation, epoch: state.epoch)
        saved.lastNumber = state.highestNumber
        saved.setUp(as: record)
        saved.pendingEvents = state.pendingEvents
        try savePages(to: &saved, placeCount: Int(record.inventoryCount))
        saved.regions = try savedRegions()
        saved.queues.append(try savedAdminQueue())
        for index in 0..<queueCount { saved.queues.append(try savedQueue(index)) }
        return saved
    }

    /// What is to be known of the sessions that have commands with the device: nothing of the
    /// others is left.
    public func savedSessions(of saved: SavedController) -> [SavedSession] {
        let keys = saved.sessionKeys
        return (0..<StateLayout.sessionCapacity).compactMap { slot in
            guard let record = state.session(slot).record, keys.contains(record.key) else {
                return nil
            }
            return SavedSession(key: record.key, id: record.id, opening: record.opening)
        }
    }

    /// The keys of the sessions that have requests with the device, whichever queue they are on.
    /// Of sessions of another life nothing else tells.
    public func sessionsWithCommands() -> Set<UInt32> {
        var keys: Set<UInt32> = []
        for index in 0..<queueCount {
            exclusively(index) {
                unsafe engine(index).pointee.forEachRequest { keys.insert($0.session) }
            }
        }
        return keys
    }

    /// Tells the device of what was pushed and not rung.
    private func tellAll() throws(DriverError) {
        admin?.queue.ring()
        try admin?.queue.writePendingDoorbells(device)
        for index in 0..<queueCount {
            unsafe engine(index).pointee.ring()
            try writePendingDoorbells(index)
        }
    }

    private func savePages(
        to saved: inout SavedController, placeCount: Int
    ) throws(DriverError) {
        guard let page = state.controllerPage(0), let limits = state.controllerPage(1) else {
            throw .notAdoptable("what it said of itself is damaged")
        }
        saved.identifyController = Self.page(page)
        saved.commandSetLimits = limits.isEmpty ? nil : Self.page(limits)
        guard let order = state.poolPageOrder else {
            throw .notAdoptable("the order of its pool's pages is damaged")
        }
        saved.poolPageOrder = order
        var ids: Set<UInt32> = []
        for place in 0..<placeCount where !state.isNamespaceFree(place) {
            guard let (id, pages) = state.namespace(place) else {
                throw .notAdoptable("the pages of a namespace are damaged (place \(place))")
            }
            guard ids.insert(id).inserted else { continue }
            saved.namespaces.append(SavedNamespace(id: id, content: Self.content(pages)))
        }
    }

    private static func content(_ pages: NamespacePages) -> SavedNamespace.Content {
        switch pages {
        case .pages(let identify, let descriptors):
            .pages(identify: page(identify), descriptors: descriptors.map { page($0) })
        case .refused(let reason): .refused(reason)
        }
    }

    /// A page of 4096 bytes, whatever was kept of it.
    private static func page(_ bytes: [UInt8]) -> [UInt8] {
        bytes.prefix(4096) + [UInt8](repeating: 0, count: max(0, 4096 - bytes.count))
    }

    /// What the device may still have mapped of clients' memory.
    private func savedRegions() throws(DriverError) -> [SavedRegion] {
        var regions: [SavedRegion] = []
        for index in 1..<UInt32(StateLayout.regionCapacity) {
            switch state.regionContent(index) {
            case .free: continue
            case .damaged: throw .notAdoptable("the record of region \(index) is damaged")
            case .record(let record):
                guard record.iova > 0, !record.stretch.isPhysical,
                    !record.flags.contains(.bounced)
                else { continue }
                regions.append(
                    SavedRegion(
                        address: record.iova, byteCount: record.stretch.byteCount,
                        session: record.session))
            }
        }
        return regions
    }

    // MARK: Queues

    private func savedAdminQueue() throws(DriverError) -> SavedQueue {
        guard let replaced = admin?.replaced else { throw .notAdoptable("it has no admin queue") }
        var queue = try frame(0, entries: ControllerMemoryPlan.adminEntries)
        try admin?.queue.save(to: &queue) { slot, command in
            var saved = SavedCommand(command, as: Self.purpose(of: command))
            // Get Features took its place, and writes no page.
            if replaced.contains(slot), saved.purpose == .health { saved.purpose = .abandoned }
            saved.lba = command.lba
            saved.namespaceID = command.namespaceID
            return saved
        }
        return queue
    }

    private static func purpose(of command: CommandSlot) -> SavedPurpose {
        guard command.request != CommandSlot.probeRequest else { return .probe }
        switch command.token {
        case AdminToken.event: return .eventRequest
        case AdminToken.health: return .health
        case let token where token & ~0xFFFF_FFFF == AdminToken.abort:
            return .abort(
                queueID: UInt16(truncatingIfNeeded: (token >> 16 & 0xFFFF) + 1),
                commandID: UInt16(truncatingIfNeeded: token))
        default: return .abandoned
        }
    }

    private func savedQueue(_ index: Int) throws(DriverError) -> SavedQueue {
        guard let plan, plan.queues.indices.contains(index + 1) else {
            throw .notAdoptable("there is no plan of its pool")
        }
        var queue = try frame(index + 1, entries: plan.queues[index + 1].entries)
        try unsafe engine(index).pointee.save(to: &queue)
        return queue
    }

    /// Where a queue is.
    private func frame(_ queueID: Int, entries: UInt32) throws(DriverError) -> SavedQueue {
        guard isLogged(queueID), let words = queueWords(queueID) else {
            throw .notAdoptable("the record of queue \(queueID) is damaged")
        }
        var queue = SavedQueue(id: UInt32(queueID), entries: entries)
        queue.vector = UInt32(vector(ofQueue: queueID))
        queue.submissionAddress = words[1]
        queue.completionAddress = words[2]
        queue.listsAddress = words[3]
        queue.listByteCount = words[4]
        return queue
    }
}

extension SavedController {
    /// The numbers of the record, and back.
    fileprivate mutating func setUp(as record: ControllerRecord) {
        configuration = record.configuration
        adminQueueAttributes = record.adminQueueAttributes
        adminSubmissionAddress = record.adminSubmissionAddress
        adminCompletionAddress = record.adminCompletionAddress
        poolReadsAddress = record.poolReadsIOVA
        poolWritesAddress = record.poolWritesIOVA
        poolByteCount = record.poolByteCount
        plannedQueueCount = record.plannedQueues
        queueEntries = record.entries
        maxTransferByteCount = record.maxTransferByteCount
        bounceByteCount = record.bouncePoolByteCount
        interruptCount = record.interruptCount
        hasShadowDoorbells = record.hasShadowDoorbells
    }

    /// The record of a controller of these numbers.
    var record: ControllerRecord {
        ControllerRecord(
            epoch: epoch, configuration: configuration,
            adminQueueAttributes: adminQueueAttributes,
            adminSubmissionAddress: adminSubmissionAddress,
            adminCompletionAddress: adminCompletionAddress, poolReadsIOVA: poolReadsAddress,
            poolWritesIOVA: poolWritesAddress, poolByteCount: poolByteCount,
            plannedQueues: plannedQueueCount, entries: queueEntries,
            maxTransferByteCount: maxTransferByteCount, bouncePoolByteCount: bounceByteCount,
            queueCount: UInt32(clamping: queues.count - 1), interruptCount: interruptCount,
            hasShadowDoorbells: hasShadowDoorbells,
            eventRequests: UInt32(
                clamping: queues.first?.commands.count { $0.purpose == .eventRequest } ?? 0),
            inventoryCount: UInt32(clamping: namespaces.count))
    }
}

extension SavedCommand {
    /// What a slot has; where it is comes with `QueuePair.save`.
    fileprivate init(_ command: CommandSlot, as purpose: SavedPurpose) {
        self.init(slot: 0, sequence: 0, ordinal: 0, purpose: purpose, opcode: command.opcode)
    }

    fileprivate init(io command: CommandSlot, as purpose: SavedPurpose) {
        self.init(command, as: purpose)
        namespaceID = command.namespaceID
        lba = command.lba
        blockCount = command.blockCount
        blockShift = UInt8(command.blockShift)
        session = command.session
        firstPage = command.firstPage
        pageCount = command.pageCount
    }
}

extension Engine {
    /// Adds what is with the device to what is known of its queue.
    fileprivate mutating func save(to saved: inout SavedQueue) throws(DriverError) {
        var parts: Set<UInt32> = []
        try queue.save(to: &saved) { _, command in
            if command.request == CommandSlot.noRequest {
                return SavedCommand(io: command, as: .whole)
            }
            guard command.isPart else { return SavedCommand(io: command, as: .probe) }
            let index = UInt32(command.request)
            parts.insert(index)
            let before = Self.movesData(command.opcode) ? UInt64(command.position) : command.offset
            return SavedCommand(io: command, as: .part(request: index, blocksBefore: before))
        }
        for index in parts.sorted() {
            let record = requests.load(index)
            var request = SavedRequest(
                index: index, opcode: record.command.opcode, blockCount: record.total)
            request.namespaceID = record.command.namespaceID
            request.session = record.command.session
            request.issuedBlockCount = record.issued
            request.blockShift = UInt8(record.blockShift)
            request.status = record.status
            request.firstPage = record.command.firstPage
            request.pageCount = record.command.pageCount
            saved.requests.append(request)
        }
    }
}

extension QueuePair {
    /// Adds indexes and commands to what is known of the queue. Throws `notAdoptable` when there
    /// are answers that were not given back, or the queue is being replaced.
    fileprivate func save(
        to saved: inout SavedQueue, _ command: (UInt32, CommandSlot) -> SavedCommand
    ) throws(DriverError) {
        let isOpen = SealedWord.open(unsafe nv_load64(indexLine + 24), key: indexKey &+ 3)
        guard isOpen == 1, fault == .none else {
            throw .notAdoptable("queue \(queueID) is being replaced, or at fault")
        }
        guard reapedCount == 0, tail == committedTail, pendingDoorbells == 0 else {
            throw .notAdoptable("queue \(queueID) is not quiet")
        }
        refreshOrdinals()
        saved.tailOrdinal = tail
        saved.doorbellOrdinal = committedTail
        saved.completionHead = head
        saved.phase = phase != 0
        for index in 0...slotCount {
            let slot = unsafe slots + Int(index) * 64
            let word = unsafe nv_load64(slot + 56)
            guard word & SlotState.mask != SlotState.free else { continue }
            guard word & SlotState.mask == SlotState.staged else {
                throw .notAdoptable("queue \(queueID) is not quiet")
            }
            var entry = command(index, unsafe CommandSlot(at: slot))
            entry.slot = index
            entry.sequence = UInt32((word & SlotState.sequenceMask) / SlotState.sequenceOne)
            let short = UInt32(truncatingIfNeeded: word >> 8)
            entry.ordinal = tail &- ((tail &- short) & SlotState.ordinalMask)
            saved.commands.append(entry)
        }
    }
}
