// SPDX-License-Identifier: Apache-2.0
// One of every message, with every field set, for the round trips.

import Wire

/// Samples of the values that messages carry.
enum Samples {
    static let nguid = [UInt8](1...16)
    static let eui64 = [UInt8](17...24)
    static let uuid = [UInt8](33...48)

    static let error = WireError(
        .nvmeStatus, "the device refused the write; check its health", device: "nvme0",
        disk: "vol0", field: "write.lba", nvmeStatus: 0x4281)

    static var diskInfo: DiskInfo {
        var info = DiskInfo()
        info.name = "vol0"
        info.device = "nvme0"
        info.blockByteCount = 4096
        info.physicalBlockByteCount = 8192
        info.optimalByteCount = 65536
        info.blockCount = 1 << 40
        info.maxTransferByteCount = 1 << 20
        info.maxInlineByteCount = 65536
        info.maxSegments = 256
        info.alignmentByteCount = 4
        info.fua = true
        info.volatileWriteCache = true
        info.unmap = true
        info.unmapGranularityBlockCount = 8
        info.unmapAlignmentBlockCount = 3
        info.unmapMaxBlockCount = 1 << 33
        info.unmapMaxRanges = 256
        info.unmapReadsAs = 1
        info.writeZeroes = true
        info.writeZeroesMaxBlockCount = 1 << 16
        info.compare = true
        info.verify = true
        info.atomicPowerFailBlockCount = 2
        info.atomicBlockCount = 4
        info.writeProtected = true
        info.readOnly = true
        info.nsid = 7
        info.identity = NamespaceIdentity(nguid: nguid, eui64: eui64, uuid: uuid)
        info.serial = "S1"
        info.model = "a model"
        info.firmware = "1.0"
        info.bounced = true
        info.shared = true
        info.generation = 9
        return info
    }

    static let namespace = NamespaceInfo(
        nsid: 3, blockByteCount: 512, blockCount: 1000,
        identity: NamespaceIdentity(nguid: nguid, eui64: eui64, uuid: uuid), writeProtected: true,
        refusal: "it has metadata")

    static var device: DeviceInfo {
        var device = DeviceInfo(name: "nvme0", state: .failed)
        device.reason = "never ready"
        device.attempts = 3
        device.sinceNanoseconds = 1 << 50
        device.transport = "vfio-user:/run/x.sock"
        device.serial = "S1"
        device.model = "a model"
        device.firmware = "1.0"
        device.namespaces = [namespace, NamespaceInfo(nsid: 4, blockByteCount: 512, blockCount: 1)]
        device.workerPID = 4711
        device.restarts = 2
        device.sessionCount = 5
        device.continuity = continuity
        device.resetReason = "CSTS.CFS is set"
        return device
    }

    static var continuity: Continuity {
        var continuity = Continuity(generation: 9)
        continuity.adoptions = 7
        continuity.resets = 1
        continuity.lastPauseNanoseconds = 8_000_000
        return continuity
    }

    static var counters: SessionCounters {
        var counters = SessionCounters()
        counters.reads = 1
        counters.writes = 2
        counters.readBytes = 4096
        counters.writtenBytes = 1 << 60
        counters.others = 5
        counters.errors = 6
        counters.inFlight = 7
        return counters
    }

    static var session: SessionInfo {
        var session = SessionInfo(sessionID: 77, disk: "vol0", access: .readWrite)
        session.device = "nvme0"
        session.nsid = 1
        session.shared = true
        session.clientPID = -1
        session.clientUID = 1000
        session.openedNanoseconds = 123_456
        session.counters = counters
        session.continuity = continuity
        return session
    }

    static let entries = Page([InspectEntry("a/b", "1"), InspectEntry("a/c", "")], more: true)

    static var limitedSession: OpenSession {
        var session = OpenSession(
            sessionID: 2, nsid: 3, access: .readWrite, shared: false, disk: "vol1")
        session.requestsPerSecondMax = 1000
        session.bytesPerSecondMax = 50_000_000
        return session
    }

