// SPDX-License-Identifier: Apache-2.0
// The values of servicing as protobuf (Proto/worker.proto, Proto/supervisor.proto).

internal import CProtobufC
internal import CWire

extension SaveDevice {
    func write(into writer: inout MessageWriter) {
        writer.bytes(1, token)
        writer.number(2, drainNanoseconds)
        writer.number(3, leaseNanoseconds)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__Save>) throws(WireError) {
        let c = unsafe pointer.pointee
        let token = try unsafe Field.identifier(
            c.token, WireLimits.saveTokenByteCount, "save.token")
        guard !token.isEmpty else {
            throw WireError(.invalidArgument, "save.token is missing", field: "save.token")
        }
        self.init(
            token: token, drainNanoseconds: unsafe c.drain_ns,
            leaseNanoseconds: unsafe Field.optional(c.has_lease_ns, c.lease_ns))
    }
}

extension DeviceSaved {
    func write(into writer: inout MessageWriter) {
        writer.number(1, byteCount)
        writer.number(2, commandsInFlight)
        writer.number(3, queueCount)
        writer.number(4, sessionCount)
        writer.number(5, drainedNanoseconds)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__Saved>) throws(WireError) {
        let c = unsafe pointer.pointee
        self.init(
            byteCount: try unsafe Field.need(c.has_byte_count, c.byte_count, "saved.byte_count"))
        guard byteCount <= WireLimits.savedStateByteCount else {
            throw WireError(
                .invalidArgument,
                "a state of \(byteCount) bytes is larger than \(WireLimits.savedStateByteCount)",
                field: "saved.byte_count")
        }
        commandsInFlight = unsafe c.commands_in_flight
        queueCount = unsafe c.queue_count
        sessionCount = unsafe c.session_count
        drainedNanoseconds = unsafe c.drained_ns
    }
}

extension ServicingDevice {
    func write(into writer: inout MessageWriter) {
        writer.text(1, name)
        writer.number(2, step.rawValue)
        writer.text(3, reason)
        writer.number(4, commandsInFlight)
        writer.number(5, byteCount)
        writer.number(6, durationNanoseconds)
        writer.number(7, queueCount)
        writer.number(8, sessionCount)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__ServicingDevice>) throws(WireError) {
        let c = unsafe pointer.pointee
        let step = unsafe ServicingStep(rawValue: UInt32(truncatingIfNeeded: c.step.rawValue))
        self.init(
            name: try unsafe Field.name(c.has_name, c.name, "servicing.devices.name"),
            step: step ?? .unknown)
        reason = unsafe Field.text(c.reason)
        commandsInFlight = unsafe Field.optional(c.has_commands_in_flight, c.commands_in_flight)
        byteCount = unsafe Field.optional(c.has_byte_count, c.byte_count)
        durationNanoseconds = unsafe Field.optional(c.has_duration_ns, c.duration_ns)
        queueCount = unsafe Field.optional(c.has_queue_count, c.queue_count)
        sessionCount = unsafe Field.optional(c.has_session_count, c.session_count)
    }
}

extension ServicingStatus {
    func write(into writer: inout MessageWriter) {
        writer.number(1, phase.rawValue)
        for device in devices.entries { writer.message(2) { device.write(into: &$0) } }
        writer.flag(3, devices.more)
        writer.number(4, durationNanoseconds)
        writer.text(5, problem)
        writer.number(6, savedAtRealtimeNanoseconds)
        writer.number(7, byteCount)
    }

    init(_ pointer: UnsafePointer<Nvmed__V1__ServicingStatus>) throws(WireError) {
        let c = unsafe pointer.pointee
        let devices = try unsafe Field.list(
            c.devices, c.n_devices, limit: WireLimits.pageEntryCount, "servicing.devices"
        ) { element throws(WireError) in try unsafe ServicingDevice(element) }
        let phase = unsafe ServicingPhase(rawValue: UInt32(truncatingIfNeeded: c.phase.rawValue))
        self.init(phase: phase ?? .unknown, devices: Page(devices, more: unsafe c.more != 0))
        durationNanoseconds = unsafe Field.optional(c.has_duration_ns, c.duration_ns)
        problem = unsafe Field.text(c.problem)
        savedAtRealtimeNanoseconds = unsafe Field.optional(
            c.has_saved_at_realtime_ns, c.saved_at_realtime_ns)
        byteCount = unsafe Field.optional(c.has_byte_count, c.byte_count)
    }
}
