// SPDX-License-Identifier: Apache-2.0
// org.freedesktop.systemd1 as a test wants it to be: units, jobs, signals, and odd answers.

import CSystemd
import Glibc
import Linux
public import Systemd

/// A unit of the fake PID 1.
public struct FakeUnit: Sendable, Equatable {
    /// As in systemd.
    public var activeState = "inactive"
    /// As in systemd.
    public var subState = "dead"
    /// As in systemd.
    public var result = "success"
    /// As in systemd.
    public var restarts: UInt32 = 0
    /// The job that waits for it, and its type; 0 without one.
    public var job: UInt32 = 0
    /// The type of the job.
    public var jobType = "start"
    /// An inactive unit.
    public init() {}
}

/// A message of sd-bus, alive for as long as a call to a handler.
@safe
private struct Message {
    let raw: OpaquePointer
    init(raw: OpaquePointer) { unsafe self.raw = unsafe raw }
}

/// A fake PID 1 on a bus, on the event loop.
@Control
@safe
public final class FakeSystemd {
    /// The units by name.
    public var units: [String: FakeUnit] = [:]
    /// `degraded`, `running`, `stopping`…
    public var systemState = "running"
    /// What was called, in order: `StartUnit x.service`, `Get Job`…
    public private(set) var calls: [String] = []
    /// Jobs are done at once, unless they are to wait for ``finishJobs()``.
    public var jobsWait = false
    /// Called when a unit's job is done, for what the unit does then.
    public var onJob: (@Control (_ type: String, _ unit: String) -> Void)?
    /// Answers with this to `Get` in place of what is right: a number where a text belongs.
    public var answersOddly = false
    /// Gives no answer at all.
    public var isSilent = false
    private var bus: OpaquePointer?
    private var source: DescriptorSource?
    private var lastJob: UInt32 = 0
    private static let path = "/org/freedesktop/systemd1"

    /// Takes the name on a bus.
    public init(address: String) throws {
        try checked("sd_bus_new", unsafe sd_bus_new(&bus))
        try checked("address", unsafe sd_bus_set_address(bus, address))
        try checked("client", unsafe sd_bus_set_bus_client(bus, 1))
        try checked("start", unsafe sd_bus_start(bus))
        let own = unsafe Unmanaged.passUnretained(self).toOpaque()
        try checked(
            "fallback",
            unsafe sd_bus_add_fallback(
                bus, nil, Self.path,
                { message, own, _ in
                    guard let own = unsafe own, let message = unsafe message else { return 0 }
                    return Control.assumeIsolated {
                        unsafe Unmanaged<FakeSystemd>.fromOpaque(own).takeUnretainedValue()
                            .called(Message(raw: message))
                    }
                }, own))
        try checked("name", unsafe sd_bus_request_name(bus, "org.freedesktop.systemd1", 0))
        let raw = unsafe sd_bus_get_fd(bus)
        let fd = OwnedFD(adopting: try checked("dup", dup(raw)))
        source = try EventLoop.current.watch(fd, .readable) { [weak self] _ in self?.process() }
        process()
    }

    isolated deinit { close() }

    /// Leaves the bus.
    public func close() {
        source?.cancel()
        source = nil
        if let bus = unsafe bus { _ = unsafe sd_bus_close_unref(bus) }
        unsafe bus = nil
    }

    private func process() {
        while let bus = unsafe bus {
            let result = unsafe sd_bus_process(bus, nil)
            // A bus that is gone stays readable for ever.
            guard result >= 0 else { return close() }
            guard result > 0 else { break }
        }
        if let bus = unsafe bus { _ = unsafe sd_bus_flush(bus) }
    }

    /// Ends all jobs that wait.
    public func finishJobs() {
        for (name, unit) in units where unit.job != 0 { finish(name) }
        process()
    }

    /// Tells the subscribers that properties of a unit changed.
    public func tellChanged(_ name: String) {
        signal(
            "\(Self.path)/unit/\(Self.escaped(name))", "org.freedesktop.DBus.Properties",
            "PropertiesChanged")
        process()
    }

