// SPDX-License-Identifier: Apache-2.0
// The worker protocol as protobuf (Proto/worker.proto).

internal import CProtobufC
internal import CWire

extension DeviceConfig {
    func write(into writer: inout MessageWriter) {
        writer.text(1, name)
        switch transport {
        case .vfioUser(let path):
            writer.number(2, UInt32(1))
            writer.text(3, path)
        case .pci(let address):
            writer.number(2, UInt32(2))
            writer.text(3, address)
        case .null: writer.number(2, UInt32(3))
        }
        writer.number(4, queueCount)
        writer.number(5, queueDepth)
        writer.number(6, maxTransferByteCount)
        writer.number(7, poolByteCount)
        writer.number(8, ioTimeoutMilliseconds)
        writer.number(9, adminTimeoutMilliseconds)
        writer.number(10, iommu?.rawValue)
        if alwaysResets { writer.flag(11, true) }
        for processor in interruptAffinity.prefix(WireLimits.processorCount) {
            writer.number(12, processor)
        }
        writer.number(13, nullByteCount)
        writer.number(14, nullBlockByteCount)
        writer.number(15, spinNanoseconds)
        for processor in dataAffinity.prefix(WireLimits.processorCount) {
            writer.number(16, processor)
        }
        if let guestMemory { writer.message(17) { guestMemory.write(into: &$0) } }
        if keepAlive { writer.flag(18, true) }
        writer.number(19, poolBacking?.rawValue)
        writer.text(20, poolPath)
        guard let quirks else { return }
        if quirks.isEmpty { writer.number(21, DeviceQuirk.none) }
        for number in quirks.map(\.rawValue).sorted() { writer.number(21, number) }
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__DeviceConfig>) throws(WireError) {
        let c = unsafe pointer.pointee
        let address = try unsafe Field.bytesText(c.address, "config.address")
        let transport: Transport
        switch unsafe c.transport {
        case NVMED__V1__TRANSPORT__TRANSPORT_VFIO_USER: transport = .vfioUser(path: address)
        case NVMED__V1__TRANSPORT__TRANSPORT_PCI: transport = .pci(address: address)
        case NVMED__V1__TRANSPORT__TRANSPORT_NULL: transport = .null
        default:
            throw WireError(
                .invalidArgument, "the transport is missing or unknown", field: "config.transport")
        }
        guard transport == .null || !address.isEmpty else {
            throw WireError(.invalidArgument, "the address is missing", field: "config.address")
        }
        self.init(
            name: try unsafe Field.name(c.has_name, c.name, "config.name"), transport: transport)
        queueCount = unsafe Field.optional(c.has_queue_count, c.queue_count)
        queueDepth = unsafe Field.optional(c.has_queue_depth, c.queue_depth)
        maxTransferByteCount = unsafe Field.optional(
            c.has_max_transfer_byte_count, c.max_transfer_byte_count)
        poolByteCount = unsafe Field.optional(c.has_pool_byte_count, c.pool_byte_count)
        ioTimeoutMilliseconds = unsafe Field.optional(c.has_io_timeout_ms, c.io_timeout_ms)
        adminTimeoutMilliseconds = unsafe Field.optional(
            c.has_admin_timeout_ms, c.admin_timeout_ms)
        nullByteCount = unsafe Field.optional(c.has_null_byte_count, c.null_byte_count)
        nullBlockByteCount = unsafe Field.optional(
            c.has_null_block_byte_count, c.null_block_byte_count)
        spinNanoseconds = unsafe Field.optional(c.has_spin_ns, c.spin_ns)
        dataAffinity = try unsafe Self.processors(
            c.data_affinity, c.n_data_affinity, "config.data_affinity")
        try unsafe readPCI(c)
        try unsafe readPool(c)
        quirks = try unsafe Self.quirks(c.quirks, c.n_quirks)
    }

    private static func quirks(
        _ values: UnsafeMutablePointer<Nvmed__V1__Quirk>?, _ count: Int
    ) throws(WireError) -> Set<DeviceQuirk>? {
        func refused(_ what: String) -> WireError {
            WireError(.invalidArgument, what, field: "config.quirks")
        }
        guard count <= WireLimits.quirkCount else {
            throw refused("\(count) quirks are more than \(WireLimits.quirkCount)")
        }
        let numbers = unsafe UnsafeBufferPointer(start: values, count: count).map {
            UInt32(truncatingIfNeeded: $0.rawValue)
        }
        guard !numbers.isEmpty else { return nil }
        guard numbers != [DeviceQuirk.none] else { return [] }
        var quirks: Set<DeviceQuirk> = []
        for number in numbers {
            guard let quirk = DeviceQuirk(rawValue: number) else {
                throw refused("quirk \(number) is unknown, or not alone")
            }
            quirks.insert(quirk)
        }
        return quirks
    }

