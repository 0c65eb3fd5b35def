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

    /// What a client asked for, and the disk as it was when that was allowed.
    private struct Wish {
        var disk: ConfiguredDisk
        var access: AccessMode
        var caller: Caller
    }

    /// Opens a disk: policy, resolution, exclusivity, and a session at the worker.
    ///
    /// Whoever waits meanwhile gets what the configuration says at the end: when it was read again,
    /// everything is judged anew.
    func openDisk(
        _ name: String, _ wanted: AccessMode?, _ caller: Caller
    ) async throws(WireError) -> OpenedDisk {
        for _ in 0..<SupervisorLimits.attemptsPerRequest {
            let wish = try judge(name, wanted, caller)
            do throws(WireError) {
                return try await open(wish)
            } catch {
                guard !isCurrent(wish) || error.code == .sessionRevoked else { throw error }
            }
        }
        throw WireError(
            .busy, "the configuration of disk \(name) changes again and again; try again later",
            disk: name)
    }

    /// Whether the client may have the disk, as it is configured now.
    private func judge(
        _ name: String, _ wanted: AccessMode?, _ caller: Caller
    ) throws(WireError) -> Wish {
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
        return Wish(disk: disk, access: access, caller: caller)
    }

    /// Whether the disk is configured as it was when the client was allowed to have it.
    private func isCurrent(_ wish: Wish) -> Bool {
        guard let disk = disks[wish.disk.name] else { return false }
        return disk.isSamePlace(as: wish.disk) && disk.mode == wish.disk.mode
            && disk.policy == wish.disk.policy && disk.shared == wish.disk.shared
    }

    /// Throws `sessionRevoked` when the client may not have the disk any more, or it is elsewhere.
    private func check(_ wish: Wish, _ place: DiskPlace) throws(WireError) {
        if isCurrent(wish), case .success(let now) = found(wish.disk), now.nsid == place.nsid,
            now.device === place.device
        {
            return
        }
        throw WireError(
            .sessionRevoked, "disk \(wish.disk.name) changed while it was being opened",
            device: place.device.name, disk: wish.disk.name)
    }

    private func open(_ wish: Wish) async throws(WireError) -> OpenedDisk {
        let deadline = wish.caller.deadlineNanoseconds
        let place = try await resolve(wish.disk, deadline)
        do throws(WireError) {
            return try await open(wish, place)
        } catch {
            guard error.code == .busy, let holder = holder(wish.disk, place, wish.access) else {
                throw error
            }
            // The holder may have closed its end just now, and the worker not have told us yet.
            let isOver = await place.device.waitForEnd(
                of: holder.sessionID,
                min(deadline, Deadline.after(SupervisorLimits.closingSessionNanoseconds)))
            guard isOver else { throw error }
            return try await open(wish, place)
        }
    }

    private func open(_ wish: Wish, _ place: DiskPlace) async throws(WireError) -> OpenedDisk {
        let (device, disk) = (place.device, wish.disk)
        let deadline = wish.caller.deadlineNanoseconds
        return try await device.turn.run(deadlineNanoseconds: deadline) { () throws(WireError) in
            try await device.persistently(deadline) { link throws(WireError) in
                try self.check(wish, place)
                if let holder = self.holder(disk, place, wish.access) {
                    throw self.held(disk, holder)
                }
                try self.checkSessionCount(disk)
                let opened = try await self.openSession(wish, place, link)
                do throws(WireError) {
                    try self.check(wish, place)
                } catch {
                    await self.takeBack(opened.sessionID, of: device, error.message)
                    throw error
                }
                return opened
            }
        }
    }

    /// Ends a session that its client has not got yet.
    private func takeBack(_ id: UInt64, of device: Device, _ reason: String) async {
        guard let session = device.sessions[id] else { return }
        await revoke(session, of: device, reason)
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
        _ wish: Wish, _ place: DiskPlace, _ link: WorkerLink
    ) async throws(WireError) -> OpenedDisk {
        let (disk, access, caller) = (wish.disk, wish.access, wish.caller)
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
