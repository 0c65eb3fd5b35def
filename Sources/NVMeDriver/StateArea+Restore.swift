// SPDX-License-Identifier: Apache-2.0
// A state area out of saved state: the one that a predecessor would have left in the fd store, as
// far as it is of use to a successor, so that the very same `NVMeController.adopt` goes on with it.
//
// What changes: sessions are over, and rings and memory of theirs are gone. Their commands come
// without a ring, with tokens that nothing else has, and name a region that does not exist; what
// was not issued of their requests never is. Memory that the device may still have is on record as
// half mapped, so that adoption takes it away.

internal import CMemory
public import SavedState

extension StateArea {
    /// The region that commands of another life name: there is none of that number.
    private static let lostRegion: UInt32 = 0xFFFF
    /// Opcodes that move data have 32 bits for the blocks of a request.
    private static let maxDataBlocks = UInt64(UInt32.max)

    /// Makes a state area of what was saved, and locks it. The sessions are those of
    /// `NVMeController.savedSessions`, all of which are over; `configuration` is kept as a
    /// predecessor would have kept it. `layout` is what the present configuration asks for; the
    /// area is larger when the saved controller needs that.
    ///
    /// Throws `unusable` when the saved values cannot be; whether they are those of the device and
    /// of its pool is for `adopt` to find out.
    public static func create(
        restoring saved: SavedController, sessions: [SavedSession] = [],
        configuration: [UInt8] = [], layout wanted: StateLayout
    ) throws(StateAreaError) -> StateArea {
        do throws(SavedStateError) {
            try saved.checkConsistency(name: "the device")
        } catch { throw .unusable(error.description) }
        let layout = StateLayout(
            queueCount: max(wanted.queueCount, Int(saved.plannedQueueCount) + 1),
            slotsPerQueue: max(
                wanted.slotsPerQueue, Int(saved.queues.map(\.entries).max() ?? 0),
                Int(saved.queueEntries), Int(ControllerMemoryPlan.adminEntries)))
        guard layout.queueCount <= 1024, layout.slotsPerQueue <= 1024 else {
            throw .unusable("it would have \(layout.queueCount) queues")
        }
        var area = try create(layout: layout)
        // Its successor raises it by the next one.
        area.restoreHeader(
            generation: saved.generation &+ 1, epoch: saved.epoch, lastNumber: saved.lastNumber)
        area.restorePages(saved)
        area.pendingEvents = saved.pendingEvents
        for (index, region) in saved.regions.enumerated() {
            area.restore(region, at: UInt32(index) + 1)
        }
        for queue in saved.queues { try area.restore(queue) }
        for session in sessions { try area.restore(session) }
        if !configuration.isEmpty, !area.setConfiguration(configuration) {
            throw .unusable("its configuration has \(configuration.count) bytes")
        }
        area.setController(saved.record)
        return area
    }

    private func restorePages(_ saved: SavedController) {
        setControllerPage(0, saved.identifyController)
        setControllerPage(1, saved.commandSetLimits ?? [])
        setPoolPageOrder(saved.poolPageOrder)
        for (place, namespace) in saved.namespaces.enumerated() {
            switch namespace.content {
            case .pages(let identify, let descriptors):
                setNamespace(
                    place, id: namespace.id,
                    .pages(identify: identify, descriptors: descriptors))
            case .refused(let reason): setNamespace(place, id: namespace.id, .refused(reason))
            }
        }
    }

    private func restore(_ region: SavedRegion, at index: UInt32) {
        setRegion(
            index,
            RegionRecord(
                state: .mapping, iova: region.address,
                stretch: ClientMemoryStretch(byteCount: region.byteCount),
                session: region.session, flags: [], clientID: 0))
    }

    private func restore(_ session: SavedSession) throws(StateAreaError) {
        let record = SessionRecord(
            state: .ended, id: session.id, key: session.key, number: 0, opening: session.opening)
        guard setSession(Int(session.key & 0xFF), record) else {
            throw .unusable("what opened session \(session.id) is too long")
        }
    }

    // MARK: Queues

    private func restore(_ queue: SavedQueue) throws(StateAreaError) {
        let id = Int(queue.id)
        let record = unsafe address(layout.queueRecordOffset(id))
        let words = [
            UInt64(queue.id) | UInt64(queue.entries) << 16 | UInt64(queue.vector) << 48,
            queue.submissionAddress, queue.completionAddress, queue.listsAddress,
            queue.listByteCount,
        ]
        for (index, word) in words.enumerated() { unsafe nv_store64(record + index * 8, word) }
        unsafe nv_store64(record + 56, NVMeController.seal(words, id, epoch))
        restoreIndexes(queue)
        let requests = try restoreRequests(queue)
        let key = Checksum.key(Checksum.slotKind, queue: queue.id, epoch: epoch)
        let start = unsafe slots(id)
        var commands: [UInt32: SavedCommand] = [:]
        for command in queue.commands { commands[command.slot] = command }
        for index in 0...queue.slotCount {
            let slot = unsafe start + Int(index) * 64
            guard let command = commands[index] else {
                unsafe CommandSlot.setState(
                    at: slot, word6: 0, key: key &+ index, low: SlotState.free)
                continue
            }
            unsafe Self.slot(of: command, queue.id, requests).stage(
                at: slot, key: key &+ index,
                sequence: UInt64(command.sequence) * SlotState.sequenceOne
                    & SlotState.sequenceMask,
                ordinal: command.ordinal)
        }
    }

