// SPDX-License-Identifier: Apache-2.0
// What saved values must be so that nobody who uses them can be led outside of anything: the same
// when they are written and when they are read.

extension SavedHost {
    func check() throws(FieldProblem) {
        guard deviceNames.count <= SavedLimits.deviceCount else {
            throw FieldProblem("device_names", "are \(deviceNames.count)")
        }
        for name in deviceNames where !SavedDevice.isName(name) {
            throw FieldProblem("device_names", "has one that is no name")
        }
        guard Set(deviceNames).count == deviceNames.count else {
            throw FieldProblem("device_names", "has one twice")
        }
        for text in [machineID, bootID, version] where text.utf8.contains(0) {
            throw FieldProblem("machine_id, boot_id or version", "has a NUL")
        }
    }
}

extension SavedDevice {
    static func isName(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count <= SavedLimits.nameByteCount && !name.utf8.contains(0)
    }

    func check() throws(FieldProblem) {
        guard Self.isName(name) else { throw FieldProblem("name", "is no name") }
        guard !address.isEmpty else { throw FieldProblem("address", "is missing") }
        for text in [address, identity.serial, identity.model, identity.firmware, pool.path]
        where text.utf8.count > SavedLimits.textByteCount || text.utf8.contains(0) {
            throw FieldProblem("a text", "is too long, or has a NUL")
        }
        guard configuration.count <= SavedLimits.configurationByteCount else {
            throw FieldProblem("configuration", "has \(configuration.count) bytes")
        }
        try pool.check()
        try controller.check()
        try SavedSession.check(sessions)
    }
}

extension SavedSession {
    static func check(_ sessions: [SavedSession]) throws(FieldProblem) {
        guard sessions.count <= SavedLimits.sessionCount else {
            throw FieldProblem("sessions", "are \(sessions.count)")
        }
        guard Set(sessions.map { $0.key & 0xFF }).count == sessions.count else {
            throw FieldProblem("sessions.key", "is that of two in the same slot")
        }
        for session in sessions where session.opening.count > SavedLimits.openingByteCount {
            throw FieldProblem("sessions.opening", "has \(session.opening.count) bytes")
        }
    }
}

extension SavedPool {
    func check() throws(FieldProblem) {
        guard runs.count <= SavedLimits.poolEntryCount, slots.count <= SavedLimits.poolEntryCount
        else { throw FieldProblem("pool", "has \(runs.count) runs and \(slots.count) slots") }
        guard byteCount > 0, byteCount <= 1 << 46, offset <= 1 << 52 else {
            throw FieldProblem("pool.byte_count", "is \(byteCount), from \(offset) on")
        }
        for run in runs {
            guard run.byteCount > 0, run.byteCount <= 1 << 46,
                run.address <= UInt64.max - run.byteCount
            else { throw FieldProblem("pool.runs", "has one that is nowhere") }
        }
        for slot in slots {
            guard slot.pageCount > 0, slot.pageCount <= 1 << 40, slot.firstPage <= 1 << 40,
                slot.owner.utf8.count <= SavedLimits.nameByteCount,
                slot.tag.utf8.count <= SavedLimits.nameByteCount
            else { throw FieldProblem("pool.slots", "has one that is nowhere, or nobody's") }
        }
    }
}

extension SavedController {
    /// Whether the values can be those of a controller. Throws `invalid` otherwise; `name` is what
    /// the error calls the device.
    public func checkConsistency(name: String) throws(SavedStateError) {
        do throws(FieldProblem) {
            try check()
        } catch { throw error.of(name) }
    }

    func check() throws(FieldProblem) {
        guard epoch > 0 else { throw FieldProblem("controller.epoch", "is 0") }
        guard plannedQueueCount >= 1, plannedQueueCount <= SavedLimits.queueCount else {
            throw FieldProblem("controller.planned_queue_count", "is \(plannedQueueCount)")
        }
        guard SavedQueue.isSize(queueEntries) else {
            throw FieldProblem("controller.queue_entries", "is \(queueEntries)")
        }
        guard queues.count >= 2, queues.count <= Int(plannedQueueCount) + 1 else {
            throw FieldProblem("controller.queues", "are \(queues.count)")
        }
        guard interruptCount <= SavedLimits.queueCount + 1 else {
            throw FieldProblem("controller.interrupt_count", "is \(interruptCount)")
        }
        try checkPages()
        try checkRegions()
        guard poolPageOrder.count <= Int(SavedLimits.poolPageCount),
            Set(poolPageOrder).count == poolPageOrder.count,
            poolPageOrder.allSatisfy({ $0 < SavedLimits.poolPageCount })
        else { throw FieldProblem("controller.pool_page_order", "is no order of pages") }
        for (index, queue) in queues.enumerated() {
            guard queue.id == UInt32(index) else {
                throw FieldProblem("controller.queues.id", "is \(queue.id), not \(index)")
            }
            try queue.check()
        }
        try checkAborts()
    }

