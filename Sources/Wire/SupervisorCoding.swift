// SPDX-License-Identifier: Apache-2.0
// The supervisor protocol as protobuf (Proto/supervisor.proto).

internal import CProtobufC
internal import CWire

extension DiskEntry {
    func write(into writer: inout MessageWriter) {
        writer.text(1, name)
        writer.text(2, device)
        if nsid != 0 { writer.number(3, nsid) }
        writer.number(4, access.rawValue)
        writer.flag(5, shared)
        if blockByteCount != 0 { writer.number(6, blockByteCount) }
        if blockCount != 0 { writer.number(7, blockCount) }
        writer.number(8, sessionCount)
        writer.text(9, problem)
        if let continuity { writer.message(10) { continuity.write(into: &$0) } }
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__DiskEntry>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            name: try unsafe Field.name(c.has_name, c.name, "disks.name"),
            access: try unsafe Field.needAccess(c.has_access, c.access, "disks.access"))
        device = try unsafe Field.bytesText(c.device, "disks.device")
        nsid = unsafe c.nsid
        shared = unsafe c.shared != 0
        blockByteCount = unsafe c.block_byte_count
        blockCount = unsafe c.block_count
        sessionCount = unsafe c.session_count
        problem = unsafe Field.text(c.problem)
        continuity = unsafe Continuity(c.continuity)
    }
}

extension SupervisorProtocol {
    /// One descriptor comes with an opened disk, and with statistics.
    public static func fdCount(of content: Content<SupervisorProtocol>) -> Int {
        switch content {
        case .reply(.diskOpened), .reply(.statistics): 1
        default: 0
        }
    }

    /// Reads an envelope.
    public static func read(
        _ head: UnsafeRawBufferPointer, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<SupervisorProtocol>, fdCount: UInt32) {
        var id: UInt64 = 0
        do throws(WireError) {
            return try unsafe arena.withAllocator { allocator throws(WireError) in
                guard
                    let c = unsafe nvmed__v1__supervisor_envelope__unpack(
                        allocator, head.count, head.bindMemory(to: UInt8.self).baseAddress)
                else { throw Field.malformed }
                id = unsafe c.pointee.request_id
                try unsafe Field.checkVersion(c.pointee.has_version, c.pointee.version)
                let envelope = Envelope<SupervisorProtocol>(
                    requestID: id,
                    deadlineNanoseconds: unsafe Field.optional(
                        c.pointee.has_deadline_ns, c.pointee.deadline_ns),
                    content: try unsafe content(of: c))
                return (envelope, unsafe c.pointee.fd_count)
            }
        } catch { throw Rejection(id, error) }
    }

    private static func content(
        of c: UnsafePointer<Nvmed__V1__SupervisorEnvelope>
    ) throws(WireError) -> Content<SupervisorProtocol> {
        if let error = unsafe c.pointee.error { return .failure(try unsafe WireError(error)) }
        if let request = try unsafe request(c) { return .request(request) }
        if let reply = try unsafe reply(c) { return .reply(reply) }
        throw unsafe Field.unknownBody(c.pointee.base)
    }

