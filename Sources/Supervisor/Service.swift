// SPDX-License-Identifier: Apache-2.0
// What the supervisor does, without a word about sockets: registry, resolution, policy.

internal import DiskConfig
internal import Linux
internal import Systemd
internal import Wire

/// Who asks, until when, with what rights.
struct Caller: Sendable {
    /// The client as the kernel knows it.
    var peer: PeerCredentials
    /// CLOCK_MONOTONIC nanoseconds.
    var deadlineNanoseconds: UInt64
}

/// An opened disk.
struct OpenedDisk: Sendable {
    var sessionID: UInt64
    var info: DiskInfo
    var fd: PassedFD
}

/// The registry of devices and disks.
@Control
final class Service {
    private(set) var devices: [String: Device] = [:]
    private(set) var disks: [String: ConfiguredDisk] = [:]
    private var admins = Policy()
    private(set) var sessionsMax = SupervisorLimits.sessions
    let units: any WorkerUnits
    let log: Log
    let ownUID: UInt32
    /// Reads the configuration afresh.
    private let readPlan: @Control () throws(WireError) -> Plan
    /// No more requests are taken.
    private(set) var isStopping = false
    private var lastSessionID: UInt64
    private(set) var isReloading = false
    /// Saves and restores all devices.
    private(set) lazy var servicing = Servicing(self, file: savedState, host: host, log: log)
    private let savedState: SavedStateFile
    private let host: HostIdentity
    /// Devices that are released, over restarts.
    private let marks: ReleasedMarks
    /// Changes of what is released, one after the other.
    private let marking = Turn("releasing a device")

    /// An empty registry; ``reload()`` fills it.
    init(
        units: any WorkerUnits, ownUID: UInt32, savedState: SavedStateFile,
        host: HostIdentity = .current, log: Log,
        readPlan: @escaping @Control () throws(WireError) -> Plan
    ) {
        self.units = units
        self.ownUID = ownUID
        self.savedState = savedState
        self.host = host
        marks = ReleasedMarks(directory: savedState.directory)
        self.log = log
        self.readPlan = readPlan
        // Ids are never used twice: a supervisor that was restarted begins above those of the one
        // before it, which opened fewer than one session per microsecond.
        lastSessionID = MonotonicClock.nowNanoseconds / 1000
        units.onTrouble = { [weak self] device, reason in
            self?.devices[device]?.post(.failed, reason: reason)
        }
    }

    /// Devices by rising name.
    var sortedDevices: [Device] { devices.values.sorted { $0.name.sortsBefore($1.name) } }

    // MARK: Configuration

    /// Takes the configuration in at start: the registry is rebuilt from the workers that run.
    func start() async throws(WireError) -> [String] {
        let warnings = try await reload()
        await endStrays()
        await servicing.restoreAtStart()
        await forEachDevice { await $0.adopt() }
        return warnings
    }

    /// Reads the configuration again: devices that are gone lose their sessions and workers.
    func reload() async throws(WireError) -> [String] {
        guard !isReloading else {
            throw WireError(.busy, "the configuration is being read already; try again")
        }
        try servicing.requireRest("reading the configuration")
        isReloading = true
        defer { isReloading = false }
        let plan = try readPlan()
        await waitForAdoption(of: changed(plan), .max)
        var warnings = plan.warnings
        let withdrawn = sortedDevices.filter { plan.devices[$0.name] == nil }
        for device in withdrawn {
            devices[device.name] = nil
            // Whoever waits for it still must not have it started again.
            device.leftToKernel = "it was taken out of the configuration"
        }
        await closeSessionsOfChangedDisks(plan)
        disks = plan.disks
        admins = plan.admins
        sessionsMax = plan.sessionsMax
        await stop(withdrawn, "the device was taken out of the configuration")
        for (name, config) in plan.devices {
            let device = devices[name] ?? make(config)
            let isGiven = device.leftToKernel == nil && plan.leftToKernel[name] != nil
            device.leftToKernel = plan.leftToKernel[name]
            if isGiven { await stop([device], device.leftToKernel ?? "") }
            guard device.config != config else { continue }
            device.config = config
            guard device.isInUse else {
                await device.stop()
                continue
            }
            let count = device.sessions.count
            warnings.append(
                "device \(name): the change takes effect when its worker is restarted; "
                    + (count > 0
                        ? "\(count) sessions are open"
                        : "it has not said yet which sessions it has"))
        }
        do throws(SystemCallError) {
            try await marks.removeAll(except: Set(plan.devices.keys))
        } catch {
            log.warning("a device that is not configured any more stays released: \(error)")
        }
        // Sessions that turned up while the files were read were judged by what they said before.
        for device in sortedDevices { review(device) }
        log.notice(
            "configuration: \(devices.count) devices, \(disks.count) disks",
            id: .configuration)
        return warnings
    }

