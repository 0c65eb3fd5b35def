// SPDX-License-Identifier: Apache-2.0
// From assignments to entries: which keys there are, what they mean, what can be wrong.

/// The keys of one entry while it is read; every key is taken once, what is left is unknown.
struct KeyReader {
    private var values: [String: INIFile.Assignment] = [:]
    private var lists: [String: [(word: String, location: ConfigLocation)]] = [:]
    let location: ConfigLocation
    let name: String
    var problems: [ConfigProblem] = []

    init(_ unit: ConfigUnit, known: Set<String>) {
        location = unit.location
        name = unit.name
        for assignment in unit.assignments {
            guard assignment.section == unit.kind.section else {
                if !assignment.section.hasPrefix("X-") { warnSection(assignment, unit) }
                continue
            }
            guard known.contains(assignment.key) else {
                if !assignment.key.hasPrefix("X-") { warnKey(assignment, unit, known) }
                continue
            }
            store(assignment)
        }
    }

    private mutating func store(_ assignment: INIFile.Assignment) {
        guard ConfigurationReader.isList(assignment.key) else {
            values[assignment.key] = assignment.value.isEmpty ? nil : assignment
            return
        }
        if assignment.value.isEmpty {
            lists[assignment.key] = nil
        } else {
            lists[assignment.key, default: []] += assignment.value.words.map {
                ($0, assignment.location)
            }
        }
    }

    private mutating func warnSection(_ assignment: INIFile.Assignment, _ unit: ConfigUnit) {
        problems.append(
            ConfigProblem(
                .warning, assignment.location, key: assignment.key,
                assignment.section.isEmpty
                    ? "it is before the first section; put it below [\(unit.kind.section)]. Ignored"
                    : "section [\(assignment.section.shortened)] is not known here; "
                        + "[\(unit.kind.section)] is. Ignored"))
    }

    private mutating func warnKey(
        _ assignment: INIFile.Assignment, _ unit: ConfigUnit, _ known: Set<String>
    ) {
        let near = known.first { $0.lowercased() == assignment.key.lowercased() }
        let hint =
            near.map { "did you mean \($0)=?" } ?? "known: \(known.sorted().joined(separator: " "))"
        problems.append(
            ConfigProblem(
                .warning, assignment.location, key: assignment.key.shortened,
                "unknown in [\(unit.kind.section)], ignored; \(hint)"))
    }

    mutating func fail(_ key: String?, _ message: String) {
        let place = key.flatMap { values[$0]?.location } ?? location
        problems.append(ConfigProblem(.error, place, key: key, message))
    }

    func has(_ key: String) -> Bool { values[key] != nil }

    func text(_ key: String) -> String? { values[key]?.value }

    /// A value that `read` understands; `expected` tells what to write instead.
    mutating func value<Value>(
        _ key: String, _ expected: String, _ read: (String) -> Value?
    ) -> Value? {
        guard let text = values[key]?.value else { return nil }
        if let value = read(text) { return value }
        fail(key, "'\(text.shortened)' is not \(expected)")
        return nil
    }

    mutating func boolean(_ key: String) -> Bool? {
        value(key, "on or off", ConfigValue.boolean)
    }

    mutating func number(_ key: String, _ range: ClosedRange<UInt64>) -> UInt32? {
        value(key, "a number from \(range.lowerBound) to \(range.upperBound)") {
            ConfigValue.number($0).flatMap { range.contains($0) ? UInt32(exactly: $0) : nil }
        }
    }

    mutating func byteCount(_ key: String, _ range: ClosedRange<UInt64>) -> UInt64? {
        value(key, "a size from \(range.lowerBound) to \(range.upperBound) bytes, like 64K or 1M") {
            ConfigValue.byteCount($0).flatMap { range.contains($0) ? $0 : nil }
        }
    }

    mutating func rate(
        _ key: String, _ range: ClosedRange<UInt64>, _ unit: String
    ) -> UInt64? {
        value(
            key,
            "a number of \(unit) a second from \(range.lowerBound) to \(range.upperBound), like "
                + "100K or 5M"
        ) { ConfigValue.rate($0).flatMap { range.contains($0) ? $0 : nil } }
    }

    mutating func milliseconds(_ key: String) -> UInt32? {
        value(key, "a duration from 1ms to 1h, like 5s or 100ms") {
            ConfigValue.milliseconds($0).flatMap {
                (1...3_600_000).contains($0) ? UInt32(exactly: $0) : nil
            }
        }
    }

