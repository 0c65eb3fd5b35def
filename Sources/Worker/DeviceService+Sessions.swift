// SPDX-License-Identifier: Apache-2.0
// Opening, listing and ending sessions; registered memory.

internal import CLinux
internal import Linux
internal import NVMeDriver
internal import Systemd
internal import VFIO
internal import Wire

extension DeviceService {
    // MARK: Opening

    /// Makes a session, whose client the caller attaches. Throws why there is none.
    func openSession(_ opening: OpenSession) throws(WireError) -> Session {
        settle()
        guard let controller = usableController else { throw unavailable() }
        let namespace = try namespace(opening.nsid, controller, "open_session.nsid")
        guard opening.sessionID != 0 else {
            throw WireError(
                .invalidArgument, "a session has an id of 1 or more",
                field: "open_session.session_id")
        }
        guard !sessions.contains(where: { $0?.opening.sessionID == opening.sessionID }) else {
            throw WireError(
                .alreadyExists, "session \(opening.sessionID) is open", device: name,
                field: "open_session.session_id")
        }
        try checkExclusive(opening)
        guard let slot = sessions.firstIndex(where: { $0 == nil }) else {
            throw WireError(
                .resourceExhausted,
                "all \(StateLayout.sessionCapacity) sessions of the device are open", device: name)
        }
        // Above the slot a number that is not used again while anything could still name it; 0
        // names nobody.
        sessionSerial = sessionSerial >= 0xFF_FFFE ? 1 : sessionSerial + 1
        let session = Session(
            key: UInt32(slot) | sessionSerial << 8, opening: opening,
            queue: Self.messageQueue, namespace: namespace)
        sessions[slot] = session
        counters.sessionsOpened += 1
        session.statistics = statistics?.assign(
            StatisticsIdentity(
                kind: .session, queue: UInt32(session.queue + 1), sessionID: opening.sessionID,
                namespaceID: opening.nsid, disk: opening.disk))
        controller.state.setHighestRequest(slot, id: 0)
        return session
    }

    /// The namespace with an id that somebody sent.
    private func namespace(
        _ nsid: UInt32, _ controller: NVMeController, _ field: String
    ) throws(WireError) -> NVMeDriver.NamespaceInfo {
        guard nsid != 0, nsid != .max else {
            throw WireError(
                .invalidArgument, "namespace ids are 1 to 4294967294", device: name, field: field)
        }
        guard let namespace = controller.namespaces[nsid] else {
            throw WireError(
                .notFound, "the controller has no active namespace \(nsid)", device: name,
                field: field)
        }
        if let refusal = namespace.refusal {
            throw WireError(
                .notSupported, "namespace \(nsid) is not served: \(refusal)", device: name,
                field: field)
        }
        return namespace
    }

    private func checkExclusive(_ opening: OpenSession) throws(WireError) {
        guard opening.access == .readWrite else { return }
        for other in sessions.compactMap({ $0 })
        where other.opening.nsid == opening.nsid && other.opening.access == .readWrite
            && !other.hasEnded && (!opening.shared || other.isExclusive)
        {
            throw WireError(
                .busy,
                "session \(other.opening.sessionID) of process \(other.opening.clientPID) has "
                    + "namespace \(opening.nsid) open for writing; close it, or open read-only",
                device: name, disk: opening.disk)
        }
    }

    /// What a session's client sees of its disk; nil when the disk or the device is gone.
    func diskInfo(_ session: Session) -> DiskInfo? {
        guard let controller, let namespace = session.namespace else { return nil }
        return DiskInfo(
            namespace, controller: controller.identify, device: name, session: session.opening,
            generation: generation, bounced: controller.device.usesPhysicalAddresses)
    }

    /// A namespace, freshly identified.
    func freshNamespace(_ nsid: UInt32) throws(WireError) -> Wire.NamespaceInfo {
        guard let controller = usableController else { throw unavailable() }
        refreshNamespaces(controller, only: nsid)
        guard usableController != nil else { throw unavailable() }
        return try namespace(nsid, controller, "get_namespace.nsid").onWire
    }

    // MARK: Ending

    /// The session with a key, unless it is gone.
    func session(_ key: UInt32) -> Session? {
        guard let session = sessions[Int(key & 0xFF)], session.key == key else { return nil }
        return session
    }

    /// Ends a session by its id, for the supervisor.
    func closeSession(_ id: UInt64, reason: String) throws(WireError) {
        let open = sessions.compactMap({ $0 }).first { $0.opening.sessionID == id && !$0.hasEnded }
        guard let session = open else {
            throw WireError(
                .notFound, "there is no session \(id)", device: name,
                field: "close_session.session_id")
        }
        let text = reason.isEmpty ? "the session was revoked" : "the session was revoked: \(reason)"
        end(session, WireError(.sessionRevoked, text, device: name, disk: session.opening.disk))
    }

