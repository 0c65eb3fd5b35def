// SPDX-License-Identifier: Apache-2.0
// The shared values as protobuf fields (Proto/common.proto).

internal import CProtobufC
internal import CWire

extension WireError {
    func write(into writer: inout MessageWriter) {
        writer.number(1, code.rawValue)
        writer.text(2, message)
        writer.text(3, device)
        writer.text(4, disk)
        writer.text(5, field)
        writer.number(6, nvmeStatus)
    }

    init(_ c: UnsafePointer<Nvmed__V1__Error>) throws(WireError) {
        let code = unsafe UInt32(truncatingIfNeeded: c.pointee.code.rawValue)
        let field = unsafe Field.text(c.pointee.field)
        unsafe self.init(
            code == 0 ? .internalError : ErrorCode(rawValue: code),
            Field.text(c.pointee.message),
            device: try Field.optionalName(c.pointee.has_device, c.pointee.device, "error.device"),
            disk: try Field.optionalName(c.pointee.has_disk, c.pointee.disk, "error.disk"),
            field: field.isEmpty ? nil : field,
            nvmeStatus: Field.optional(c.pointee.has_nvme_status, c.pointee.nvme_status)
                .map { UInt16(truncatingIfNeeded: $0) })
    }
}

extension DiskInfo {
    func write(into writer: inout MessageWriter) {
        writer.text(1, name)
        writer.text(2, device)
        writer.number(3, blockByteCount)
        writer.number(4, physicalBlockByteCount)
        writer.number(5, optimalByteCount)
        writer.number(6, blockCount)
        writer.number(7, maxTransferByteCount)
        writer.number(8, maxInlineByteCount)
        writer.number(9, maxSegments)
        writer.number(10, alignmentByteCount)
        writer.flag(11, fua)
        writer.flag(12, volatileWriteCache)
        writer.flag(13, unmap)
        writer.number(14, unmapGranularityBlockCount)
        writer.number(15, unmapAlignmentBlockCount)
        writer.number(16, unmapMaxBlockCount)
        writer.number(17, unmapMaxRanges)
        writer.number(18, unmapReadsAs)
        writer.flag(19, writeZeroes)
        writer.number(20, writeZeroesMaxBlockCount)
        writer.flag(21, compare)
        writer.flag(22, verify)
        writer.number(23, atomicPowerFailBlockCount)
        writer.number(24, atomicBlockCount)
        writer.flag(25, writeProtected)
        writer.flag(26, readOnly)
        writer.number(27, nsid)
        writer.bytes(28, identity.nguid)
        writer.bytes(29, identity.eui64)
        writer.bytes(30, identity.uuid)
        writer.text(31, serial)
        writer.text(32, model)
        writer.text(33, firmware)
        writer.flag(34, bounced)
        writer.flag(35, shared)
        writer.number(36, generation)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__DiskInfo>) throws(WireError) {
        self.init()
        let c = unsafe pointer.pointee
        name = try unsafe Field.name(c.has_name, c.name, "disk_info.name")
        device = try unsafe Field.bytesText(c.device, "disk_info.device")
        blockByteCount = try unsafe Field.need(
            c.has_block_byte_count, c.block_byte_count, "disk_info.block_byte_count")
        guard blockByteCount >= 512, blockByteCount & (blockByteCount - 1) == 0 else {
            throw WireError(
                .invalidArgument,
                "a block of \(blockByteCount) bytes is not a power of two of 512 "
                    + "or more", field: "disk_info.block_byte_count")
        }
        blockCount = try unsafe Field.need(
            c.has_block_count, c.block_count, "disk_info.block_count")
        unsafe readLimits(c)
        unsafe readAbilities(c)
        nsid = unsafe c.nsid
        identity = try unsafe NamespaceIdentity(c.nguid, c.eui64, c.uuid, "disk_info")
        serial = try unsafe Field.bytesText(c.serial, "disk_info.serial")
        model = try unsafe Field.bytesText(c.model, "disk_info.model")
        firmware = try unsafe Field.bytesText(c.firmware, "disk_info.firmware")
        bounced = unsafe c.bounced != 0
        shared = unsafe c.shared != 0
        generation = unsafe c.generation
    }

    private mutating func readLimits(_ c: Nvmed__V1__DiskInfo) {
        physicalBlockByteCount = unsafe max(c.physical_block_byte_count, blockByteCount)
        optimalByteCount = unsafe max(c.optimal_byte_count, physicalBlockByteCount)
        maxTransferByteCount = unsafe c.max_transfer_byte_count
        maxInlineByteCount = unsafe min(
            c.has_max_inline_byte_count != 0 ? c.max_inline_byte_count : .max,
            UInt32(WireLimits.payloadByteCount))
        maxSegments = unsafe max(c.max_segments, 1)
        alignmentByteCount = unsafe max(c.alignment_byte_count, 1)
        unmapGranularityBlockCount = unsafe max(c.unmap_granularity_block_count, 1)
        unmapAlignmentBlockCount = unsafe c.unmap_alignment_block_count
        unmapMaxBlockCount = unsafe Field.optional(
            c.has_unmap_max_block_count, c.unmap_max_block_count)
        unmapMaxRanges = unsafe min(c.unmap_max_ranges, UInt32(WireLimits.unmapRangeCount))
        writeZeroesMaxBlockCount = unsafe Field.optional(
            c.has_write_zeroes_max_block_count, c.write_zeroes_max_block_count)
        atomicPowerFailBlockCount = unsafe max(c.atomic_power_fail_block_count, 1)
        atomicBlockCount = unsafe max(c.atomic_block_count, 1)
    }

