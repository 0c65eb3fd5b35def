// SPDX-License-Identifier: Apache-2.0
// Keys of what outlives the processes: NVMeKeepAlive=, Pool= and PoolPath=.

/// What the DMA pool of a device lies in: the word of `Pool=`.
public enum ConfiguredPoolBacking: String, Sendable, Hashable, CaseIterable {
    /// Memory of the worker that nothing but its descriptor keeps.
    case memfd
    /// A file on a hugetlbfs.
    case hugetlb
    /// A file on another file system of memory.
    case file
    /// A DAX device.
    case dax

    /// Where files of this kind are when nothing says it; nil: there is no such place.
    var standardDirectory: String? {
        switch self {
        case .hugetlb: "/dev/hugepages/nvmed/"
        case .file: "/dev/shm/nvmed/"
        case .memfd, .dax: nil
        }
    }
}

/// `Pool=`: what the pool lies in, how large it is, or both.
public struct ConfiguredPool: Sendable, Hashable {
    /// What it lies in; nil: not said.
    public var backing: ConfiguredPoolBacking?
    /// Its bytes; nil: not said.
    public var byteCount: UInt64?
    /// `auto`: as large as the queues need, whatever the supervisor says.
    public var isAutomatic: Bool

    /// Says something of a pool.
    public init(
        backing: ConfiguredPoolBacking? = nil, byteCount: UInt64? = nil, isAutomatic: Bool = false
    ) {
        self.backing = backing
        self.byteCount = byteCount
        self.isAutomatic = isAutomatic
    }
}

extension ConfigValue {
    /// The bytes that a pool may have.
    static let poolByteCounts: ClosedRange<UInt64> = (1 << 20)...(1 << 40)

    /// A pool: `64M` or `auto`, `hugetlb`, or both in any order.
    public static func pool(_ text: String) -> ConfiguredPool? {
        let words = text.words
        guard (1...2).contains(words.count) else { return nil }
        var pool = ConfiguredPool()
        for word in words {
            if let backing = ConfiguredPoolBacking(rawValue: word), pool.backing == nil {
                pool.backing = backing
            } else if pool.byteCount != nil || pool.isAutomatic {
                return nil
            } else if word == "auto" {
                pool.isAutomatic = true
            } else if let bytes = byteCount(word), poolByteCounts.contains(bytes) {
                pool.byteCount = bytes
            } else {
                return nil
            }
        }
        return pool
    }

    /// An absolute path of at most 4095 bytes whose parts are names: none is empty, `.` or `..`,
    /// except that a `/` may be at the end.
    public static func path(_ text: String) -> String? {
        guard text.hasPrefix("/"), text.utf8.count <= ConfigLimits.pathByteCount else {
            return nil
        }
        var parts = text.split(separator: "/", omittingEmptySubsequences: false).dropFirst()
        if parts.last == "", parts.count > 1 { parts.removeLast() }
        return parts.contains { $0.isEmpty || $0 == "." || $0 == ".." } ? nil : text
    }
}

extension KeyReader {
    /// `Pool=` of a device.
    mutating func pool() -> ConfiguredPool {
        value(
            "Pool",
            "auto or a size from 1048576 to 1099511627776 bytes, like 64M, or memfd, hugetlb, file "
                + "or dax, or both like hugetlb 64M", ConfigValue.pool) ?? ConfiguredPool()
    }

    /// `PoolPath=`: a file, or with a `/` at the end the directory of files with devices' names.
    mutating func poolPath() -> String? {
        value("PoolPath", "an absolute path without . and ..", ConfigValue.path)
    }

    /// `Pool=` of the supervisor: what the pool of each device lies in, and how large it is.
    mutating func commonPool() -> ConfiguredPool {
        value(
            "Pool",
            "auto or a size from 1048576 to 1099511627776 bytes, like 64M, or memfd, hugetlb or "
                + "file, or both like hugetlb 64M; dax is said of each device"
        ) { text in
            ConfigValue.pool(text).flatMap { $0.backing == .dax ? nil : $0 }
        } ?? ConfiguredPool()
    }

    /// `PoolPath=` of the supervisor: a directory.
    mutating func commonPoolPath() -> String? {
        value("PoolPath", "an absolute path of a directory, with / at the end") { text in
            text.hasSuffix("/") ? ConfigValue.path(text) : nil
        }
    }
}

