// SPDX-License-Identifier: Apache-2.0
// Registered memory: stored, mapped, on record, and given back.
//
// A successor finds the memory by its record and `m-N`. So the file is stored and confirmed before
// the record says that the region exists, and the record is free before the file leaves the store.

internal import CLinux
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

extension DeviceService {
    // MARK: Registering

    /// Registers memory for a session: a stretch as it was asked for. The message is looked at
    /// again when its file is stored, by this process or by a successor.
    func registerMemory(
        _ session: Session, _ requestID: UInt64, regionID: UInt64, _ asked: ClientMemoryStretch,
        _ fd: borrowing OwnedFD
    ) throws(WireError) -> Disposition {
        guard let controller = usableController else { throw unavailable() }
        if let known = session.regions[regionID] {
            guard known.registerRequestID == requestID else {
                throw WireError(
                    .alreadyExists, "region \(regionID) is registered",
                    field: "register_memory.region_id")
            }
            // The process that registered it died before it was off the socket.
            unsafe session.client?.send(reply: .done, to: requestID, payload: Self.noPayload)
            CrashPoint.hit(.memoryAnswered)
            return .answered
        }
        if let storing = session.storing {
            guard storing.isConfirmed else { return .wait(.store) }
        }
        let offered = OfferedMemory(fd)
        var rules = ClientMemoryRules(usesPhysicalAddresses: controller.bouncesClientMemory)
        if case .node = offered.kind, rules.usesPhysicalAddresses, let config {
            rules.guestMemory = try environment.guestMemory(config)
        }
        let stretch = try rules.accept(offered, asked)
        try checkMemoryLimits(session, stretch)
        guard let storing = session.storing else {
            return try store(session, requestID, fd, stretch, controller)
        }
        if let failure = storing.failure { throw failure }
        let region = try map(session, regionID, stretch, fd, storing, controller)
        session.storing = nil
        session.regions[regionID] = region
        session.regionTable?.set(
            regionID, driverRegion: region.driverRegion, isReadOnly: stretch.isReadOnly)
        session.counters.others += 1
        unsafe session.client?.send(reply: .done, to: requestID, payload: Self.noPayload)
        CrashPoint.hit(.memoryAnswered)
        return .answered
    }

    /// Has the manager keep a file; the message waits for that.
    private func store(
        _ session: Session, _ requestID: UInt64, _ fd: borrowing OwnedFD,
        _ stretch: ClientMemoryStretch, _ controller: NVMeController
    ) throws(WireError) -> Disposition {
        try checkStoreRoom(1)
        let number = try keep(.memory, controller.state.nextNumber(), fd)
        startStoring(session, StoringRequest(requestID: requestID, number: number))
        return .wait(.store)
    }

    private func map(
        _ session: Session, _ regionID: UInt64, _ stretch: ClientMemoryStretch,
        _ fd: borrowing OwnedFD, _ storing: StoringRequest, _ controller: NVMeController
    ) throws(WireError) -> ClientRegion {
        do throws(DriverError) {
            let index = try controller.registerMemory(
                fd, stretch, session: session.key, clientID: regionID, number: storing.number,
                requestID: storing.requestID)
            CrashPoint.hit(.memoryReady)
            return ClientRegion(
                driverRegion: index, byteCount: stretch.byteCount,
                isReadOnly: stretch.isReadOnly, isPinned: !stretch.isPhysical,
                number: storing.number, registerRequestID: storing.requestID)
        } catch {
            note(error)
            var wire = error.onWire(device: name)
            wire.field = wire.field ?? "register_memory"
            throw wire
        }
    }

    private func checkMemoryLimits(
        _ session: Session, _ stretch: ClientMemoryStretch
    ) throws(WireError) {
        guard session.regions.count < WorkerLimits.regionsPerSession else {
            throw WireError(
                .resourceExhausted,
                "a session may register \(WorkerLimits.regionsPerSession) regions",
                field: "register_memory")
        }
        // Guest memory is there anyway: nothing is pinned for it.
        guard !stretch.isPhysical else { return }
        let byteCount = stretch.byteCount
        let limit = WorkerLimits.regionByteCountPerSession
        guard byteCount <= limit - min(session.regionByteCount, limit) else {
            throw WireError(
                .resourceExhausted, "a session may register \(limit) bytes",
                field: "register_memory.byte_count")
        }
        let all = sessions.reduce(UInt64(0)) { $0 + ($1?.regionByteCount ?? 0) }
        let limitOfAll = WorkerLimits.regionByteCountPerDevice
        guard byteCount <= limitOfAll - min(all, limitOfAll) else {
            throw WireError(
                .resourceExhausted,
                "the sessions of a device may register \(limitOfAll) bytes",
                device: name, field: "register_memory.byte_count")
        }
    }

