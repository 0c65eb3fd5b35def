// SPDX-License-Identifier: Apache-2.0
// Crash loops: starts that complete no command are counted where the next start finds the count.
// And what a start must not do to a predecessor's sessions: tell them that they are over while the
// controller still has their commands, or go on with them on something else.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import Wire

extension DeviceService {
    /// Counts this process's first start of the device. Throws when there were so many without a
    /// completed command that the device is left alone; the reason says how many, and what to do.
    func countStart() throws(WireError) {
        if try isRested() || isCounted { return }
        isCounted = true
        if idleState?.predecessorWasFruitful == true { idleState?.forgetStarts() }
        let now = MonotonicClock.nowNanoseconds
        idleState?.countStart(
            nowNanoseconds: now, windowNanoseconds: WorkerLimits.fruitlessWindowNanoseconds)
        guard isResting else { return }
        idleState?.giveUp(nowNanoseconds: now)
        throw resting(now)
    }

    /// Whether the limit was reached once.
    private var isResting: Bool {
        (idleState?.fruitlessStarts ?? 0) > WorkerLimits.fruitlessStarts
    }

    /// False when there is no reason to rest; true when the rest is over, which begins a new count.
    private func isRested() throws(WireError) -> Bool {
        guard isResting else { return false }
        let now = MonotonicClock.nowNanoseconds
        guard restLeft(now) == 0 else { throw resting(now) }
        idleState?.countStart(nowNanoseconds: now, windowNanoseconds: 0)
        return true
    }

    private func restLeft(_ now: UInt64) -> UInt64 {
        guard let since = idleState?.fruitlessSinceNanoseconds, let times = idleState?.giveUps,
            times > 0
        else { return 0 }
        let doublings = UInt64(min(times - 1, 16))
        let rest = min(
            WorkerLimits.restFirstNanoseconds << doublings, WorkerLimits.restLastNanoseconds)
        let passed = now &- since
        return passed < rest ? rest - passed : 0
    }

    private func resting(_ now: UInt64) -> WireError {
        let starts = idleState?.fruitlessStarts ?? 0
        return WireError(
            .deviceFailed,
            "the worker died \(max(starts, 1) - 1) times in a row before it completed one command; "
                + "the device is left alone for \(restLeft(now) / 1_000_000_000 + 1) s. See the "
                + "log for why; stopping nvmed-worker@\(name).service begins afresh",
            device: name)
    }

    /// The first completion: whatever happens from now on, this start was worth it.
    func noteFruit(_ controller: NVMeController) {
        isFruitful = true
        controller.state.forgetStarts()
        if adoptionIsOpen { soon { [weak self] in self?.finishAdoption() } }
    }

    /// Whether a controller that has failed is left to a successor, which resets it: the sessions
    /// go on then. Not when it fails again and again.
    func isLeftToSuccessor(_ controller: NVMeController) -> Bool {
        guard leaveToSuccessor != nil, lifecycle.state == .ready,
            sessions.contains(where: { $0?.hasEnded == false })
        else { return false }
        controller.state.countFailure(
            nowNanoseconds: MonotonicClock.nowNanoseconds,
            windowNanoseconds: WorkerLimits.failureWindowNanoseconds)
        return controller.state.failures <= environment.failureLimit
    }

    /// The worker leaves because it was asked to: it was no failure, whatever it did.
    func forgetStarts() {
        isFruitful = true
        if let controller { controller.state.forgetStarts() } else { idleState?.forgetStarts() }
    }
}

extension DeviceService {
    // MARK: Before sessions are told that they are over

    /// Brings a controller up; whether a predecessor's requests and memory were kept.
    func start(_ controller: NVMeController) throws(DriverError) -> Bool {
        guard hasInheritance else {
            try controller.start { environment.keep($0) }
            return false
        }
        do throws(DriverError) {
            try startOver(controller)
            return true
        } catch {
            guard case .notAdoptable = error else { throw error }
            log.warning("\(error): all sessions end", id: .controllerFailed)
            silence(controller)
            endInherited(
                WireError(
                    .workerRestarted, "the device had to be started afresh: \(error)",
                    device: name))
        }
        try controller.start { environment.keep($0) }
        return false
    }

    /// Keeps a controller from touching memory: who is told that his session is over uses his own
    /// again. Bounded.
    func silence(_ controller: NVMeController) {
        guard !controller.disable() else { return }
        resetFunction(controller, "the controller did not confirm its reset")
    }

    /// The same of a predecessor's controller that this process does not even look at. Whoever
    /// comes later finds that it cannot be gone on with. Bounded.
    func silencePredecessor() {
        environment.silence()
        withState { $0.clearController() }
    }

    // MARK: Something else in the same place

    /// Throws when a predecessor's sessions wait for a device in another place than that of a
    /// configuration.
    func checkPlace(_ asked: DeviceConfig) throws(WireError) {
        guard hasInheritance, let known = config, known.transport != asked.transport else { return }
        throw WireError(
            .busy,
            "sessions wait for the device at \(known.transport.place), and their requests must not "
                + "go to the one at \(asked.transport.place); bring the first back, or wait until "
                + "its sessions end (\(stallSecondsLeft) s), or stop nvmed-worker@\(name).service",
            device: name, field: "load_driver.config")
    }

    private var stallSecondsLeft: UInt64 {
        let passed = MonotonicClock.nowNanoseconds &- (stalledSince ?? 0)
        let limit = environment.stallLimitNanoseconds
        return passed < limit ? (limit - passed) / 1_000_000_000 + 1 : 0
    }
}

extension Transport {
    /// Where the device is, in words.
    fileprivate var place: String {
        switch self {
        case .pci(let address): address
        case .vfioUser(let path): path
        case .null: "no address (a null device)"
        }
    }
}