    /// The devices that are configured otherwise, or not any more.
    private func changed(_ plan: Plan) -> [Device] {
        sortedDevices.filter {
            plan.devices[$0.name] != $0.config || plan.leftToKernel[$0.name] != $0.leftToKernel
        }
    }

    /// A disk that is gone, or that its clients may no longer have, is taken from them.
    private func closeSessionsOfChangedDisks(_ plan: Plan) async {
        for device in sortedDevices {
            for session in Array(device.sessions.values) {
                guard let before = disks[session.disk] else { continue }
                let after = plan.disks[session.disk]
                let isSame =
                    after?.isSamePlace(as: before) == true
                    && (after?.mode == .readWrite || session.access == .readOnly)
                guard !isSame else { continue }
                await revoke(session, of: device, "the disk's configuration changed")
            }
        }
    }

    private func stop(_ devices: [Device], _ reason: String) async {
        for device in devices {
            for session in Array(device.sessions.values) {
                await revoke(session, of: device, reason)
            }
        }
        await Self.inParallel(devices) { await $0.stop() }
    }

    private func make(_ config: DeviceConfig) -> Device {
        let device = Device(config: config, units: units, log: log)
        device.released = marks.reason(config.name)
        if let reason = device.released {
            device.log.notice("is released and not used until it is retried: \(reason)")
        }
        device.onLearned = { [weak self, weak device] in
            if let device { self?.review(device) }
        }
        devices[config.name] = device
        return device
    }

    /// Takes sessions back that their clients may no longer have: the configuration changed while
    /// no supervisor or no worker was there.
    private func review(_ device: Device) {
        let known = sortedDevices.map(\.known)
        for (id, session) in device.sessions where device.revocations[id] == nil {
            device.revocations[id] = objection(to: session, of: device, known)
        }
        guard let link = device.link, link.isOpen else { return }
        for (id, reason) in device.revocations {
            guard let session = device.sessions[id] else { continue }
            EventLoop.current.task { await self.revoke(session, of: device, reason) }
        }
    }

    /// Why a client may not have a session any more; nil: it may.
    private func objection(
        to session: SessionInfo, of device: Device, _ known: [KnownDevice]
    ) -> String? {
        guard let disk = disks[session.disk] else { return "the disk is not configured any more" }
        if disk.mode == .readOnly, session.access == .readWrite {
            return "the disk may only be read now"
        }
        if let named = disk.device, named != device.name {
            return "the disk is on device \(named) now"
        }
        // Where it is unclear nothing says that the session is wrong.
        guard case .resolved(let name, let nsid) = Resolver.resolve(disk, devices: known) else {
            return nil
        }
        if name != device.name { return "the disk is on device \(name) now" }
        return nsid == session.nsid ? nil : "the disk is namespace \(nsid) now"
    }