    static var config: DeviceConfig {
        var config = DeviceConfig(name: "nvme0", transport: .vfioUser(path: "/run/x.sock"))
        config.queueCount = 4
        config.queueDepth = 256
        config.maxTransferByteCount = 1 << 20
        config.poolByteCount = 1 << 26
        config.ioTimeoutMilliseconds = 30_000
        config.adminTimeoutMilliseconds = 60_000
        return config
    }

    static var pciConfig: DeviceConfig {
        var config = DeviceConfig(name: "p", transport: .pci(address: "0000:01:00.0"))
        config.iommu = .noiommu
        config.alwaysResets = true
        config.interruptAffinity = [0, 3, 4095]
        config.guestMemory = GuestMemoryPlace(
            path: "/dev/mshv_vtl_low", ranges: [0...0xBFFF_FFFF, 1 << 32...(1 << 46) - 1])
        return config
    }

    static var keptConfig: DeviceConfig {
        var config = config
        config.keepAlive = true
        config.poolBacking = .hugetlb
        config.poolPath = "/dev/hugepages/nvmed/nvme0"
        config.quirks = []
        return config
    }

    static var quirkyConfig: DeviceConfig {
        var config = config
        config.quirks = Set(DeviceQuirk.allCases)
        return config
    }

    static var restored: DeviceReady {
        var ready = ready
        ready.restored = true
        return ready
    }

    static var cold: DeviceReady {
        var ready = ready
        ready.coldReason = "the token in the pool is another one"
        return ready
    }

    static let save = SaveDevice(
        token: nguid, drainNanoseconds: 4_000_000_000, leaseNanoseconds: 9_000_000_000)

    static var saved: DeviceSaved {
        var saved = DeviceSaved(byteCount: 12345)
        saved.commandsInFlight = 3
        saved.queueCount = 4
        saved.sessionCount = 5
        saved.drainedNanoseconds = 6
        return saved
    }

    static var servicing: ServicingStatus {
        var one = ServicingDevice(name: "nvme0", step: .restored)
        one.commandsInFlight = 0
        one.byteCount = 12345
        one.durationNanoseconds = 7
        one.queueCount = 4
        one.sessionCount = 5
        var other = ServicingDevice(name: "nvme1", step: .cold)
        other.reason = "it was not ready"
        var status = ServicingStatus(phase: .saved, devices: Page([one, other], more: true))
        status.durationNanoseconds = 8
        status.problem = "nvme1: it was not ready"
        status.savedAtRealtimeNanoseconds = 1 << 60
        status.byteCount = 20000
        return status
    }

    static var pciReady: DeviceReady {
        var ready = ready
        ready.descriptorCount = 2
        ready.continuity = continuity
        ready.resetReason = "the state area is damaged"
        return ready
    }

    static var ready: DeviceReady {
        var controller = ControllerInfo()
        controller.serial = "S1"
        controller.model = "a model"
        controller.firmware = "1.0"
        controller.vendorID = 0x1b36
        controller.controllerID = 1
        controller.nvmeVersion = 0x20000
        controller.maxTransferByteCount = 1 << 20
        controller.queueCount = 2
        controller.queueDepth = 128
        controller.volatileWriteCache = true
        return DeviceReady(
            controller: controller, namespaces: [namespace], bringUpNanoseconds: 5_000_000,
            generation: 2)
    }

    static var workerDevice: WorkerDevice {
        var device = WorkerDevice(state: .ready)
        device.reason = "loaded"
        device.config = config
        device.ready = ready
        device.workerPID = 99
        return device
    }

    static var health: Health {
        var health = Health()
        health.mediaErrors = 7
        health.unsafeShutdowns = 8
        health.powerOnHours = .max
        health.criticalWarning = 1
        health.temperatureKelvin = 310
        health.availableSparePercent = 90
        health.usedPercent = 110
        return health
    }

