// SPDX-License-Identifier: Apache-2.0
// Letting go of the device: it is taken away, or the worker leaves.

internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

extension DeviceService {
    /// Waits until every client has heard why its session is over, as far as it makes room for it
    /// in time.
    func allAreTold() async {
        guard farewells > 0, allTold == nil else { return }
        let told = OneShot<Void>()
        allTold = told
        _ = try? await told.value()
    }

    // MARK: Removal

    func act(on notice: DeviceNotice) {
        switch notice {
        case .removalRequested: release("the system wants the device back (unbind or unplug)")
        }
    }

    /// Gives the device back: what is in flight may finish for a moment, then the controller is
    /// stopped and every descriptor closed, here and in the store.
    private func release(_ reason: String) {
        guard let controller, failure == nil, lifecycle.state != .removed else { return }
        log.warning("\(reason): it is given back", id: .deviceRemoved)
        step(.remove, reason)
        thaw(reason)
        // A worker that is leaving already lets go by itself.
        guard whenDrained == nil else { return }
        whenDrained = { [weak self] isIdle in self?.finishRelease(controller, isIdle, reason) }
        freeze()
        guard !isIdle else { return finishDrain(true) }
        drainTimer = try? loop.after(nanoseconds: WorkerLimits.releaseNanoseconds) { [weak self] in
            self?.finishDrain(false)
        }
    }

    /// The device is being given back: what uses it is still there.
    var isReleasing: Bool { lifecycle.state == .removed && controller != nil }

    private func finishRelease(_ controller: NVMeController, _ isIdle: Bool, _ reason: String) {
        defer { tellSettled() }
        guard controller === self.controller, failure == nil else { return }
        unwatch()
        stopThreads()
        do throws(DriverError) {
            if isIdle { try controller.stop() } else { controller.disable() }
        } catch {
            log.warning(
                "could not be shut down in order: \(error); continuing", id: .controllerFailed)
        }
        endEverything(
            controller,
            WireError(.deviceRemoved, "the device is gone: \(reason)", device: name))
        reclaimState(controller)
        self.controller = nil
        forgetQueues()
        environment.forget()
        log.notice("has been given back", id: .deviceRemoved)
    }

    /// Ends all requests without the device, then all sessions, with a reason of their own or the
    /// same.
    func endEverything(
        _ controller: NVMeController, _ error: WireError, _ ending: WireError? = nil
    ) {
        for index in 0..<controller.queueCount {
            unsafe controller.engine(index).pointee.abandon(status: 0) {
                self.complete($0, failure: error, queue: index)
            }
        }
        for session in sessions.compactMap({ $0 }) {
            session.pending = [:]
            end(session, ending ?? error)
            dropRings(session)
            forgetStatistics(session)
            sessions[session.slot] = nil
            for region in session.regions.values {
                // The device that had it is not used any more.
                controller.state.clearRegion(region.driverRegion)
                environment.stored?.remove(.memory, region.number)
            }
            controller.state.clearSession(session.slot)
        }
        dyingSessions = 0
        requestsInFlight = 0
        dropThreads()
    }

    // MARK: Leaving

    /// Takes no more requests, lets those in flight finish, and calls `done`: whether all did in
    /// time.
    func drain(_ nanoseconds: UInt64, _ done: @escaping @Control (Bool) -> Void) {
        thaw("the worker was asked to leave")
        step(.drain, "the worker was asked to leave")
        whenDrained = done
        freeze()
        CrashPoint.hit(.restartFrozen)
        guard !isIdle, failure == nil else { return finishDrain(true) }
        drainTimer = try? loop.after(nanoseconds: nanoseconds) { [weak self] in
            self?.finishDrain(false)
        }
    }

    /// Takes nothing more from rings.
    func freeze() {
        for thread in threads { thread.setFrozen(true) }
        watchProgress()
    }

    /// Whether nothing is with the device.
    var isIdle: Bool { requestsInFlight == 0 && threadsAreIdle }

    /// Called whenever requests ended.
    func drainProgressed() {
        if whenDrained != nil, isIdle { finishDrain(true) }
        if let servicing, !servicing.isQuiet, isIdle { servicing.drained.succeed(()) }
    }

    func finishDrain(_ complete: Bool) {
        drainTimer?.cancel()
        drainTimer = nil
        guard let done = whenDrained else { return }
        whenDrained = nil
        soon { done(complete) }
    }

    /// With `orderly` all sessions end with `reason`, and the controller is shut down; otherwise
    /// everything is left as it is.
    func leave(orderly: Bool, _ reason: WireError) {
        guard let controller, failure == nil else {
            guard orderly else { return }
            // Of a device that was being started again: nobody goes on with the sessions.
            if controller == nil { endInherited(reason) }
            step(.drained, "")
            return
        }
        let idle = isIdle
        stopThreads()
        // A successor goes on, with the sessions too: nobody is told anything.
        guard orderly else { return CrashPoint.hit(.restartFlushed) }
        if !idle { controller.disable() }
        let late = WireError(
            .outcomeUnknown, "the device did not answer before the worker had to leave",
            device: name)
        for session in sessions.compactMap({ $0 })
        where session.pending.isEmpty && ringsAreIdle(session) {
            end(session, reason)
            finish(session)
        }
        if !idle { endEverything(controller, late) }
        dropThreads()
        unwatch()
        if idle {
            do throws(DriverError) {
                try controller.stop()
            } catch {
                log.error(
                    "could not be shut down in order: \(error); continuing", id: .controllerFailed)
            }
        }
        reclaimState(controller)
        self.controller = nil
        forgetQueues()
        step(.drained, "")
    }
}
