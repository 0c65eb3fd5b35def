// SPDX-License-Identifier: Apache-2.0
// Units of systemd over the bus (org.freedesktop.systemd1(5), systemd 252).

internal import Linux

/// A unit as PID 1 has it.
public struct BusUnitStatus: Sendable, Equatable {
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, `reloading`, `maintenance`.
    public var activeState = ""
    /// What that means for its kind: `running`, `auto-restart`, `listening`…
    public var subState = ""
    /// Of a service: why it ended the last time; `success`, `exit-code`, `signal`, `watchdog`…
    public var result = ""
    /// Of a service: its process, 0 when none runs.
    public var mainPID: Int32 = 0
    /// Of a service: how often it was started again by itself since it was last started.
    public var restarts: UInt32 = 0
    /// Of a service: how many descriptors are stored for it.
    public var storedCount: UInt32 = 0

    /// Nothing is known.
    public init() {}

    /// Whether a process of it runs, starts, or is about to.
    public var isRunning: Bool { Self.runs(activeState) }

    /// Whether that holds in an ActiveState.
    public static func runs(_ activeState: String) -> Bool {
        ["active", "activating", "reloading"].contains(activeState)
    }
}

/// What PID 1 is asked, each with a deadline on CLOCK_MONOTONIC in nanoseconds.
///
/// Signals are taken as hints and everything that counts is asked for: a signal may be lost with
/// the connection, and any local user can forge one.
@Control
public final class UnitBus {
    nonisolated static let name = "org.freedesktop.systemd1"
    nonisolated static let managerPath = "/org/freedesktop/systemd1"
    nonisolated static let manager = "org.freedesktop.systemd1.Manager"
    nonisolated static let unit = "org.freedesktop.systemd1.Unit"
    nonisolated static let service = "org.freedesktop.systemd1.Service"
    nonisolated static let properties = "org.freedesktop.DBus.Properties"
    /// How long a job is waited for without a hint before PID 1 is asked again: hints can be lost.
    nonisolated static let hintNanoseconds: UInt64 = 2_000_000_000

    private let bus: Bus
    private var removed: BusWatch?
    private var waiting: [OneShot<Void>] = []
    /// How many hints there were: one that came while PID 1 was being asked counts too.
    private var hints: UInt64 = 0

    /// Asks over a bus.
    public init(_ bus: Bus) {
        self.bus = bus
        bus.onConnect = { [weak self] in self?.subscribe() }
        bus.onDisconnect = { [weak self] in self?.hint() }
    }

    /// Has PID 1 send signals; it sends none to who has not asked.
    private func subscribe() {
        let method = Self.managerMethod("Subscribe")
        EventLoop.current.task { [bus] in
            // Without signals everything still works, only later.
            _ = try? await bus.call(
                method, deadlineNanoseconds: Timer.point(after: Self.hintNanoseconds))
        }
        hint()
    }

    private func hint() {
        hints &+= 1
        let all = waiting
        waiting = []
        for one in all { one.succeed(()) }
    }

    // MARK: Jobs