    private static func processors(
        _ numbers: UnsafeMutablePointer<UInt32>?, _ count: Int, _ field: String
    ) throws(WireError) -> [UInt32] {
        guard count <= WireLimits.processorCount else {
            throw WireError(
                .invalidArgument,
                "\(count) processors are more than \(WireLimits.processorCount)", field: field)
        }
        return unsafe Array(UnsafeBufferPointer(start: numbers, count: count))
    }
}

extension DeviceConfig {
    /// The fields that PCI devices have.
    private mutating func readPCI(_ c: Nvmed__V1__DeviceConfig) throws(WireError) {
        if unsafe c.has_iommu != 0, unsafe c.iommu.rawValue != 0 {
            let number = unsafe UInt32(truncatingIfNeeded: c.iommu.rawValue)
            guard let mode = TranslationMode(rawValue: number) else {
                throw WireError(
                    .invalidArgument, "translation mode \(number) is unknown",
                    field: "config.iommu")
            }
            iommu = mode
        }
        alwaysResets = unsafe c.always_reset != 0
        interruptAffinity = try unsafe Self.processors(
            c.interrupt_affinity, c.n_interrupt_affinity, "config.interrupt_affinity")
        if let place = unsafe c.guest_memory { guestMemory = try unsafe GuestMemoryPlace(place) }
    }
}

extension DeviceConfig {
    /// What servicing needs.
    private mutating func readPool(_ c: Nvmed__V1__DeviceConfig) throws(WireError) {
        keepAlive = unsafe c.keep_alive != 0
        if unsafe c.has_pool_backing != 0, unsafe c.pool_backing.rawValue != 0 {
            let number = unsafe UInt32(truncatingIfNeeded: c.pool_backing.rawValue)
            guard let backing = PoolBacking(rawValue: number) else {
                throw WireError(
                    .invalidArgument, "pool backing \(number) is unknown",
                    field: "config.pool_backing")
            }
            poolBacking = backing
        }
        let path = try unsafe Field.bytesText(c.pool_path, "config.pool_path")
        poolPath = path.isEmpty ? nil : path
        guard poolPath != nil || poolBacking == nil || poolBacking == .memfd else {
            throw WireError(
                .invalidArgument, "a pool in a file needs a path", field: "config.pool_path")
        }
    }
}

extension ControllerInfo {
    func write(into writer: inout MessageWriter) {
        writer.text(1, serial)
        writer.text(2, model)
        writer.text(3, firmware)
        writer.number(4, vendorID)
        writer.number(5, controllerID)
        writer.number(6, nvmeVersion)
        writer.number(7, maxTransferByteCount)
        writer.number(8, queueCount)
        writer.number(9, queueDepth)
        writer.flag(10, volatileWriteCache)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__ControllerInfo>?) throws(WireError) {
        self.init()
        guard let c = unsafe pointer?.pointee else { return }
        serial = try unsafe Field.bytesText(c.serial, "controller.serial")
        model = try unsafe Field.bytesText(c.model, "controller.model")
        firmware = try unsafe Field.bytesText(c.firmware, "controller.firmware")
        vendorID = unsafe c.vendor_id
        controllerID = unsafe c.controller_id
        nvmeVersion = unsafe c.nvme_version
        maxTransferByteCount = unsafe c.max_transfer_byte_count
        queueCount = unsafe c.queue_count
        queueDepth = unsafe c.queue_depth
        volatileWriteCache = unsafe c.volatile_write_cache != 0
    }
}

extension DeviceReady {
    func write(into writer: inout MessageWriter) {
        writer.message(1) { controller.write(into: &$0) }
        for namespace in namespaces.prefix(WireLimits.namespaceCount) {
            writer.message(2) { namespace.write(into: &$0) }
        }
        writer.number(3, bringUpNanoseconds)
        writer.number(4, generation)
        if descriptorCount > 0 { writer.number(5, descriptorCount) }
        if let continuity { writer.message(6) { continuity.write(into: &$0) } }
        writer.text(7, resetReason)
        writer.flag(8, restored)
        writer.text(9, coldReason)
    }

