// SPDX-License-Identifier: Apache-2.0
// The opener protocol as protobuf (Proto/opener.proto).

internal import CProtobufC
internal import CWire

extension DeviceOpened {
    func write(into writer: inout MessageWriter) {
        writer.number(1, interface.rawValue)
        if addressSpace > 0 { writer.number(2, addressSpace) }
        writer.text(3, address)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__DeviceOpened>) throws(WireError) {
        let c = unsafe pointer.pointee
        let number = unsafe UInt32(truncatingIfNeeded: c.interface.rawValue)
        guard unsafe c.has_interface != 0, let interface = OpenedInterface(rawValue: number) else {
            throw WireError(
                .invalidArgument, "the interface is missing or unknown",
                field: "device_opened.interface")
        }
        self.init(
            interface: interface, addressSpace: unsafe c.address_space,
            address: try unsafe Field.bytesText(c.address, "device_opened.address"))
    }
}

extension OpenerProtocol {
    /// The descriptors of a device or of a pool come with it; a memory file comes with the wish to
    /// translate it.
    public static func fdCount(of content: Content<OpenerProtocol>) -> Int {
        switch content {
        case .reply(.deviceOpened(let opened)): opened.interface.descriptorCount
        case .reply(.poolOpened): 2
        case .request(.translateMemory): 1
        default: 0
        }
    }

    /// Reads an envelope.
    public static func read(
        _ head: UnsafeRawBufferPointer, arena: MessageArena
    ) throws(Rejection) -> (envelope: Envelope<OpenerProtocol>, fdCount: UInt32) {
        var id: UInt64 = 0
        do throws(WireError) {
            return try unsafe arena.withAllocator { allocator throws(WireError) in
                guard
                    let c = unsafe nvmed__v1__opener_envelope__unpack(
                        allocator, head.count, head.bindMemory(to: UInt8.self).baseAddress)
                else { throw Field.malformed }
                id = unsafe c.pointee.request_id
                try unsafe Field.checkVersion(c.pointee.has_version, c.pointee.version)
                let envelope = Envelope<OpenerProtocol>(
                    requestID: id,
                    deadlineNanoseconds: unsafe Field.optional(
                        c.pointee.has_deadline_ns, c.pointee.deadline_ns),
                    content: try unsafe content(of: c))
                return (envelope, unsafe c.pointee.fd_count)
            }
        } catch { throw Rejection(id, error) }
    }

    private static func content(
        of c: UnsafePointer<Nvmed__V1__OpenerEnvelope>
    ) throws(WireError) -> Content<OpenerProtocol> {
        if let error = unsafe c.pointee.error { return .failure(try unsafe WireError(error)) }
        if let request = try unsafe request(c) { return .request(request) }
        if let reply = try unsafe reply(c) { return .reply(reply) }
        throw unsafe Field.unknownBody(c.pointee.base)
    }

