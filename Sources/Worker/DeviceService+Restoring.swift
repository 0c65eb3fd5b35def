// SPDX-License-Identifier: Apache-2.0
// Servicing, the way up: a controller that went on while everything was stopped is taken over.
// (CRASHES.md beside this file, "Servicing".)
//
// What a predecessor would have left is made out of the saved state, put into the fd store, and
// then taken over by the way that every successor takes. Whatever does not fit ends in a cold
// start, with the reason; nothing was told to the device by then.

internal import CLinux
internal import DMA
internal import Linux
internal import NVMeDriver
internal import SavedState
internal import Systemd
internal import VFIO
internal import Wire

extension DeviceService {
    /// Takes the controller of a saved state over. Nothing is thrown: why that could not be is
    /// `coldReason`, and the device has to be started cold.
    func restore(_ config: DeviceConfig, _ section: HeldDescriptor) async -> Bool {
        resetReason = ""
        do throws(DriverError) {
            let saved = try Self.read(section, name)
            try check(saved, config)
            try await takeUp(saved, config)
        } catch {
            return endRestoring("\(error)")
        }
        inheritSessions()
        watchStall()
        // What is found out at once about the controller is found out about a restored one.
        isRestored = true
        guard isStarting, adopt(config) else {
            isRestored = false
            return endRestoring(
                resetReason.isEmpty ? "the device cannot be taken over" : resetReason)
        }
        // The interrupts are new.
        await environment.started(config)
        log.notice("was restored as it was saved", id: .controllerReady)
        return true
    }

    private func endRestoring(_ reason: String) -> Bool {
        (coldReason, resetReason) = (reason, "")
        log.warning(
            "its saved state is of no use: \(coldReason); it is reset and started cold",
            id: .stateDiscarded)
        endInherited(
            WireError(
                .workerRestarted, "the device had to be started afresh: \(coldReason)",
                device: name))
        return false
    }

    // MARK: The section

    private static func read(
        _ section: HeldDescriptor, _ name: String
    ) throws(DriverError) -> SavedDevice {
        guard let fd = section.take() else { throw .notAdoptable("no saved state came along") }
        do {
            let bytes = try SealedFile.read(fd, limit: SavedLimits.sectionByteCount)
            return try SavedState.decode(device: bytes, name: name)
        } catch let error as SystemCallError {
            throw .notAdoptable("the saved state is no sealed file of a fitting size: \(error)")
        } catch {
            throw .notAdoptable("\(error)")
        }
    }

    /// Whether what was saved is what is configured. Queues and the like may have changed: they
    /// are as they were until the next cold start.
    private func check(_ saved: SavedDevice, _ config: DeviceConfig) throws(DriverError) {
        func differs(_ what: String, _ then: String, _ now: String) -> DriverError {
            .notAdoptable("\(what) was \(then), and is \(now)")
        }
        guard config.keepAlive else { throw .notAdoptable("NVMeKeepAlive=no") }
        guard let (transport, address) = config.transport.saved else {
            throw .notAdoptable("a null device keeps nothing")
        }
        guard saved.transport == transport, saved.address == address else {
            throw differs("the device", saved.address, address)
        }
        let backing = config.poolBacking ?? .memfd
        guard saved.pool.backing == backing.saved else {
            throw differs("Pool=", "\(saved.pool.backing)", "\(backing)")
        }
        guard saved.pool.path == config.poolPath ?? "" else {
            throw differs("PoolPath=", saved.pool.path, config.poolPath ?? "")
        }
        guard KeptConfiguration.decode(saved.configuration) != nil else {
            throw .notAdoptable("its configuration is damaged")
        }
    }

    // MARK: The device

    /// State area, pool and device, as a predecessor would have left them.
    private func takeUp(_ saved: SavedDevice, _ config: DeviceConfig) async throws(DriverError) {
        self.config = config
        let pool = try environment.savedPool(config, saved.pool.byteCount)
        let held = HeldDescriptor(pool)
        // Of a predecessor that died while it let go of everything.
        environment.forget()
        try await environment.prepare(config, false)
        guard isStarting else { throw .exhausted("the worker is leaving") }
        let device = try environment.reconnect(config)
        try Self.check(saved.identity, device.pciID)
        let connector = try NVMeController(
            device: device, options: options(config), state: try Self.stateArea(saved, config))
        connector.poolSource = poolSource(config)
        guard let pool = held.take() else { throw .notAdoptable("its pool is gone") }
        let interrupts = try connector.reconnect(
            pool: pool, slots: saved.pool.slots, token: saved.token)
        // From here on this is the state area, whatever becomes of the controller.
        environment.replaceState(connector.state.fd)
        generation = connector.state.generation
        reclaimState(connector)
        try environment.keepReconnected(pool, interrupts)
        CrashPoint.hit(.restoreStored)
    }

    /// Whether the function is of the kind that was saved, where both sides know it.
    private static func check(
        _ saved: SavedIdentity, _ found: PCIDeviceID?
    ) throws(DriverError) {
        guard let found else { return }
        let known = PCIDeviceID(
            vendor: saved.pciVendorID.map(UInt16.init(truncatingIfNeeded:)) ?? found.vendor,
            device: saved.deviceID.map(UInt16.init(truncatingIfNeeded:)) ?? found.device)
        guard known == found else {
            throw .notAdoptable("the PCI id of the device was \(known), and is \(found)")
        }
    }

    private static func stateArea(
        _ saved: SavedDevice, _ config: DeviceConfig
    ) throws(DriverError) -> StateArea {
        do throws(StateAreaError) {
            var area = try StateArea.create(
                restoring: saved.controller, sessions: saved.sessions, layout: stateLayout)
            if let bytes = KeptConfiguration.encode(config) { _ = area.setConfiguration(bytes) }
            return area
        } catch { throw .notAdoptable("\(error)") }
    }

    // MARK: What dead sessions have with the device

    /// Whether commands of a session that did not survive servicing are with the device.
    func hasOrphans(_ session: Session) -> Bool {
        guard session.isOrphan, let controller else { return false }
        var found = false
        for queue in 0..<controller.queueCount where !found {
            exclusively(queue) {
                unsafe controller.engine(queue).pointee.forEachRequest {
                    if $0.session == session.key { found = true }
                }
            }
        }
        return found
    }
}