    /// Starts a unit and waits until that is done; the unit as it is then.
    public func start(
        _ unit: String, deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusUnitStatus {
        try await job("StartUnit", unit, deadlineNanoseconds)
    }

    /// Stops a unit and waits until that is done; a unit that is not there is stopped.
    public func stop(
        _ unit: String, deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusUnitStatus {
        do throws(BusError) {
            return try await job("StopUnit", unit, deadlineNanoseconds)
        } catch {
            if case .refused(_, "org.freedesktop.systemd1.NoSuchUnit", _) = error {
                return BusUnitStatus()
            }
            throw error
        }
    }

    /// Stops a unit, starts it, and waits until that is done.
    public func restart(
        _ unit: String, deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusUnitStatus {
        try await job("RestartUnit", unit, deadlineNanoseconds)
    }

    private func job(
        _ member: String, _ unit: String, _ deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusUnitStatus {
        watchJobs()
        let answer = try await bus.call(
            Self.managerMethod(member), [.string(unit), .string("replace")],
            deadlineNanoseconds: deadlineNanoseconds)
        guard case .objectPath(let path)? = answer.first else {
            throw .badReply(call: "\(member) of \(unit)")
        }
        do throws(BusError) {
            // Each turn waits for a hint, or for the time after which PID 1 is asked without one.
            while true {
                let seen = hints
                guard try await job(of: unit, deadlineNanoseconds)?.path == path else { break }
                await waitForHint(after: seen, deadlineNanoseconds)
            }
            return try await status(unit, deadlineNanoseconds: deadlineNanoseconds)
        } catch {
            guard case .timedOut = error else { throw error }
            throw .timedOut(call: "\(member) of \(unit)")
        }
    }

    private func watchJobs() {
        guard removed == nil else { return }
        removed = bus.watch(
            BusSignal(
                sender: Self.name, path: Self.managerPath, interface: Self.manager,
                member: "JobRemoved")
        ) { [weak self] _ in self?.hint() }
    }

    private func waitForHint(after seen: UInt64, _ deadlineNanoseconds: UInt64) async {
        guard hints == seen else { return }
        let hint = OneShot<Void>()
        waiting.append(hint)
        let soon = min(Timer.point(after: Self.hintNanoseconds), deadlineNanoseconds)
        let timer = try? EventLoop.current.at(soon) { hint.succeed(()) }
        defer { timer?.cancel() }
        if timer == nil { hint.succeed(()) }
        _ = try? await hint.value()
        waiting.removeAll { $0.isFinished }
    }

    /// Sends a signal to the processes of a unit.
    public func kill(
        _ unit: String, signal: Int32, deadlineNanoseconds: UInt64
    ) async throws(BusError) {
        _ = try await bus.call(
            Self.managerMethod("KillUnit"), [.string(unit), .string("main"), .int32(signal)],
            deadlineNanoseconds: deadlineNanoseconds)
    }

    /// Forgets that a unit has failed.
    public func resetFailed(_ unit: String, deadlineNanoseconds: UInt64) async throws(BusError) {
        do throws(BusError) {
            _ = try await bus.call(
                Self.managerMethod("ResetFailedUnit"), [.string(unit)],
                deadlineNanoseconds: deadlineNanoseconds)
        } catch {
            if case .refused(_, "org.freedesktop.systemd1.NoSuchUnit", _) = error { return }
            throw error
        }
    }

    // MARK: Properties

    /// A unit as it is now.
    public func status(
        _ unit: String, deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusUnitStatus {
        var status = BusUnitStatus()
        status.activeState =
            try await get(unit, Self.unit, "ActiveState", deadlineNanoseconds).text ?? ""
        status.subState =
            try await get(unit, Self.unit, "SubState", deadlineNanoseconds).text ?? ""
        guard unit.hasSuffix(".service") else { return status }
        status.result = try await get(unit, Self.service, "Result", deadlineNanoseconds).text ?? ""
        status.mainPID = Int32(
            clamping: try await get(unit, Self.service, "MainPID", deadlineNanoseconds).number ?? 0)
        status.restarts = UInt32(
            clamping: try await get(unit, Self.service, "NRestarts", deadlineNanoseconds).number
                ?? 0)
        status.storedCount = UInt32(
            clamping: try await get(
                unit, Self.service, "NFileDescriptorStore", deadlineNanoseconds
            ).number ?? 0)
        return status
    }

    /// The job that waits or runs for a unit: its path and its type (`start`, `stop`, `restart`…).
    public func job(
        of unit: String, _ deadlineNanoseconds: UInt64
    ) async throws(BusError) -> (path: String, type: String)? {
        let value = try await get(unit, Self.unit, "Job", deadlineNanoseconds)
        guard let id = value.members.first?.number, value.members.count == 2,
            let path = value.members[1].text
        else { throw .badReply(call: "Job of \(unit)") }
        guard id != 0 else { return nil }
        do throws(BusError) {
            let type = try await get(
                path: path, "org.freedesktop.systemd1.Job", "JobType", deadlineNanoseconds)
            return (path, type.text ?? "")
        } catch {
            // It ended between the two questions.
            if case .refused = error { return nil }
            throw error
        }
    }

    /// Whether the machine is being shut down.
    public func isSystemStopping(_ deadlineNanoseconds: UInt64) async throws(BusError) -> Bool {
        try await get(path: Self.managerPath, Self.manager, "SystemState", deadlineNanoseconds)
            .text == "stopping"
    }

    /// The units that PID 1 knows whose names match a pattern (fnmatch(3)), and their ActiveState.
    public func list(
        _ pattern: String, deadlineNanoseconds: UInt64
    ) async throws(BusError) -> [(unit: String, activeState: String)] {
        let answer = try await bus.call(
            Self.managerMethod("ListUnitsByPatterns"), [.array([]), .array([.string(pattern)])],
            deadlineNanoseconds: deadlineNanoseconds)
        guard case .array(let units)? = answer.first else {
            throw .badReply(call: "ListUnitsByPatterns")
        }
        // Name, description, load state, active state, and what is not asked for.
        return units.compactMap { unit in
            guard unit.members.count > 3, let name = unit.members[0].text,
                let state = unit.members[3].text
            else { return nil }
            return (name, state)
        }
    }

    private func get(
        _ unit: String, _ interface: String, _ property: String, _ deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusValue {
        try await get(path: Self.path(of: unit), interface, property, deadlineNanoseconds)
    }

    private func get(
        path: String, _ interface: String, _ property: String, _ deadlineNanoseconds: UInt64
    ) async throws(BusError) -> BusValue {
        let answer = try await bus.call(
            BusMethod(
                destination: Self.name, path: path, interface: Self.properties, member: "Get"),
            [.string(interface), .string(property)], deadlineNanoseconds: deadlineNanoseconds)
        guard case .variant(let value)? = answer.first else {
            throw .badReply(call: "\(property) of \(path)")
        }
        return value
    }

    /// Calls `changed` whenever properties of a unit may have changed, for as long as the result is
    /// kept. What changed has to be asked for.
    public func watch(_ unit: String, _ changed: @escaping @Control () -> Void) -> BusWatch {
        bus.watch(
            BusSignal(
                sender: Self.name, path: Self.path(of: unit), interface: Self.properties,
                member: "PropertiesChanged")
        ) { _ in changed() }
    }

    // MARK: Names

    private static func managerMethod(_ member: String) -> BusMethod {
        BusMethod(destination: name, path: managerPath, interface: manager, member: member)
    }

    /// The object of a unit: its name with every byte that is not a letter or digit escaped.
    nonisolated static func path(of unit: String) -> String {
        var path = "\(managerPath)/unit/"
        for (index, byte) in unit.utf8.enumerated() {
            let letter = UnicodeScalar(byte)
            let isLetter = letter.isASCII && letter.properties.isAlphabetic
            let isDigit = (0x30...0x39).contains(byte)
            if isLetter || (isDigit && index > 0) {
                path.unicodeScalars.append(letter)
            } else {
                path += (byte < 16 ? "_0" : "_") + String(byte, radix: 16)
            }
        }
        return path
    }

    /// The unit that this process belongs to; nil outside of systemd.
    ///
    /// sd_pid_get_unit asks for the cgroup of process 1 too, which ProtectProc=invisible hides.
    nonisolated public static var ownUnit: String? {
        guard let bytes = try? Files.read("/proc/self/cgroup", limit: 16384) else { return nil }
        return unit(inCgroups: String(decoding: bytes, as: UTF8.self))
    }

    /// The innermost service or scope in the text of /proc/PID/cgroup.
    nonisolated static func unit(inCgroups text: String) -> String? {
        let line = text.split(separator: "\n").last {
            $0.hasPrefix("0::/") || $0.contains(":name=systemd:/")
        }
        let parts = line?.split(separator: "/").map(String.init) ?? []
        return parts.last { $0.hasSuffix(".service") || $0.hasSuffix(".scope") }
    }
}