    init(_ c: UnsafePointer<Nvmed__V1__DeviceReady>) throws(WireError) {
        self.init(
            controller: try unsafe ControllerInfo(c.pointee.controller),
            namespaces: try unsafe Field.list(
                c.pointee.namespaces, c.pointee.n_namespaces, limit: WireLimits.namespaceCount,
                "device_ready.namespaces"
            ) { element throws(WireError) in try unsafe NamespaceInfo(element) },
            bringUpNanoseconds: unsafe c.pointee.bring_up_ns,
            generation: unsafe c.pointee.generation)
        descriptorCount = unsafe c.pointee.descriptor_count
        continuity = unsafe Continuity(c.pointee.continuity)
        resetReason = unsafe Field.text(c.pointee.reset_reason)
        restored = unsafe c.pointee.restored != 0
        coldReason = unsafe Field.text(c.pointee.cold_reason)
        guard Int(descriptorCount) <= WireLimits.fdCount else {
            throw WireError(
                .invalidArgument, "\(descriptorCount) descriptors are more than a message carries",
                field: "device_ready.descriptor_count")
        }
    }
}

extension WorkerDevice {
    func write(into writer: inout MessageWriter) {
        writer.number(1, state.rawValue)
        writer.text(2, reason)
        if let config { writer.message(3) { config.write(into: &$0) } }
        if let ready { writer.message(4) { ready.write(into: &$0) } }
        writer.signed(5, workerPID)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__WorkerDevice>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(state: unsafe Field.state(c.state))
        reason = unsafe Field.text(c.reason)
        if let message = unsafe c.config { config = try unsafe DeviceConfig(message) }
        if let message = unsafe c.ready { ready = try unsafe DeviceReady(message) }
        workerPID = unsafe c.worker_pid
    }
}

extension OpenSession {
    func write(into writer: inout MessageWriter) {
        writer.number(1, sessionID)
        writer.number(2, nsid)
        writer.number(3, access.rawValue)
        writer.flag(4, shared)
        writer.text(5, disk)
        writer.signed(6, clientPID)
        writer.number(7, clientUID)
        if requestsPerSecondMax > 0 { writer.number(8, requestsPerSecondMax) }
        if bytesPerSecondMax > 0 { writer.number(9, bytesPerSecondMax) }
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__OpenSession>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            sessionID: try unsafe Field.need(
                c.has_session_id, c.session_id, "open_session.session_id"),
            nsid: try unsafe Field.need(c.has_nsid, c.nsid, "open_session.nsid"),
            access: try unsafe Field.needAccess(c.has_access, c.access, "open_session.access"),
            shared: unsafe c.shared != 0,
            disk: try unsafe Field.name(c.has_disk, c.disk, "open_session.disk"),
            clientPID: unsafe c.client_pid, clientUID: unsafe c.client_uid)
        requestsPerSecondMax = unsafe c.iops_limit
        bytesPerSecondMax = unsafe c.bytes_per_second_limit
    }
}

extension WorkerProtocol {
    /// One descriptor comes with an opened session and with a saved state, either way; with a
    /// device that is ready, as many as it says.
    public static func fdCount(of content: Content<WorkerProtocol>) -> Int {
        switch content {
        case .reply(.sessionOpened), .reply(.statistics), .reply(.saved): 1
        case .request(.loadDriver(_, let savedState)): savedState ? 1 : 0
        case .reply(.deviceReady(let ready)): Int(ready.descriptorCount)
        default: 0
        }
    }

    /// Reads an envelope.
    public static func read(
        _ head: UnsafeRawBufferPointer, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<WorkerProtocol>, fdCount: UInt32) {
        var id: UInt64 = 0
        do throws(WireError) {
            return try unsafe arena.withAllocator { allocator throws(WireError) in
                guard
                    let c = unsafe nvmed__v1__worker_envelope__unpack(
                        allocator, head.count, head.bindMemory(to: UInt8.self).baseAddress)
                else { throw Field.malformed }
                id = unsafe c.pointee.request_id
                try unsafe Field.checkVersion(c.pointee.has_version, c.pointee.version)
                let envelope = Envelope<WorkerProtocol>(
                    requestID: id,
                    deadlineNanoseconds: unsafe Field.optional(
                        c.pointee.has_deadline_ns, c.pointee.deadline_ns),
                    content: try unsafe content(of: c))
                return (envelope, unsafe c.pointee.fd_count)
            }
        } catch { throw Rejection(id, error) }
    }

    private static func content(
        of c: UnsafePointer<Nvmed__V1__WorkerEnvelope>
    ) throws(WireError) -> Content<WorkerProtocol> {
        if let error = unsafe c.pointee.error { return .failure(try unsafe WireError(error)) }
        if let request = try unsafe request(c) { return .request(request) }
        if let reply = try unsafe reply(c) { return .reply(reply) }
        if let event = try unsafe event(c) { return .event(event) }
        throw unsafe Field.unknownBody(c.pointee.base)
    }