    /// Sends a JobRemoved that is not true.
    public func tellFalseJobRemoved() {
        signal(Self.path, "org.freedesktop.systemd1.Manager", "JobRemoved")
        process()
    }

    private func finish(_ name: String) {
        guard var unit = units[name] else { return }
        let type = unit.jobType
        unit.job = 0
        unit.activeState = type == "stop" ? "inactive" : "active"
        unit.subState = type == "stop" ? "dead" : "running"
        units[name] = unit
        onJob?(type, name)
        signal(Self.path, "org.freedesktop.systemd1.Manager", "JobRemoved")
    }

    private func signal(_ path: String, _ interface: String, _ member: String) {
        var message: OpaquePointer?
        _ = unsafe sd_bus_message_new_signal(bus, &message, path, interface, member)
        _ = unsafe sd_bus_send(bus, message, nil)
        _ = unsafe sd_bus_message_unref(message)
    }

    // MARK: Calls

    private func called(_ message: Message) -> CInt {
        let member = unsafe String(cString: sd_bus_message_get_member(message.raw))
        let first = Self.text(message)
        let second = Self.text(message)
        let path = unsafe String(cString: sd_bus_message_get_path(message.raw))
        calls.append(member == "Get" ? "Get \(second)" : "\(member) \(first)")
        if isSilent { return 1 }
        switch member {
        case "Get": return get(message, path, second)
        case "StartUnit": return begin(message, "start", first)
        case "StopUnit": return begin(message, "stop", first)
        case "RestartUnit": return begin(message, "restart", first)
        case "ListUnitsByPatterns": return list(message)
        case "Subscribe", "KillUnit": return reply(message) { _ in }
        case "ResetFailedUnit":
            guard units[first] != nil else { return noSuchUnit(message, first) }
            return reply(message) { _ in }
        default: return 0
        }
    }

    private func begin(_ message: Message, _ type: String, _ name: String) -> CInt {
        if type == "stop", units[name] == nil { return noSuchUnit(message, name) }
        lastJob += 1
        let job = lastJob
        units[name, default: FakeUnit()].job = job
        units[name]?.jobType = type
        let result = reply(message) { Self.append($0, "o", "\(Self.path)/job/\(job)") }
        if !jobsWait { finish(name) }
        return result
    }

    private func list(_ message: Message) -> CInt {
        let array = CChar(UInt8(ascii: "a"))
        _ = unsafe sd_bus_message_skip(message.raw, "as")
        _ = unsafe sd_bus_message_enter_container(message.raw, array, "s")
        let pattern = Self.text(message)
        return reply(message) { answer in
            _ = unsafe sd_bus_message_open_container(answer.raw, array, "(ssssssouso)")
            for (name, unit) in units where unsafe fnmatch(pattern, name, 0) == 0 {
                Self.append(answer, name, unit)
            }
            _ = unsafe sd_bus_message_close_container(answer.raw)
        }
    }

    private static func append(_ answer: Message, _ name: String, _ unit: FakeUnit) {
        let structure = CChar(UInt8(ascii: "r"))
        _ = unsafe sd_bus_message_open_container(answer.raw, structure, "ssssssouso")
        for text in [name, "a unit", "loaded", unit.activeState, unit.subState, ""] {
            append(answer, "s", text)
        }
        append(answer, "o", "\(path)/unit/\(escaped(name))")
        append(answer, unit.job)
        append(answer, "s", unit.jobType)
        append(answer, "o", "/")
        _ = unsafe sd_bus_message_close_container(answer.raw)
    }

