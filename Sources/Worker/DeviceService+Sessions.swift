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
        try checkServed()
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
        try checkStoreRoom(1)
        let session = Session(
            key: nextKey(slot), opening: opening, number: controller.state.nextNumber(),
            queue: Self.messageQueue, namespace: namespace)
        guard record(session, .opening, controller) else {
            throw WireError(
                .resourceExhausted, "the names of the disk are too long to be kept", device: name,
                field: "open_session.disk")
        }
        CrashPoint.hit(.sessionRecorded)
        sessions[slot] = session
        counters.sessionsOpened += 1
        countSession(session)
        return session
    }

    /// Throws while the device is frozen. A device that was just restored is asked first who it is:
    /// what it was is not what it has to be now.
    private func checkServed() throws(WireError) {
        guard servicing == nil else {
            throw WireError(.busy, "the device is being saved; try again", device: name)
        }
        if isRestored { finishAdoption() }
        guard usableController != nil else { throw unavailable() }
    }

    /// Above the slot a number that is not used again while anything could still name it; 0 names
    /// nobody.
    private func nextKey(_ slot: Int) -> UInt32 {
        sessionSerial = sessionSerial >= 0xFF_FFFE ? 1 : sessionSerial + 1
        return UInt32(slot) | sessionSerial << 8
    }

    /// Writes a session down; false when its opening message is too long.
    @discardableResult
    func record(
        _ session: Session, _ state: SessionState, _ controller: NVMeController
    ) -> Bool {
        guard let opening = KeptOpening.encode(session.opening) else { return false }
        let record = SessionRecord(
            state: state, id: session.opening.sessionID, key: session.key,
            number: session.number, openedNanoseconds: session.openedNanoseconds,
            opening: opening)
        return controller.state.setSession(session.slot, record)
    }

    /// A successor would find the session open: its client can be told.
    func opened(_ session: Session) {
        guard let controller, !session.hasEnded else { return }
        CrashPoint.hit(.sessionStored)
        record(session, .open, controller)
    }

    /// Gives a session a place in the statistics.
    func countSession(_ session: Session) {
        session.statistics = statistics?.assign(
            StatisticsIdentity(
                kind: .session, queue: UInt32(session.queue + 1),
                sessionID: session.opening.sessionID, namespaceID: session.opening.nsid,
                disk: session.opening.disk))
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
        guard usableController != nil else { throw unavailable() }
        try checkServed()
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
        session.waits = nil
        recordEnd(session)
        log.info(
            "session \(session.opening.sessionID) ended: \(reason)", id: .sessionEnded,
            namespace: session.opening.nsid)
        holdRings(session, true)
        session.client?.end(reason)
        environment.stored?.remove(.session, session.number)
        CrashPoint.hit(.sessionRemoved)
        dropStoring(session)
        forgetOwed(session)
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
        // What a predecessor's sessions have with the device is not known before it is adopted.
        guard dyingSessions > 0, stalledSince == nil else { return }
        for session in sessions.compactMap({ $0 })
        where session.hasEnded && session.pending.isEmpty && ringsAreIdle(session)
            && !hasOrphans(session)
        {
            finish(session)
        }
    }

    /// A successor must not go on with a session that is over, but has to wait for its commands.
    private func recordEnd(_ session: Session) {
        withState { state in
            guard var record = state.session(session.slot).record, record.key == session.key else {
                return
            }
            record.state = .ended
            state.setSession(session.slot, record)
        }
        CrashPoint.hit(.sessionEnding)
    }

    /// Gives back what a session had; nothing of it may be with the device.
    func finish(_ session: Session) {
        guard sessions[session.slot] === session else { return }
        sessions[session.slot] = nil
        forgetStatistics(session)
        dyingSessions -= 1
        dropRings(session)
        for region in session.regions.values { unregister(region) }
        session.regions.removeAll()
        withState { $0.clearSession(session.slot) }
        CrashPoint.hit(.sessionFreed)
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
            return other.hasEnded
                && (!other.pending.isEmpty || !other.rings.isEmpty || other.isOrphan)
                && other.opening.nsid == session.opening.nsid
                && other.opening.access == .readWrite
        }
    }
}