    func revoke(_ session: SessionInfo, of device: Device, _ reason: String) async {
        // Whatever becomes of this try, the next worker is asked as long as it has the session.
        device.revocations[session.sessionID] = reason
        guard let link = device.link else { return }
        device.log.notice(
            "session \(session.sessionID) of disk \(session.disk) is taken from process "
                + "\(session.clientPID) of user \(session.clientUID): \(reason)",
            id: .sessionRevoked, namespace: session.nsid)
        do throws(WireError) {
            _ = try await link.call(
                .closeSession(sessionID: session.sessionID, reason: reason),
                deadlineNanoseconds: Deadline.after(SupervisorLimits.inspectNanoseconds),
                "closing session \(session.sessionID)")
        } catch {
            device.log.warning("session \(session.sessionID): \(error); continuing")
        }
    }

    // MARK: Listing

    /// Devices after a name, or the one named.
    func listDevices(name: String?, after: String?) throws(WireError) -> Page<DeviceInfo> {
        if let name { return Page([try device(name, field: "list_devices.name").info]) }
        return Paging.page(
            sortedDevices.map(\.info), after: after, key: \.name, cost: Paging.cost)
    }

    /// The caller's disks after a name, or the one named.
    func listDisks(
        name: String?, after: String?, _ caller: Caller
    ) throws(WireError) -> Page<DiskEntry> {
        if let name {
            guard let disk = disks[name], isVisible(disk, caller) else {
                throw unknownDisk(name, field: "list_disks.name")
            }
            return Page([entry(disk)])
        }
        let visible = disks.values.filter { isVisible($0, caller) }
            .sorted { $0.name.sortsBefore($1.name) }
        return Paging.page(visible.map(entry), after: after, key: \.name, cost: Paging.cost)
    }

    private func isVisible(_ disk: ConfiguredDisk, _ caller: Caller) -> Bool {
        isOperator(caller.peer) || mayOpen(disk, caller)
    }

    /// Whether a caller may open a disk: root and those named; nobody named: the supervisor's own
    /// user.
    func mayOpen(_ disk: ConfiguredDisk, _ caller: Caller) -> Bool {
        disk.policy.isEmpty
            ? caller.peer.uid == 0 || caller.peer.uid == ownUID : disk.policy.names(caller.peer)
    }

    /// Whether a caller may change what others have: root, the supervisor's own user, and those
    /// named by AdminUser= and AdminGroup=.
    func isOperator(_ peer: PeerCredentials) -> Bool {
        peer.uid == ownUID || admins.names(peer)
    }

    private func entry(_ disk: ConfiguredDisk) -> DiskEntry {
        var entry = DiskEntry(name: disk.name, access: disk.mode)
        entry.shared = disk.shared
        entry.sessionCount = UInt32(
            clamping: devices.values.reduce(0) { sum, device in
                sum + device.sessions.values.count { $0.disk == disk.name }
            })
        switch found(disk) {
        case .success(let place):
            entry.device = place.device.name
            entry.nsid = place.nsid
            if let refusal = place.namespace?.refusal {
                entry.problem = "namespace \(place.nsid) is not served: \(refusal)"
            } else if let namespace = place.namespace {
                entry.blockByteCount = namespace.blockByteCount
                entry.blockCount = namespace.blockCount
            }
            let info = place.device.info
            entry.continuity = info.continuity
            if info.state == .failed || info.state == .removed {
                entry.problem = "device \(info.name): \(info.reason)"
            }
        case .failure(let error): entry.problem = error.message
        }
        return entry
    }

    /// Sessions after an id: the caller's, all of them for an operator.
    func listSessions(after: UInt64?, _ caller: Caller) async -> Page<SessionInfo> {
        let fresh = await freshSessions(caller)
        let mine = fresh.filter {
            isOperator(caller.peer) || $0.clientUID == caller.peer.uid
        }
        return Paging.page(
            mine.sorted { $0.sessionID < $1.sessionID }.filter { $0.sessionID > after ?? 0 },
            cost: Paging.cost)
    }