    /// The numbers of the users or groups of a list; names are looked up.
    mutating func ids(_ key: String, _ kind: String, _ find: (String) -> UInt32?) -> [UInt32] {
        let words = lists[key] ?? []
        guard words.count <= ConfigLimits.listCount else {
            fail(key, "\(words.count) entries; at most \(ConfigLimits.listCount) are read")
            return []
        }
        var ids: [UInt32] = []
        for (word, location) in words {
            let number = ConfigValue.number(word)
            // The highest number means "no one" to the kernel.
            if let id = number.map({ UInt32(exactly: $0).flatMap { $0 == .max ? nil : $0 } })
                ?? find(word)
            {
                if !ids.contains(id) { ids.append(id) }
            } else {
                problems.append(
                    ConfigProblem(
                        .error, location, key: key,
                        "there is no \(kind) '\(word.shortened)'; write a name or a number"))
            }
        }
        return ids
    }
}

/// Reads entries one by one and checks them against each other at the end.
struct ConfigurationReader {
    var problems: [ConfigProblem] = []
    private var configuration = Configuration()
    private let lookup: NameLookup
    private var deviceFiles: Set<String> = []
    /// Devices for which `[Supervisor]` says whether VFIO is used.
    private var undecided: Set<String> = []

    init(lookup: NameLookup) { self.lookup = lookup }

    /// Keys whose assignments add up; an empty one starts again.
    static func isList(_ key: String) -> Bool {
        ["User", "Group", "AdminUser", "AdminGroup"].contains(key)
    }

    mutating func read(_ unit: ConfigUnit) {
        switch unit.kind {
        case .supervisor: readSupervisor(unit)
        case .device: readDevice(unit)
        case .disk: readDisk(unit)
        }
    }

    /// Keeps the problems; true when there is no error among them.
    private mutating func settle(_ unit: ConfigUnit, _ keys: KeyReader) -> Bool {
        let all = unit.problems + keys.problems
        problems += all
        return !all.contains { $0.severity == .error }
    }

    private mutating func readSupervisor(_ unit: ConfigUnit) {
        var keys = KeyReader(
            unit,
            known: [
                "Socket", "SocketMode", "MaxSessions", "AdminUser", "AdminGroup", "nvme_vfio",
                "IOMMU", "nvme_always_flr", "NVMeKeepAlive", "Pool", "PoolPath",
            ])
        var settings = SupervisorSettings()
        settings.socketPath = Self.socketPath(&keys)
        settings.socketMode = keys.value("SocketMode", "an octal mode like 0660") {
            UInt32($0, radix: 8).flatMap { $0 <= 0o777 ? $0 : nil }
        }
        settings.maxSessions = keys.number("MaxSessions", 1...65_536)
        settings.adminUsers = keys.ids("AdminUser", "user", lookup.user)
        settings.adminGroups = keys.ids("AdminGroup", "group", lookup.group)
        settings.usesVFIO = keys.boolean("nvme_vfio")
        settings.iommu = Self.iommu(&keys)
        settings.alwaysResets = keys.boolean("nvme_always_flr")
        settings.keepsAlive = keys.boolean("NVMeKeepAlive")
        let pool = keys.commonPool()
        (settings.poolBacking, settings.poolByteCount) = (pool.backing, pool.byteCount)
        settings.poolPath = keys.commonPoolPath()
        settings.location = unit.location
        if settle(unit, keys) { configuration.supervisor = settings }
    }

    /// `Socket=`: an absolute path that fits a socket's address (108 bytes with its NUL).
    private static func socketPath(_ keys: inout KeyReader) -> String? {
        keys.value("Socket", "an absolute path of at most 107 bytes") {
            $0.hasPrefix("/") && $0.utf8.count <= 107 ? $0 : nil
        }
    }

    // MARK: Devices