/// Brings together what devices and the supervisor say of pools and of keeping alive.
struct PoolResolution {
    var problems: [ConfigProblem] = []
    private var owners: [String: ConfiguredDevice] = [:]

    /// The devices with all that is known; those whose pools cannot be are left out.
    mutating func resolve(
        _ devices: [ConfiguredDevice], _ supervisor: SupervisorSettings
    ) -> [ConfiguredDevice] {
        let resolved = devices.compactMap { device -> ConfiguredDevice? in
            var device = device
            device.poolBacking = device.poolBacking ?? supervisor.poolBacking
            if !device.poolIsAutomatic {
                device.poolByteCount = device.poolByteCount ?? supervisor.poolByteCount
            }
            let isSaid = device.keepsAlive == true
            device.keepsAlive = device.keepsAlive ?? supervisor.keepsAlive
            guard place(&device, supervisor), claim(device) else { return nil }
            if isSaid, let obstacle = Self.obstacle(device) {
                warn(device.location, "NVMeKeepAlive", obstacle)
            }
            return device
        }
        warnIfInVain(resolved, devices, supervisor)
        return resolved
    }

    /// Finds the pool's path.
    private mutating func place(
        _ device: inout ConfiguredDevice, _ supervisor: SupervisorSettings
    ) -> Bool {
        guard let backing = device.poolBacking, backing != .memfd else {
            guard device.poolPath != nil else { return true }
            return fail(
                device, "PoolPath", "it goes with Pool=hugetlb, file or dax; write one or remove it"
            )
        }
        if backing == .dax {
            guard let path = device.poolPath, !path.hasSuffix("/") else {
                return fail(
                    device, "PoolPath", "it is missing; Pool=dax needs a node like /dev/dax0.0")
            }
            return true
        }
        let path =
            device.poolPath ?? supervisor.poolPath ?? backing.standardDirectory ?? "/run/nvmed/"
        device.poolPath = path.hasSuffix("/") ? path + device.name : path
        return true
    }

    /// Two devices in one pool would write over each other's queues.
    private mutating func claim(_ device: ConfiguredDevice) -> Bool {
        guard let path = device.poolPath else { return true }
        if let other = owners[path] {
            return fail(
                device, "PoolPath",
                "device \(other.name) (\(other.location)) has its pool there already; name another")
        }
        owners[path] = device
        return true
    }

    /// Why nothing of a device would outlive the processes; nil: something can.
    private static func obstacle(_ device: ConfiguredDevice) -> String? {
        if device.transport == .null { return "a null device has nothing to keep; remove it" }
        if (device.poolBacking ?? .memfd) == .memfd {
            return "memory of the worker does not outlive it, so the device would be started cold; "
                + "write Pool=hugetlb, file or dax"
        }
        guard case .pci = device.transport else { return nil }
        if device.iommu != .noiommu {
            return "the kernel stops a controller behind an IOMMU when its last descriptor is "
                + "closed, so the device would be started cold; only IOMMU=noiommu keeps it"
        }
        if device.alwaysResets == true {
            return
                "with nvme_always_flr=yes the function is reset whenever it is opened; remove one"
        }
        return nil
    }

    /// What the supervisor says for all helps none.
    private mutating func warnIfInVain(
        _ resolved: [ConfiguredDevice], _ devices: [ConfiguredDevice],
        _ supervisor: SupervisorSettings
    ) {
        let said = devices.contains { $0.keepsAlive != nil }
        guard supervisor.keepsAlive == true, !said, !resolved.isEmpty,
            let location = supervisor.location
        else { return }
        let obstacles = resolved.filter { $0.keepsAlive == true }.map(Self.obstacle)
        guard let first = obstacles.first ?? nil, !obstacles.contains(nil) else { return }
        warn(location, "NVMeKeepAlive", "no device can be kept: \(first)")
    }

    private mutating func fail(
        _ device: ConfiguredDevice, _ key: String, _ message: String
    ) -> Bool {
        problems.append(ConfigProblem(.error, device.location, key: key, message))
        return false
    }

    private mutating func warn(_ location: ConfigLocation, _ key: String, _ message: String) {
        problems.append(ConfigProblem(.warning, location, key: key, message))
    }
}
