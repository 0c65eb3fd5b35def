// SPDX-License-Identifier: Apache-2.0
// One device of the registry: its life, the connection to its worker, its sessions.

internal import DiskConfig
internal import Linux
internal import Systemd
internal import Wire

/// A configured device. What happens to one never waits for another.
@Control
final class Device {
    /// The configured name.
    let name: String
    /// How to run it; a change takes effect with the next load.
    var config: DeviceConfig
    let units: any WorkerUnits
    let log: Log

    private var lifecycle = DeviceLifecycle(nowNanoseconds: MonotonicClock.nowNanoseconds)
    private(set) var link: WorkerLink?
    /// What the worker said when it was last ready.
    private(set) var ready: DeviceReady?
    private(set) var workerPID: Int32?
    /// What the controller last said of its health.
    private var health: Health?
    private(set) var restarts: UInt64 = 0
    /// Sessions by id. The death of their worker ends none of them: until its successor has said
    /// which it has, they count as open.
    var sessions: [UInt64: SessionInfo] = [:]
    /// What had happened to the device when a session was opened, of those this supervisor opened.
    var openedIn: [UInt64: Continuity] = [:]
    /// Sessions that ended while the worker was asked for all of them.
    private var endedMeanwhile: Set<UInt64> = []
    /// Sessions to be taken from their clients as soon as there is a worker, and why.
    var revocations: [UInt64: String] = [:]
    /// Called when the worker has said what it has.
    var onLearned: (@Control () -> Void)?
    /// Serialises opening.
    let turn: Turn

    /// Why the configuration leaves the device to the kernel; nil: it does not.
    var leftToKernel: String?
    /// Why an operator took the device away for now; nil: nobody did.
    var released: String?

    /// Freezing, saving and restoring.
    var servicing = DeviceServicing()

    private var backOff: Timer?
    private var load: Task<Void, Never>?
    /// The hold on a PCI device.
    var hardware: HardwareWatch?
    /// Runs while the worker is given time to give a device back.
    var removal: Timer?
    /// Tells a load that was overtaken by another one to keep its result for itself.
    private var loadNumber: UInt64 = 0
    private var waiting: [OneShot<Void>] = []
    /// States that the worker has told, and who waits for the next.
    private var toldStates: UInt64 = 0
    private var stateWaiting: [OneShot<Void>] = []
    /// When the worker was lost that has no successor yet.
    private var lostNanoseconds: UInt64?
    /// How long the last change of workers took, as seen from here.
    private var pauseNanoseconds: UInt64?
    /// A worker that ran before this supervisor is being asked what it has.
    private var isAdopting = false
    /// A worker ran before this supervisor, or may have, and has not said what it has.
    private var isUnheard = false
    /// The worker has shut its controller down and is about to end.
    private var isLeaving = false
    private var endWaiting: [UInt64: [OneShot<Void>]] = [:]

    /// A device that was never started.
    init(config: DeviceConfig, units: any WorkerUnits, log: Log) {
        name = config.name
        self.config = config
        self.units = units
        var log = log
        log.device = config.name
        self.log = log
        turn = Turn("device \(config.name)")
    }

    /// Where the device is.
    var state: DeviceLifecycle.State { lifecycle.state }

    /// Whether clients may have sessions: there are some, or it is not known.
    var isInUse: Bool { isUnheard || !sessions.isEmpty }

    /// Why the device is not to be used, if so.
    var withheld: String? { leftToKernel ?? released }

    /// Brings the device up again; an operator wants it.
    func retry() throws(WireError) {
        if let leftToKernel {
            throw WireError(
                .notSupported, "device \(name): \(leftToKernel); change that and reload",
                device: name, field: "nvme_vfio")
        }
        try refuseIfSaved()
        released = nil
        post(.retry)
    }

    // MARK: Events