    static var diskEntry: DiskEntry {
        var disk = DiskEntry(name: "vol0", access: .readOnly)
        disk.device = "nvme0"
        disk.nsid = 1
        disk.shared = true
        disk.blockByteCount = 512
        disk.blockCount = 2048
        disk.sessionCount = 1
        disk.problem = "the device is starting"
        disk.continuity = continuity
        return disk
    }
}

/// Every message of every protocol at least once.
enum Messages {
    static let region = DataLocation.region(id: 9, byteOffset: 8192)

    static let session: [Content<SessionProtocol>] = [
        .request(.getDiskInfo),
        .request(.read(lba: 0, blockCount: 1, location: .inline)),
        .request(.read(lba: .max, blockCount: .max, location: region)),
        .request(.write(lba: 1 << 40, blockCount: 8, fua: true, location: .inline)),
        .request(.write(lba: 8, blockCount: 8, fua: false, location: region)),
        .request(.flush),
        .request(.unmap((0..<256).map { BlockRange(lba: $0 << 32, blockCount: $0 + 1) })),
        .request(.writeZeroes(BlockRange(lba: 1, blockCount: 2), deallocate: true, fua: true)),
        .request(.compare(lba: 4, blockCount: 5, location: region)),
        .request(.verify(BlockRange(lba: 6, blockCount: 7))),
        .request(.cancel(requestID: 12)),
        .request(.registerMemory(regionID: 9, byteCount: 1 << 30, readOnly: true)),
        .request(
            .registerMemory(
                regionID: 10, byteCount: 4096, readOnly: false, fileOffset: 0x1_0000_0000)),
        .request(.unregisterMemory(regionID: 9)),
        .request(.openRing(ringID: 3, submissionEntryCount: 64, completionEntryCount: 128)),
        .request(.closeRing(ringID: 3)),
        .reply(.ringOpened(ringID: 3, byteCount: 16384)),
        .reply(.done), .reply(.diskInfo(Samples.diskInfo)), .reply(.read),
        .reply(.cancelled(true)), .reply(.cancelled(false)),
        .failure(Samples.error), .failure(WireError(.busy, "")),
        .event(.diskChanged(.resized, Samples.diskInfo)), .event(.diskChanged(.removed, nil)),
        .event(.stalled(reason: "the controller recovers")),
        .event(.resumed(stalledNanoseconds: 5)), .event(.ended(Samples.error)),
    ]

    static let worker: [Content<WorkerProtocol>] = [
        .request(.loadDriver(Samples.config)),
        .request(.loadDriver(DeviceConfig(name: "p", transport: .pci(address: "0000:01:00.0")))),
        .request(.loadDriver(DeviceConfig(name: "n", transport: .null))),
        .request(.loadDriver(Samples.pciConfig)), .reply(.deviceReady(Samples.pciReady)),
        .request(.getDevice), .request(.getNamespace(nsid: 5)),
        .request(
            .openSession(
                OpenSession(
                    sessionID: 1, nsid: 2, access: .readOnly, shared: true, disk: "vol0",
                    clientPID: 3, clientUID: 4))),
        .request(.openSession(Samples.limitedSession)),
        .request(.closeSession(sessionID: 1, reason: "an operator asked")),
        .request(.listSessions(after: 5)), .request(.listSessions(after: nil)),
        .request(.inspect(prefix: "a", after: "a/b")), .request(.inspect(prefix: "", after: nil)),
        .request(.shutdown(doNotReset: true)), .request(.shutdown(doNotReset: false)),
        .request(.shutdown(doNotReset: true, saved: true)),
        .request(.loadDriver(Samples.keptConfig, savedState: true)),
        .request(.loadDriver(Samples.quirkyConfig)),
        .request(.save(Samples.save)),
        .request(.save(SaveDevice(token: Samples.uuid, drainNanoseconds: 0))),
        .request(.thaw), .reply(.saved(Samples.saved)),
        .reply(.saved(DeviceSaved(byteCount: 0))),
        .reply(.deviceReady(Samples.restored)), .reply(.deviceReady(Samples.cold)),
        .request(.openStatistics), .reply(.statistics(byteCount: 6 << 20)),
        .reply(.done), .reply(.deviceReady(Samples.ready)), .reply(.device(Samples.workerDevice)),
        .reply(.namespace(Samples.namespace)), .reply(.sessionOpened(Samples.diskInfo)),
        .reply(.sessions(Page([Samples.session, Samples.session], more: true))),
        .reply(.inspect(Samples.entries)),
        .failure(Samples.error),
        .event(.stateChanged(.recovering, reason: "a command does not answer")),
        .event(.namespaceChanged(nsid: 3)), .event(.health(Samples.health)),
        .event(.sessionEnded(sessionID: 8, reason: Samples.error, counters: Samples.counters)),
    ]

