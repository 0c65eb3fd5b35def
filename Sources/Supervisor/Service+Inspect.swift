// SPDX-License-Identifier: Apache-2.0
// The inspection tree: the supervisor's own part, and the parts of the workers that answer in time.

internal import DiskConfig
internal import Linux
internal import Systemd
internal import Wire

extension Service {
    /// Values whose paths begin with `prefix` and sort after `after`.
    ///
    /// A worker that does not answer in time only loses its own part, and a value says so.
    func inspect(
        prefix: String, after: String?, _ caller: Caller
    ) async -> Page<InspectEntry> {
        let gathered = Gathered<InspectEntry>()
        gathered.all = ownEntries()
        let deadline = min(
            caller.deadlineNanoseconds, Deadline.after(SupervisorLimits.inspectNanoseconds))
        let concerned = sortedDevices.filter { device in
            let root = Self.root(device) + "worker/"
            return root.hasPrefix(prefix) || prefix.hasPrefix(root)
        }
        await Self.inParallel(concerned) { device in
            gathered.all += await Self.workerEntries(device, prefix, deadline)
        }
        let wanted = gathered.all.filter { $0.path.hasPrefix(prefix) && Self.fits($0) }
            .sorted { $0.path.sortsBefore($1.path) }
        return Paging.page(
            Array(wanted.prefix(SupervisorLimits.inspectEntries)), after: after, key: \.path,
            cost: Paging.cost)
    }

    private static func root(_ device: Device) -> String { "device/\(device.name)/" }

    /// A value that no message could carry is left out.
    private static func fits(_ entry: InspectEntry) -> Bool {
        !entry.path.isEmpty && entry.path.utf8.count <= WireLimits.textByteCount
            && entry.value.utf8.count <= WireLimits.textByteCount
    }

    private static func workerEntries(
        _ device: Device, _ prefix: String, _ deadline: UInt64
    ) async -> [InspectEntry] {
        guard let link = device.link else { return [] }
        let root = root(device) + "worker/"
        let rest = prefix.hasPrefix(root) ? String(prefix.dropFirst(root.count)) : ""
        do throws(WireError) {
            return try await link.inspect(rest, deadline)
                .map { InspectEntry(root + $0.path, $0.value) }
        } catch {
            return [InspectEntry(Self.root(device) + "worker_problem", "\(error)")]
        }
    }

    private func ownEntries() -> [InspectEntry] {
        var entries = [
            InspectEntry("supervisor/devices", "\(devices.count)"),
            InspectEntry("supervisor/disks", "\(disks.count)"),
            InspectEntry("supervisor/stopping", "\(isStopping)"),
            InspectEntry("supervisor/servicing", "\(servicing.machine.state)"),
        ]
        for device in sortedDevices { entries += Self.ownEntries(device) }
        for disk in disks.values {
            let root = "disk/\(disk.name)/"
            entries.append(InspectEntry(root + "device", disk.device ?? "any"))
            entries.append(InspectEntry(root + "namespace", "\(disk.selector)"))
            entries.append(InspectEntry(root + "access", "\(disk.access.rawValue)"))
            entries.append(InspectEntry(root + "shared", "\(disk.shared)"))
            entries.append(InspectEntry(root + "file", "\(disk.location)"))
        }
        return entries
    }

    private static func ownEntries(_ device: Device) -> [InspectEntry] {
        let info = device.info
        let root = root(device)
        var entries = [
            InspectEntry(root + "state", "\(info.state)"),
            InspectEntry(root + "reason", info.reason),
            InspectEntry(root + "attempts", "\(info.attempts)"),
            InspectEntry(root + "since_ns", "\(info.sinceNanoseconds)"),
            InspectEntry(root + "transport", info.transport),
            InspectEntry(root + "restarts", "\(info.restarts)"),
            InspectEntry(root + "waiting", "\(device.turn.waitingCount)"),
            InspectEntry(root + "worker_pid", info.workerPID.map { "\($0)" } ?? "none"),
            InspectEntry(root + "requests_pending", "\(device.link?.pendingCount ?? 0)"),
        ]
        if let continuity = info.continuity {
            entries += [
                InspectEntry(root + "generation", "\(continuity.generation)"),
                InspectEntry(root + "adoptions", "\(continuity.adoptions)"),
                InspectEntry(root + "resets", "\(continuity.resets)"),
                InspectEntry(
                    root + "last_pause_ns", "\(continuity.lastPauseNanoseconds ?? 0)"),
                InspectEntry(root + "reset_reason", info.resetReason),
            ]
        }
        for session in device.sessions.values {
            let root = root + "session/\(session.sessionID)/"
            entries += [
                InspectEntry(root + "disk", session.disk),
                InspectEntry(root + "nsid", "\(session.nsid)"),
                InspectEntry(root + "access", "\(session.access)"),
                InspectEntry(root + "client_pid", "\(session.clientPID)"),
                InspectEntry(root + "client_uid", "\(session.clientUID)"),
            ]
        }
        return entries
    }
}
