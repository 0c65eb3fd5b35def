// SPDX-License-Identifier: Apache-2.0
// Configuration as values: settings, devices, disks, and what is wrong with the files.

/// How a device is reached.
public enum DeviceTransport: Sendable, Hashable {
    /// A vfio-user server, by the path of its socket.
    case vfioUser(path: String)
    /// Kernel VFIO, by PCI address with domain.
    case pci(address: String)
    /// No device: for benchmarks.
    case null
}

/// A device: one `NAME.device` file with its drop-ins. nil: the worker's default.
public struct ConfiguredDevice: Sendable, Hashable {
    /// From the file's name.
    public var name: String
    /// Where its main file is.
    public var location: ConfigLocation
    /// `Transport=` with `Socket=` or `Address=`.
    public var transport: DeviceTransport
    /// `Queues=`: I/O queue pairs, 1 to 1024.
    public var queueCount: UInt32?
    /// `QueueDepth=`: entries of each, 2 to 65536.
    public var queueDepth: UInt32?
    /// `MaxTransfer=`: bytes of one command.
    public var maxTransferByteCount: UInt64?
    /// `Pool=`: bytes of the DMA pool. What the file does not say, `[Supervisor]` does; nil: as
    /// large as its queues need.
    public var poolByteCount: UInt64?
    /// `Pool=auto`: it is as large as its queues need, whatever `[Supervisor]` says.
    public var poolIsAutomatic = false
    /// `Pool=`: what the DMA pool lies in. What the file does not say, `[Supervisor]` does.
    public var poolBacking: ConfiguredPoolBacking?
    /// `PoolPath=`: the pool's file, or the node of a DAX device; nil: memory of the worker. What
    /// the file does not say, `[Supervisor]` does, or it is the standard place.
    public var poolPath: String?
    /// `NVMeKeepAlive=`: the controller keeps running when everything above it is stopped. What the
    /// file does not say, `[Supervisor]` does; nil: no.
    public var keepsAlive: Bool?
    /// `Quirks=`: what the controller needs or cannot do; nil: what is known of its PCI id.
    public var quirks: Set<ConfiguredQuirk>?
    /// `IOTimeoutSec=`.
    public var ioTimeoutMilliseconds: UInt32?
    /// `AdminTimeoutSec=`.
    public var adminTimeoutMilliseconds: UInt32?
    /// `nvme_vfio=`: whether nvmed drives the device; if not, it is left to the kernel. What the
    /// file does not say, `[Supervisor]` does; on by default.
    public var usesVFIO = true
    /// `IOMMU=`. What the file does not say, `[Supervisor]` does.
    public var iommu: ConfiguredIOMMU?
    /// `nvme_always_flr=`: the function is reset whenever it is opened, not only when its
    /// controller does not come up. What the file does not say, `[Supervisor]` does.
    public var alwaysResets: Bool?
    /// `InterruptAffinity=`: the processors that its interrupts go to, rising; empty: the kernel's
    /// choice.
    public var interruptAffinity: [UInt32] = []
    /// `Spin=`: nanoseconds that a data thread looks for work in vain before it sleeps.
    public var spinNanoseconds: UInt64?
    /// `DataAffinity=`: the processors that the data threads stay on, in turn; empty: the kernel's
    /// choice.
    public var dataAffinity: [UInt32] = []
    /// `GuestMemory=`: the memory of the guest in VTL2 that clients may register.
    public var guestMemory: ConfiguredGuestMemory?
    /// `Size=`: bytes of a null device.
    public var byteCount: UInt64?
    /// `BlockSize=`: bytes of a logical block of a null device.
    public var blockByteCount: UInt32?

    /// A device with the worker's defaults.
    public init(name: String, location: ConfigLocation, transport: DeviceTransport) {
        self.name = name
        self.location = location
        self.transport = transport
    }
}

/// `GuestMemory=`: a device node whose offsets are physical addresses, and what of it is memory.
public struct ConfiguredGuestMemory: Sendable, Hashable {
    /// The absolute path of the node.
    public var path: String
    /// The physical addresses, the first and the last of each range: 1 to 64 ranges of whole pages.
    public var ranges: [ClosedRange<UInt64>]

    /// Names guest memory.
    public init(path: String, ranges: [ClosedRange<UInt64>]) {
        self.path = path
        self.ranges = ranges
    }
}

/// `IOMMU=`: how a PCI device's accesses to memory are translated.
public enum ConfiguredIOMMU: String, Sendable, Hashable, CaseIterable {
    /// Whatever the kernel has, but never without an IOMMU.
    case auto
    /// Group and container.
    case type1
    /// The device's own node and an iommufd.
    case iommufd
    /// Physical addresses: only where all else is trusted.
    case noiommu
}

/// How a disk names its namespace.
public enum NamespaceSelector: Sendable, Hashable, CustomStringConvertible {
    /// `Namespace=` on `Device=`.
    case namespace(nsid: UInt32)
    /// `Namespace=` on the controller with `Serial=`.
    case serial(String, nsid: UInt32)
    /// `NGUID=`, 16 bytes.
    case nguid([UInt8])
    /// `EUI64=`, 8 bytes.
    case eui64([UInt8])
    /// `UUID=`, 16 bytes.
    case uuid([UInt8])

    /// As a person reads it.
    public var description: String {
        switch self {
        case .namespace(let nsid): "namespace \(nsid)"
        case .serial(let serial, let nsid): "namespace \(nsid) of serial number '\(serial)'"
        case .nguid(let id): "NGUID \(Self.hex(id))"
        case .eui64(let id): "EUI64 \(Self.hex(id))"
        case .uuid(let id): "UUID \(Self.hex(id))"
        }
    }

