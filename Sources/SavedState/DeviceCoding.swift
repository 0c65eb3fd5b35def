// SPDX-License-Identifier: Apache-2.0
// Host, device, pool and sessions as protobuf (Proto/saved.proto).

internal import CProtobufC
internal import CWire

extension SavedHost {
    func write(into writer: inout ProtobufWriter) {
        writer.text(1, machineID)
        writer.text(2, bootID)
        writer.text(3, version)
        writer.number(4, savedAtRealtimeNanoseconds)
        writer.number(5, generation)
        for name in deviceNames { writer.bytes(6, name.utf8) }
        writer.unknown(unknown)
    }

    init(payload: ArraySlice<UInt8>) throws(FieldProblem) {
        self = try unsafe Unpacking.read(payload, nvmed__v1__saved_host__unpack) {
            c throws(FieldProblem) in
            let c = unsafe c.pointee
            var host = try unsafe SavedHost(
                machineID: SavedField.text(c.machine_id, "machine_id"),
                bootID: SavedField.text(c.boot_id, "boot_id"),
                version: SavedField.text(c.version, "version"),
                savedAtRealtimeNanoseconds: c.saved_at_ns, generation: c.generation)
            guard unsafe c.n_device_names <= SavedLimits.deviceCount else {
                throw unsafe FieldProblem("device_names", "are \(c.n_device_names)")
            }
            for index in 0..<Int(unsafe c.n_device_names) {
                guard let name = unsafe c.device_names?[index] else { continue }
                host.deviceNames.append(
                    try unsafe SavedField.text(
                        name, "device_names", limit: SavedLimits.nameByteCount))
            }
            host.unknown = try unsafe SavedField.unknown(c.base)
            return host
        }
    }
}

extension SavedDevice {
    func write(into writer: inout ProtobufWriter) {
        writer.text(1, name)
        writer.number(2, transport.rawValue)
        writer.text(3, address)
        if !configuration.isEmpty { writer.bytes(4, configuration) }
        writer.bytes(5, token.bytes)
        writer.number(6, generation)
        writer.message(7) { identity.write(into: &$0) }
        writer.message(8) { controller.write(into: &$0) }
        writer.message(9) { pool.write(into: &$0) }
        for session in sessions { writer.message(10) { session.write(into: &$0) } }
        writer.unknown(unknown)
    }

    init(payload: ArraySlice<UInt8>) throws(FieldProblem) {
        self = try unsafe Unpacking.read(payload, nvmed__v1__saved_device__unpack) {
            c throws(FieldProblem) in
            try unsafe SavedDevice(c.pointee)
        }
    }

    private init(_ c: Nvmed__V1__SavedDevice) throws(FieldProblem) {
        let number = unsafe c.transport.rawValue
        guard unsafe c.has_transport != 0,
            let transport = SavedTransport(rawValue: UInt32(truncatingIfNeeded: number))
        else { throw FieldProblem("transport", "is missing or not known") }
        let bytes = try unsafe SavedField.bytes(c.token, SaveToken.byteCount, "token")
        guard let token = SaveToken(bytes: bytes) else {
            throw FieldProblem("token", "is not one")
        }
        try unsafe self.init(
            name: SavedField.text(c.name, "name", limit: SavedLimits.nameByteCount),
            transport: transport, address: SavedField.text(c.address, "address"),
            configuration: SavedField.bytes(
                c.configuration, SavedLimits.configurationByteCount, "configuration"),
            token: token, generation: c.generation,
            identity: SavedIdentity(SavedField.need(c.identity, "identity").pointee),
            controller: SavedController(SavedField.need(c.controller, "controller").pointee),
            pool: SavedPool(SavedField.need(c.pool, "pool").pointee),
            sessions: SavedField.list(
                c.sessions, c.n_sessions, limit: SavedLimits.sessionCount, "sessions"
            ) { s throws(FieldProblem) in try unsafe SavedSession(s.pointee) })
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedIdentity {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, vendorID)
        if let deviceID { writer.present(2, deviceID) }
        writer.text(3, serial)
        writer.text(4, model)
        writer.text(5, firmware)
        writer.number(6, controllerID)
        if let pciVendorID { writer.present(7, pciVendorID) }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedIdentity) throws(FieldProblem) {
        try unsafe self.init(
            vendorID: c.vendor_id, deviceID: c.has_device_id != 0 ? c.device_id : nil,
            pciVendorID: c.has_pci_vendor_id != 0 ? c.pci_vendor_id : nil,
            serial: SavedField.text(c.serial, "identity.serial"),
            model: SavedField.text(c.model, "identity.model"),
            firmware: SavedField.text(c.firmware, "identity.firmware"),
            controllerID: c.controller_id)
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedSession {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, key)
        writer.number(2, id)
        if !opening.isEmpty { writer.bytes(3, opening) }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedSession) throws(FieldProblem) {
        try unsafe self.init(
            key: c.key, id: c.id,
            opening: SavedField.bytes(
                c.opening, SavedLimits.openingByteCount, "sessions.opening"))
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedPool {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, backing.rawValue)
        writer.text(2, path)
        writer.number(3, byteCount)
        writer.number(4, offset)
        for run in runs {
            writer.message(5) {
                $0.number(1, run.address)
                $0.number(2, run.byteCount)
                $0.unknown(run.unknown)
            }
        }
        for slot in slots { writer.message(6) { slot.write(into: &$0) } }
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedPool) throws(FieldProblem) {
        let number = unsafe c.backing.rawValue
        guard unsafe c.has_backing != 0,
            let backing = SavedBacking(rawValue: UInt32(truncatingIfNeeded: number))
        else { throw FieldProblem("pool.backing", "is missing or not known") }
        try unsafe self.init(
            backing: backing, path: SavedField.text(c.path, "pool.path"),
            byteCount: c.byte_count, offset: c.offset,
            runs: SavedField.list(
                c.runs, c.n_runs, limit: SavedLimits.poolEntryCount, "pool.runs"
            ) { r throws(FieldProblem) in
                var run = unsafe SavedRun(
                    address: r.pointee.address, byteCount: r.pointee.byte_count)
                run.unknown = try unsafe SavedField.unknown(r.pointee.base)
                return run
            },
            slots: SavedField.list(
                c.slots, c.n_slots, limit: SavedLimits.poolEntryCount, "pool.slots"
            ) { s throws(FieldProblem) in try unsafe SavedSlot(s.pointee) })
        unknown = try unsafe SavedField.unknown(c.base)
    }
}

extension SavedSlot {
    func write(into writer: inout ProtobufWriter) {
        writer.number(1, firstPage)
        writer.number(2, pageCount)
        writer.text(3, owner)
        writer.text(4, tag)
        writer.number(5, state)
        writer.unknown(unknown)
    }

    init(_ c: Nvmed__V1__SavedSlot) throws(FieldProblem) {
        let limit = SavedLimits.nameByteCount
        try unsafe self.init(
            firstPage: c.first_page, pageCount: c.page_count,
            owner: SavedField.text(c.owner, "pool.slots.owner", limit: limit),
            tag: SavedField.text(c.tag, "pool.slots.tag", limit: limit), state: c.state)
        unknown = try unsafe SavedField.unknown(c.base)
    }
}