    private static func request(
        _ c: UnsafePointer<Nvmed__V1__OpenerEnvelope>
    ) throws(WireError) -> OpenerRequest? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__OPENER_ENVELOPE__BODY_OPEN_DEVICE:
            let m = try unsafe Field.need(c.pointee.open_device, "open_device").pointee
            return .openDevice(
                name: try unsafe Field.name(m.has_device, m.device, "open_device.device"),
                reset: unsafe m.reset != 0)
        case NVMED__V1__OPENER_ENVELOPE__BODY_SET_INTERRUPT_AFFINITY:
            let m = try unsafe Field.need(
                c.pointee.set_interrupt_affinity, "set_interrupt_affinity"
            ).pointee
            return .setInterruptAffinity(
                name: try unsafe Field.name(
                    m.has_device, m.device, "set_interrupt_affinity.device"))
        case NVMED__V1__OPENER_ENVELOPE__BODY_TRANSLATE_MEMORY:
            let m = try unsafe Field.need(c.pointee.translate_memory, "translate_memory").pointee
            return .translateMemory(
                name: try unsafe Field.name(m.has_device, m.device, "translate_memory.device"),
                byteCount: try unsafe Field.need(
                    m.has_byte_count, m.byte_count, "translate_memory.byte_count"),
                offset: unsafe m.offset)
        case NVMED__V1__OPENER_ENVELOPE__BODY_FIND_GUEST_MEMORY:
            let m = try unsafe Field.need(c.pointee.find_guest_memory, "find_guest_memory").pointee
            return .findGuestMemory(
                name: try unsafe Field.name(m.has_device, m.device, "find_guest_memory.device"))
        case NVMED__V1__OPENER_ENVELOPE__BODY_OPEN_POOL:
            let m = try unsafe Field.need(c.pointee.open_pool, "open_pool").pointee
            return .openPool(
                name: try unsafe Field.name(m.has_device, m.device, "open_pool.device"),
                byteCount: try unsafe Field.need(
                    m.has_byte_count, m.byte_count, "open_pool.byte_count"),
                isKept: unsafe m.kept != 0)
        default: return nil
        }
    }

    private static func reply(
        _ c: UnsafePointer<Nvmed__V1__OpenerEnvelope>
    ) throws(WireError) -> OpenerReply? {
        switch unsafe c.pointee.body_case {
        case NVMED__V1__OPENER_ENVELOPE__BODY_DONE: return .done
        case NVMED__V1__OPENER_ENVELOPE__BODY_DEVICE_OPENED:
            return .deviceOpened(
                try unsafe DeviceOpened(Field.need(c.pointee.device_opened, "device_opened")))
        case NVMED__V1__OPENER_ENVELOPE__BODY_MEMORY_TRANSLATED:
            let m = try unsafe Field.need(c.pointee.memory_translated, "memory_translated").pointee
            let count = unsafe m.n_physical_addresses
            guard count <= WireLimits.physicalPageCount else {
                throw WireError(
                    .invalidArgument,
                    "\(count) pages are more than \(WireLimits.physicalPageCount)",
                    field: "memory_translated.physical_addresses")
            }
            return .translated(
                pageByteCount: unsafe m.page_byte_count,
                addresses: unsafe Array(
                    UnsafeBufferPointer(start: m.physical_addresses, count: count)))
        case NVMED__V1__OPENER_ENVELOPE__BODY_GUEST_MEMORY_FOUND:
            return .guestMemory(
                try unsafe GuestMemoryFound(
                    Field.need(c.pointee.guest_memory_found, "guest_memory_found")))
        case NVMED__V1__OPENER_ENVELOPE__BODY_POOL_OPENED:
            let m = try unsafe Field.need(c.pointee.pool_opened, "pool_opened").pointee
            return .poolOpened(isClean: unsafe m.is_clean != 0)
        default: return nil
        }
    }

    // MARK: Writing

    /// Writes the body's field.
    public static func write(
        _ content: Content<OpenerProtocol>, into writer: inout MessageWriter
    ) {
        switch content {
        case .request(let request): write(request, &writer)
        case .reply(let reply): write(reply, &writer)
        case .failure, .event: break
        }
    }

    private static func write(_ request: OpenerRequest, _ w: inout MessageWriter) {
        switch request {
        case .openDevice(let name, let reset):
            w.message(20) {
                $0.text(1, name)
                $0.flag(2, reset)
            }
        case .setInterruptAffinity(let name): w.message(21) { $0.text(1, name) }
        case .translateMemory(let name, let byteCount, let offset):
            w.message(22) {
                $0.text(1, name)
                $0.number(2, byteCount)
                if offset > 0 { $0.number(3, offset) }
            }
        case .findGuestMemory(let name): w.message(23) { $0.text(1, name) }
        case .openPool(let name, let byteCount, let isKept):
            w.message(24) {
                $0.text(1, name)
                $0.number(2, byteCount)
                $0.flag(3, isKept)
            }
        }
    }

    private static func write(_ reply: OpenerReply, _ w: inout MessageWriter) {
        switch reply {
        case .done: w.message(60) { _ in }
        case .deviceOpened(let opened): w.message(61) { opened.write(into: &$0) }
        case .translated(let pageByteCount, let addresses):
            w.message(62) { w in
                w.number(1, pageByteCount)
                for address in addresses.prefix(WireLimits.physicalPageCount) {
                    w.number(2, address)
                }
            }
        case .guestMemory(let found): w.message(63) { found.write(into: &$0) }
        case .poolOpened(let isClean): w.message(64) { $0.flag(1, isClean) }
        }
    }
}
