// SPDX-License-Identifier: Apache-2.0
// From the name of a disk to a session: resolution, policy, exclusivity.

internal import DiskConfig
internal import Linux
internal import Systemd
internal import Wire

/// Where a disk was found.
struct DiskPlace {
    var device: Device
    var nsid: UInt32
    /// Nil while the device has not been ready yet.
    var namespace: NamespaceInfo?
}

extension Service {
    // MARK: Resolution

    /// Where a disk is, as far as the devices that were ready tell.
    func found(_ disk: ConfiguredDisk) -> Result<DiskPlace, WireError> {
        switch Resolver.resolve(disk, devices: sortedDevices.map(\.known)) {
        case .resolved(let name, let nsid):
            guard let device = devices[name] else { return .failure(nowhere(disk, "no device")) }
            let namespace = device.ready?.namespaces.first { $0.nsid == nsid }
            if device.ready != nil, namespace == nil {
                return .failure(noNamespace(disk, nsid, device))
            }
            return .success(DiskPlace(device: device, nsid: nsid, namespace: namespace))
        case .pending(let names):
            let silent = names.prefix(8).joined(separator: ", ")
            return .failure(nowhere(disk, "not found so far; not ready: \(silent)"))
        case .failed(let reason): return .failure(nowhere(disk, reason))
        }
    }

    /// Where a disk is; starts devices, all at once, as far as that is needed to tell.
    private func resolve(_ disk: ConfiguredDisk, _ deadline: UInt64) async throws(WireError)
        -> DiskPlace
    {
        guard case .pending(let names) = Resolver.resolve(disk, devices: sortedDevices.map(\.known))
        else {
            let place = try found(disk).get()
            do throws(WireError) {
                try await place.device.becomeReady(deadline)
            } catch { throw error.about(disk) }
            // It may have come back as something else.
            return try found(disk).get()
        }
        return try await search(disk, names, deadline)
    }

    /// Starts whatever was not ready yet, until the disk turns up.
    private func search(
        _ disk: ConfiguredDisk, _ names: [String], _ deadline: UInt64
    ) async throws(WireError) -> DiskPlace {
        let unknown = names.compactMap { devices[$0] }
        let found = OneShot<Void>()
        let tasks = unknown.map { device in
            EventLoop.current.task {
                do throws(WireError) {
                    try await device.becomeReady(deadline)
                } catch { return }
                if case .success = self.found(disk) { found.succeed(()) }
            }
        }
        let all = EventLoop.current.task {
            for task in tasks { await task.value }
            found.succeed(())
        }
        defer {
            all.cancel()
            for task in tasks { task.cancel() }
        }
        try await found.wait(until: deadline, "looking for disk \(disk.name)")
        return try self.found(disk).get()
    }

    private func noNamespace(_ disk: ConfiguredDisk, _ nsid: UInt32, _ device: Device) -> WireError
    {
        let ids = device.ready?.namespaces.map { "\($0.nsid)" }.joined(separator: ", ") ?? ""
        return WireError(
            .notFound,
            "disk \(disk.name): device \(device.name) has no namespace \(nsid); it has "
                + (ids.isEmpty ? "none" : ids), device: device.name, disk: disk.name)
    }

    private func nowhere(_ disk: ConfiguredDisk, _ reason: String) -> WireError {
        WireError(.notFound, "disk \(disk.name): \(reason)", device: disk.device, disk: disk.name)
    }

    // MARK: Opening

    /// Opens a disk: policy, resolution, exclusivity, and a session at the worker.
    func openDisk(
        _ name: String, _ wanted: AccessMode?, _ caller: Caller
    ) async throws(WireError) -> OpenedDisk {
        guard let disk = disks[name] else { throw unknownDisk(name, field: "open_disk.name") }
        guard mayOpen(disk, caller) else {
            throw WireError(
                .permissionDenied,
                "user \(caller.peer.uid) may not open disk \(name): see User= and Group= of "
                    + "the disk", disk: name)
        }
        let access = wanted ?? disk.mode
        guard access == .readOnly || disk.mode == .readWrite else {
            throw WireError(
                .readOnly, "disk \(name) is read-only: see Access= of the disk", disk: name,
                field: "open_disk.access")
        }
        let place = try await resolve(disk, caller.deadlineNanoseconds)
        do throws(WireError) {
            return try await open(disk, place, access, caller)
        } catch {
            guard error.code == .busy, let holder = holder(disk, place, access) else { throw error }
            // The holder may have closed its end just now, and the worker not have told us yet.
            let isOver = await place.device.waitForEnd(
                of: holder.sessionID,
                min(
                    caller.deadlineNanoseconds,
                    Deadline.after(SupervisorLimits.closingSessionNanoseconds)))
            guard isOver else { throw error }
            return try await open(disk, place, access, caller)
        }
    }