    private static func request(
        _ c: UnsafePointer<Nvmed__V1__SupervisorEnvelope>
    ) throws(WireError) -> SupervisorRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_LIST_DEVICES:
            let m = try unsafe Field.need(c.pointee.list_devices, "list_devices").pointee
            return .listDevices(
                name: try unsafe Field.optionalName(m.has_name, m.name, "list_devices.name"),
                after: try unsafe Field.optionalName(m.has_after, m.after, "list_devices.after"))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_LIST_DISKS:
            let m = try unsafe Field.need(c.pointee.list_disks, "list_disks").pointee
            return .listDisks(
                name: try unsafe Field.optionalName(m.has_name, m.name, "list_disks.name"),
                after: try unsafe Field.optionalName(m.has_after, m.after, "list_disks.after"))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_OPEN_DISK:
            let m = try unsafe Field.need(c.pointee.open_disk, "open_disk").pointee
            return .openDisk(
                name: try unsafe Field.name(m.has_name, m.name, "open_disk.name"),
                access: try unsafe Field.access(m.has_access, m.access, "open_disk.access"))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_LIST_SESSIONS:
            let m = try unsafe Field.need(c.pointee.list_sessions, "list_sessions").pointee
            return .listSessions(after: unsafe Field.optional(m.has_after, m.after))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_CLOSE_SESSION:
            let (id, reason) = try unsafe Shared.closeSession(
                Field.need(c.pointee.close_session, "close_session"))
            return .closeSession(sessionID: id, reason: reason)
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_INSPECT:
            let (prefix, after) = try unsafe Shared.inspectRequest(
                Field.need(c.pointee.inspect, "inspect"))
            return .inspect(prefix: prefix, after: after)
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_RELOAD: return .reload
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_RETRY_DEVICE:
            let m = try unsafe Field.need(c.pointee.retry_device, "retry_device").pointee
            return .retryDevice(
                name: try unsafe Field.name(m.has_name, m.name, "retry_device.name"))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SHUTDOWN: return .shutdown
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_RELEASE_DEVICE:
            let m = try unsafe Field.need(c.pointee.release_device, "release_device").pointee
            return .releaseDevice(
                name: try unsafe Field.name(m.has_name, m.name, "release_device.name"),
                reason: unsafe Field.text(m.reason),
                undo: unsafe m.undo != 0)
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_OPEN_STATISTICS:
            let m = try unsafe Field.need(c.pointee.open_statistics, "open_statistics").pointee
            return .openStatistics(
                device: try unsafe Field.name(m.has_device, m.device, "open_statistics.device"))
        default: return try unsafe servicing(c)
        }
    }

    private static func servicing(
        _ c: UnsafePointer<Nvmed__V1__SupervisorEnvelope>
    ) throws(WireError) -> SupervisorRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SERVICING_SAVE:
            let m = try unsafe Field.need(c.pointee.servicing_save, "servicing_save").pointee
            return .servicingSave(
                deadlineNanoseconds: unsafe Field.optional(m.has_deadline_ns, m.deadline_ns),
                allOrNothing: unsafe m.all_or_nothing != 0)
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SERVICING_CANCEL: return .servicingCancel
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SERVICING_RESTORE: return .servicingRestore
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_GET_SERVICING:
            let m = try unsafe Field.need(c.pointee.get_servicing, "get_servicing").pointee
            return .getServicing(
                after: try unsafe Field.optionalName(m.has_after, m.after, "get_servicing.after"))
        default: return nil
        }
    }

    private static func reply(
        _ c: UnsafePointer<Nvmed__V1__SupervisorEnvelope>
    ) throws(WireError) -> SupervisorReply? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_DONE: return .done
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_DEVICE_LIST:
            let m = try unsafe Field.need(c.pointee.device_list, "device_list").pointee
            let devices = try unsafe Field.list(
                m.devices, m.n_devices, limit: WireLimits.pageEntryCount, "devices"
            ) { element throws(WireError) in try unsafe DeviceInfo(element) }
            return .devices(Page(devices, more: unsafe m.more != 0))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_DISK_LIST:
            let m = try unsafe Field.need(c.pointee.disk_list, "disk_list").pointee
            let disks = try unsafe Field.list(
                m.disks, m.n_disks, limit: WireLimits.pageEntryCount, "disks"
            ) { element throws(WireError) in try unsafe DiskEntry(element) }
            return .disks(Page(disks, more: unsafe m.more != 0))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_DISK_OPENED:
            let m = try unsafe Field.need(c.pointee.disk_opened, "disk_opened").pointee
            let info = unsafe m.info
            return .diskOpened(
                sessionID: unsafe m.session_id,
                unsafe info == nil ? nil : try unsafe DiskInfo(Field.need(info, "info")))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SESSION_LIST:
            return .sessions(
                try unsafe Shared.sessions(Field.need(c.pointee.session_list, "session_list")))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_INSPECT_REPLY:
            return .inspect(
                try unsafe Shared.inspect(Field.need(c.pointee.inspect_reply, "inspect_reply")))
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_RELOAD_REPLY:
            let m = try unsafe Field.need(c.pointee.reload_reply, "reload_reply").pointee
            let warnings = try unsafe Field.list(
                m.warnings, m.n_warnings, limit: WireLimits.pageEntryCount, "warnings"
            ) { text throws(WireError) in unsafe Field.text(text) }
            return .reloaded(warnings: warnings.filter { !$0.isEmpty })
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_STATISTICS_OPENED:
            let m = try unsafe Field.need(c.pointee.statistics_opened, "statistics_opened")
            return .statistics(byteCount: unsafe m.pointee.byte_count)
        case NVMED__V1__SUPERVISOR_ENVELOPE__BODY_SERVICING_STATUS:
            return .servicing(
                try unsafe ServicingStatus(
                    Field.need(c.pointee.servicing_status, "servicing_status")))
        default: return nil
        }
    }

    // MARK: Writing

    /// Writes the body's field.
    public static func write(
        _ content: Content<SupervisorProtocol>, into writer: inout MessageWriter
    ) {
        switch content {
        case .request(let request): write(request, &writer)
        case .reply(let reply): write(reply, &writer)
        case .failure, .event: break
        }
    }

    private static func write(_ request: SupervisorRequest, _ w: inout MessageWriter) {
        switch request {
        case .listDevices(let name, let after):
            w.message(20) {
                $0.text(1, after)
                $0.text(2, name)
            }
        case .listDisks(let name, let after):
            w.message(21) {
                $0.text(1, after)
                $0.text(2, name)
            }
        case .openDisk(let name, let access):
            w.message(22) {
                $0.text(1, name)
                $0.number(2, access?.rawValue)
            }
        case .listSessions(let after): w.message(23) { $0.number(1, after) }
        case .closeSession(let sessionID, let reason):
            w.message(24) {
                $0.number(1, sessionID)
                $0.text(2, reason)
            }
        case .inspect(let prefix, let after):
            w.message(25) {
                $0.text(1, prefix)
                $0.text(2, after)
            }
        case .reload: w.message(26) { _ in }
        case .retryDevice(let name): w.message(27) { $0.text(1, name) }
        case .shutdown: w.message(28) { _ in }
        case .releaseDevice(let name, let reason, let undo):
            w.message(29) {
                $0.text(1, name)
                $0.text(2, reason)
                $0.flag(3, undo)
            }
        case .openStatistics(let device): w.message(30) { $0.text(1, device) }
        case .servicingSave(let deadline, let allOrNothing):
            w.message(31) {
                $0.number(1, deadline)
                $0.flag(2, allOrNothing)
            }
        case .servicingCancel: w.message(32) { _ in }
        case .getServicing(let after): w.message(33) { $0.text(1, after) }
        case .servicingRestore: w.message(34) { _ in }
        }
    }

    private static func write(_ reply: SupervisorReply, _ w: inout MessageWriter) {
        switch reply {
        case .done: w.message(60) { _ in }
        case .devices(let page):
            w.message(61) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .disks(let page): w.message(62) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .diskOpened(let sessionID, let info):
            w.message(63) { w in
                w.number(1, sessionID)
                if let info { w.message(2) { info.write(into: &$0) } }
            }
        case .sessions(let page):
            w.message(64) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .inspect(let page): w.message(65) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .reloaded(let warnings):
            w.message(66) { w in
                for warning in warnings.prefix(WireLimits.pageEntryCount) { w.text(1, warning) }
            }
        case .statistics(let byteCount): w.message(67) { $0.number(1, byteCount) }
        case .servicing(let status): w.message(68) { status.write(into: &$0) }
        }
    }
}
