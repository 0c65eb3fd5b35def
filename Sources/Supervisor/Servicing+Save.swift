// SPDX-License-Identifier: Apache-2.0
// A save: all devices frozen at once, written down, and ended; or all of them go on.

internal import Linux
internal import SavedState
internal import Systemd
internal import Wire

extension Servicing {
    /// Takes a save from its beginning to `saved` or back to `idle`.
    func runSave(deadline: UInt64, allOrNothing: Bool) async {
        let thawing = Gathered<Task<Void, Never>>()
        var frozen = await gather(deadline, allOrNothing, thawing)
        frozen = await freezeLost(frozen, deadline)
        if machine.state == .gathering, let why = objection(frozen, allOrNothing) { fail(why) }
        if post(.gathered) == .write { await writeDown(&frozen, deadline, allOrNothing) }
        if machine.state == .ending { await endAll(frozen) }
        if machine.state == .thawing { await thawAll(frozen) }
        for task in thawing.all { await task.value }
        report()
    }

    private func fail(_ reason: String) {
        problem = reason
        if post(.failed) == .thaw { for task in freezing { task.cancel() } }
    }

    // MARK: Gathering

    /// Freezes all devices that can be, at once. Those that cannot go on by themselves.
    private func gather(
        _ deadline: UInt64, _ allOrNothing: Bool, _ thawing: Gathered<Task<Void, Never>>
    ) async -> [FrozenDevice] {
        let (until, leaseEnd) = Self.bounds(deadline)
        let frozen = Gathered<FrozenDevice>()
        for device in service.sortedDevices where device.state != .absent {
            guard device.isToBeSaved else {
                note(
                    device.name, .notKept,
                    reason: device.withheld ?? "NVMeKeepAlive= is off for this device")
                continue
            }
            note(device.name, .waiting)
            freezing.append(
                EventLoop.current.task {
                    let one = await self.freeze(device, leaseEnd: leaseEnd, until)
                    if let one { return frozen.all.append(one) }
                    thawing.all.append(EventLoop.current.task { await device.thaw("left out") })
                    if allOrNothing { self.failOver(device.name) }
                })
        }
        for task in freezing { await task.value }
        return frozen.all.sorted { $0.device.name.sortsBefore($1.device.name) }
    }

    /// Until when devices may be frozen, and when those that hear nothing go on.
    private static func bounds(_ deadline: UInt64) -> (until: UInt64, leaseEnd: UInt64) {
        let now = MonotonicClock.nowNanoseconds
        let left = deadline > now ? deadline - now : 0
        let (end, overflow) = deadline.addingReportingOverflow(SupervisorLimits.leaseNanoseconds)
        return (
            deadline - min(SupervisorLimits.commitNanoseconds, left / 4), overflow ? .max : end
        )
    }

    /// Freezes those once more whose workers died when they were frozen: their successors have
    /// them. Who dies again is left out.
    private func freezeLost(
        _ frozen: [FrozenDevice], _ deadline: UInt64
    ) async -> [FrozenDevice] {
        guard frozen.contains(where: { !$0.isFrozen && step(of: $0.device.name) == .frozen }),
            machine.state == .gathering || machine.state == .writing
        else { return frozen }
        let (until, leaseEnd) = Self.bounds(deadline)
        let again = Gathered<FrozenDevice>()
        let tasks = frozen.map { one in
            EventLoop.current.task {
                guard !one.isFrozen, self.step(of: one.device.name) == .frozen else {
                    return again.all.append(one)
                }
                let next = await self.freeze(one.device, leaseEnd: leaseEnd, until)
                // What could not be frozen stays lost, which everything after this knows.
                again.all.append(next ?? one)
            }
        }
        freezing += tasks
        for task in tasks { await task.value }
        return again.all.sorted { $0.device.name.sortsBefore($1.device.name) }
    }

    private func freeze(
        _ device: Device, leaseEnd: UInt64, _ until: UInt64
    ) async -> FrozenDevice? {
        do throws(WireError) {
            try await device.becomeSteady(until)
            note(device.name, .freezing)
            let frozen = try await device.freeze(.random(), leaseEnd: leaseEnd, until)
            note(device.name, frozen.summary)
            note(device.name, .frozen)
            return frozen
        } catch {
            let isGivenUp = machine.state == .thawing
            if !isGivenUp {
                device.log.error("is not saved: \(error.message)", id: .servicingCold)
            }
            note(device.name, isGivenUp ? .thawed : .cold, reason: error.message)
            return nil
        }
    }

    /// One device cannot be saved, and all were to be.
    private func failOver(_ name: String) {
        guard machine.state == .gathering else { return }
        fail("device \(name): \(progress[name]?.told.reason ?? "")")
    }

    /// Why the devices that are frozen may not be written down; nil: they may.
    private func objection(_ frozen: [FrozenDevice], _ allOrNothing: Bool) -> String? {
        if let lost = frozen.first(where: { !$0.isFrozen && step(of: $0.device.name) == .frozen }) {
            note(lost.device.name, .cold, reason: "its worker ended while it was frozen")
            if allOrNothing {
                return "device \(lost.device.name): its worker ended while it was frozen"
            }
        }
        if allOrNothing,
            let out = frozen.first(where: { step(of: $0.device.name) == .cold })
        {
            return "device \(out.device.name): \(progress[out.device.name]?.told.reason ?? "")"
        }
        guard !frozen.contains(where: \.isFrozen) else { return nil }
        let reasons = progress.values.filter { $0.told.step == .cold }
            .sorted { $0.told.name.sortsBefore($1.told.name) }
            .map { "device \($0.told.name): \($0.told.reason)" }
        guard let first = reasons.first else {
            return "no device is in use that is to be kept alive (NVMeKeepAlive=)"
        }
        return "no device could be saved: \(first)"
            + (reasons.count > 1 ? ", and \(reasons.count - 1) more" : "")
    }

