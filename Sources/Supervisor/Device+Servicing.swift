// SPDX-License-Identifier: Apache-2.0
// One device in servicing: frozen and saved, thawed, ended without a reset, restored.

internal import Linux
internal import SavedState
internal import Systemd
internal import Wire

/// What servicing knows of a device.
struct DeviceServicing {
    /// It is being frozen, or is: nothing is opened meanwhile.
    var isFrozen = false
    /// Its state is durable and its worker is ending, or has ended: nobody starts it.
    var isSaved = false
    /// What it saved before everything was stopped: the next worker that has nothing gets it.
    private(set) var section: [UInt8]?
    /// What came of the section.
    private(set) var outcome: Outcome?
    /// What the worker said that got the section.
    private var taken: Outcome?
    /// A worker got it, whatever has become of that one.
    private var wasOffered = false

    /// What came of a saved state.
    enum Outcome: Sendable, Equatable {
        /// The controller was taken over.
        case restored
        /// It was started without, for this reason.
        case cold(String)
        /// Its worker lived and had the device: the state was of a moment that is over.
        case unneeded
    }

    /// The device has this saved state from now on.
    mutating func begin(_ section: [UInt8]) {
        self = DeviceServicing()
        self.section = section
    }

    /// A worker gets the section.
    mutating func offer() { wasOffered = true }

    /// A worker got the section and brought the device up.
    mutating func tookSection(_ ready: DeviceReady) {
        if ready.restored {
            taken = .restored
        } else {
            taken = .cold(
                ready.coldReason.isEmpty
                    ? "its worker does not say why; is it of this version?" : ready.coldReason)
        }
    }

    /// The device is ready.
    mutating func settle(_ ready: DeviceReady?) {
        guard section != nil else { return }
        if let taken {
            outcome = taken
        } else if wasOffered {
            // The worker that got it has died since, and this one has gone on with what it did.
            let reason = ready?.resetReason ?? ""
            outcome = reason.isEmpty ? .restored : .cold(reason)
        } else {
            outcome = .unneeded
        }
        forget()
    }

    /// The section is given up.
    mutating func forget() { (section, taken, wasOffered) = (nil, nil, false) }
}

/// A device that is frozen, and what it told.
struct FrozenDevice: Sendable {
    var device: Device
    var link: WorkerLink
    var summary: DeviceSaved
    /// Its section of the file.
    var section: [UInt8]
}

extension Device {
    // MARK: Saving

    /// Whether it takes part in a save at all: it is kept alive, and in use.
    var isToBeSaved: Bool { config.keepAlive && withheld == nil && state != .absent }

    /// Waits until the device is ready, if it is about to be.
    func becomeSteady(_ deadline: UInt64) async throws(WireError) {
        // Each turn waits for a change of state, which the table bounds.
        while true {
            switch state {
            case .ready: return
            case .starting, .recovering:
                try await nextChange(deadline, "waiting for device \(name), which is \(state)")
            case .retrying, .failed: throw failure()
            case .absent, .draining, .removed:
                throw WireError(.deviceRemoved, "device \(name) is \(state)", device: name)
            }
        }
    }

    /// Has the worker freeze the device and tell its state. When the worker dies under it its
    /// successor is asked. Whatever is thrown: ``thaw(_:)`` has to follow.
    func freeze(
        _ token: SaveToken, leaseEnd: UInt64, _ deadline: UInt64
    ) async throws(WireError) -> FrozenDevice {
        servicing.isFrozen = true
        var failure = WireError(.workerRestarted, "its worker died again and again", device: name)
        for _ in 0..<SupervisorLimits.attemptsPerRequest {
            try await becomeSteady(deadline)
            guard let link, link.isOpen else { continue }
            let now = MonotonicClock.nowNanoseconds
            let left = deadline > now ? deadline - now : 0
            // A quarter is for what comes after the commands.
            let request = SaveDevice(
                token: token.bytes, drainNanoseconds: left - left / 4,
                leaseNanoseconds: leaseEnd > now ? leaseEnd - now : 0)
            do throws(WireError) {
                let (summary, fd) = try await link.save(request, deadline)
                let section = try Self.section(fd, summary, device: name, token)
                return FrozenDevice(device: self, link: link, summary: summary, section: section)
            } catch {
                guard error.code == .workerRestarted, !link.isOpen else { throw error }
                failure = error
            }
        }
        throw failure
    }

    /// Reads what the worker told, and whether it is of this device and of this save.
    private static func section(
        _ fd: PassedFD, _ summary: DeviceSaved, device: String, _ token: SaveToken
    ) throws(WireError) -> [UInt8] {
        func refused(_ why: String) -> WireError {
            WireError(.internalError, "its saved state cannot be used: \(why)", device: device)
        }
        guard let file = fd.take() else { throw refused("it did not come along") }
        let bytes: [UInt8]
        do throws(SystemCallError) {
            bytes = try SealedFile.read(file, limit: Int(WireLimits.savedStateByteCount))
        } catch { throw refused("\(error)") }
        guard UInt64(bytes.count) == summary.byteCount else {
            throw refused("it has \(bytes.count) bytes and not \(summary.byteCount)")
        }
        let saved: SavedDevice
        do throws(SavedStateError) {
            saved = try SavedState.decode(device: bytes, name: device)
        } catch {
            // A worker of a later version may be restored by one of that version.
            if case .newer = error { return bytes }
            throw refused("\(error)")
        }
        guard saved.token == token else { throw refused("it has another token") }
        return bytes
    }

