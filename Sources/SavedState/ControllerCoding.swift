// SPDX-License-Identifier: Apache-2.0
// A controller, its queues and what is under way as protobuf (Proto/saved.proto).

internal import CProtobufC
internal import CWire

extension SavedController {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, generation)
        writer.number(2, epoch)
        writer.number(3, lastNumber)
        writer.number(4, configuration)
        writer.number(5, adminQueueAttributes)
        writer.number(6, adminSubmissionAddress)
        writer.number(7, adminCompletionAddress)
        writer.number(8, poolReadsAddress)
        writer.number(9, poolWritesAddress)
        writer.number(10, poolByteCount)
        writer.number(11, plannedQueueCount)
        writer.number(12, queueEntries)
        writer.number(13, maxTransferByteCount)
        writer.number(14, bounceByteCount)
        writer.number(15, UInt32(clamping: queues.count - 1))
        writer.number(16, interruptCount)
        writer.flag(17, hasShadowDoorbells)
        writer.number(18, pendingEvents)
        writer.page(19, identifyController)
        writer.page(20, commandSetLimits)
        for namespace in namespaces { writer.message(21) { namespace.write(into: &$0) } }
        for queue in queues { writer.message(22) { queue.write(into: &$0) } }
        for region in regions {
            writer.message(23) {
                $0.number(1, region.address)
                $0.number(2, region.byteCount)
                $0.number(3, region.session)
                $0.unknown(region.unknown)
            }
        }
        for page in poolPageOrder { writer.present(24, page) }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedController) throws(FieldProblem) {
        unsafe self.init(generation: c.generation, epoch: c.epoch)
        unsafe setUp(from: c)
        identifyController =
            try unsafe SavedField.page(
                c.has_identify_controller, c.identify_controller,
                "controller.identify_controller") ?? []
        commandSetLimits = try unsafe SavedField.page(
            c.has_command_set_limits, c.command_set_limits, "controller.command_set_limits")
        namespaces = try unsafe SavedField.list(
            c.namespaces, c.n_namespaces, limit: SavedLimits.namespaceCount,
            "controller.namespaces"
        ) { n throws(FieldProblem) in try unsafe SavedNamespace(n.pointee) }
        queues = try unsafe SavedField.list(
            c.queues, c.n_queues, limit: Int(SavedLimits.queueCount) + 1, "controller.queues"
        ) { q throws(FieldProblem) in try unsafe SavedQueue(q.pointee) }
        guard unsafe queues.count == Int(c.queue_count) + 1 else {
            throw FieldProblem("controller.queues", "are \(queues.count), not as many as exist")
        }
        regions = try unsafe SavedField.list(
            c.regions, c.n_regions, limit: SavedLimits.regionCount, "controller.regions"
        ) { r throws(FieldProblem) in
            var region = unsafe SavedRegion(
                address: r.pointee.address, byteCount: r.pointee.byte_count,
                session: r.pointee.session)
            region.unknown = try unsafe SavedField.unknown(r.pointee.base)
            return region
        }
        guard unsafe c.n_pool_page_order <= Int(SavedLimits.poolPageCount) else {
            throw FieldProblem("controller.pool_page_order", "has too many pages")
        }
        poolPageOrder = unsafe Array(
            UnsafeBufferPointer(start: c.pool_page_order, count: c.n_pool_page_order))
        unknown = try unsafe SavedField.unknown(c.base)
    }

    private mutating func setUp(from c: Nvmed__V1__SavedController) {
        unsafe lastNumber = c.last_number
        unsafe configuration = c.configuration
        unsafe adminQueueAttributes = c.admin_queue_attributes
        unsafe adminSubmissionAddress = c.admin_submission_address
        unsafe adminCompletionAddress = c.admin_completion_address
        unsafe poolReadsAddress = c.pool_reads_address
        unsafe poolWritesAddress = c.pool_writes_address
        unsafe poolByteCount = c.pool_byte_count
        unsafe plannedQueueCount = c.planned_queue_count
        unsafe queueEntries = c.queue_entries
        unsafe maxTransferByteCount = c.max_transfer_byte_count
        unsafe bounceByteCount = c.bounce_byte_count
        unsafe interruptCount = c.interrupt_count
        unsafe hasShadowDoorbells = c.has_shadow_doorbells != 0
        unsafe pendingEvents = c.pending_events
    }
}