    /// Applies an event to the lifecycle table and does what the table says.
    func post(_ event: DeviceLifecycle.Event, reason: String = "") {
        let before = lifecycle.state
        let action = lifecycle.handle(
            event, reason: reason, nowNanoseconds: MonotonicClock.nowNanoseconds)
        if lifecycle.state != .starting { isAdopting = false }
        if lifecycle.state != before {
            announce(before)
            reconsiderHardware()
        }
        switch action {
        case .none: break
        case .load: startLoading()
        case .loadLater(let delay): loadLater(delay)
        case .stop: startStopping()
        }
    }

    private func announce(_ before: DeviceLifecycle.State) {
        let reason = lifecycle.reason.isEmpty ? "" : ": \(lifecycle.reason)"
        let text = "\(before) → \(lifecycle.state)\(reason)"
        switch lifecycle.state {
        case .failed: log.error(text, id: .deviceGivenUp)
        case .retrying: log.error(text, id: .deviceFailed)
        case .removed: log.error(text, id: .deviceRemoved)
        case .recovering: log.warning(text, id: .deviceRecovering)
        case .absent, .starting, .ready, .draining: log.info(text, id: .deviceState)
        }
        tellChange()
    }

    // MARK: Loading

    private func startLoading() {
        backOff?.cancel()
        backOff = nil
        load?.cancel()
        loadNumber &+= 1
        endedMeanwhile = []
        let number = loadNumber
        load = EventLoop.current.task { await self.runLoad(number) }
    }

    /// Whatever is being tried is not waited for, nor repeated by itself.
    func abandonLoad() {
        backOff?.cancel()
        backOff = nil
        load?.cancel()
        load = nil
        loadNumber &+= 1
    }

    private func loadLater(_ delay: UInt64) {
        loadNumber &+= 1
        load?.cancel()
        backOff?.cancel()
        backOff = try? EventLoop.current.after(nanoseconds: delay) { [weak self] in
            self?.post(.backOffOver)
        }
        log.info(
            "attempt \(lifecycle.attempts) failed; the next one in \(delay / 1_000_000) ms")
    }

    private func runLoad(_ number: UInt64) async {
        let deadline = Deadline.after(SupervisorLimits.loadNanoseconds)
        do {
            let link = try await connect(deadline, number)
            let (found, fds) = try await bringUp(link, deadline)
            hold(fds)
            let sessions = try await link.sessions(deadline)
            guard number == loadNumber else { return }
            load = nil
            learn(found, sessions)
            post(.loaded)
        } catch {
            guard number == loadNumber else { return }
            load = nil
            post(error.code == .deviceRemoved ? .gone : .failed, reason: error.message)
        }
    }

    private func connect(
        _ deadline: UInt64, _ number: UInt64
    ) async throws(WireError) -> WorkerLink {
        if let link, link.isOpen { return link }
        let passed = try await units.connect(name)
        guard number == loadNumber, let fd = passed.take() else {
            throw WireError(.cancelled, "another attempt began", device: name)
        }
        do {
            let link = try WorkerLink(
                fd, device: name, onEvent: { [weak self] in self?.hear($0) },
                onEnd: { [weak self] in self?.lost($0) })
            self.link = link
            return link
        } catch {
            throw WireError(.internalError, "\(error)", device: name)
        }
    }

    /// Has the worker bring the device up, or learns that it is.
    private func bringUp(
        _ link: WorkerLink, _ deadline: UInt64
    ) async throws(WireError) -> (found: WorkerDevice, fds: [PassedFD]) {
        var found = try await settled(link, deadline)
        if found.state == .ready, found.ready != nil {
            if found.config != config {
                log.warning(
                    "runs with an earlier configuration until its worker is restarted",
                    id: .configurationWarning)
            }
            guard case .pci = found.config?.transport, let known = found.config else {
                return (found, [])
            }
            // The same answer once more, with the descriptors.
            return (found, try await link.loadDriver(known, deadline).fds)
        }
        // It has nothing of a predecessor, and will open the device, which nobody else may hold.
        if found.state == .absent {
            letGoOfHardware()
            isUnheard = false
        }
        let saved = try sectionToSend()
        let (ready, fds) = try await link.loadDriver(config, saved: saved, deadline)
        if saved != nil { servicing.tookSection(ready) }
        found.ready = ready
        found.state = .ready
        return (found, fds)
    }

