// SPDX-License-Identifier: Apache-2.0
// From configured disks to namespaces, given what the devices have: a pure function.

/// A namespace that a device was seen to have.
public struct KnownNamespace: Sendable, Hashable {
    /// The namespace id.
    public var nsid: UInt32
    /// 16 bytes, or none.
    public var nguid: [UInt8]
    /// 8 bytes, or none.
    public var eui64: [UInt8]
    /// 16 bytes, or none.
    public var uuid: [UInt8]

    /// Describes a namespace.
    public init(nsid: UInt32, nguid: [UInt8] = [], eui64: [UInt8] = [], uuid: [UInt8] = []) {
        self.nsid = nsid
        self.nguid = nguid
        self.eui64 = eui64
        self.uuid = uuid
    }
}

/// A device and what is known of it; not `isComplete` while it was never ready.
public struct KnownDevice: Sendable, Hashable {
    /// The configured name.
    public var name: String
    /// The controller's serial number without padding.
    public var serial: String
    /// Its namespaces.
    public var namespaces: [KnownNamespace]
    /// It was ready once, so that what it does not have is really absent.
    public var isComplete: Bool

    /// Describes a device.
    public init(name: String, serial: String, namespaces: [KnownNamespace], isComplete: Bool) {
        self.name = name
        self.serial = serial
        self.namespaces = namespaces
        self.isComplete = isComplete
    }
}

/// Where a disk is.
public enum Resolution: Sendable, Hashable {
    /// On this namespace.
    case resolved(device: String, nsid: UInt32)
    /// Perhaps on one of these devices, which have to be started to know. By name.
    case pending(devices: [String])
    /// Nowhere; what to do about it.
    case failed(String)
}

/// Finds the namespaces of disks.
public enum Resolver {
    /// Where a disk is, given the devices. Device and id are taken by word; everything else is
    /// searched.
    public static func resolve(_ disk: ConfiguredDisk, devices: [KnownDevice]) -> Resolution {
        let candidates = devices.filter { disk.device == nil || $0.name == disk.device }
        guard !candidates.isEmpty else {
            return .failed(
                disk.device.map { "there is no device \($0)" } ?? "there is no device at all")
        }
        var hits: [(device: String, nsid: UInt32)] = []
        for device in candidates {
            for nsid in find(disk.selector, in: device) { hits.append((device.name, nsid)) }
        }
        if let hit = hits.first {
            guard hits.count > 1 else { return .resolved(device: hit.device, nsid: hit.nsid) }
            let places = hits.prefix(4).map { "\($0.device) namespace \($0.nsid)" }
            return .failed(
                "the namespace is found \(hits.count) times (\(places.joined(separator: ", "))); "
                    + "write Device= into \(disk.location.file)")
        }
        let unknown = candidates.filter { !$0.isComplete }.map(\.name).sorted()
        if !unknown.isEmpty { return .pending(devices: unknown) }
        return .failed(
            "no device has \(disk.selector); compare with nvmectl device show, and "
                + "correct \(disk.location.file)")
    }

    /// Disks that may write and are on the same namespace: by namespace, the names of its disks.
    public static func writers(
        _ disks: [ConfiguredDisk], devices: [KnownDevice]
    ) -> [[String]] {
        var names: [Resolution: [String]] = [:]
        for disk in disks where disk.access == .readWrite {
            let place = resolve(disk, devices: devices)
            if case .resolved = place { names[place, default: []].append(disk.name) }
        }
        return names.values.filter { $0.count > 1 }.map { $0.sorted() }
            .sorted { $0.lexicographicallyPrecedes($1) }
    }

    private static func find(_ selector: NamespaceSelector, in device: KnownDevice) -> [UInt32] {
        switch selector {
        case .namespace(let nsid): [nsid]
        case .serial(let serial, let nsid): device.serial == serial ? [nsid] : []
        case .nguid(let id): device.namespaces.filter { $0.nguid == id }.map(\.nsid)
        case .eui64(let id): device.namespaces.filter { $0.eui64 == id }.map(\.nsid)
        case .uuid(let id): device.namespaces.filter { $0.uuid == id }.map(\.nsid)
        }
    }
}