    private func get(_ message: Message, _ path: String, _ property: String) -> CInt {
        if answersOddly {
            return reply(message) { Self.append($0, "s", "neither a variant nor a number") }
        }
        if property == "SystemState" { return variant(message, systemState) }
        if property == "JobType" {
            let unit = units.values.first { path.hasSuffix("/job/\($0.job)") }
            return variant(message, unit?.jobType ?? "start")
        }
        let name = units.keys.first { path == "\(Self.path)/unit/\(Self.escaped($0))" }
        let unit = name.flatMap { units[$0] } ?? FakeUnit()
        switch property {
        case "ActiveState": return variant(message, unit.activeState)
        case "SubState": return variant(message, unit.subState)
        case "Result": return variant(message, unit.result)
        case "NRestarts": return variant(message, unit.restarts)
        case "MainPID", "NFileDescriptorStore": return variant(message, 0)
        case "Job": return job(message, unit)
        default: return 0
        }
    }

    private func job(_ message: Message, _ unit: FakeUnit) -> CInt {
        reply(message) { answer in
            _ = unsafe sd_bus_message_open_container(answer.raw, CChar(UInt8(ascii: "v")), "(uo)")
            _ = unsafe sd_bus_message_open_container(answer.raw, CChar(UInt8(ascii: "r")), "uo")
            Self.append(answer, unit.job)
            Self.append(answer, "o", unit.job == 0 ? "/" : "\(Self.path)/job/\(unit.job)")
            _ = unsafe sd_bus_message_close_container(answer.raw)
            _ = unsafe sd_bus_message_close_container(answer.raw)
        }
    }

    private func variant(_ message: Message, _ text: String) -> CInt {
        reply(message) { answer in
            _ = unsafe sd_bus_message_open_container(answer.raw, CChar(UInt8(ascii: "v")), "s")
            Self.append(answer, "s", text)
            _ = unsafe sd_bus_message_close_container(answer.raw)
        }
    }

    private func variant(_ message: Message, _ number: UInt32) -> CInt {
        reply(message) { answer in
            _ = unsafe sd_bus_message_open_container(answer.raw, CChar(UInt8(ascii: "v")), "u")
            Self.append(answer, number)
            _ = unsafe sd_bus_message_close_container(answer.raw)
        }
    }

    private func reply(
        _ message: Message, _ fill: (Message) -> Void
    ) -> CInt {
        var answer: OpaquePointer?
        _ = unsafe sd_bus_message_new_method_return(message.raw, &answer)
        guard let answer = unsafe answer else { return -ENOMEM }
        fill(unsafe Message(raw: answer))
        _ = unsafe sd_bus_send(bus, answer, nil)
        _ = unsafe sd_bus_message_unref(answer)
        return 1
    }

    private func noSuchUnit(_ message: Message, _ name: String) -> CInt {
        var error = unsafe sd_bus_error()
        _ = unsafe sd_bus_error_set(
            &error, "org.freedesktop.systemd1.NoSuchUnit", "Unit \(name) not loaded.")
        defer { unsafe sd_bus_error_free(&error) }
        return unsafe sd_bus_reply_method_error(message.raw, &error) < 0 ? -EIO : 1
    }

    private static func text(_ message: Message) -> String {
        var text: UnsafePointer<CChar>?
        let read = unsafe sd_bus_message_read_basic(message.raw, CChar(UInt8(ascii: "s")), &text)
        guard read > 0, let text = unsafe text else { return "" }
        return unsafe String(cString: text)
    }

    private static func append(_ message: Message, _ type: Unicode.Scalar, _ text: String) {
        _ = unsafe sd_bus_message_append_basic(message.raw, CChar(type.value), text)
    }

    private static func append(_ message: Message, _ number: UInt32) {
        var number = number
        _ = unsafe sd_bus_message_append_basic(message.raw, CChar(UInt8(ascii: "u")), &number)
    }

    /// As sd_bus_path_encode does it.
    private static func escaped(_ name: String) -> String {
        var encoded: UnsafeMutablePointer<CChar>?
        guard unsafe sd_bus_path_encode("/x", name, &encoded) >= 0, let encoded = unsafe encoded
        else { return "" }
        defer { unsafe free(encoded) }
        return unsafe String(String(cString: encoded).dropFirst(3))
    }
}