    /// What the worker has, once it has finished what it began by itself: the successor of one that
    /// died takes the device over without being asked.
    private func settled(
        _ link: WorkerLink, _ deadline: UInt64
    ) async throws(WireError) -> WorkerDevice {
        while true {
            let told = toldStates
            let found = try await link.getDevice(deadline)
            // One that answers while it recovers has adopted nothing: it resets the controller, and
            // perhaps opens the function anew, which nobody else may hold then.
            if found.state == .recovering, removal == nil { letGoOfHardware() }
            guard found.state == .starting || found.state == .recovering else { return found }
            // What was told since the question was sent may be news.
            guard told == toldStates else { continue }
            let change = OneShot<Void>()
            stateWaiting.append(change)
            try await change.wait(until: deadline, "waiting for the worker of device \(name)")
        }
    }

    private func tellState() {
        toldStates &+= 1
        let waiting = stateWaiting
        stateWaiting = []
        for one in waiting { one.succeed(()) }
    }

    private func learn(_ found: WorkerDevice, _ sessions: [SessionInfo]) {
        servicing.settle(found.ready)
        let isSuccessor = workerPID != nil && workerPID != found.workerPID
        if isSuccessor { restarts &+= 1 }
        workerPID = found.workerPID
        units.answered(name)
        ready = found.ready
        if let lostNanoseconds, isSuccessor {
            pauseNanoseconds = MonotonicClock.nowNanoseconds &- lostNanoseconds
        }
        lostNanoseconds = nil
        reconcile(sessions)
        onLearned?()
        guard let ready else { return }
        let pause = continuity?.lastPauseNanoseconds.map {
            "; requests waited \($0 / 1_000_000) ms"
        }
        let how =
            ready.resetReason.isEmpty ? "" : "; its controller was reset: \(ready.resetReason)"
        log.notice(
            "ready: \(ready.namespaces.count) namespaces, worker \(found.workerPID), "
                + "\(self.sessions.count) sessions, brought up in "
                + "\(ready.bringUpNanoseconds / 1_000_000) ms"
                + (isSuccessor ? (pause ?? "") + how : ""), id: .deviceReady)
    }

    /// Takes over what the worker says of its sessions.
    private func reconcile(_ told: [SessionInfo]) {
        isUnheard = false
        let before = sessions
        sessions = [:]
        for session in told.prefix(SupervisorLimits.sessionsPerDevice)
        where !endedMeanwhile.contains(session.sessionID) {
            sessions[session.sessionID] = session
            if let known = before[session.sessionID] {
                sessions[session.sessionID]?.openedNanoseconds = known.openedNanoseconds
            }
        }
        endedMeanwhile = []
        for (id, session) in before where sessions[id] == nil {
            log.warning(
                "session \(id) of disk \(session.disk), of process \(session.clientPID), ended "
                    + "while its worker was replaced", id: .sessionEnded, namespace: session.nsid)
        }
        revocations = revocations.filter { sessions[$0.key] != nil }
        openedIn = openedIn.filter { sessions[$0.key] != nil }
        for id in endWaiting.keys where sessions[id] == nil { tellEnded(id) }
    }

    /// Forgets all sessions: the worker has ended them in order.
    private func forgetSessions() {
        isUnheard = false
        sessions = [:]
        openedIn = [:]
        revocations = [:]
        for id in Array(endWaiting.keys) { tellEnded(id) }
    }

    /// Adopts a worker that runs already, without starting one; the supervisor was restarted.
    func adopt() async {
        do throws(WireError) {
            if withheld != nil {
                if try await units.isRunning(name) { try await units.stop(name) }
                return
            }
        } catch {
            return log.warning(
                "its worker could not be stopped: \(error); continuing", id: .workerStuck)
        }
        let isRunning: Bool?
        do {
            isRunning = try await units.isRunning(name)
        } catch {
            log.warning("whether its worker runs is unknown: \(error); continuing")
            isRunning = nil
        }
        // One that is being restored may have told everything by now.
        guard ready == nil else { return }
        isUnheard = isRunning != false
        guard isRunning == true else { return }
        isAdopting = state == .absent || state == .starting
        if state == .absent { post(.wanted) }
    }