    private mutating func readDevice(_ unit: ConfigUnit) {
        deviceFiles.insert(unit.name)
        var keys = KeyReader(
            unit,
            known: [
                "Transport", "Socket", "Address", "Queues", "QueueDepth", "MaxTransfer", "Pool",
                "IOTimeoutSec", "AdminTimeoutSec", "nvme_vfio", "IOMMU", "nvme_always_flr",
                "InterruptAffinity", "Spin", "DataAffinity", "GuestMemory", "Size", "BlockSize",
                "NVMeKeepAlive", "PoolPath", "Quirks",
            ])
        let transport = Self.transport(&keys)
        var device = ConfiguredDevice(
            name: unit.name, location: unit.location, transport: transport ?? .null)
        device.queueCount = keys.number("Queues", 1...1024)
        device.queueDepth = keys.number("QueueDepth", 2...65_536)
        device.maxTransferByteCount = keys.byteCount("MaxTransfer", 4096...(1 << 30))
        let pool = keys.pool()
        device.poolByteCount = pool.byteCount
        device.poolIsAutomatic = pool.isAutomatic
        device.poolBacking = pool.backing
        device.poolPath = keys.poolPath()
        device.quirks = keys.quirks(transport)
        device.keepsAlive = keys.boolean("NVMeKeepAlive")
        device.ioTimeoutMilliseconds = keys.milliseconds("IOTimeoutSec")
        device.adminTimeoutMilliseconds = keys.milliseconds("AdminTimeoutSec")
        if let usesVFIO = keys.boolean("nvme_vfio") {
            device.usesVFIO = usesVFIO
        } else {
            undecided.insert(unit.name)
        }
        device.iommu = Self.iommu(&keys)
        device.alwaysResets = keys.boolean("nvme_always_flr")
        device.interruptAffinity =
            keys.value(
                "InterruptAffinity", "a list of processors like 0-3,8", ConfigValue.processors)
            ?? []
        device.spinNanoseconds = keys.value(
            "Spin", "off, always, or a time of at most 1s like 50us", ConfigValue.spinNanoseconds)
        device.dataAffinity =
            keys.value("DataAffinity", "a list of processors like 2,3", ConfigValue.processors)
            ?? []
        device.guestMemory = keys.value(
            "GuestMemory",
            "a device node and, after blanks, ranges of whole pages, like "
                + "/dev/mshv_vtl_low 0x0-0xbfffffff", ConfigValue.guestMemory)
        device.byteCount = keys.byteCount("Size", (1 << 20)...(1 << 60))
        device.blockByteCount = keys.value(
            "BlockSize", "512, 1K, 2K, 4K, 8K, 16K, 32K or 64K", ConfigValue.blockByteCount)
        if let transport { Self.checkTransportKeys(transport, &keys) }
        if let other = configuration.devices.first(where: { $0.transport == device.transport }),
            device.transport != .null
        {
            keys.fail(
                keys.has("Socket") ? "Socket" : "Address",
                "device \(other.name) (\(other.location)) has it already; one device, one file")
        }
        if configuration.devices.count >= ConfigLimits.deviceCount {
            keys.fail(
                nil,
                "there are \(ConfigLimits.deviceCount) devices already, as many as there can be")
        }
        if settle(unit, keys), transport != nil { configuration.devices.append(device) }
    }

    /// Keys that only devices of the machine have, and those that only null devices have.
    private static func checkTransportKeys(_ transport: DeviceTransport, _ keys: inout KeyReader) {
        var isPCI = false
        if case .pci = transport { isPCI = true }
        for key in ["nvme_vfio", "IOMMU", "nvme_always_flr", "InterruptAffinity", "GuestMemory"]
        where !isPCI && keys.has(key) {
            keys.fail(key, "it goes with Transport=pci only; remove it")
        }
        for key in ["Size", "BlockSize"] where transport != .null && keys.has(key) {
            keys.fail(key, "it goes with Transport=null only; remove it")
        }
    }

    private static func iommu(_ keys: inout KeyReader) -> ConfiguredIOMMU? {
        keys.value("IOMMU", "auto, type1, iommufd or noiommu") { ConfiguredIOMMU(rawValue: $0) }
    }

    private static func transport(_ keys: inout KeyReader) -> DeviceTransport? {
        guard let kind = keys.text("Transport") else {
            keys.fail("Transport", "it is missing; write vfio-user, pci or null")
            return nil
        }
        for (key, wanted) in [("Socket", "vfio-user"), ("Address", "pci")]
        where kind != wanted && keys.has(key) {
            keys.fail(key, "it goes with Transport=\(wanted) only; remove it or change Transport=")
        }
        switch kind {
        case "vfio-user":
            if !keys.has("Socket") {
                keys.fail("Socket", "it is missing; write the path of the server's socket")
            }
            return socketPath(&keys).map { .vfioUser(path: $0) }
        case "pci":
            // A device named by its address need not repeat it.
            if !keys.has("Address") {
                if let address = ConfigValue.pciAddress(keys.name) { return .pci(address: address) }
                keys.fail("Address", "it is missing; write a PCI address like 0000:01:00.0")
            }
            return keys.value("Address", "a PCI address like 0000:01:00.0", ConfigValue.pciAddress)
                .map { .pci(address: $0) }
        case "null": return .null
        default:
            keys.fail("Transport", "'\(kind.shortened)' is not vfio-user, pci or null")
            return nil
        }
    }

    // MARK: Disks

