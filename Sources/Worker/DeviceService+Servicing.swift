// SPDX-License-Identifier: Apache-2.0
// Servicing, the way down: the device is frozen and written down, and then goes on, or is left as
// it is while everything above it is stopped. (CRASHES.md beside this file, "Servicing".)
//
// Between the seal of the pool and its end nothing changes here: no submission, no completion, no
// timer that touches the controller. So thaw has nothing to undo but the token, which goes first.

internal import CVersion
internal import DMA
internal import Glibc
internal import Linux
internal import NVMeDriver
internal import SavedState
internal import Systemd
internal import VFIO
internal import Wire

/// A save that is under way.
@Control
final class Servicing {
    /// How far it has come.
    enum Phase {
        /// What is in flight may end.
        case freezing
        /// Threads stand still, and nothing is reaped.
        case quiet
        /// The supervisor has the state, or is about to get it.
        case saved
        /// The state is durable: there is no way back.
        case committed
    }

    let token: SaveToken
    let beginNanoseconds = MonotonicClock.nowNanoseconds
    var phase = Phase.freezing
    var timer: Timer?
    /// Succeeds when nothing is in flight, or the time for that is over.
    let drained = OneShot<Void>()
    /// Why it was given up.
    var failure: WireError?

    init(token: SaveToken) { self.token = token }

    /// Nothing may be submitted to the controller, reaped from it, or asked of it.
    var isQuiet: Bool { phase != .freezing }
}

/// A device that is written down.
struct SavedReply {
    var summary: DeviceSaved
    /// The section, in a sealed memory file.
    var file: HeldDescriptor
}

extension DeviceService {
    /// Whether requests stay on their sockets and in their rings.
    var isFrozen: Bool { lifecycle.state == .draining || servicing != nil }

    /// Whether the controller is not to be touched at all.
    var isQuiet: Bool { servicing?.isQuiet == true }

    // MARK: Save

    /// Freezes the device and writes it down. Throws why it cannot be saved; it goes on then.
    func save(_ request: SaveDevice) async throws(WireError) -> SavedReply {
        guard servicing == nil else {
            throw WireError(.busy, "the device is being saved already", device: name)
        }
        guard let token = SaveToken(bytes: request.token) else {
            throw WireError(
                .invalidArgument, "a token has \(SaveToken.byteCount) bytes, not all zero",
                field: "save.token")
        }
        let config = try savedConfiguration()
        let servicing = Servicing(token: token)
        self.servicing = servicing
        log.info("is being saved")
        freeze()
        CrashPoint.hit(.saveFrozen)
        let bound =
            carriesCommands(config)
            ? min(request.drainNanoseconds, WorkerLimits.restartNanoseconds)
            : min(request.drainNanoseconds, WorkerLimits.longestDrainNanoseconds)
        await awaitDrained(servicing, bound)
        do throws(WireError) {
            let reply = try write(servicing, config, request)
            return reply
        } catch {
            thaw(servicing, "cannot be saved: \(error.message)")
            throw error
        }
    }

    /// The configuration of a device that can be saved.
    private func savedConfiguration() throws(WireError) -> DeviceConfig {
        guard usableController != nil, let config, whenDrained == nil else { throw unavailable() }
        func refused(_ why: String) -> WireError {
            WireError(.notSupported, "the device cannot be kept alive: \(why)", device: name)
        }
        guard config.keepAlive else { throw refused("NVMeKeepAlive=no") }
        guard let backing = config.poolBacking, backing != .memfd, config.poolPath != nil else {
            throw refused("its pool does not outlive the processes; set Pool= and PoolPath=")
        }
        if case .null = config.transport { throw refused("a null device has no state") }
        if let reason = usableController?.device.reasonLostByClosing { throw refused(reason) }
        if usableController?.quirks.contains(.doNotAdopt) == true {
            throw refused("it has the quirk \(Quirk.doNotAdopt.rawValue) (Quirks=)")
        }
        return config
    }

    /// Whether commands may be with the device while nobody is connected: a server may go on with
    /// them. A PCI function loses its bus master bit with the last descriptor.
    private func carriesCommands(_ config: DeviceConfig) -> Bool { !config.transport.isHardware }