    private func restoreIndexes(_ queue: SavedQueue) {
        let line = unsafe address(layout.queueIndexOffset(Int(queue.id)))
        let key = Checksum.key(Checksum.indexKind, queue: queue.id, epoch: epoch)
        let values = [
            queue.tailOrdinal, queue.completionHead | (queue.phase ? 1 : 0) << 31,
            queue.doorbellOrdinal, 1,
        ]
        for (index, value) in values.enumerated() {
            unsafe nv_store64(
                line + index * 8, SealedWord.seal(value, key: key &+ UInt32(index)))
        }
    }

    /// Writes the requests down; where each is now, by where it was.
    private func restoreRequests(
        _ queue: SavedQueue
    ) throws(StateAreaError) -> [UInt32: UInt8] {
        let id = Int(queue.id)
        var records = unsafe RequestRecords(
            records: requests(id), lists: segmentLists(id), queue: queue.id, epoch: epoch)
        var places: [UInt32: UInt8] = [:]
        for request in queue.requests {
            let command = Self.slot(of: request, queue.id)
            let place: UInt32?
            if request.blockCount <= Self.maxDataBlocks {
                place = records.insert(command, maxBlocks: 1, tick: 0)
            } else {
                guard !Engine.movesData(request.opcode) else {
                    throw .unusable("a request has \(request.blockCount) blocks")
                }
                place = Self.insert(command, request.blockCount, &records)
            }
            guard let place else { throw .unusable("it has too many requests") }
            records.raiseIssued(place, to: request.issuedBlockCount)
            records.setStatus(place, request.status)
            if request.issuedBlockCount < request.blockCount {
                records.setStatus(place, SalvagedQueue.unknown)
            }
            places[request.index] = UInt8(truncatingIfNeeded: place)
        }
        return places
    }

    /// A request of more blocks than 32 bits count, which only a list of ranges has: it comes as
    /// one range, since nothing of it is issued any more.
    private static func insert(
        _ command: CommandSlot, _ blockCount: UInt64, _ records: inout RequestRecords
    ) -> UInt32? {
        var command = command
        command.lba = blockCount
        command.blockCount = 0
        command.flags |= CommandSlot.flagRanges
        var range = BlockSpan(lba: 0, blockCount: blockCount)
        return unsafe withUnsafePointer(to: &range) { range in
            unsafe records.insert(
                command, list: UnsafeRawPointer(range), count: 1, maxBlocks: 1, tick: 0)
        }
    }

    // MARK: Slots

    private static func slot(of request: SavedRequest, _ queueID: UInt32) -> CommandSlot {
        var slot = CommandSlot()
        slot.blockCount = UInt32(truncatingIfNeeded: request.blockCount)
        slot.token = token(ofRequest: request.index, queueID)
        slot.session = request.session
        slot.region = lostRegion
        slot.firstPage = request.firstPage
        slot.pageCount = request.pageCount
        slot.opcode = request.opcode
        slot.flags = flags(request.blockShift)
        slot.namespaceID = request.namespaceID
        return slot
    }

    private static func slot(
        of command: SavedCommand, _ queueID: UInt32, _ requests: [UInt32: UInt8]
    ) -> CommandSlot {
        var slot = CommandSlot()
        slot.opcode = command.opcode
        slot.namespaceID = command.namespaceID
        slot.lba = command.lba
        guard queueID > 0 else {
            (slot.token, slot.request) = adminToken(command)
            return slot
        }
        slot.blockCount = command.blockCount
        slot.session = command.session
        slot.region = lostRegion
        slot.firstPage = command.firstPage
        slot.pageCount = command.pageCount
        slot.flags = flags(command.blockShift)
        slot.token = UInt64(queueID) << 32 | UInt64(command.slot)
        switch command.purpose {
        case .part(let index, let before):
            slot.request = requests[index] ?? CommandSlot.noRequest
            slot.token = token(ofRequest: index, queueID)
            if Engine.movesData(command.opcode) {
                slot.position = UInt32(truncatingIfNeeded: before)
            } else {
                slot.offset = before
            }
        case .probe: slot.request = CommandSlot.probeRequest
        default: break
        }
        return slot
    }

    private static func token(ofRequest index: UInt32, _ queueID: UInt32) -> UInt64 {
        UInt64(queueID) << 32 | 1 << 16 | UInt64(index)
    }

    private static func flags(_ blockShift: UInt8) -> UInt8 {
        (min(max(blockShift, 9), 16) - 9) << CommandSlot.shiftOfFlags
    }

    private static func adminToken(_ command: SavedCommand) -> (token: UInt64, request: UInt8) {
        switch command.purpose {
        case .eventRequest: (AdminToken.event, CommandSlot.noRequest)
        case .health: (AdminToken.health, CommandSlot.noRequest)
        case .abort(let queueID, let commandID):
            (
                AdminToken.abort | UInt64(queueID &- 1) << 16 | UInt64(commandID),
                CommandSlot.noRequest
            )
        case .probe: (0, CommandSlot.probeRequest)
        // Generation 0 has none of its own.
        default: (AdminQueue.waitedFor | UInt64(command.slot), CommandSlot.noRequest)
        }
    }
}