    private static func hex(_ bytes: [UInt8]) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}

/// What a disk's clients may do.
public enum DiskAccess: String, Sendable, Hashable {
    /// Only read.
    case readOnly = "read-only"
    /// Read and write.
    case readWrite = "read-write"
}

/// A disk: one `NAME.disk` file with its drop-ins.
public struct ConfiguredDisk: Sendable, Hashable {
    /// From the file's name.
    public var name: String
    /// Where its main file is.
    public var location: ConfigLocation
    /// `Device=`; nil: whichever has the namespace.
    public var device: String?
    /// Which namespace.
    public var selector: NamespaceSelector
    /// `Access=`; read-write by default.
    public var access: DiskAccess
    /// `Shared=`: several clients may write; no by default.
    public var shared: Bool
    /// `User=`: who may open it beside root.
    public var users: [UInt32]
    /// `Group=`: members of which groups may open it.
    public var groups: [UInt32]
    /// `IOPSMax=`: requests a second of each client; nil: no limit.
    public var requestsPerSecondMax: UInt64?
    /// `BandwidthMax=`: bytes a second of each client, reads and writes together; nil: no limit.
    public var bytesPerSecondMax: UInt64?

    /// A read-write, exclusive disk for root alone.
    public init(
        name: String, location: ConfigLocation, device: String?, selector: NamespaceSelector,
        access: DiskAccess = .readWrite, shared: Bool = false, users: [UInt32] = [],
        groups: [UInt32] = []
    ) {
        self.name = name
        self.location = location
        self.device = device
        self.selector = selector
        self.access = access
        self.shared = shared
        self.users = users
        self.groups = groups
    }
}

/// `[Supervisor]` of `nvmed.conf`. nil: the program's default.
public struct SupervisorSettings: Sendable, Hashable {
    /// `Socket=`: where clients connect.
    public var socketPath: String?
    /// `SocketMode=`: the socket's permissions.
    public var socketMode: UInt32?
    /// `MaxSessions=`: open sessions of all disks together.
    public var maxSessions: UInt32?
    /// `AdminUser=`: who may administer beside root.
    public var adminUsers: [UInt32] = []
    /// `AdminGroup=`: members of which groups may administer.
    public var adminGroups: [UInt32] = []
    /// `nvme_vfio=`: for PCI devices whose file does not say it.
    public var usesVFIO: Bool?
    /// `IOMMU=`: for PCI devices whose file does not say it.
    public var iommu: ConfiguredIOMMU?
    /// `nvme_always_flr=`: for PCI devices whose file does not say it.
    public var alwaysResets: Bool?
    /// `NVMeKeepAlive=`: for devices whose file does not say it.
    public var keepsAlive: Bool?
    /// `Pool=`: for devices whose file does not say it; never a DAX device.
    public var poolBacking: ConfiguredPoolBacking?
    /// `Pool=`: bytes of the pool of each device whose file does not say it.
    public var poolByteCount: UInt64?
    /// `PoolPath=`: the directory of the pools, with `/` at the end.
    public var poolPath: String?
    /// Where its main file is; nil: there is none.
    public var location: ConfigLocation?
    /// The defaults.
    public init() {}
}

/// Finds numbers of user and group names; pure tests give their own.
public struct NameLookup: Sendable {
    /// A user's number, nil for an unknown name.
    public var user: @Sendable (String) -> UInt32?
    /// A group's number, nil for an unknown name.
    public var group: @Sendable (String) -> UInt32?

    /// Looks up with two functions.
    public init(
        user: @escaping @Sendable (String) -> UInt32?,
        group: @escaping @Sendable (String) -> UInt32?
    ) {
        self.user = user
        self.group = group
    }
}

/// A file as it was read. `directory` ranks it: a higher one overrides.
public struct ConfigSourceFile: Sendable, Hashable {
    /// The rank of its directory: 0 for /usr/lib, 1 for /run, 2 for /etc.
    public var directory: Int
    /// The path inside the directory: `vol0.disk` or `vol0.disk.d/10-users.conf`.
    public var relativePath: String
    /// The whole path, for messages.
    public var path: String
    /// The bytes, one more than the limit at most.
    public var bytes: [UInt8]

    /// A file in memory.
    public init(directory: Int, relativePath: String, path: String, bytes: [UInt8]) {
        self.directory = directory
        self.relativePath = relativePath
        self.path = path
        self.bytes = bytes
    }
}

/// All of the configuration. An entry with an error is left out; the others stand.
public struct Configuration: Sendable, Hashable {
    /// `[Supervisor]`.
    public var supervisor = SupervisorSettings()
    /// The devices, by name.
    public var devices: [ConfiguredDevice] = []
    /// The disks, by name.
    public var disks: [ConfiguredDisk] = []
    /// What is wrong or odd, in the order of the files.
    public var problems: [ConfigProblem] = []

    /// No configuration.
    public init() {}

    /// Whether an entry was left out.
    public var hasErrors: Bool { problems.contains { $0.severity == .error } }

    /// The device at a PCI address with domain, in lower case.
    public func device(atPCIAddress address: String) -> ConfiguredDevice? {
        devices.first { $0.transport == .pci(address: address) }
    }

    /// Reads files that were loaded.
    public static func parse(_ files: [ConfigSourceFile], lookup: NameLookup) -> Configuration {
        var reader = ConfigurationReader(lookup: lookup)
        for unit in ConfigUnit.group(files, problems: &reader.problems) { reader.read(unit) }
        return reader.finish()
    }
}