    // MARK: Pages that are gone

    /// Ends the sessions whose memory has pages that are gone, when this process has met such
    /// pages since the last call. Cheap when it has not.
    func endFaultedSessions() {
        let faults = nv_sigbus_count()
        guard faults != seenFaults, let controller else { return }
        seenFaults = faults
        for session in sessions.compactMap({ $0 }) where !session.hasEnded {
            let gone = session.regions.first {
                controller.hasFaulted(region: $0.value.driverRegion)
            }
            if gone == nil,
                let ring = session.rings.values.first(where: { $0.parts.memory.hasFaulted })
            {
                end(
                    session,
                    WireError(
                        .invalidArgument, "ring \(ring.id) broke the protocol: \(RingFault.memory)",
                        device: name, disk: session.opening.disk, field: "ring"))
                continue
            }
            guard let regionID = gone?.key else { continue }
            end(
                session,
                WireError(
                    .invalidArgument,
                    "pages of region \(regionID) are gone: a hole was punched into its memory, and "
                        + "there was nothing to fill it with; keep memory whole while it is "
                        + "registered",
                    device: name, disk: session.opening.disk, field: "register_memory.region_id"))
        }
    }

    // MARK: Giving back

    /// Takes a region back: at once, or when the requests that use it have ended. The answer comes
    /// then.
    ///
    /// The request is on record with the region, so that the message can go.
    func unregisterMemory(
        _ session: Session, regionID: UInt64, requestID: UInt64
    ) throws(WireError) {
        guard var region = session.regions[regionID], region.unregisterRequestID == nil else {
            throw WireError(
                .notFound, "there is no region \(regionID)", field: "unregister_memory.region_id")
        }
        session.regionTable?.remove(regionID)
        region.unregisterRequestID = requestID
        session.regions[regionID] = region
        if var record = controller?.state.region(region.driverRegion) {
            record.unregisterRequestID = requestID
            controller?.state.setRegion(region.driverRegion, record)
        }
        noteTaken(session, requestID)
        CrashPoint.hit(.memoryEnding)
        guard region.inFlight > 0 || ringsUse(session, region) else {
            return finishUnregistering(session, regionID)
        }
        watchProgress()
    }

    /// Takes back the regions that ring requests have used until now.
    func settleRegions(_ session: Session) {
        for (id, region) in session.regions where region.inFlight == 0 {
            guard region.unregisterRequestID != nil, !ringsUse(session, region) else { continue }
            finishUnregistering(session, id)
        }
    }

    private func finishUnregistering(_ session: Session, _ regionID: UInt64) {
        guard let region = session.regions.removeValue(forKey: regionID) else { return }
        // The record of the region goes before the answer: that it is owed has its own.
        let place = region.unregisterRequestID.flatMap { owe(.answer, session, $0) }
        unregister(region)
        guard let requestID = region.unregisterRequestID, !session.hasEnded else { return }
        unsafe session.client?.send(reply: .done, to: requestID, payload: Self.noPayload)
        paid(session, place)
    }

    /// One request that used a region has ended.
    func releaseRegion(_ session: Session, _ regionID: UInt64) {
        guard var region = session.regions[regionID] else { return }
        region.inFlight -= 1
        session.regions[regionID] = region
        guard region.inFlight == 0, region.unregisterRequestID != nil, !session.hasEnded
        else { return }
        // Not here: completions are being delivered, and this may block.
        soon { [weak self, weak session] in
            guard let self, let session, session.regions[regionID]?.inFlight == 0,
                !ringsUse(session, region)
            else { return }
            finishUnregistering(session, regionID)
        }
    }

    /// Takes memory from the device, off the record and out of the store.
    func unregister(_ region: ClientRegion) {
        guard let controller, failure == nil else { return }
        do throws(DriverError) {
            try controller.unregisterMemory(region.driverRegion)
            // A predecessor may have died after it was off the device.
            controller.forgetRegion(region.driverRegion)
            environment.stored?.remove(.memory, region.number)
            CrashPoint.hit(.memoryRemoved)
        } catch {
            log.warning("memory of a client could not be taken from the device: \(error)")
            note(error)
        }
    }
}
