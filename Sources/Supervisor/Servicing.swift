// SPDX-License-Identifier: Apache-2.0
// Servicing of all devices together: who asks, how it stands, and what is told of it.

internal import Linux
internal import SavedState
internal import Systemd
internal import Wire

/// Saves and restores all devices. (Servicing+Save.swift, Servicing+Restore.swift)
@Control
final class Servicing {
    /// How far one device has come.
    struct Progress {
        var told: ServicingDevice
        /// When its save or restore began; nil: not yet.
        var beganNanoseconds: UInt64?
        /// It goes on or has ended: its duration is settled.
        var isOver = false
    }

    private(set) var machine = ServicingMachine()
    /// Every device that the save or restore that runs, or ran last, concerns.
    private(set) var progress: [String: Progress] = [:]
    /// Why the last one failed; empty: it did not.
    var problem = ""
    /// What is written down; nil: nothing is.
    var written: (savedAtRealtimeNanoseconds: UInt64, byteCount: Int)?
    /// How many saves there were.
    var generation: UInt64 = 0
    let file: SavedStateFile
    let host: HostIdentity
    let log: Log
    unowned let service: Service

    /// What is under way.
    private var work: Task<Void, Never>?
    /// What can be given up of it.
    var freezing: [Task<Void, Never>] = []
    private var beganNanoseconds: UInt64?
    private var endedNanoseconds: UInt64?

    /// Keeps saved state in a directory.
    init(_ service: Service, file: SavedStateFile, host: HostIdentity, log: Log) {
        self.service = service
        self.file = file
        self.host = host
        self.log = log
    }

    // MARK: Asking

    /// Saves all devices that are kept alive, until a point of CLOCK_MONOTONIC. Returns when their
    /// workers have ended; throws when everything goes on as before.
    func save(deadline: UInt64, allOrNothing: Bool) async throws(WireError) {
        try require(post(.save), "save")
        begin()
        let work = EventLoop.current.task { [service] in
            await self.runSave(deadline: deadline, allOrNothing: allOrNothing)
            self.end(service)
        }
        self.work = work
        // The save goes on when nobody waits for it any more.
        await work.value
        guard machine.state == .saved else {
            throw WireError(.cancelled, "nothing is saved: \(problem)")
        }
    }

    /// Gives the save up. Returns when all devices go on.
    func cancel() async throws(WireError) {
        try require(post(.cancel), "cancel")
        giveUp("it was cancelled")
        await work?.value
    }

    /// Takes the saved devices up. Returns when all are dealt with.
    func restore() async throws(WireError) {
        try require(post(.restore), "restore")
        begin()
        var found = true
        let work = EventLoop.current.task { [service] in
            found = await self.runRestore()
            self.end(service)
        }
        self.work = work
        await work.value
        guard found else {
            throw WireError(
                problem.isEmpty ? .notFound : .internalError,
                problem.isEmpty ? "nothing is saved in \(file.path)" : problem)
        }
    }

    /// At start: begins to take up what is saved, if there is something. Returns when every device
    /// has what it saved, so that none is started without.
    func restoreAtStart() async {
        guard file.exists, post(.restore) == .restore else { return }
        begin()
        let begun = OneShot<Void>()
        work = EventLoop.current.task { [service] in
            _ = await self.runRestore { begun.succeed(()) }
            begun.succeed(())
            self.end(service)
        }
        _ = try? await begun.value()
    }

    /// Before everything is stopped: what is not durable yet is given up, what is gets its time.
    func standDown() async {
        if post(.cancel) == .thaw { giveUp("nvmed is being stopped") }
        guard machine.holdsDevices else { return }
        await work?.value
    }

    /// Whether devices may be stopped, changed or released now.
    func requireRest(_ what: String) throws(WireError) {
        guard machine.holdsDevices else { return }
        throw WireError(
            .busy, "\(what) has to wait: the devices are being saved; cancel that or try again")
    }

    private func giveUp(_ reason: String) {
        problem = reason
        for task in freezing { task.cancel() }
    }

    private func require(
        _ action: ServicingMachine.Action, _ what: String
    ) throws(WireError) {
        guard case .refuse(let refusal) = action else { return }
        switch refusal {
        case .busy:
            throw WireError(
                .busy, "\(what): another save or restore is under way; wait for it or cancel it")
        case .late:
            throw WireError(
                .alreadyExists, "\(what): the devices are saved already; restore takes them up")
        case .saved:
            throw WireError(
                .alreadyExists,
                "\(what): the devices are saved already; stop nvmed, or restore first")
        case .nothing: throw WireError(.notFound, "\(what): no save is under way")
        }
    }

