// SPDX-License-Identifier: Apache-2.0
// Everything an operator may want to see, as a flat list of paths and values.

internal import CLinux
internal import DMA
internal import Glibc
internal import NVMeDriver
internal import NVMeSpec
internal import Wire

extension DeviceService {
    /// The values whose paths begin with `prefix`, by path, bytewise rising.
    func inspect(prefix: String) -> [InspectEntry] {
        var tree = InspectTree()
        inspectDevice(&tree)
        inspectSessions(&tree)
        inspectHealth(&tree)
        inspectStatistics(&tree)
        if let controller {
            inspectController(controller, &tree)
            inspectNamespaces(controller, &tree)
            for queue in 0..<controller.queueCount {
                exclusively(queue) { inspectQueue(controller, queue, &tree) }
            }
            inspectRings(&tree)
        }
        return tree.entries.filter { $0.path.utf8.starts(with: prefix.utf8) }
            .sorted { $0.path.utf8.lexicographicallyPrecedes($1.path.utf8) }
    }

    private func inspectDevice(_ tree: inout InspectTree) {
        tree.add("device/name", name)
        tree.add("device/state", "\(lifecycle.state)")
        tree.add("device/reason", lifecycle.reason)
        tree.add("device/since_ns", lifecycle.sinceNanoseconds)
        tree.add("device/attempts", lifecycle.attempts)
        tree.add("device/generation", generation)
        if let config { tree.add("device/transport", config.transport.text) }
        tree.add("counters/interrupts", counters.interrupts)
        tree.add("counters/admin_interrupts", counters.adminInterrupts)
        tree.add("counters/missed_interrupts", counters.missedInterrupts)
        tree.add("counters/aborts", counters.aborts)
        tree.add("counters/queue_deletions", counters.queueDeletions)
        tree.add("counters/function_resets", counters.functionResets)
        tree.add("counters/faults", counters.faults)
        tree.add("counters/bring_ups", counters.bringUps)
        tree.add("counters/adoptions", counters.adoptions)
        tree.add("counters/sessions_opened", counters.sessionsOpened)
        tree.add("counters/queue_full", counters.queueFull)
        tree.add("counters/rejected_messages", counters.rejectedMessages)
        tree.add("counters/requests_in_flight", requestsInFlight)
        tree.add("counters/sigbus", nv_sigbus_count())
        tree.add("process/pid", getpid())
        tree.add("process/resident_bytes", nv_resident_bytes(getpid()))
    }

    private func inspectController(_ controller: NVMeController, _ tree: inout InspectTree) {
        do throws(DriverError) {
            for register in try controller.inspectRegisters() {
                tree.addHex("controller/\(register.name)", register.value)
            }
        } catch {
            note(error)
        }
        let identify = controller.identify
        tree.add("controller/serial", DiskInfo.trimmed(identify.sn))
        tree.add("controller/model", DiskInfo.trimmed(identify.mn))
        tree.add("controller/firmware", DiskInfo.trimmed(identify.fr))
        tree.addHex("controller/oncs", UInt64(identify.oncs))
        tree.addHex("controller/oacs", UInt64(identify.oacs))
        tree.add("controller/mdts", identify.mdts)
        if let id = controller.pciID { tree.add("controller/pci_id", "\(id)") }
        let quirks = controller.quirks.map(\.rawValue).sorted().joined(separator: " ")
        tree.add("controller/quirks", quirks.isEmpty ? "none" : quirks)
        tree.add("controller/volatile_write_cache", identify.hasVolatileWriteCache)
        tree.add("controller/max_transfer_bytes", controller.limits.maxTransferByteCount)
        tree.add("controller/shadow_doorbells", controller.hasShadowDoorbells)
        tree.add("controller/event_requests", controller.eventRequests)
        tree.add("controller/bring_up_ns", controller.bringUpNanoseconds)
        // 0 where this worker brought the controller up itself.
        tree.add("controller/adoption_ns", controller.adoptionNanoseconds)
        tree.add("controller/namespaces_left_out", controller.namespacesLeftOut)
        tree.add("memory/pool_bytes", controller.poolByteCount)
        inspectPool(controller, &tree)
        inspectNode(&tree)
        tree.add("memory/regions", sessions.reduce(0) { $0 + ($1?.regions.count ?? 0) })
        let bytes = sessions.reduce(UInt64(0)) { $0 + ($1?.regionByteCount ?? 0) }
        tree.add("memory/registered_bytes", bytes)
        tree.add("device/epoch", controller.state.epoch)
    }

    private func inspectPool(_ controller: NVMeController, _ tree: inout InspectTree) {
        if let place = controller.poolPlace { tree.add("pool/place", "\(place)") }
        if let placement = controller.poolPlacement { tree.add("pool/placement", "\(placement)") }
        for slot in controller.poolSlots where slot.state != .free {
            tree.add(
                "pool/slots/\(slot.run.first)",
                "\(slot.run.count) pages, \(slot.owner), \(slot.tag), \(slot.state)")
        }
    }