    /// Has the device go on. The end of the connection does that as well, and is what a worker gets
    /// that does not answer.
    func thaw(_ reason: String) async {
        guard servicing.isFrozen else { return }
        if let link, link.isOpen {
            do throws(WireError) {
                try await link.thaw(Deadline.after(SupervisorLimits.thawNanoseconds))
            } catch {
                log.warning("does not say that it goes on: \(error); connecting anew")
                if self.link === link { reconnect("it did not say that it goes on") }
            }
        }
        servicing.isFrozen = false
        log.notice("goes on after a save: \(reason)")
        tellChange()
    }

    // MARK: Ending

    /// Ends the worker of a frozen device whose state is durable, and leaves its controller as it
    /// is. When that throws the device goes on, with its state void or used.
    func endSaved(_ frozen: FrozenDevice) async throws(WireError) {
        servicing.isSaved = true
        do throws(WireError) {
            try await frozen.link.endSaved(Deadline.after(SupervisorLimits.shutdownNanoseconds))
        } catch {
            servicing.isSaved = false
            servicing.isFrozen = false
            goOn(after: error, frozen)
            throw error
        }
        await waitForEnd(of: frozen.link)
        hasEnded()
        do throws(WireError) {
            try await units.stop(name)
        } catch {
            log.error("its worker could not be stopped: \(error); continuing", id: .workerStuck)
        }
        servicing.isFrozen = false
        tellChange()
    }

    /// The worker answered otherwise, or not: it goes on, or its successor does. Whoever of them
    /// has nothing gets the section.
    private func goOn(after error: WireError, _ frozen: FrozenDevice) {
        defer { tellChange() }
        if link === frozen.link, frozen.link.isOpen {
            guard error.code == .deadlineExceeded else { return }
            reconnect("it did not end in time")
        }
        guard state != .ready else { return }
        servicing.begin(frozen.section)
        post(.wanted)
    }

    /// Waits until a worker that has said so has ended.
    private func waitForEnd(of link: WorkerLink) async {
        let deadline = Deadline.after(SupervisorLimits.shutdownNanoseconds)
        while self.link === link, link.isOpen {
            do throws(WireError) {
                try await nextChange(deadline, "the end of the worker")
            } catch {
                return log.warning("its worker takes long to end; stopping it")
            }
        }
    }

    /// Throws when the device is saved and nobody has taken it up again.
    func refuseIfSaved() throws(WireError) {
        guard servicing.isSaved else { return }
        throw WireError(
            .shuttingDown,
            "device \(name) is saved for servicing; open the disk again after nvmed was started "
                + "anew, or after nvmectl service restore", device: name)
    }

    // MARK: Restoring

    /// Begins to bring the device up as it was saved, or cold.
    func beginRestore(_ section: [UInt8]) {
        servicing.begin(section)
        post(.retry)
    }

    /// Waits until a device that is being restored is ready, or given up.
    func restored() async -> Result<DeviceServicing.Outcome, WireError> {
        defer { servicing.forget() }
        // Each turn waits for a change of state, which the table bounds.
        while true {
            switch state {
            case .ready: return .success(servicing.outcome ?? .unneeded)
            case .failed: return .failure(failure())
            case .removed, .absent, .draining:
                let what = state == .removed ? "gone" : "stopped"
                return .failure(
                    WireError(.deviceRemoved, "device \(name) is \(what)", device: name))
            case .starting, .retrying, .recovering:
                do throws(WireError) {
                    try await nextChange(
                        Deadline.after(SupervisorLimits.restoreTurnNanoseconds), "restoring")
                } catch {
                    if error.code == .cancelled { return .failure(error) }
                }
            }
        }
    }

    /// The section in a sealed file, for a worker that has nothing.
    func sectionToSend() throws(WireError) -> PassedFD? {
        guard let section = servicing.section else { return nil }
        do throws(SystemCallError) {
            let file = PassedFD(try SealedFile.make(name: "nvmed-saved", section))
            servicing.offer()
            return file
        } catch {
            throw WireError(
                .resourceExhausted, "its saved state cannot be passed on: \(error)", device: name)
        }
    }
}

extension WorkerLink {
    /// Freezes the device; its state comes along.
    func save(
        _ request: SaveDevice, _ deadlineNanoseconds: UInt64
    ) async throws(WireError) -> (summary: DeviceSaved, fd: PassedFD) {
        let answer = try await call(
            .save(request), deadlineNanoseconds: deadlineNanoseconds, "saving the device")
        guard case .saved(let summary) = answer.reply, let fd = answer.fd else {
            throw surprise("saving the device")
        }
        return (summary, fd)
    }

    /// Has a frozen device go on.
    func thaw(_ deadlineNanoseconds: UInt64) async throws(WireError) {
        _ = try await call(.thaw, deadlineNanoseconds: deadlineNanoseconds, "thawing the device")
    }

    /// Ends a worker whose state is durable.
    func endSaved(_ deadlineNanoseconds: UInt64) async throws(WireError) {
        _ = try await call(
            .shutdown(doNotReset: true, saved: true), deadlineNanoseconds: deadlineNanoseconds,
            "ending the saved worker")
    }
}