    // MARK: The course

    /// Applies an event to the table.
    func post(_ event: ServicingMachine.Event) -> ServicingMachine.Action {
        machine.handle(event)
    }

    private func begin() {
        progress = [:]
        problem = ""
        beganNanoseconds = MonotonicClock.nowNanoseconds
        endedNanoseconds = nil
    }

    /// Nothing is under way any more, for which the service has been kept.
    private func end(_ service: Service) {
        freezing = []
        endedNanoseconds = MonotonicClock.nowNanoseconds
    }

    /// How long it has taken so far.
    var elapsedNanoseconds: UInt64 {
        guard let beganNanoseconds else { return 0 }
        return (endedNanoseconds ?? MonotonicClock.nowNanoseconds) &- beganNanoseconds
    }

    // MARK: Progress

    /// A device has come to a step.
    func note(_ name: String, _ step: ServicingStep, reason: String = "") {
        let now = MonotonicClock.nowNanoseconds
        var one = progress[name] ?? Progress(told: ServicingDevice(name: name, step: step))
        one.told.step = step
        one.told.reason = reason
        switch step {
        case .freezing, .restoring:
            one.beganNanoseconds = one.beganNanoseconds ?? now
        case .saved, .cold, .thawed, .restored, .gone, .failed, .notKept:
            if let began = one.beganNanoseconds, !one.isOver {
                one.told.durationNanoseconds = now &- began
            }
            one.isOver = true
        case .unknown, .waiting, .frozen, .ending: break
        }
        progress[name] = one
    }

    /// What a device told when it was frozen.
    func note(_ name: String, _ summary: DeviceSaved) {
        progress[name]?.told.commandsInFlight = summary.commandsInFlight
        progress[name]?.told.byteCount = summary.byteCount
        progress[name]?.told.queueCount = summary.queueCount
        progress[name]?.told.sessionCount = summary.sessionCount
    }

    /// What is known of a device from its saved state.
    func note(_ name: String, _ saved: SavedDevice, byteCount: Int) {
        progress[name]?.told.byteCount = UInt64(byteCount)
        progress[name]?.told.sessionCount = UInt32(clamping: saved.sessions.count)
    }

    /// Where a device is; nil: it is not concerned.
    func step(of name: String) -> ServicingStep? { progress[name]?.told.step }

    /// How servicing stands, the devices after a name.
    func status(after: String?) -> ServicingStatus {
        let now = MonotonicClock.nowNanoseconds
        let devices = progress.values.map { one in
            var told = one.told
            if !one.isOver { told.durationNanoseconds = one.beganNanoseconds.map { now &- $0 } }
            return told
        }
        .sorted { $0.name.sortsBefore($1.name) }
        var status = ServicingStatus(
            phase: machine.told,
            devices: Paging.page(devices, after: after, key: \.name, cost: Paging.cost))
        if beganNanoseconds != nil { status.durationNanoseconds = elapsedNanoseconds }
        status.problem = problem
        status.savedAtRealtimeNanoseconds = written?.savedAtRealtimeNanoseconds
        status.byteCount = written.map { UInt64($0.byteCount) }
        return status
    }
}

extension Service {
    /// Saves all devices that are kept alive, for an operator.
    func save(
        deadline: UInt64?, allOrNothing: Bool, _ caller: Caller
    ) async throws(WireError) {
        try requireOperator("save the devices", caller)
        guard !isReloading else {
            throw WireError(.busy, "the configuration is being read; try again")
        }
        log.notice("servicing: a save, as user \(caller.peer.uid) wants")
        try await servicing.save(
            deadline: deadline ?? Deadline.after(SupervisorLimits.saveNanoseconds),
            allOrNothing: allOrNothing)
    }

    /// Gives the save up that is under way, for an operator.
    func cancelSave(_ caller: Caller) async throws(WireError) {
        try requireOperator("cancel a save", caller)
        try await servicing.cancel()
    }

    /// Takes the saved devices up, for an operator.
    func restore(_ caller: Caller) async throws(WireError) {
        try requireOperator("restore the devices", caller)
        log.notice("servicing: a restore, as user \(caller.peer.uid) wants")
        try await servicing.restore()
    }
}