    /// Waits until a worker that is being adopted has said what sessions it has, or cannot.
    func waitForAdoption(_ deadline: UInt64) async {
        while isAdopting {
            let change = OneShot<Void>()
            waiting.append(change)
            do throws(WireError) {
                try await change.wait(until: deadline, "adopting the worker of device \(name)")
            } catch { return }
        }
    }

    // MARK: What the worker tells

    private func hear(_ event: WorkerEvent) {
        switch event {
        case .stateChanged(let state, let reason):
            tellState()
            hear(state, reason)
        case .namespaceChanged(let nsid): refreshNamespace(nsid)
        // The worker has logged what is critical about it.
        case .health(let health): self.health = health
        case .sessionEnded(let id, let reason, _):
            if let session = sessions.removeValue(forKey: id) {
                log.info(
                    "session \(id) of disk \(session.disk) ended: \(reason)",
                    id: .sessionEnded, namespace: session.nsid)
            }
            if load != nil { endedMeanwhile.insert(id) }
            revocations[id] = nil
            openedIn[id] = nil
            tellEnded(id)
        }
    }

    private func hear(_ state: DeviceState, _ reason: String) {
        switch state {
        case .recovering: post(.stalled, reason: reason)
        case .failed: post(.failed, reason: reason)
        case .removed: post(.gone, reason: reason)
        // While it is being loaded the reply to LoadDriver says more.
        case .ready: if lifecycle.state == .recovering, load == nil { post(.loaded) }
        // Its unit was stopped by somebody else: it is not started again until it is wanted.
        case .absent: isLeaving = true
        case .unknown, .starting, .draining: break
        }
    }

    private func refreshNamespace(_ nsid: UInt32) {
        guard let link, link.isOpen else { return }
        EventLoop.current.task {
            let deadline = Deadline.after(SupervisorLimits.requestNanoseconds)
            let fresh: NamespaceInfo?
            do throws(WireError) {
                fresh = try await link.getNamespace(nsid, deadline)
            } catch {
                fresh = nil
            }
            self.replace(nsid, fresh)
        }
    }

    private func replace(_ nsid: UInt32, _ fresh: NamespaceInfo?) {
        log.notice("namespace \(fresh == nil ? "gone" : "changed")", namespace: nsid)
        ready?.namespaces.removeAll { $0.nsid == nsid }
        if let fresh { ready?.namespaces.append(fresh) }
        ready?.namespaces.sort { $0.nsid < $1.nsid }
    }

    private func lost(_ reason: String) {
        link = nil
        // While we stop it ourselves, its unit's end is what counts.
        let isEnd = (isLeaving || servicing.isSaved) && lifecycle.state != .draining
        isLeaving = false
        tellState()
        if isEnd {
            forgetSessions()
        } else if lostNanoseconds == nil, ready != nil {
            lostNanoseconds = MonotonicClock.nowNanoseconds
        }
        post(isEnd ? .stopped : .workerLost, reason: reason)
    }

    // MARK: Waiting