    private mutating func readAbilities(_ c: Nvmed__V1__DiskInfo) {
        fua = unsafe c.fua != 0
        volatileWriteCache = unsafe c.volatile_write_cache != 0
        unmap = unsafe c.unmap != 0
        unmapReadsAs = unsafe c.unmap_reads_as
        writeZeroes = unsafe c.write_zeroes != 0
        compare = unsafe c.compare != 0
        verify = unsafe c.verify != 0
        writeProtected = unsafe c.write_protected != 0
        readOnly = unsafe c.read_only != 0
    }
}

extension NamespaceIdentity {
    init(
        _ nguid: ProtobufCBinaryData, _ eui64: ProtobufCBinaryData, _ uuid: ProtobufCBinaryData,
        _ parent: String
    ) throws(WireError) {
        self.init(
            nguid: try unsafe Field.identifier(nguid, 16, "\(parent).nguid"),
            eui64: try unsafe Field.identifier(eui64, 8, "\(parent).eui64"),
            uuid: try unsafe Field.identifier(uuid, 16, "\(parent).uuid"))
    }
}

extension NamespaceInfo {
    /// An empty reason is one all the same: the namespace is not served.
    private static let noReason = "it is not served, and no reason was given"

    func write(into writer: inout MessageWriter) {
        writer.number(1, nsid)
        writer.number(2, blockByteCount)
        writer.number(3, blockCount)
        writer.bytes(4, identity.nguid)
        writer.bytes(5, identity.eui64)
        writer.bytes(6, identity.uuid)
        writer.flag(7, writeProtected)
        writer.text(8, refusal.map { $0.isEmpty ? Self.noReason : $0 })
    }

    init(_ c: UnsafePointer<Nvmed__V1__NamespaceInfo>) throws(WireError) {
        unsafe self.init(
            nsid: try Field.need(c.pointee.has_nsid, c.pointee.nsid, "namespace.nsid"),
            blockByteCount: c.pointee.block_byte_count, blockCount: c.pointee.block_count,
            identity: try NamespaceIdentity(
                c.pointee.nguid, c.pointee.eui64, c.pointee.uuid, "namespace"),
            writeProtected: c.pointee.write_protected != 0,
            refusal: c.pointee.refusal == nil ? nil : Field.text(c.pointee.refusal))
        if refusal?.isEmpty == true { refusal = Self.noReason }
    }
}

extension DeviceInfo {
    func write(into writer: inout MessageWriter) {
        writer.text(1, name)
        writer.number(2, state.rawValue)
        writer.text(3, reason)
        writer.number(4, attempts)
        writer.number(5, sinceNanoseconds)
        writer.text(6, transport)
        writer.text(7, serial)
        writer.text(8, model)
        writer.text(9, firmware)
        for namespace in namespaces.prefix(WireLimits.namespaceCount) {
            writer.message(10) { namespace.write(into: &$0) }
        }
        writer.signed(11, workerPID)
        writer.number(12, restarts)
        writer.number(13, sessionCount)
        if let health { writer.message(14) { health.write(into: &$0) } }
        if let continuity { writer.message(15) { continuity.write(into: &$0) } }
        writer.text(16, resetReason)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__DeviceInfo>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            name: try unsafe Field.name(c.has_name, c.name, "device.name"),
            state: unsafe Field.state(c.state))
        reason = unsafe Field.text(c.reason)
        attempts = unsafe c.attempts
        sinceNanoseconds = unsafe c.since_ns
        transport = unsafe Field.text(c.transport)
        serial = try unsafe Field.bytesText(c.serial, "device.serial")
        model = try unsafe Field.bytesText(c.model, "device.model")
        firmware = try unsafe Field.bytesText(c.firmware, "device.firmware")
        namespaces = try unsafe Field.list(
            c.namespaces, c.n_namespaces, limit: WireLimits.namespaceCount, "device.namespaces"
        ) { element throws(WireError) in try unsafe NamespaceInfo(element) }
        workerPID = unsafe Field.optional(c.has_worker_pid, c.worker_pid)
        restarts = unsafe c.restarts
        sessionCount = unsafe c.session_count
        health = unsafe c.health.map { unsafe Health($0) }
        continuity = unsafe Continuity(c.continuity)
        resetReason = unsafe Field.text(c.reset_reason)
    }
}