    /// Waits, bounded, until a restarted supervisor knows the sessions of the workers that went on.
    private func waitForAdoption(_ caller: Caller) async {
        await waitForAdoption(of: sortedDevices, caller.deadlineNanoseconds)
    }

    private func waitForAdoption(of devices: [Device], _ deadlineNanoseconds: UInt64) async {
        let deadline = min(
            deadlineNanoseconds, Deadline.after(SupervisorLimits.adoptionNanoseconds))
        await Self.inParallel(devices) { await $0.waitForAdoption(deadline) }
    }

    /// The sessions with the workers' counters, of those workers that answer in time.
    private func freshSessions(_ caller: Caller) async -> [SessionInfo] {
        await waitForAdoption(caller)
        let deadline = min(
            caller.deadlineNanoseconds, Deadline.after(SupervisorLimits.inspectNanoseconds))
        let gathered = Gathered<SessionInfo>()
        await Self.inParallel(sortedDevices) { device in
            guard let link = device.link, device.state == .ready else {
                gathered.all += device.sessions.values.map(device.told)
                return
            }
            do throws(WireError) {
                gathered.all += try await link.sessions(deadline).map(device.told)
            } catch { gathered.all += device.sessions.values.map(device.told) }
        }
        return gathered.all
    }

    // MARK: Acting

    /// Ends a session: its owner and operators may.
    func closeSession(
        _ id: UInt64, reason: String, _ caller: Caller
    ) async throws(WireError) {
        await waitForAdoption(caller)
        guard let device = devices.values.first(where: { $0.sessions[id] != nil }),
            let session = device.sessions[id]
        else {
            throw WireError(
                .notFound, "there is no session \(id)",
                field: "close_session.session_id")
        }
        guard isOperator(caller.peer) || session.clientUID == caller.peer.uid else {
            throw notOperator("close a session of another user", caller)
        }
        device.log.notice(
            "session \(id) of disk \(session.disk) is taken from process \(session.clientPID) of "
                + "user \(session.clientUID), as user \(caller.peer.uid) wants: \(reason)",
            id: .sessionRevoked, namespace: session.nsid)
        try await device.persistently(caller.deadlineNanoseconds) { link throws(WireError) in
            // The worker may have ended it before it died.
            guard device.sessions[id] != nil else { return }
            _ = try await link.call(
                .closeSession(sessionID: id, reason: reason),
                deadlineNanoseconds: caller.deadlineNanoseconds, "closing session \(id)")
        }
        _ = await device.waitForEnd(
            of: id, Deadline.after(SupervisorLimits.closingSessionNanoseconds))
    }

    /// Reads the configuration again, for an operator.
    func reload(_ caller: Caller) async throws(WireError) -> [String] {
        try requireOperator("reload the configuration", caller)
        return Array(try await reload().prefix(Paging.warningCount))
    }

    /// Brings a failed device up again, for an operator.
    func retryDevice(_ name: String, _ caller: Caller) async throws(WireError) {
        try requireOperator("retry a device", caller)
        let device = try device(name, field: "retry_device.name")
        try await marking.run(deadlineNanoseconds: caller.deadlineNanoseconds) {
            () throws(WireError) in
            try device.retry()
            try await self.mark(device, nil)
        }
    }

    /// Ends the use of a device until it is retried, for an operator; or allows it again. Durable
    /// when it returns.
    func releaseDevice(
        _ name: String, reason: String, undo: Bool, _ caller: Caller
    ) async throws(WireError) {
        try requireOperator("release a device", caller)
        let device = try device(name, field: "release_device.name")
        if !undo { try servicing.requireRest("releasing device \(device.name)") }
        let reason = reason.isEmpty ? "released by an operator" : reason
        // Somebody waits for the device itself: a disk that fails does not keep it.
        let problem = try await marking.run(deadlineNanoseconds: caller.deadlineNanoseconds) {
            () throws(WireError) -> WireError? in
            // First, so that no client has it started again meanwhile.
            device.released = undo ? nil : reason
            do throws(WireError) {
                try await self.mark(device, device.released)
                return nil
            } catch { return error }
        }
        if !undo { await stop([device], reason) }
        if let problem { throw problem }
    }