    static let opener: [Content<OpenerProtocol>] = [
        .request(.openDevice(name: "nvme0", reset: true)),
        .request(.openDevice(name: "größe-✓", reset: false)),
        .request(.setInterruptAffinity(name: "nvme0")),
        .request(.translateMemory(name: "nvme0", byteCount: 1 << 32)),
        .request(.translateMemory(name: "nvme0", byteCount: 2 << 20, offset: 6 << 20)),
        .reply(.done),
        .reply(.deviceOpened(DeviceOpened(interface: .type1, address: "0000:01:00.0"))),
        .reply(.deviceOpened(DeviceOpened(interface: .noiommu, address: "0000:01:00.0"))),
        .reply(
            .deviceOpened(
                DeviceOpened(interface: .iommufd, addressSpace: 2, address: "0000:01:00.0"))),
        .reply(.translated(pageByteCount: 2 << 20, addresses: [0, 1 << 21, .max])),
        .request(.findGuestMemory(name: "nvme0")),
        .request(.openPool(name: "nvme0", byteCount: 28 << 20, isKept: false)),
        .request(.openPool(name: "nvme0", byteCount: 4096, isKept: true)),
        .reply(.poolOpened(isClean: true)), .reply(.poolOpened(isClean: false)),
        .reply(
            .guestMemory(
                GuestMemoryFound(deviceNumber: 0x0A7B, ranges: [0...4095, 8192...(.max)]))),
        .failure(Samples.error),
    ]

    static let supervisor: [Content<SupervisorProtocol>] = [
        .request(.listDevices(name: "nvme0", after: "a")),
        .request(.listDevices(name: nil, after: nil)),
        .request(.listDisks(name: "vol0", after: "a")),
        .request(.listDisks(name: nil, after: nil)),
        .request(.openDisk(name: "vol0", access: .readWrite)),
        .request(.openDisk(name: "größe-✓", access: nil)),
        .request(.listSessions(after: 1)), .request(.closeSession(sessionID: 2, reason: "")),
        .request(.inspect(prefix: "device/", after: "device/x")), .request(.reload),
        .request(.retryDevice(name: "nvme0")), .request(.shutdown),
        .request(.releaseDevice(name: "nvme0", reason: "unbind", undo: false)),
        .request(.releaseDevice(name: "nvme0", reason: "", undo: true)),
        .request(.openStatistics(device: "nvme0")), .reply(.statistics(byteCount: 6 << 20)),
        .request(.servicingSave(deadlineNanoseconds: 1 << 62, allOrNothing: true)),
        .request(.servicingSave(deadlineNanoseconds: nil, allOrNothing: false)),
        .request(.servicingCancel), .request(.servicingRestore),
        .request(.getServicing(after: "nvme0")), .request(.getServicing(after: nil)),
        .reply(.servicing(Samples.servicing)), .reply(.servicing(ServicingStatus(phase: .idle))),
        .reply(.done), .reply(.devices(Page([Samples.device], more: true))),
        .reply(.disks(Page([Samples.diskEntry], more: false))),
        .reply(.diskOpened(sessionID: 5, Samples.diskInfo)),
        .reply(.diskOpened(sessionID: 5, nil)),
        .reply(.sessions(Page([Samples.session], more: false))),
        .reply(.inspect(Samples.entries)), .reply(.reloaded(warnings: ["one", "two"])),
        .failure(Samples.error),
    ]
}
