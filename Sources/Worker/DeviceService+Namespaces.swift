// SPDX-License-Identifier: Apache-2.0
// Namespaces that change: while the device works, while nobody looked, and over a reset.
//
// A session is for the disk that it was opened on. When that one is gone, or another one answers
// under its namespace id, the session is told and ends: before a successor, which knows nothing but
// what is on record, could find the other in its place.

internal import NVMeDriver
internal import Systemd
internal import Wire

extension DeviceService {
    /// Identifies the namespaces, or one of them, again and tells everybody concerned what changed.
    func refreshNamespaces(_ controller: NVMeController, only nsid: UInt32? = nil) {
        let before = controller.namespaces
        defer { afterAdminCommand() }
        let look = { (after: [UInt32: NVMeDriver.NamespaceInfo]) in
            self.tellChanges(before, after)
        }
        do throws(DriverError) {
            if let nsid {
                try controller.refreshNamespace(nsid, look: look)
            } else {
                try controller.refreshNamespaces(look: look)
            }
        } catch {
            log.error("the namespaces cannot be identified: \(error)", id: .controllerFailed)
            return note(error)
        }
    }

    private func tellChanges(
        _ before: [UInt32: NVMeDriver.NamespaceInfo], _ after: [UInt32: NVMeDriver.NamespaceInfo]
    ) {
        for nsid in Set(before.keys).union(after.keys).sorted()
        where before[nsid] != after[nsid] {
            log.notice("the namespace changed", namespace: nsid)
            observer?.tell(.namespaceChanged(nsid: nsid))
            for session in liveSessions(nsid) {
                tellChange(session, before[nsid], after[nsid])
            }
        }
    }

    private func tellChange(
        _ session: Session, _ before: NVMeDriver.NamespaceInfo?,
        _ after: NVMeDriver.NamespaceInfo?
    ) {
        let usable = after.flatMap { $0.refusal == nil ? $0 : nil }
        session.namespace = usable
        if let error = replacement(session, before, after) {
            session.namespace = nil
            updateRules(session)
            tell(session, after == nil ? .removed : .identity, nil)
            return end(session, error)
        }
        updateRules(session)
        guard let usable else { return tell(session, .removed, nil) }
        let change: DiskChange = usable.blockCount == before?.blockCount ? .attributes : .resized
        tell(session, change, diskInfo(session))
    }

    /// Tells a client how its disk has changed. What waits for room on the socket is told again by
    /// a successor.
    private func tell(_ session: Session, _ change: DiskChange, _ info: DiskInfo?) {
        let place = owe(.change, session, 0) { $0.argument = UInt64(change.rawValue) }
        session.client?.send(event: .diskChanged(change, info))
        paid(session, place)
    }

    private func liveSessions(_ nsid: UInt32) -> [Session] {
        sessions.compactMap { $0 }.filter { $0.opening.nsid == nsid && !$0.hasEnded }
    }

    /// Why a session cannot go on with what is found under its namespace id; nil: it is its disk,
    /// or at least not known to be another (one that is not served now).
    private func replacement(
        _ session: Session, _ before: NVMeDriver.NamespaceInfo?,
        _ found: NVMeDriver.NamespaceInfo?
    ) -> WireError? {
        let nsid = session.opening.nsid
        let why: String
        if let found {
            if found.refusal != nil { return nil }
            if let before, found.isSameDisk(as: before) { return nil }
            let known = before?.identity.words ?? "nobody knows what any more"
            why = "is another disk now: it was \(known), and is \(found.identity.words)"
        } else {
            why = "is gone from the controller"
        }
        return WireError(
            .deviceRemoved, "namespace \(nsid) \(why); open the disk again", device: name,
            disk: session.opening.disk)
    }

    // MARK: Over a reset

    /// After a reset: which namespaces are the disks of before, from what was on record and what is
    /// found. Sessions of another disk end, those of a disk that is not served now or has another
    /// size are told when they are served again; both is on record when this returns.
    func compareDisks(
        _ known: [UInt32: NVMeDriver.NamespaceInfo], _ found: [UInt32: NVMeDriver.NamespaceInfo]
    ) -> Set<UInt32> {
        let same = NVMeDriver.NamespaceInfo.sameDisks(known, found)
        for nsid in Set(known.keys).union(found.keys).sorted() where known[nsid] != found[nsid] {
            log.notice("the namespace changed over the reset", namespace: nsid)
            observer?.tell(.namespaceChanged(nsid: nsid))
            for session in liveSessions(nsid) {
                if let error = replacement(session, known[nsid], found[nsid]) {
                    end(session, error)
                } else if found[nsid]?.refusal != nil {
                    oweChange(session, .removed)
                } else {
                    let isResized = known[nsid]?.blockCount != found[nsid]?.blockCount
                    oweChange(session, isResized ? .resized : .attributes)
                }
            }
        }
        return same
    }

    /// Writes down that a client has to be told how its disk has changed. What a predecessor owes
    /// is not known to `freeOwed` yet.
    private func oweChange(_ session: Session, _ change: DiskChange) {
        withState { state in
            for place in 0..<StateLayout.owedCapacity {
                guard case .free = state.owed(place) else { continue }
                var record = OwedRecord(kind: .change, session: session.key, requestID: 0)
                record.argument = UInt64(change.rawValue)
                return state.setOwed(place, record)
            }
        }
    }
}

extension NamespaceIdentity {
    /// The first identifier that there is, in words.
    fileprivate var words: String {
        for (name, bytes) in [("NGUID", nguid), ("UUID", uuid), ("EUI64", eui64)]
        where !bytes.isEmpty {
            return name + " "
                + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        }
        return "without an identifier"
    }
}