    private func awaitDrained(_ servicing: Servicing, _ nanoseconds: UInt64) async {
        if !isIdle, failure == nil {
            servicing.timer = try? loop.after(nanoseconds: nanoseconds) {
                servicing.drained.succeed(())
            }
            if servicing.timer != nil { _ = try? await servicing.drained.value() }
        }
        servicing.timer?.cancel()
        servicing.timer = nil
    }

    /// Quiet, token, snapshot, in this order.
    private func write(
        _ servicing: Servicing, _ config: DeviceConfig, _ request: SaveDevice
    ) throws(WireError) -> SavedReply {
        if let failure = servicing.failure { throw failure }
        guard self.servicing === servicing, let controller = usableController else {
            throw unavailable()
        }
        guard isIdle || carriesCommands(config) else {
            throw WireError(
                .deadlineExceeded, "commands have not ended in time, and cannot be carried over",
                device: name)
        }
        quiet(servicing)
        CrashPoint.hit(.saveQuiet)
        guard controller.sealPool(servicing.token) else {
            throw WireError(.internalError, "the pool cannot be sealed", device: name)
        }
        CrashPoint.hit(.saveSealed)
        let drained = MonotonicClock.nowNanoseconds &- servicing.beginNanoseconds
        let device = try snapshot(controller, config, servicing.token)
        let bytes: [UInt8]
        let file: OwnedFD
        do {
            bytes = try SavedState.encode(
                device: device, version: unsafe String(cString: nv_version_commit()))
            file = try SealedFile.make(name: "nvmed-saved", bytes)
        } catch {
            throw WireError(.internalError, "the state cannot be written: \(error)", device: name)
        }
        CrashPoint.hit(.saveTaken)
        servicing.phase = .saved
        armLease(servicing, request.leaseNanoseconds)
        var summary = DeviceSaved(byteCount: UInt64(bytes.count))
        summary.commandsInFlight = UInt32(clamping: device.controller.ioCommandCount)
        summary.queueCount = UInt32(clamping: controller.queueCount)
        summary.sessionCount = UInt32(clamping: sessions.count { $0?.hasEnded == false })
        summary.drainedNanoseconds = drained
        log.notice(
            "is frozen and written down: \(bytes.count) bytes, \(summary.commandsInFlight) "
                + "commands in flight")
        return SavedReply(summary: summary, file: HeldDescriptor(file))
    }

    /// Nothing is submitted, reaped or asked from here on.
    private func quiet(_ servicing: Servicing) {
        for thread in threads { thread.hold() }
        servicing.phase = .quiet
        tickTimer?.disarm()
        tickIsArmed = false
        healthTimer?.disarm()
        suspectTimer?.disarm()
        accusationTimer?.disarm()
        (suspects, accused) = ([:], [:])
    }

    private func armLease(_ servicing: Servicing, _ nanoseconds: UInt64?) {
        let lease = min(
            nanoseconds ?? WorkerLimits.leaseNanoseconds, WorkerLimits.longestLeaseNanoseconds)
        servicing.timer = try? loop.after(nanoseconds: lease) { [weak self] in
            self?.thaw(servicing, "nobody has said within \(lease / 1_000_000) ms what follows")
        }
        // Out of memory: nobody would ever end it.
        if servicing.timer == nil { soon { [weak self] in self?.thaw(servicing, "no memory") } }
    }

    private func snapshot(
        _ controller: NVMeController, _ config: DeviceConfig, _ token: SaveToken
    ) throws(WireError) -> SavedDevice {
        let state: SavedController
        do throws(DriverError) {
            state = try controller.snapshot()
        } catch { throw error.onWire(device: name) }
        guard let configuration = KeptConfiguration.encode(config),
            let (transport, address) = config.transport.saved,
            let backing = config.poolBacking?.saved
        else {
            throw WireError(.internalError, "the configuration cannot be saved", device: name)
        }
        let info = ControllerInfo(controller)
        let pci = controller.pciID
        return SavedDevice(
            name: name, transport: transport, address: address, configuration: configuration,
            token: token, generation: generation,
            identity: SavedIdentity(
                vendorID: info.vendorID, deviceID: pci.map { UInt32($0.device) },
                pciVendorID: pci.map { UInt32($0.vendor) }, serial: info.serial,
                model: info.model, firmware: info.firmware, controllerID: info.controllerID),
            controller: state,
            pool: SavedPool(
                backing: backing, path: config.poolPath ?? "",
                byteCount: UInt64(controller.poolByteCount),
                slots: controller.poolSlots.filter { $0.state != .free }.map { slot in
                    SavedSlot(
                        firstPage: UInt64(slot.run.first), pageCount: UInt64(slot.run.count),
                        owner: slot.owner, tag: slot.tag, state: slot.state.rawValue)
                }),
            sessions: controller.savedSessions(of: state))
    }