    /// Starts the device if need be and waits until it is ready.
    func becomeReady(_ deadline: UInt64) async throws(WireError) {
        if let withheld {
            throw WireError(
                .deviceFailed, "device \(name) is not used by nvmed: \(withheld)", device: name)
        }
        try refuseIfSaved()
        post(.wanted)
        let pauseEnd = min(deadline, Deadline.after(SupervisorLimits.pauseNanoseconds))
        // Each turn waits for a change of state, which the table bounds.
        while true {
            switch lifecycle.state {
            case .ready where servicing.isFrozen:
                // It goes on soon, or ends.
                try await nextChange(deadline, "device \(name) is being saved")
                try refuseIfSaved()
            case .ready: return
            case .retrying where ready != nil:
                do throws(WireError) {
                    try await nextChange(pauseEnd, "")
                } catch { throw error.code == .deadlineExceeded ? failure() : error }
            case .retrying, .failed: throw failure()
            case .removed:
                throw WireError(
                    .deviceRemoved, "device \(name) is gone: \(lifecycle.reason)", device: name)
            case .absent, .draining:
                throw WireError(
                    .shuttingDown, "device \(name) is being stopped; try again later",
                    device: name)
            case .starting, .recovering:
                let change = OneShot<Void>()
                waiting.append(change)
                try await change.wait(until: deadline, "waiting for device \(name)")
            }
        }
    }

    /// Waits until the state changes, or what else holds everybody up.
    func nextChange(_ deadline: UInt64, _ what: String) async throws(WireError) {
        let change = OneShot<Void>()
        waiting.append(change)
        try await change.wait(until: deadline, what)
    }

    /// Tells those who wait that there is something to look at.
    func tellChange() {
        let waiting = waiting
        self.waiting = []
        for one in waiting { one.succeed(()) }
    }

    /// Why it cannot be used now. One that was in service and is tried again by itself passes
    /// through a pause: whoever wants it may come again.
    func failure() -> WireError {
        let next =
            lifecycle.state == .retrying
            ? "it is tried again by itself" : "the next open tries again"
        return WireError(
            lifecycle.state == .retrying && ready != nil ? .deviceStarting : .deviceFailed,
            "device \(name) could not be brought up (attempt \(max(lifecycle.attempts, 1))): "
                + "\(lifecycle.reason); \(next), or when an operator retries it", device: name)
    }

    /// Waits until a session has ended; returns whether it has.
    func waitForEnd(of id: UInt64, _ deadline: UInt64) async -> Bool {
        guard sessions[id] != nil else { return true }
        let ended = OneShot<Void>()
        endWaiting[id, default: []].append(ended)
        do throws(WireError) {
            try await ended.wait(until: deadline, "session \(id)")
            return true
        } catch {
            endWaiting[id]?.removeAll { $0.isFinished }
            if endWaiting[id]?.isEmpty == true { endWaiting[id] = nil }
            return false
        }
    }

    private func tellEnded(_ id: UInt64) {
        for one in endWaiting.removeValue(forKey: id) ?? [] { one.succeed(()) }
    }

    // MARK: Stopping

    private func startStopping() {
        backOff?.cancel()
        backOff = nil
        load?.cancel()
        loadNumber &+= 1
        load = EventLoop.current.task { await self.runStop() }
    }

    private func runStop() async {
        let deadline = Deadline.after(SupervisorLimits.shutdownNanoseconds)
        if let link, link.isOpen {
            do throws(WireError) {
                _ = try await link.call(
                    .shutdown(doNotReset: false), deadlineNanoseconds: deadline,
                    "shutting the worker down")
            } catch {
                log.warning("did not shut down in order: \(error); ending its worker")
            }
        }
        link?.close()
        link = nil
        do throws(WireError) {
            try await units.stop(name)
        } catch {
            log.error("its worker could not be stopped: \(error); continuing", id: .workerStuck)
        }
        forgetSessions()
        workerPID = nil
        lostNanoseconds = nil
        post(.stopped)
    }

    /// The connection is given up, and with it whatever the worker holds for it; it is made anew.
    func reconnect(_ reason: String) {
        guard let link else { return }
        link.close()
        lost(reason)
    }

    /// The worker has ended in order, or does so without being waited for.
    func hasEnded() {
        link?.close()
        link = nil
        isLeaving = false
        forgetSessions()
        workerPID = nil
        lostNanoseconds = nil
        post(.stopped)
    }