    private func inspectHealth(_ tree: inout InspectTree) {
        guard let health = lastHealth else { return }
        tree.add("health/critical_warning", health.criticalWarning)
        tree.add("health/warnings", health.warnings.joined(separator: ", "))
        tree.add("health/temperature_kelvin", health.temperatureKelvin)
        tree.add("health/spare_percent", health.availableSparePercent)
        tree.add("health/used_percent", health.usedPercent)
        tree.add("health/media_errors", health.mediaErrors)
        tree.add("health/unsafe_shutdowns", health.unsafeShutdowns)
        tree.add("health/power_on_hours", health.powerOnHours)
    }

    private func inspectNamespaces(_ controller: NVMeController, _ tree: inout InspectTree) {
        for (nsid, namespace) in controller.namespaces {
            let path = "namespaces/\(nsid)"
            tree.add("\(path)/block_bytes", namespace.blockByteCount)
            tree.add("\(path)/blocks", namespace.blockCount)
            tree.add("\(path)/max_transfer_blocks", namespace.maxTransferBlocks)
            tree.add("\(path)/write_protected", namespace.isWriteProtected)
            if let refusal = namespace.refusal { tree.add("\(path)/refusal", refusal) }
            for (name, bytes) in [
                ("nguid", namespace.nguid), ("eui64", namespace.eui64), ("uuid", namespace.uuid),
            ] {
                guard let bytes else { continue }
                let hex = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
                tree.add("\(path)/\(name)", hex.joined())
            }
        }
    }

    private func inspectQueue(
        _ controller: NVMeController, _ queue: Int, _ tree: inout InspectTree
    ) {
        let engine = unsafe controller.engine(queue)
        let path = "queues/\(queue + 1)"
        tree.add("\(path)/depth", unsafe engine.pointee.capacity)
        tree.add("\(path)/inflight", unsafe engine.pointee.inFlight)
        tree.add("\(path)/submitted", unsafe engine.pointee.submitted)
        tree.add("\(path)/completed", unsafe engine.pointee.completed)
        tree.add("\(path)/failed", unsafe engine.pointee.failed)
        tree.add("\(path)/doorbells", unsafe engine.pointee.doorbellCounts.register)
        tree.add("\(path)/shadow_doorbells", unsafe engine.pointee.doorbellCounts.shadow)
        tree.add("\(path)/free_pages", unsafe engine.pointee.freePageCount)
        tree.add("\(path)/waiting_sessions", waiting[queue].count)
        tree.add("\(path)/aborting", aborts[queue].count)
    }

    private func inspectSessions(_ tree: inout InspectTree) {
        for session in sessions.compactMap({ $0 }) {
            let path = "sessions/\(session.opening.sessionID)"
            tree.add("\(path)/disk", session.opening.disk)
            tree.add("\(path)/nsid", session.opening.nsid)
            tree.add(
                "\(path)/mode", session.opening.access == .readOnly ? "read-only" : "read-write")
            tree.add("\(path)/shared", session.opening.shared)
            tree.add("\(path)/client_pid", session.opening.clientPID)
            tree.add("\(path)/client_uid", session.opening.clientUID)
            tree.add("\(path)/opened_ns", session.openedNanoseconds)
            tree.add("\(path)/inflight", session.pending.count)
            tree.add("\(path)/highest_request", session.highestRequestID)
            tree.add("\(path)/waits", session.waits.map { "\($0)" } ?? "no")
            tree.add("\(path)/ending", session.hasEnded)
            if session.limiter.gate.isLimited {
                tree.add("\(path)/iops_max", session.opening.requestsPerSecondMax)
                tree.add("\(path)/bandwidth_max", session.opening.bytesPerSecondMax)
                tree.add("\(path)/limit_waits", session.limitWaits)
            }
            tree.add("\(path)/regions", session.regions.count)
            let counters = session.currentCounters
            tree.add("\(path)/reads", counters.reads)
            tree.add("\(path)/writes", counters.writes)
            tree.add("\(path)/others", counters.others)
            tree.add("\(path)/errors", counters.errors)
            tree.add("\(path)/bytes_read", counters.readBytes)
            tree.add("\(path)/bytes_written", counters.writtenBytes)
        }
    }
}

/// Collects values; what is empty is left out, and what is long is cut.
struct InspectTree {
    private(set) var entries: [InspectEntry] = []

    mutating func add(_ path: String, _ value: String) {
        guard !value.isEmpty else { return }
        // Controllers and clients choose some of these texts; no value needs more.
        entries.append(InspectEntry(path, String(decoding: value.utf8.prefix(512), as: UTF8.self)))
    }

    mutating func add(_ path: String, _ value: some BinaryInteger) { add(path, "\(value)") }

    mutating func add(_ path: String, _ value: Bool) { add(path, value ? "true" : "false") }

    mutating func addHex(_ path: String, _ value: UInt64) {
        add(path, "0x" + String(value, radix: 16))
    }
}

extension Transport {
    /// For people: `vfio-user:/run/x.sock`.
    var text: String {
        switch self {
        case .vfioUser(let path): "vfio-user:\(path)"
        case .pci(let address): "pci:\(address)"
        case .null: "null"
        }
    }
}
