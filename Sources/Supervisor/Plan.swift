// SPDX-License-Identifier: Apache-2.0
// What the configuration asks for, in the terms the supervisor works with.

internal import DiskConfig
internal import Linux
internal import Wire

/// Everything the configuration asks for.
struct Plan: Sendable, Equatable {
    /// Devices by name.
    var devices: [String: DeviceConfig] = [:]
    /// Devices that nvmed does not drive, and why.
    var leftToKernel: [String: String] = [:]
    /// Disks by name.
    var disks: [String: ConfiguredDisk] = [:]
    /// Who may administer beside root and the supervisor's own user.
    var admins = Policy()
    /// The most open sessions of all disks together.
    var sessionsMax = SupervisorLimits.sessions
    /// What is odd but not wrong.
    var warnings: [String] = []

    /// Nothing configured.
    init() {}

    /// Takes over what was read.
    init(_ configuration: Configuration) {
        for device in configuration.devices {
            devices[device.name] = DeviceConfig(device)
            guard !device.usesVFIO else { continue }
            leftToKernel[device.name] =
                "nvme_vfio=off leaves it to the kernel (\(device.location) or nvmed.conf)"
        }
        for disk in configuration.disks { disks[disk.name] = disk }
        admins = Policy(
            users: Set(configuration.supervisor.adminUsers),
            groups: Set(configuration.supervisor.adminGroups))
        if let most = configuration.supervisor.maxSessions { sessionsMax = Int(most) }
        warnings = configuration.problems.map(\.description)
    }
}

extension DeviceConfig {
    /// A configured device as its worker is told of it.
    init(_ device: ConfiguredDevice) {
        let transport: Transport =
            switch device.transport {
            case .vfioUser(let path): .vfioUser(path: path)
            case .pci(let address): .pci(address: address)
            case .null: .null
            }
        self.init(name: device.name, transport: transport)
        queueCount = device.queueCount
        queueDepth = device.queueDepth
        maxTransferByteCount = device.maxTransferByteCount
        poolByteCount = device.poolByteCount
        poolBacking = device.poolBacking.map(PoolBacking.init)
        poolPath = device.poolPath
        keepAlive = device.keepsAlive ?? false
        quirks = device.quirks.map { Set($0.map(DeviceQuirk.init)) }
        ioTimeoutMilliseconds = device.ioTimeoutMilliseconds
        adminTimeoutMilliseconds = device.adminTimeoutMilliseconds
        switch device.iommu {
        case nil: iommu = nil
        case .auto: iommu = .auto
        case .type1: iommu = .type1
        case .iommufd: iommu = .iommufd
        case .noiommu: iommu = .noiommu
        }
        alwaysResets = device.alwaysResets ?? false
        nullByteCount = device.byteCount
        nullBlockByteCount = device.blockByteCount
        interruptAffinity = Array(device.interruptAffinity.prefix(WireLimits.processorCount))
        spinNanoseconds = device.spinNanoseconds
        dataAffinity = Array(device.dataAffinity.prefix(WireLimits.processorCount))
        guestMemory = device.guestMemory.map { GuestMemoryPlace(path: $0.path, ranges: $0.ranges) }
    }
}

extension PoolBacking {
    /// What a pool lies in, as its worker is told of it.
    init(_ backing: ConfiguredPoolBacking) {
        self =
            switch backing {
            case .memfd: .memfd
            case .hugetlb: .hugetlb
            case .file: .file
            case .dax: .dax
            }
    }
}

extension DeviceQuirk {
    /// A configured quirk, as its worker is told of it.
    init(_ quirk: ConfiguredQuirk) {
        self =
            switch quirk {
            case .noAdminAfterServicing: .noAdminAfterServicing
            case .vectorsAscending: .vectorsAscending
            case .equalQueueSizes: .equalQueueSizes
            case .doNotAdopt: .doNotAdopt
            }
    }
}

extension ConfiguredDisk {
    /// The most that a client may do.
    var mode: AccessMode { access == .readOnly ? .readOnly : .readWrite }

    /// Who may open it.
    var policy: Policy { Policy(users: Set(users), groups: Set(groups)) }

    /// Whether another configuration of it means the same place.
    func isSamePlace(as other: ConfiguredDisk) -> Bool {
        device == other.device && selector == other.selector
    }
}

/// Who may do something.
struct Policy: Sendable, Equatable {
    /// These users.
    var users: Set<UInt32> = []
    /// Members of these groups.
    var groups: Set<UInt32> = []

    /// Whether nobody is named.
    var isEmpty: Bool { users.isEmpty && groups.isEmpty }

    /// Whether a peer is root or among those named.
    func names(_ peer: PeerCredentials) -> Bool {
        peer.uid == 0 || users.contains(peer.uid) || groups.contains(peer.gid)
            || peer.groups.contains { groups.contains($0) }
    }
}
