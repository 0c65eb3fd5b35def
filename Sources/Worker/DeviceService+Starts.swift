// SPDX-License-Identifier: Apache-2.0
// Crash loops: starts that complete no command are counted where the next start finds the count.

internal import Linux
internal import NVMeDriver
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