    /// Writes down that a device is released, or is not any more.
    private func mark(_ device: Device, _ reason: String?) async throws(WireError) {
        do throws(SystemCallError) {
            if let reason {
                try await marks.set(device.name, reason)
            } else {
                try await marks.remove(device.name)
            }
        } catch {
            throw WireError(
                .internalError,
                "device \(device.name) is \(reason == nil ? "used again" : "released"), but a "
                    + "restart of nvmed would not know: \(error)", device: device.name)
        }
    }

    /// The statistics of a device's worker, for an operator: they tell what everybody does.
    func openStatistics(
        _ name: String, _ caller: Caller
    ) async throws(WireError) -> (byteCount: UInt64, fd: PassedFD) {
        try requireOperator("read statistics", caller)
        let device = try device(name, field: "open_statistics.device")
        guard let link = device.link else {
            throw WireError(
                .deviceStarting, "device \(name) has no worker now; open a disk of it first",
                device: name)
        }
        return try await link.openStatistics(caller.deadlineNanoseconds)
    }

    /// Stops all devices in order, for an operator; afterwards nothing is taken any more.
    func shutdown(_ caller: Caller) async throws(WireError) {
        try requireOperator("stop the service", caller)
        log.notice("shutting down, as user \(caller.peer.uid) wants")
        await stopAll()
    }

    /// Stops all devices in order; afterwards nothing is taken any more.
    func stopAll() async {
        isStopping = true
        await servicing.standDown()
        await forEachDevice { await $0.stop() }
    }

    func requireOperator(_ what: String, _ caller: Caller) throws(WireError) {
        guard isOperator(caller.peer) else {
            throw notOperator(what, caller)
        }
    }

    private func notOperator(_ what: String, _ caller: Caller) -> WireError {
        WireError(
            .permissionDenied,
            "user \(caller.peer.uid) may not \(what): only root, user \(ownUID), AdminUser= and AdminGroup= may"
        )
    }

    // MARK: Helpers

    /// The next session id.
    func nextSessionID() -> UInt64 {
        let highest = devices.values.lazy.compactMap { $0.sessions.keys.max() }.max() ?? 0
        lastSessionID = max(lastSessionID, highest) &+ 1
        return lastSessionID
    }

    /// The named device.
    func device(_ name: String, field: String) throws(WireError) -> Device {
        if let device = devices[name] { return device }
        let byAddress = devices.values.first {
            if case .pci(let address) = $0.config.transport { return address == name }
            return false
        }
        if let byAddress { return byAddress }
        throw WireError(
            .notFound, "there is no device \(name)",
            device: name, field: field)
    }

    func unknownDisk(_ name: String, field: String) -> WireError {
        WireError(
            .notFound, "there is no disk \(name)", disk: name,
            field: field)
    }

    /// Runs `body` for all devices at once and waits for all.
    func forEachDevice(_ body: @escaping @Control (Device) async -> Void) async {
        await Self.inParallel(sortedDevices, body)
    }

    /// Runs `body` for all of `devices` at once and waits for all.
    static func inParallel(
        _ devices: [Device], _ body: @escaping @Control (Device) async -> Void
    ) async {
        let tasks = devices.map { device in
            EventLoop.current.task { await body(device) }
        }
        for task in tasks {
            await withTaskCancellationHandler {
                await task.value
            } onCancel: {
                task.cancel()
            }
        }
    }
}

/// What parallel tasks on the loop gathered.
@Control
final class Gathered<Entry> {
    var all: [Entry] = []
}

extension String {
    /// The order of names on the wire: bytewise.
    func sortsBefore(_ other: String) -> Bool { utf8.lexicographicallyPrecedes(other.utf8) }
}