    private mutating func readDisk(_ unit: ConfigUnit) {
        var keys = KeyReader(
            unit,
            known: [
                "Device", "Namespace", "Serial", "NGUID", "EUI64", "UUID", "Access", "Shared",
                "User", "Group", "IOPSMax", "BandwidthMax",
            ])
        let device = keys.value("Device", "a device's name", { ConfigValue.isName($0) ? $0 : nil })
        let selector = Self.selector(&keys)
        var disk = ConfiguredDisk(
            name: unit.name, location: unit.location, device: device,
            selector: selector ?? .namespace(nsid: 0),
            access: keys.value("Access", "read-only or read-write") { DiskAccess(rawValue: $0) }
                ?? .readWrite,
            shared: keys.value("Shared", "yes or no", ConfigValue.boolean) ?? false,
            users: keys.ids("User", "user", lookup.user),
            groups: keys.ids("Group", "group", lookup.group))
        disk.requestsPerSecondMax = keys.rate("IOPSMax", 1...1_000_000_000, "requests")
        disk.bytesPerSecondMax = keys.rate("BandwidthMax", 65_536...1_000_000_000_000, "bytes")
        if let device, !deviceFiles.contains(device) {
            keys.fail(
                "Device",
                "there is no device '\(device)'; write \(device).device or name another "
                    + "(known: \(deviceFiles.sorted().joined(separator: " ")))")
        }
        if settle(unit, keys), selector != nil { configuration.disks.append(disk) }
    }

    private static func selector(_ keys: inout KeyReader) -> NamespaceSelector? {
        let identifiers = ["NGUID", "EUI64", "UUID"].filter { keys.has($0) }
        if identifiers.count > 1 || (!identifiers.isEmpty && keys.has("Namespace"))
            || (!identifiers.isEmpty && keys.has("Serial"))
        {
            keys.fail(
                identifiers.first,
                "the namespace is named twice; keep one of NGUID=, EUI64=, UUID=, Namespace=")
            return nil
        }
        switch identifiers.first {
        case "NGUID": return identifier(&keys, "NGUID", 16).map { .nguid($0) }
        case "EUI64": return identifier(&keys, "EUI64", 8).map { .eui64($0) }
        case "UUID": return identifier(&keys, "UUID", 16).map { .uuid($0) }
        default: break
        }
        guard keys.has("Namespace") else {
            keys.fail(
                "Namespace",
                "it is missing; write Namespace= with Device= or Serial=, or one of "
                    + "NGUID=, EUI64=, UUID=")
            return nil
        }
        // FFFFFFFFh is the broadcast namespace and FFFFFFFEh reserved.
        guard let nsid = keys.number("Namespace", 1...0xFFFF_FFFD) else { return nil }
        if let serial = keys.text("Serial") { return .serial(serial, nsid: nsid) }
        guard keys.has("Device") else {
            keys.fail("Device", "it is missing; Namespace= needs Device= or Serial=")
            return nil
        }
        return .namespace(nsid: nsid)
    }

    private static func identifier(
        _ keys: inout KeyReader, _ key: String, _ byteCount: Int
    ) -> [UInt8]? {
        keys.value(key, "\(2 * byteCount) hexadecimal digits, not all zero") {
            ConfigValue.identifier($0, byteCount: byteCount)
        }
    }

    // MARK: The whole

    mutating func finish() -> Configuration {
        warnAboutSharedNamespaces()
        for index in configuration.devices.indices {
            let supervisor = configuration.supervisor
            configuration.devices[index].iommu =
                configuration.devices[index].iommu ?? supervisor.iommu
            checkGuestMemory(configuration.devices[index])
            configuration.devices[index].alwaysResets =
                configuration.devices[index].alwaysResets ?? supervisor.alwaysResets
        }
        var pools = PoolResolution()
        configuration.devices = pools.resolve(configuration.devices, configuration.supervisor)
        problems += pools.problems
        if configuration.supervisor.usesVFIO == false {
            for index in configuration.devices.indices
            where undecided.contains(configuration.devices[index].name) {
                if case .pci = configuration.devices[index].transport {
                    configuration.devices[index].usesVFIO = false
                }
            }
        }
        if problems.count > ConfigLimits.problemCount {
            problems.removeLast(problems.count - ConfigLimits.problemCount)
        }
        configuration.problems = problems
        return configuration
    }

    /// With an IOMMU nobody's physical addresses mean anything to the device.
    private mutating func checkGuestMemory(_ device: ConfiguredDevice) {
        guard device.guestMemory != nil, device.iommu != .noiommu else { return }
        problems.append(
            ConfigProblem(
                .warning, device.location, key: "GuestMemory",
                "without IOMMU=noiommu no guest memory can be registered; remove it"))
    }

    /// Two disks of one namespace: exclusive opens of the two exclude each other only at the
    /// worker.
    private mutating func warnAboutSharedNamespaces() {
        struct Key: Hashable {
            var device: String?
            var selector: NamespaceSelector
        }
        var writers: [Key: ConfiguredDisk] = [:]
        for disk in configuration.disks where disk.access == .readWrite {
            let key = Key(device: disk.device, selector: disk.selector)
            if let other = writers[key] {
                problems.append(
                    ConfigProblem(
                        .warning, disk.location,
                        "disk \(disk.name) and disk \(other.name) (\(other.location)) write to the "
                            + "same namespace; make one Access=read-only, or remove it"))
            } else {
                writers[key] = disk
            }
        }
    }
}