    private func open(
        _ disk: ConfiguredDisk, _ place: DiskPlace, _ access: AccessMode, _ caller: Caller
    ) async throws(WireError) -> OpenedDisk {
        let device = place.device
        return try await device.turn.run(deadlineNanoseconds: caller.deadlineNanoseconds) {
            () throws(WireError) in
            try await device.persistently(caller.deadlineNanoseconds) { link throws(WireError) in
                if let holder = self.holder(disk, place, access) { throw self.held(disk, holder) }
                try self.checkSessionCount(disk)
                return try await self.openSession(disk, place, access, link, caller)
            }
        }
    }

    private func checkSessionCount(_ disk: ConfiguredDisk) throws(WireError) {
        let count = devices.values.reduce(0) { $0 + $1.sessions.count }
        guard count < sessionsMax else {
            throw WireError(
                .resourceExhausted,
                "\(count) sessions are open, which is what MaxSessions= allows", disk: disk.name)
        }
    }

    private func openSession(
        _ disk: ConfiguredDisk, _ place: DiskPlace, _ access: AccessMode, _ link: WorkerLink,
        _ caller: Caller
    ) async throws(WireError) -> OpenedDisk {
        let id = nextSessionID()
        var session = SessionInfo(sessionID: id, disk: disk.name, access: access)
        session.device = place.device.name
        session.nsid = place.nsid
        session.shared = disk.shared
        session.clientPID = caller.peer.pid
        session.clientUID = caller.peer.uid
        session.openedNanoseconds = MonotonicClock.nowNanoseconds
        // In the table first: an event about it may come with the reply.
        place.device.sessions[id] = session
        let opened: (info: DiskInfo, fd: PassedFD)
        var opening = OpenSession(
            sessionID: id, nsid: place.nsid, access: access, shared: disk.shared,
            disk: disk.name, clientPID: caller.peer.pid, clientUID: caller.peer.uid)
        opening.requestsPerSecondMax = disk.requestsPerSecondMax ?? 0
        opening.bytesPerSecondMax = disk.bytesPerSecondMax ?? 0
        do throws(WireError) {
            opened = try await link.openSession(opening, caller.deadlineNanoseconds)
        } catch {
            place.device.sessions[id] = nil
            throw error.about(disk)
        }
        place.device.noteOpened(id)
        place.device.log.info(
            "session \(id): disk \(disk.name) opened \(access) by process \(caller.peer.pid) "
                + "of user \(caller.peer.uid)", id: .sessionOpened, namespace: place.nsid)
        return OpenedDisk(sessionID: id, info: opened.info, fd: opened.fd)
    }

    /// The session that stands in the way of opening a namespace, whatever disk it was opened as.
    private func holder(
        _ disk: ConfiguredDisk, _ place: DiskPlace, _ access: AccessMode
    ) -> SessionInfo? {
        guard access == .readWrite else { return nil }
        return place.device.sessions.values.first {
            $0.nsid == place.nsid && $0.access == .readWrite && !($0.shared && disk.shared)
        }
    }

    private func held(_ disk: ConfiguredDisk, _ holder: SessionInfo) -> WireError {
        let what =
            holder.disk == disk.name
            ? "disk \(disk.name) is open for writing"
            : "disk \(disk.name) is the same namespace as disk \(holder.disk), which is open for "
                + "writing"
        return WireError(
            .busy,
            "\(what): session \(holder.sessionID) of process \(holder.clientPID), user "
                + "\(holder.clientUID); close it first, open read-only, or set Shared= of the disk",
            device: holder.device, disk: disk.name)
    }
}

extension WireError {
    /// The same error, with the disk it concerns.
    func about(_ disk: ConfiguredDisk) -> WireError {
        var error = self
        if error.disk == nil { error.disk = disk.name }
        return error
    }
}