    /// Ends a session. Its requests that are with the device finish first; its memory stays that
    /// long.
    func end(_ session: Session, _ reason: WireError) {
        guard !session.hasEnded else { return }
        session.hasEnded = true
        dyingSessions += 1
        session.issuing = nil
        session.waits = nil
        log.info(
            "session \(session.opening.sessionID) ended: \(reason)", id: .sessionEnded,
            namespace: session.opening.nsid)
        holdRings(session, true)
        session.client?.end(reason)
        observer?.tell(
            .sessionEnded(
                sessionID: session.opening.sessionID, reason: reason,
                counters: session.currentCounters))
        scheduleSettling()
        watchProgress()
    }

    /// Finishes sessions that are over and have nothing with the device, in a turn of its own.
    func scheduleSettling() {
        guard !settleIsScheduled else { return }
        settleIsScheduled = true
        soon { [weak self] in
            guard let self else { return }
            settleIsScheduled = false
            settle()
            // The one that ended may have been the one whose turn was to wake the next.
            for queue in waiting.indices { resumeNext(queue) }
        }
    }

    private func settle() {
        guard dyingSessions > 0 else { return }
        for session in sessions.compactMap({ $0 })
        where session.hasEnded && session.partsInFlight == 0 && ringsAreIdle(session) {
            finish(session)
        }
    }

    /// Gives back what a session had; nothing of it may be with the device.
    func finish(_ session: Session) {
        guard sessions[session.slot] === session else { return }
        sessions[session.slot] = nil
        forgetStatistics(session)
        dyingSessions -= 1
        dropRings(session)
        for region in session.regions.values { unregister(region.driverRegion) }
        session.regions.removeAll()
        controller?.state.clearSession(session.slot)
        // Those who opened the same namespace meanwhile were held back.
        for other in sessions.compactMap({ $0 })
        where other.opening.nsid == session.opening.nsid && !other.hasEnded && !isHeld(other) {
            holdRings(other, false)
            if other.waits == .held { resume(other) }
        }
    }

    /// Whether commands of a session that died are still with the device, so that this one must not
    /// overtake them.
    func isHeld(_ session: Session) -> Bool {
        guard dyingSessions > 0 else { return false }
        return sessions.contains { other in
            guard let other, other !== session else { return false }
            return other.hasEnded && (other.partsInFlight > 0 || !other.rings.isEmpty)
                && other.opening.nsid == session.opening.nsid
                && other.opening.access == .readWrite
        }
    }

    // MARK: Registered memory

    /// Registers memory for a session: a stretch as it was asked for.
    func registerMemory(
        _ session: Session, regionID: UInt64, _ asked: ClientMemoryStretch,
        _ fd: borrowing OwnedFD
    ) throws(WireError) {
        guard let controller = usableController else { throw unavailable() }
        guard session.regions[regionID] == nil else {
            throw WireError(
                .alreadyExists, "region \(regionID) is registered",
                field: "register_memory.region_id")
        }
        let offered = OfferedMemory(fd)
        var rules = ClientMemoryRules(usesPhysicalAddresses: controller.bouncesClientMemory)
        if case .node = offered.kind, rules.usesPhysicalAddresses, let config {
            rules.guestMemory = try environment.guestMemory(config)
        }
        let stretch = try rules.accept(offered, asked)
        try checkMemoryLimits(session, stretch)
        do throws(DriverError) {
            let region = try controller.registerMemory(
                fd, stretch, session: session.key, clientID: regionID)
            session.regions[regionID] = ClientRegion(
                driverRegion: region, byteCount: stretch.byteCount,
                isReadOnly: stretch.isReadOnly, isPinned: !stretch.isPhysical)
            session.regionTable?.set(
                regionID, driverRegion: region, isReadOnly: stretch.isReadOnly)
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
            if gone == nil, let ring = session.rings.values.first(where: { $0.memory.hasFaulted }) {
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

    /// Takes a region back; true when it is gone, false when requests that use it have to end
    /// first.
    func unregisterMemory(
        _ session: Session, regionID: UInt64, requestID: UInt64
    ) throws(WireError) -> Bool {
        guard var region = session.regions[regionID], region.unregisterRequestID == nil else {
            throw WireError(
                .notFound, "there is no region \(regionID)", field: "unregister_memory.region_id")
        }
        session.regionTable?.remove(regionID)
        guard region.inFlight > 0 || ringsUse(session, region) else {
            session.regions[regionID] = nil
            unregister(region.driverRegion)
            return true
        }
        region.unregisterRequestID = requestID
        session.regions[regionID] = region
        watchProgress()
        return false
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
        unregister(region.driverRegion)
        guard let requestID = region.unregisterRequestID else { return }
        unsafe session.client?.send(reply: .done, to: requestID, payload: Self.noPayload)
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

    private func unregister(_ region: UInt32) {
        guard let controller, failure == nil else { return }
        do throws(DriverError) {
            try controller.unregisterMemory(region)
        } catch {
            log.warning("memory of a client could not be taken from the device: \(error)")
            note(error)
        }
    }
}
