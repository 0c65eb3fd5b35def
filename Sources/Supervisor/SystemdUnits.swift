// SPDX-License-Identifier: Apache-2.0
// The worker processes under systemd: nvmed-worker@<device>.socket and .service, over the bus.

internal import Linux
internal import Systemd
internal import Wire

/// Workers as units of systemd.
///
/// The socket of a device is started when the device is first wanted, and stopped with it; nothing
/// is enabled, so that what the configuration says is all there is. Connecting to the socket starts
/// the worker. The bus is needed to start and stop a socket and to notice a crash loop; to reach a
/// worker whose socket listens it is not, and no worker ever waits for it.
@Control
final class SystemdUnits: WorkerUnits {
    /// The template's name.
    nonisolated static let template = "nvmed-worker"
    /// Starts without one answer before the unit is stopped: the worker's own limit is 5, so that
    /// one that does not even get to counting ends here.
    nonisolated static let restartsMax: UInt32 = 10
    /// How long PID 1 may take to start a socket: it is busy, or starting up.
    nonisolated static let startNanoseconds: UInt64 = 20_000_000_000
    /// How long PID 1 may take to stop a worker: more than TimeoutStopSec= of its unit.
    nonisolated static let stopNanoseconds: UInt64 = 180_000_000_000
    /// How long an answer to a question may take.
    nonisolated static let questionNanoseconds: UInt64 = 5_000_000_000
    /// How long to wait for a bus that is being restarted, in one go.
    nonisolated static let busPauseNanoseconds: UInt64 = 200_000_000
    /// How soon a unit is looked at again: a crash loop sends hints by the hundred.
    nonisolated static let lookPauseNanoseconds: UInt64 = 250_000_000

    /// What is known of the process of a device.
    private struct Watched {
        var watch: BusWatch
        /// Restarts that PID 1 had counted when the worker last answered.
        var restarts: UInt32?
        var isLooking = false
        var lookAgain = false
    }

    private let directory: String
    private let units: UnitBus
    private let log: Log
    private var watched: [String: Watched] = [:]
    var onTrouble: (@Control (_ device: String, _ reason: String) -> Void)?

    /// Finds the sockets in a directory, and the units on a bus.
    init(directory: String, bus: Bus, log: Log) {
        self.directory = directory
        units = UnitBus(bus)
        self.log = log
    }

    // MARK: What the supervisor asks

    func connect(_ device: String) async throws(WireError) -> PassedFD {
        let socket = try unit(device, "socket")
        try watch(device)
        if let fd = try? dial(device) { return fd }
        let deadline = Deadline.after(Self.startNanoseconds)
        try await ask(device) { () throws(BusError) in
            // One that failed stays failed, and its socket with it, until that is forgotten.
            try await self.units.resetFailed(socket, deadlineNanoseconds: deadline)
            let status = try await self.units.start(socket, deadlineNanoseconds: deadline)
            guard status.activeState == "active" else {
                throw BusError.refused(
                    call: "StartUnit of \(socket)", name: status.activeState,
                    message: "it does not listen; see: systemctl status '\(socket)'")
            }
        }
        do throws(SystemCallError) {
            return try dial(device)
        } catch {
            throw WireError(
                .internalError, "the worker cannot be reached: \(error)", device: device)
        }
    }

    private func dial(_ device: String) throws(SystemCallError) -> PassedFD {
        PassedFD(
            try UnixSocket.connect(
                "\(directory)/worker-\(device).sock", kind: .sequencedPacket, nonblocking: true))
    }

    func isRunning(_ device: String) async throws(WireError) -> Bool {
        let service = try unit(device, "service")
        do throws(BusError) {
            return try await patiently { deadline throws(BusError) in
                try await self.units.status(service, deadlineNanoseconds: deadline).isRunning
            }
        } catch { throw Self.failed(error, device) }
    }

    func running() async throws(WireError) -> [String] {
        do throws(BusError) {
            return try await patiently { deadline throws(BusError) in
                try await self.units.list(
                    "\(Self.template)@*.service", deadlineNanoseconds: deadline)
            }.filter { BusUnitStatus.runs($0.activeState) }.compactMap {
                EscapedUnit.instance(of: $0.unit, template: Self.template, suffix: "service")
            }
        } catch { throw WireError(.internalError, "\(error)") }
    }