    // MARK: Writing

    /// Writes the file and puts it into its place, unless the save is given up meanwhile.
    private func writeDown(
        _ frozen: inout [FrozenDevice], _ deadline: UInt64, _ allOrNothing: Bool
    ) async {
        do {
            let savedAt = RealtimeClock.nowNanoseconds
            generation &+= 1
            var bytes = try encode(fitting(frozen), savedAt)
            try await file.prepare(bytes)
            if frozen.contains(where: { !$0.isFrozen }) {
                frozen = await freezeLost(frozen, deadline)
                bytes = try encode(fitting(frozen), savedAt)
                try await file.prepare(bytes)
            }
            guard machine.state == .writing else { return }
            if let why = objection(frozen, allOrNothing) { return fail(why) }
            guard MonotonicClock.nowNanoseconds < deadline else {
                return fail("it took longer than it may to write \(file.path)")
            }
            guard post(.written) == .commit else { return }
            try await file.commit()
            written = (savedAt, bytes.count)
            _ = post(.durable)
        } catch {
            fail("the state cannot be written: \(error); is there room, and may nvmed write there?")
            try? await file.remove()
            written = nil
        }
    }

    /// The sections of the devices that are frozen. One for which the file has no room is left out.
    private func fitting(_ frozen: [FrozenDevice]) -> [SavedSection] {
        let sections = frozen.filter { $0.isFrozen && step(of: $0.device.name) == .frozen }
            .map(\.saved)
        let (fitting, others) = SavedState.fitting(sections)
        for other in others {
            note(
                other.name, .cold,
                reason: "the saved state has no room for the \(other.bytes.count) bytes of it")
        }
        return fitting
    }

    private func encode(
        _ sections: [SavedSection], _ savedAt: UInt64
    ) throws(SavedStateError) -> [UInt8] {
        try SavedState.encode(
            host: SavedHost(
                machineID: host.machineID, bootID: host.bootID, version: Program.commit,
                savedAtRealtimeNanoseconds: savedAt, generation: generation),
            sections: sections)
    }

    // MARK: Ending

    /// Ends the workers of the saved devices, all at once. What of them goes on is written down no
    /// longer.
    private func endAll(_ frozen: [FrozenDevice]) async {
        let saved = frozen.filter { step(of: $0.device.name) == .frozen }
        await Service.inParallel(saved.map(\.device)) { device in
            guard let one = saved.first(where: { $0.device === device }) else { return }
            self.note(device.name, .ending)
            do throws(WireError) {
                try await device.endSaved(one)
                self.note(device.name, .saved)
                device.log.notice(
                    "is saved: \(one.section.count) bytes, \(one.summary.commandsInFlight) "
                        + "commands in flight", id: .servicingSaved)
            } catch {
                self.note(device.name, .cold, reason: error.message)
                device.log.error(
                    "is not saved: it goes on: \(error.message)", id: .servicingCold)
            }
        }
        // A device that was lost while the file was written goes on.
        for one in frozen where step(of: one.device.name) != .saved {
            await one.device.thaw("left out")
        }
        await rewrite(frozen.filter { step(of: $0.device.name) == .saved })
    }

    /// Leaves out of the file what was lost since it was written. That this may fail does no harm:
    /// what is lost has no token any more.
    private func rewrite(_ saved: [FrozenDevice]) async {
        let isWhole = progress.values.filter { $0.told.byteCount != nil }.allSatisfy {
            $0.told.step == .saved
        }
        do {
            if saved.isEmpty {
                problem = "every saved device went on before its worker ended"
                try await file.remove()
                written = nil
                _ = post(.failed)
                return
            }
            if !isWhole, let savedAt = written?.savedAtRealtimeNanoseconds {
                let bytes = try encode(saved.map(\.saved), savedAt)
                try await file.prepare(bytes)
                try await file.commit()
                written = (savedAt, bytes.count)
            }
        } catch {
            log.warning("\(file.path) has more than is saved: \(error); continuing")
            if saved.isEmpty { _ = post(.failed) }
        }
        _ = post(.ended)
    }

    // MARK: Giving up

    private func thawAll(_ frozen: [FrozenDevice]) async {
        let why = problem
        await Service.inParallel(frozen.map(\.device)) { device in
            await device.thaw(why)
            self.note(device.name, .thawed, reason: why)
        }
        do throws(SystemCallError) {
            try await file.remove()
        } catch {
            log.warning("\(error); what it says is void; continuing")
        }
        written = nil
        _ = post(.thawed)
    }

    private func report() {
        let time = "\(elapsedNanoseconds / 1_000_000) ms"
        guard machine.state == .saved, let written else {
            return log.warning(
                "servicing: nothing is saved after \(time), all devices go on: \(problem)",
                id: .servicingFailed)
        }
        let saved = progress.values.count { $0.told.step == .saved }
        let cold = progress.values.count { $0.told.step == .cold }
        log.notice(
            "servicing: \(saved) devices saved, \(cold) left out, \(written.byteCount) bytes in "
                + "\(file.path), in \(time)", id: .servicingSaved)
    }
}

extension FrozenDevice {
    /// Whether the worker that froze it still is there.
    @Control var isFrozen: Bool { device.link === link && link.isOpen }

    /// Its section of the file.
    @Control var saved: SavedSection { SavedSection(name: device.name, bytes: section) }
}