    /// Ends the worker in order and waits until it has ended.
    func stop() async {
        await waitForSuccessor()
        post(.stop, reason: "stopped by request")
        while lifecycle.state == .draining {
            let change = OneShot<Void>()
            waiting.append(change)
            do throws(WireError) {
                // The steps of stopping have their own bounds; this one only ends the loop.
                try await change.wait(
                    until: Deadline.after(4 * SupervisorLimits.shutdownNanoseconds),
                    "stopping device \(name)")
            } catch { return }
        }
    }

    /// The successor of a worker that died can shut the controller down in order; without it the
    /// device would only be closed. Bounded: it may never come.
    private func waitForSuccessor() async {
        let deadline = Deadline.after(SupervisorLimits.successorNanoseconds)
        while lifecycle.state == .recovering, link == nil || load != nil {
            let change = OneShot<Void>()
            waiting.append(change)
            do throws(WireError) {
                try await change.wait(until: deadline, "the next worker of device \(name)")
            } catch { return }
        }
    }

    // MARK: Telling

    /// The device as clients see it.
    var info: DeviceInfo {
        var info = DeviceInfo(name: name, state: lifecycle.told)
        info.reason =
            withheld ?? (servicing.isSaved ? "saved for servicing" : lifecycle.reason)
        info.attempts = lifecycle.attempts
        info.sinceNanoseconds = lifecycle.sinceNanoseconds
        info.transport = config.transport.told
        info.serial = ready?.controller.serial ?? ""
        info.model = ready?.controller.model ?? ""
        info.firmware = ready?.controller.firmware ?? ""
        info.namespaces = ready?.namespaces ?? []
        info.workerPID = link == nil ? nil : workerPID
        info.restarts = restarts
        info.sessionCount = UInt32(clamping: sessions.count)
        info.health = health
        info.continuity = continuity
        info.resetReason = ready?.resetReason ?? ""
        return info
    }

    /// How the device got over the deaths of its workers. Where the worker does not tell how long
    /// requests waited, it is how long it took until its successor was ready.
    var continuity: Continuity? {
        guard let ready else { return nil }
        var known = ready.continuity ?? Continuity(generation: ready.generation)
        if known.lastPauseNanoseconds == nil { known.lastPauseNanoseconds = pauseNanoseconds }
        return known
    }
}

extension Device {
    /// A session was opened just now.
    func noteOpened(_ id: UInt64) { openedIn[id] = continuity }

    /// A session as clients see it: with what happened to the device since it was opened, if that
    /// was noted.
    func told(_ session: SessionInfo) -> SessionInfo {
        var session = session
        session.device = name
        // A worker that took it over may know only since when it has it.
        if let known = sessions[session.sessionID] {
            session.openedNanoseconds = min(known.openedNanoseconds, session.openedNanoseconds)
        }
        guard session.continuity == nil, var now = continuity,
            let before = openedIn[session.sessionID]
        else { return session }
        now.adoptions -= min(before.adoptions, now.adoptions)
        now.resets -= min(before.resets, now.resets)
        if now.generation == before.generation { now.lastPauseNanoseconds = nil }
        session.continuity = now
        return session
    }

    /// The device as resolution sees it.
    var known: KnownDevice {
        KnownDevice(
            name: name, serial: ready?.controller.serial ?? "",
            namespaces: (ready?.namespaces ?? []).map {
                KnownNamespace(
                    nsid: $0.nsid, nguid: $0.identity.nguid, eui64: $0.identity.eui64,
                    uuid: $0.identity.uuid)
            }, isComplete: ready != nil)
    }
}

extension Transport {
    /// How the device is reached, as `DeviceInfo` has it.
    var told: String {
        switch self {
        case .vfioUser(let path): "vfio-user:\(path)"
        case .pci(let address): "pci:\(address)"
        case .null: "null"
        }
    }
}

/// Points of CLOCK_MONOTONIC.
enum Deadline {
    /// A time from now.
    static func after(_ nanoseconds: UInt64) -> UInt64 {
        let (sum, overflow) = MonotonicClock.nowNanoseconds.addingReportingOverflow(nanoseconds)
        return overflow ? .max : sum
    }
}