    // MARK: Thaw

    /// Goes on as if nothing had been asked; nothing to do unless the device is frozen.
    func thaw(_ reason: String) {
        if let servicing { thaw(servicing, reason) }
    }

    private func thaw(_ servicing: Servicing, _ reason: String) {
        guard self.servicing === servicing, servicing.phase != .committed else { return }
        // Before anything else: what was told may not be restored any more.
        if servicing.isQuiet, let controller {
            controller.unsealPool()
            CrashPoint.hit(.thawUnsealed)
        }
        log.notice("goes on after it was frozen: \(reason)")
        self.servicing = nil
        servicing.timer?.cancel()
        servicing.timer = nil
        servicing.failure = WireError(
            .cancelled, "the save was given up: \(reason)", device: name)
        servicing.drained.succeed(())
        for thread in threads {
            thread.setFrozen(false)
            if servicing.isQuiet { thread.release() }
        }
        guard usableController != nil else { return }
        for session in sessions.compactMap({ $0 })
        where !session.hasEnded && session.waits != .store {
            if !isHeld(session) { resume(session) }
        }
        watchProgress()
        armHealth()
        armTick()
        // What happened meanwhile has left no edge to see.
        afterAdminCommand()
        if dyingSessions > 0 { scheduleSettling() }
        if adoptionIsOpen { soon { [weak self] in self?.finishAdoption() } }
    }

    // MARK: Commit

    /// The state is durable. Throws unless the device is frozen and was written down.
    func commit() throws(WireError) {
        guard let servicing, servicing.phase == .saved else {
            throw WireError(
                .busy, "the device is not frozen any more: what was saved of it is void",
                device: name)
        }
        CrashPoint.hit(.saveCommitted)
        servicing.phase = .committed
        servicing.timer?.cancel()
        servicing.timer = nil
    }

    /// Ends all sessions, and lets go of a controller that goes on. The state area is out of the
    /// store already: nobody will take over from here.
    func leaveSaved() {
        guard let controller, servicing?.phase == .committed else { return }
        stopThreads()
        unwatch()
        let late = WireError(
            .outcomeUnknown,
            "the service is being stopped for servicing, and the device has not answered yet",
            device: name)
        // Clients use their memory for something else when they hear of the end.
        for session in sessions.compactMap({ $0 }) {
            for region in session.regions.values {
                do throws(DriverError) {
                    try controller.unregisterMemory(region.driverRegion)
                } catch {
                    log.warning("memory of a client stays with the device: \(error); continuing")
                }
            }
        }
        endEverything(
            controller, late,
            WireError(
                .shuttingDown,
                "servicing: the service is being stopped while the device goes on; open the disk "
                    + "again", device: name))
        CrashPoint.hit(.saveEnded)
        reclaimState(controller)
        self.controller = nil
        forgetQueues()
        servicing = nil
    }
}

extension Transport {
    /// The transport as saved state has it; nil for what cannot be saved.
    var saved: (SavedTransport, String)? {
        switch self {
        case .vfioUser(let path): (.vfioUser, path)
        case .pci(let address): (.pci, address)
        case .null: nil
        }
    }
}

extension Quirk {
    /// A quirk that the supervisor told of.
    init(_ quirk: DeviceQuirk) {
        self =
            switch quirk {
            case .noAdminAfterServicing: .noAdminAfterServicing
            case .vectorsAscending: .vectorsAscending
            case .equalQueueSizes: .equalQueueSizes
            case .doNotAdopt: .doNotAdopt
            }
    }
}

extension PoolBacking {
    /// The backing as saved state has it.
    var saved: SavedBacking {
        switch self {
        case .memfd: .memfd
        case .file: .file
        case .hugetlb: .hugetlb
        case .dax: .dax
        }
    }
}