    private func checkPages() throws(FieldProblem) {
        let size = SavedLimits.pageByteCount
        guard identifyController.count == size else {
            throw FieldProblem("controller.identify_controller", "is no page")
        }
        guard commandSetLimits.map({ $0.count == size }) ?? true else {
            throw FieldProblem("controller.command_set_limits", "is no page")
        }
        guard namespaces.count <= SavedLimits.namespaceCount,
            Set(namespaces.map(\.id)).count == namespaces.count
        else { throw FieldProblem("controller.namespaces", "are too many, or one is twice") }
        for namespace in namespaces {
            guard namespace.id > 0 else { throw FieldProblem("controller.namespaces.id", "is 0") }
            switch namespace.content {
            case .pages(let identify, let descriptors):
                guard identify.count == size, (descriptors ?? identify).count == size else {
                    throw FieldProblem("controller.namespaces", "has something that is no page")
                }
            case .refused(let reason):
                guard reason.utf8.count <= SavedLimits.textByteCount, !reason.utf8.contains(0)
                else { throw FieldProblem("controller.namespaces.refusal", "is too long") }
            }
        }
    }

    private func checkRegions() throws(FieldProblem) {
        guard regions.count <= SavedLimits.regionCount else {
            throw FieldProblem("controller.regions", "are \(regions.count)")
        }
        for region in regions {
            guard region.address > 0, region.address & 4095 == 0, region.byteCount > 0,
                region.byteCount & 4095 == 0, region.byteCount <= 1 << 46,
                region.address <= UInt64.max - region.byteCount
            else { throw FieldProblem("controller.regions", "has one that is nowhere") }
        }
    }

    private func checkAborts() throws(FieldProblem) {
        for command in queues[0].commands {
            guard case .abort(let queueID, let commandID) = command.purpose else { continue }
            guard queueID >= 1, Int(queueID) < queues.count,
                UInt32(commandID & 1023) < queues[Int(queueID)].slotCount
            else {
                throw FieldProblem("controller.queues.commands.aborted", "names no command")
            }
        }
    }
}

extension SavedQueue {
    static func isSize(_ entries: UInt32) -> Bool {
        entries >= 4 && entries <= SavedLimits.queueEntryCount && entries & (entries - 1) == 0
    }

    private func problem(_ field: String, _ rule: String) -> FieldProblem {
        FieldProblem("controller.queues.\(field)", "\(rule) in queue \(id)")
    }

    func check() throws(FieldProblem) {
        guard Self.isSize(entries) else { throw problem("entries", "is \(entries)") }
        guard vector <= SavedLimits.queueCount else { throw problem("vector", "is \(vector)") }
        guard completionHead < entries else {
            throw problem("completion_head", "is \(completionHead)")
        }
        guard tailOrdinal &- doorbellOrdinal < entries else {
            throw problem("doorbell_ordinal", "is \(tailOrdinal &- doorbellOrdinal) behind")
        }
        guard listByteCount <= 1 << 20 else {
            throw problem("list_byte_count", "is \(listByteCount)")
        }
        guard commands.count < Int(entries), Set(commands.map(\.slot)).count == commands.count
        else { throw problem("commands", "are too many, or two have a slot") }
        var requests: [UInt32: SavedRequest] = [:]
        for request in self.requests {
            try check(request)
            guard requests.updateValue(request, forKey: request.index) == nil else {
                throw problem("requests.index", "is there twice")
            }
        }
        for command in commands { try check(command, requests) }
    }

    private func check(_ request: SavedRequest) throws(FieldProblem) {
        guard id > 0, request.index < UInt32(SavedLimits.requestCount) else {
            throw problem("requests.index", "is \(request.index)")
        }
        guard request.blockCount > 0, request.blockCount < 1 << 48,
            request.issuedBlockCount <= request.blockCount
        else { throw problem("requests.block_count", "is \(request.blockCount)") }
        guard request.blockShift >= 9, request.blockShift <= 16, request.status <= 0x7FFF else {
            throw problem("requests", "has a size or a status that does not exist")
        }
    }

    private func check(
        _ command: SavedCommand, _ requests: [UInt32: SavedRequest]
    ) throws(FieldProblem) {
        guard command.slot < slotCount || command.slot == slotCount && command.purpose == .probe
        else { throw problem("commands.slot", "is \(command.slot)") }
        guard command.sequence < 64 else {
            throw problem("commands.sequence", "is \(command.sequence)")
        }
        // A quarter of the 24 bits that the state area keeps, and what a moment adds.
        let age = tailOrdinal &- command.ordinal
        guard age > 0, age <= 1 << 23 - 1 else {
            throw problem("commands.ordinal", "is \(age) commands old")
        }
        guard command.isIO == (id > 0) || command.purpose == .probe else {
            throw problem("commands.purpose", "is not one")
        }
        guard command.isIO else { return }
        guard command.blockShift >= 9, command.blockShift <= 16 else {
            throw problem("commands.block_shift", "is \(command.blockShift)")
        }
        guard case .part(let index, let before) = command.purpose else { return }
        guard let request = requests[index], request.session == command.session,
            request.opcode == command.opcode, request.namespaceID == command.namespaceID,
            before <= request.blockCount,
            UInt64(command.blockCount) <= request.blockCount - before
        else { throw problem("commands.request", "is \(index), which it is no part of") }
    }
}