extension Health {
    func write(into writer: inout MessageWriter) {
        writer.number(1, criticalWarning)
        writer.number(2, temperatureKelvin)
        writer.number(3, availableSparePercent)
        writer.number(4, usedPercent)
        writer.number(5, mediaErrors)
        writer.number(6, unsafeShutdowns)
        writer.number(7, powerOnHours)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__Health>) {
        let c = unsafe pointer.pointee
        self.init()
        criticalWarning = unsafe c.critical_warning
        temperatureKelvin = unsafe c.temperature_kelvin
        availableSparePercent = unsafe c.available_spare_percent
        usedPercent = unsafe c.used_percent
        mediaErrors = unsafe c.media_errors
        unsafeShutdowns = unsafe c.unsafe_shutdowns
        powerOnHours = unsafe c.power_on_hours
    }
}

extension SessionCounters {
    func write(into writer: inout MessageWriter) {
        writer.number(1, reads)
        writer.number(2, writes)
        writer.number(3, readBytes)
        writer.number(4, writtenBytes)
        writer.number(5, others)
        writer.number(6, errors)
        writer.number(7, inFlight)
    }

    init(_ c: UnsafePointer<Nvmed__V1__SessionCounters>?) {
        self.init()
        guard let c = unsafe c?.pointee else { return }
        reads = unsafe c.reads
        writes = unsafe c.writes
        readBytes = unsafe c.read_bytes
        writtenBytes = unsafe c.written_bytes
        others = unsafe c.others
        errors = unsafe c.errors
        inFlight = unsafe c.in_flight
    }
}

extension SessionInfo {
    func write(into writer: inout MessageWriter) {
        writer.number(1, sessionID)
        writer.text(2, disk)
        writer.text(3, device)
        writer.number(4, nsid)
        writer.number(5, access.rawValue)
        writer.flag(6, shared)
        writer.signed(7, clientPID)
        writer.number(8, clientUID)
        writer.number(9, openedNanoseconds)
        writer.message(10) { counters.write(into: &$0) }
        if let continuity { writer.message(11) { continuity.write(into: &$0) } }
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__SessionInfo>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            sessionID: try unsafe Field.need(
                c.has_session_id, c.session_id, "session.session_id"),
            disk: try unsafe Field.name(c.has_disk, c.disk, "session.disk"),
            access: try unsafe Field.needAccess(c.has_access, c.access, "session.access"))
        device = try unsafe Field.bytesText(c.device, "session.device")
        nsid = unsafe c.nsid
        shared = unsafe c.shared != 0
        clientPID = unsafe c.client_pid
        clientUID = unsafe c.client_uid
        openedNanoseconds = unsafe c.opened_ns
        counters = unsafe SessionCounters(c.counters)
        continuity = unsafe Continuity(c.continuity)
    }
}

extension InspectEntry {
    func write(into writer: inout MessageWriter) {
        writer.text(1, path)
        writer.text(2, value)
    }

    init(_ c: UnsafePointer<Nvmed__V1__InspectEntry>) throws(WireError) {
        self.init(
            try unsafe Field.bytesText(c.pointee.path, "entries.path"),
            try unsafe Field.bytesText(c.pointee.value, "entries.value"))
    }
}

extension Page {
    func write(
        into writer: inout MessageWriter, _ one: (Entry, inout MessageWriter) -> Void
    ) {
        for entry in entries { writer.message(1) { one(entry, &$0) } }
        writer.flag(2, more)
    }
}

/// Shared requests and replies, read the same way in two protocols.
enum Shared {
    static func sessions(
        _ c: UnsafePointer<Nvmed__V1__SessionList>
    ) throws(WireError) -> Page<SessionInfo> {
        Page(
            try unsafe Field.list(
                c.pointee.sessions, c.pointee.n_sessions, limit: WireLimits.pageEntryCount,
                "sessions"
            ) { element throws(WireError) in try unsafe SessionInfo(element) },
            more: unsafe c.pointee.more != 0)
    }

    static func inspect(
        _ c: UnsafePointer<Nvmed__V1__InspectReply>
    ) throws(WireError) -> Page<InspectEntry> {
        Page(
            try unsafe Field.list(
                c.pointee.entries, c.pointee.n_entries, limit: WireLimits.pageEntryCount, "entries"
            ) { element throws(WireError) in try unsafe InspectEntry(element) },
            more: unsafe c.pointee.more != 0)
    }

    static func inspectRequest(
        _ c: UnsafePointer<Nvmed__V1__Inspect>
    ) throws(WireError) -> (prefix: String, after: String?) {
        let after = try unsafe Field.bytesText(c.pointee.after, "inspect.after")
        return (
            try unsafe Field.bytesText(c.pointee.prefix, "inspect.prefix"),
            after.isEmpty ? nil : after
        )
    }

    static func closeSession(
        _ c: UnsafePointer<Nvmed__V1__CloseSession>
    ) throws(WireError) -> (sessionID: UInt64, reason: String) {
        (
            try unsafe Field.need(
                c.pointee.has_session_id, c.pointee.session_id, "close_session.session_id"),
            unsafe Field.text(c.pointee.reason)
        )
    }
}