extension SavedNamespace {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, id)
        switch content {
        case .pages(let identify, let descriptors):
            writer.page(2, identify)
            writer.page(3, descriptors)
        case .refused(let reason): writer.bytes(4, reason.utf8)
        }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedNamespace) throws(FieldProblem) {
        if unsafe c.has_refusal != 0 {
            let reason = try unsafe SavedField.text(c.refusal, "controller.namespaces.refusal")
            unsafe self.init(id: c.id, content: .refused(reason))
        } else {
            let page = try unsafe SavedField.page(
                c.has_identify, c.identify, "controller.namespaces.identify")
            guard let page else {
                throw FieldProblem("controller.namespaces.identify", "is missing")
            }
            let descriptors = try unsafe SavedField.page(
                c.has_descriptors, c.descriptors, "controller.namespaces.descriptors")
            unsafe self.init(id: c.id, content: .pages(identify: page, descriptors: descriptors))
        }
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedQueue {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, id)
        writer.number(2, vector)
        writer.number(3, entries)
        writer.number(4, submissionAddress)
        writer.number(5, completionAddress)
        writer.number(6, listsAddress)
        writer.number(7, listByteCount)
        writer.number(8, tailOrdinal)
        writer.number(9, doorbellOrdinal)
        writer.number(10, completionHead)
        writer.flag(11, phase)
        for command in commands { writer.message(12) { command.write(into: &$0) } }
        for request in requests { writer.message(13) { request.write(into: &$0) } }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedQueue) throws(FieldProblem) {
        unsafe self.init(id: c.id, entries: c.entries)
        unsafe vector = c.vector
        unsafe submissionAddress = c.submission_address
        unsafe completionAddress = c.completion_address
        unsafe listsAddress = c.lists_address
        unsafe listByteCount = c.list_byte_count
        unsafe tailOrdinal = c.tail_ordinal
        unsafe doorbellOrdinal = c.doorbell_ordinal
        unsafe completionHead = c.completion_head
        unsafe phase = c.phase != 0
        commands = try unsafe SavedField.list(
            c.commands, c.n_commands, limit: Int(SavedLimits.queueEntryCount),
            "controller.queues.commands"
        ) { m throws(FieldProblem) in try unsafe SavedCommand(m.pointee) }
        requests = try unsafe SavedField.list(
            c.requests, c.n_requests, limit: SavedLimits.requestCount,
            "controller.queues.requests"
        ) { r throws(FieldProblem) in try unsafe SavedRequest(r.pointee) }
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedCommand {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, slot)
        writer.number(2, sequence)
        writer.number(3, ordinal)
        writer.number(4, purpose.number)
        writer.number(5, opcode)
        writer.number(6, namespaceID)
        writer.number(7, lba)
        writer.number(8, blockCount)
        if isIO { writer.number(9, blockShift) }
        writer.number(10, session)
        writer.number(11, firstPage)
        writer.number(12, pageCount)
        switch purpose {
        case .part(let request, let blocksBefore):
            writer.number(13, request)
            writer.number(14, blocksBefore)
        case .abort(let queueID, let commandID):
            writer.number(15, UInt32(queueID) << 16 | UInt32(commandID))
        default: break
        }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedCommand) throws(FieldProblem) {
        let name = "controller.queues.commands"
        try unsafe self.init(
            slot: c.slot, sequence: c.sequence, ordinal: c.ordinal, purpose: SavedPurpose(c),
            opcode: SavedField.narrow(c.opcode, "\(name).opcode"))
        unsafe namespaceID = c.namespace_id
        unsafe lba = c.lba
        unsafe blockCount = c.block_count
        if isIO {
            blockShift = try unsafe SavedField.narrow(c.block_shift, "\(name).block_shift")
        }
        unsafe session = c.session
        unsafe firstPage = c.first_page
        pageCount = try unsafe SavedField.narrow(c.page_count, "\(name).page_count")
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedPurpose {
    fileprivate var number: UInt32 {
        switch self {
        case .whole: 1
        case .part: 2
        case .probe: 3
        case .eventRequest: 4
        case .health: 5
        case .abort: 6
        case .abandoned: 7
        }
    }

    fileprivate init(_ c: Nvmed__V1__SavedCommand) throws(FieldProblem) {
        switch unsafe c.purpose {
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_WHOLE: self = .whole
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_PART:
            self = unsafe .part(request: c.request, blocksBefore: c.blocks_before)
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_PROBE: self = .probe
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_EVENT_REQUEST: self = .eventRequest
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_HEALTH: self = .health
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_ABORT:
            self = unsafe .abort(
                queueID: UInt16(truncatingIfNeeded: c.aborted >> 16),
                commandID: UInt16(truncatingIfNeeded: c.aborted))
        case NVMED__V1__SAVED_PURPOSE__SAVED_PURPOSE_ABANDONED: self = .abandoned
        default: throw FieldProblem("controller.queues.commands.purpose", "is not known")
        }
    }
}

extension SavedRequest {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, index)
        writer.number(2, opcode)
        writer.number(3, namespaceID)
        writer.number(4, session)
        writer.number(5, blockCount)
        writer.number(6, issuedBlockCount)
        writer.number(7, blockShift)
        writer.number(8, status)
        writer.number(9, firstPage)
        writer.number(10, pageCount)
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedRequest) throws(FieldProblem) {
        let name = "controller.queues.requests"
        try unsafe self.init(
            index: c.index, opcode: SavedField.narrow(c.opcode, "\(name).opcode"),
            blockCount: c.block_count)
        unsafe namespaceID = c.namespace_id
        unsafe session = c.session
        unsafe issuedBlockCount = c.issued_block_count
        blockShift = try unsafe SavedField.narrow(c.block_shift, "\(name).block_shift")
        status = try unsafe SavedField.narrow(c.status, "\(name).status")
        unsafe firstPage = c.first_page
        pageCount = try unsafe SavedField.narrow(c.page_count, "\(name).page_count")
        unknown = try unsafe SavedField.unknown(c.base)
    }
}