    private static func request(
        _ c: UnsafePointer<Nvmed__V1__WorkerEnvelope>
    ) throws(WireError) -> WorkerRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__WORKER_ENVELOPE__BODY_LOAD_DRIVER:
            let m = try unsafe Field.need(c.pointee.load_driver, "load_driver")
            return .loadDriver(
                try unsafe DeviceConfig(Field.need(m.pointee.config, "load_driver.config")),
                savedState: unsafe m.pointee.saved_state != 0)
        case NVMED__V1__WORKER_ENVELOPE__BODY_GET_DEVICE: return .getDevice
        case NVMED__V1__WORKER_ENVELOPE__BODY_GET_NAMESPACE:
            let m = try unsafe Field.need(c.pointee.get_namespace, "get_namespace").pointee
            return .getNamespace(
                nsid: try unsafe Field.need(m.has_nsid, m.nsid, "get_namespace.nsid"))
        case NVMED__V1__WORKER_ENVELOPE__BODY_OPEN_SESSION:
            return .openSession(
                try unsafe OpenSession(Field.need(c.pointee.open_session, "open_session")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_CLOSE_SESSION:
            let (id, reason) = try unsafe Shared.closeSession(
                Field.need(c.pointee.close_session, "close_session"))
            return .closeSession(sessionID: id, reason: reason)
        case NVMED__V1__WORKER_ENVELOPE__BODY_LIST_SESSIONS:
            let m = try unsafe Field.need(c.pointee.list_sessions, "list_sessions").pointee
            return .listSessions(after: unsafe Field.optional(m.has_after, m.after))
        case NVMED__V1__WORKER_ENVELOPE__BODY_INSPECT:
            let (prefix, after) = try unsafe Shared.inspectRequest(
                Field.need(c.pointee.inspect, "inspect"))
            return .inspect(prefix: prefix, after: after)
        case NVMED__V1__WORKER_ENVELOPE__BODY_SHUTDOWN:
            let m = try unsafe Field.need(c.pointee.shutdown, "shutdown")
            return try unsafe shutdown(m.pointee)
        case NVMED__V1__WORKER_ENVELOPE__BODY_OPEN_STATISTICS: return .openStatistics
        case NVMED__V1__WORKER_ENVELOPE__BODY_SAVE:
            return .save(try unsafe SaveDevice(Field.need(c.pointee.save, "save")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_THAW: return .thaw
        default: return nil
        }
    }

    private static func shutdown(
        _ m: Nvmed__V1__WorkerShutdown
    ) throws(WireError) -> WorkerRequest {
        let (doNotReset, saved) = unsafe (m.do_not_reset != 0, m.saved != 0)
        guard doNotReset || !saved else {
            throw WireError(
                .invalidArgument,
                "what is saved may not be reset: shutdown.saved goes only with "
                    + "do_not_reset", field: "shutdown.saved")
        }
        return .shutdown(doNotReset: doNotReset, saved: saved)
    }

    private static func reply(
        _ c: UnsafePointer<Nvmed__V1__WorkerEnvelope>
    ) throws(WireError) -> WorkerReply? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__WORKER_ENVELOPE__BODY_DONE: return .done
        case NVMED__V1__WORKER_ENVELOPE__BODY_DEVICE_READY:
            return .deviceReady(
                try unsafe DeviceReady(Field.need(c.pointee.device_ready, "device_ready")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_NAMESPACE_INFO:
            return .namespace(
                try unsafe NamespaceInfo(Field.need(c.pointee.namespace_info, "namespace_info")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_SESSION_OPENED:
            let m = try unsafe Field.need(c.pointee.session_opened, "session_opened")
            return .sessionOpened(
                try unsafe DiskInfo(Field.need(m.pointee.info, "session_opened.info")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_SESSION_LIST:
            return .sessions(
                try unsafe Shared.sessions(Field.need(c.pointee.session_list, "session_list")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_INSPECT_REPLY:
            return .inspect(
                try unsafe Shared.inspect(Field.need(c.pointee.inspect_reply, "inspect_reply")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_DEVICE:
            return .device(try unsafe WorkerDevice(Field.need(c.pointee.device, "device")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_STATISTICS_OPENED:
            let m = try unsafe Field.need(c.pointee.statistics_opened, "statistics_opened")
            return .statistics(byteCount: unsafe m.pointee.byte_count)
        case NVMED__V1__WORKER_ENVELOPE__BODY_SAVED:
            return .saved(try unsafe DeviceSaved(Field.need(c.pointee.saved, "saved")))
        default: return nil
        }
    }

    private static func event(
        _ c: UnsafePointer<Nvmed__V1__WorkerEnvelope>
    ) throws(WireError) -> WorkerEvent? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__WORKER_ENVELOPE__BODY_STATE_CHANGED:
            let m = try unsafe Field.need(c.pointee.state_changed, "state_changed").pointee
            return unsafe .stateChanged(Field.state(m.state), reason: Field.text(m.reason))
        case NVMED__V1__WORKER_ENVELOPE__BODY_NAMESPACE_CHANGED:
            let m = try unsafe Field.need(c.pointee.namespace_changed, "namespace_changed").pointee
            return .namespaceChanged(
                nsid: try unsafe Field.need(m.has_nsid, m.nsid, "namespace_changed.nsid"))
        case NVMED__V1__WORKER_ENVELOPE__BODY_HEALTH:
            return unsafe .health(Health(try unsafe Field.need(c.pointee.health, "health")))
        case NVMED__V1__WORKER_ENVELOPE__BODY_SESSION_ENDED:
            let m = try unsafe Field.need(c.pointee.session_ended, "session_ended").pointee
            return .sessionEnded(
                sessionID: try unsafe Field.need(
                    m.has_session_id, m.session_id, "session_ended.session_id"),
                reason: try unsafe WireError(Field.need(m.reason, "session_ended.reason")),
                counters: unsafe SessionCounters(m.counters))
        default: return nil
        }
    }

    // MARK: Writing

    /// Writes the body's field.
    public static func write(
        _ content: Content<WorkerProtocol>, into writer: inout MessageWriter
    ) {
        switch content {
        case .request(let request): write(request, &writer)
        case .reply(let reply): write(reply, &writer)
        case .event(let event): write(event, &writer)
        case .failure: break
        }
    }

    private static func write(_ request: WorkerRequest, _ w: inout MessageWriter) {
        switch request {
        case .loadDriver(let config, let savedState):
            w.message(20) { w in
                w.message(1) { config.write(into: &$0) }
                w.flag(2, savedState)
            }
        case .getDevice: w.message(21) { _ in }
        case .getNamespace(let nsid): w.message(22) { $0.number(1, nsid) }
        case .openSession(let session): w.message(23) { session.write(into: &$0) }
        case .closeSession(let sessionID, let reason):
            w.message(24) {
                $0.number(1, sessionID)
                $0.text(2, reason)
            }
        case .listSessions(let after): w.message(25) { $0.number(1, after) }
        case .inspect(let prefix, let after):
            w.message(26) {
                $0.text(1, prefix)
                $0.text(2, after)
            }
        case .shutdown(let doNotReset, let saved):
            w.message(27) {
                $0.flag(1, doNotReset)
                $0.flag(2, saved)
            }
        case .openStatistics: w.message(28) { _ in }
        case .save(let save): w.message(29) { save.write(into: &$0) }
        case .thaw: w.message(30) { _ in }
        }
    }

    private static func write(_ reply: WorkerReply, _ w: inout MessageWriter) {
        switch reply {
        case .done: w.message(60) { _ in }
        case .deviceReady(let ready): w.message(61) { ready.write(into: &$0) }
        case .namespace(let namespace): w.message(62) { namespace.write(into: &$0) }
        case .sessionOpened(let info):
            w.message(63) { w in w.message(1) { info.write(into: &$0) } }
        case .sessions(let page):
            w.message(64) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .inspect(let page): w.message(65) { page.write(into: &$0) { $0.write(into: &$1) } }
        case .device(let device): w.message(66) { device.write(into: &$0) }
        case .statistics(let byteCount): w.message(67) { $0.number(1, byteCount) }
        case .saved(let saved): w.message(68) { saved.write(into: &$0) }
        }
    }

    private static func write(_ event: WorkerEvent, _ w: inout MessageWriter) {
        switch event {
        case .stateChanged(let state, let reason):
            w.message(90) {
                $0.number(1, state.rawValue)
                $0.text(2, reason)
            }
        case .namespaceChanged(let nsid): w.message(91) { $0.number(1, nsid) }
        case .health(let health):
            w.message(92) { health.write(into: &$0) }
        case .sessionEnded(let sessionID, let reason, let counters):
            w.message(93) { w in
                w.number(1, sessionID)
                w.message(2) { reason.write(into: &$0) }
                w.message(3) { counters.write(into: &$0) }
            }
        }
    }
}