    /// Asks again when the bus is gone: it may be restarted just now, like this process.
    private func patiently<Value: Sendable>(
        _ body: @Control (_ deadline: UInt64) async throws(BusError) -> Value
    ) async throws(BusError) -> Value {
        let deadline = Deadline.after(Self.questionNanoseconds)
        while true {
            do throws(BusError) {
                return try await body(deadline)
            } catch {
                guard case .disconnected = error, MonotonicClock.nowNanoseconds < deadline else {
                    throw error
                }
                try? await EventLoop.current.sleep(nanoseconds: Self.busPauseNanoseconds)
            }
        }
    }

    func kill(_ device: String) async throws(WireError) {
        let service = try unit(device, "service")
        try await ask(device) { () throws(BusError) in
            try await self.units.kill(
                service, signal: Process.kill,
                deadlineNanoseconds: Deadline.after(Self.questionNanoseconds))
        }
    }

    func stop(_ device: String) async throws(WireError) {
        let socket = try unit(device, "socket")
        let service = try unit(device, "service")
        watched[device] = nil
        try await ask(device) { () throws(BusError) in
            try await self.stopUnits(socket, service)
        }
    }

    /// The socket first, so that nothing starts the service again.
    private func stopUnits(_ socket: String, _ service: String) async throws(BusError) {
        let deadline = Deadline.after(Self.stopNanoseconds)
        _ = try await units.stop(socket, deadlineNanoseconds: deadline)
        _ = try await units.stop(service, deadlineNanoseconds: deadline)
        try await units.resetFailed(service, deadlineNanoseconds: deadline)
        try await units.resetFailed(socket, deadlineNanoseconds: deadline)
    }

    func answered(_ device: String) {
        guard watched[device] != nil else { return }
        watched[device]?.restarts = nil
        look(device)
    }

    // MARK: Crash loops

    private func watch(_ device: String) throws(WireError) {
        guard watched[device] == nil else { return }
        let service = try unit(device, "service")
        let watch = units.watch(service) { [weak self] in self?.look(device) }
        watched[device] = Watched(watch: watch)
        look(device)
    }

    /// Looks at the unit of a device; hints that come meanwhile cause one more look.
    private func look(_ device: String) {
        guard let entry = watched[device], let service = try? unit(device, "service") else {
            return
        }
        guard !entry.isLooking else {
            watched[device]?.lookAgain = true
            return
        }
        watched[device]?.isLooking = true
        EventLoop.current.task {
            let deadline = Deadline.after(Self.questionNanoseconds)
            let status = try? await self.units.status(service, deadlineNanoseconds: deadline)
            if let status { await self.judge(device, status) }
            try? await EventLoop.current.sleep(nanoseconds: Self.lookPauseNanoseconds)
            self.watched[device]?.isLooking = false
            guard self.watched[device]?.lookAgain == true else { return }
            self.watched[device]?.lookAgain = false
            self.look(device)
        }
    }

    private func judge(_ device: String, _ status: BusUnitStatus) async {
        guard let entry = watched[device] else { return }
        guard let before = entry.restarts, before <= status.restarts else {
            watched[device]?.restarts = status.restarts
            return
        }
        if status.activeState == "failed" {
            return await give(up: device, "its worker failed (\(status.result))")
        }
        let count = status.restarts - before
        guard count >= Self.restartsMax else { return }
        await give(up: device, "its worker ended \(count) times before it answered once")
    }

    private func give(up device: String, _ what: String) async {
        guard let socket = try? unit(device, "socket"), let service = try? unit(device, "service")
        else { return }
        watched[device] = nil
        do throws(BusError) {
            try await stopUnits(socket, service)
        } catch {
            log.error("\(service) could not be stopped: \(error); continuing")
        }
        onTrouble?(device, "\(what); see: journalctl -u '\(service)'")
    }

    // MARK: Helpers

    private func unit(_ device: String, _ suffix: String) throws(WireError) -> String {
        guard
            let name = EscapedUnit.name(
                template: Self.template, instance: device, suffix: suffix)
        else {
            throw WireError(
                .invalidArgument, "\(device) cannot be the name of a unit: rename the device",
                device: device)
        }
        return name
    }

    private func ask(
        _ device: String, _ body: @Control () async throws(BusError) -> Void
    ) async throws(WireError) {
        do throws(BusError) {
            try await body()
        } catch { throw Self.failed(error, device) }
    }

    private static func failed(_ error: BusError, _ device: String) -> WireError {
        WireError(.internalError, "\(error)", device: device)
    }
}
