// SPDX-License-Identifier: Apache-2.0
// What is saved of the host, and of each device beside its controller (Proto/saved.proto).

/// Fields that this version does not know, as they were read: they are written again.
public struct UnknownFields: Sendable, Hashable {
    /// The fields as protobuf.
    public internal(set) var bytes: [UInt8] = []

    /// None.
    public init() {}
}

/// Where and when saved state was written.
public struct SavedHost: Sendable, Hashable {
    /// The machine's id, /etc/machine-id.
    public var machineID: String
    /// The boot it was written in.
    public var bootID: String
    /// The version of nvmed that wrote it.
    public var version: String
    /// CLOCK_REALTIME, nanoseconds.
    public var savedAtRealtimeNanoseconds: UInt64
    /// How many saves the state directory has seen.
    public var generation: UInt64
    /// The names of the devices, in the order of their sections. `SavedState.encode` sets it.
    public var deviceNames: [String] = []
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A host.
    public init(
        machineID: String, bootID: String, version: String, savedAtRealtimeNanoseconds: UInt64,
        generation: UInt64
    ) {
        self.machineID = machineID
        self.bootID = bootID
        self.version = version
        self.savedAtRealtimeNanoseconds = savedAtRealtimeNanoseconds
        self.generation = generation
    }
}

/// What a pool and the saved state of its device have in common, for as long as the state may be
/// restored: 16 random bytes.
public struct SaveToken: Sendable, Hashable, CustomStringConvertible {
    /// How many bytes there are.
    public static let byteCount = 16

    /// The bytes, 16 of them.
    public let bytes: [UInt8]

    /// A token; nil when these are not 16 bytes, or all are 0.
    public init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount, bytes.contains(where: { $0 != 0 }) else { return nil }
        self.bytes = bytes
    }

    /// The token of two little-endian words, as a pool has it; nil when both are 0.
    public init?(first: UInt64, second: UInt64) {
        self.init(
            bytes: [first, second].flatMap { word in
                (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) }
            })
    }

    private init(random bytes: [UInt8]) { self.bytes = bytes }

    /// The bytes as two little-endian words.
    public var words: (first: UInt64, second: UInt64) {
        func word(_ range: Range<Int>) -> UInt64 {
            bytes[range].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        return (word(0..<8), word(8..<16))
    }

    /// A token that nothing else has.
    public static func random() -> SaveToken {
        // The first bit sets it apart from all zeroes, which is what an empty pool has.
        var bytes = (0..<byteCount).map { _ in UInt8.random(in: 0...255) }
        bytes[0] |= 1
        return SaveToken(random: bytes)
    }

    /// The bytes in hexadecimal.
    public var description: String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}

/// How a device is reached.
public enum SavedTransport: UInt32, Sendable, Hashable {
    /// A vfio-user server; the address is the path of its socket.
    case vfioUser = 1
    /// Kernel VFIO; the address is a PCI address.
    case pci = 2
}

/// What tells a controller from others.
public struct SavedIdentity: Sendable, Hashable {
    /// VID of Identify Controller.
    public var vendorID: UInt32
    /// PCI device id; nil: unknown.
    public var deviceID: UInt32?
    /// PCI vendor id, which need not be the one that Identify Controller says; nil: unknown.
    public var pciVendorID: UInt32?
    /// Serial number without padding.
    public var serial: String
    /// Model without padding.
    public var model: String
    /// Firmware revision without padding.
    public var firmware: String
    /// CNTLID.
    public var controllerID: UInt32
    /// What a later version added.
    public var unknown = UnknownFields()

    /// An identity.
    public init(
        vendorID: UInt32, deviceID: UInt32?, pciVendorID: UInt32? = nil, serial: String,
        model: String, firmware: String, controllerID: UInt32
    ) {
        self.vendorID = vendorID
        self.deviceID = deviceID
        self.pciVendorID = pciVendorID
        self.serial = serial
        self.model = model
        self.firmware = firmware
        self.controllerID = controllerID
    }
}

/// A session that had commands with the device when it was saved. It is over.
public struct SavedSession: Sendable, Hashable {
    /// Its key, which commands name; the low byte is its slot.
    public var key: UInt32
    /// The supervisor's id of it.
    public var id: UInt64
    /// The message that opened it, as the state area keeps it; at most 448 bytes.
    public var opening: [UInt8]
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A session.
    public init(key: UInt32, id: UInt64, opening: [UInt8]) {
        self.key = key
        self.id = id
        self.opening = opening
    }
}

/// What a pool's memory is.
public enum SavedBacking: UInt32, Sendable, Hashable {
    /// A memory file, which does not outlive the processes.
    case memfd = 1
    /// A file of tmpfs.
    case file = 2
    /// A file of hugetlbfs.
    case hugetlb = 3
    /// A DAX device, or reserved memory.
    case dax = 4
}

/// Bytes of a pool that lie at adjacent physical addresses.
public struct SavedRun: Sendable, Hashable {
    /// The first address.
    public var address: UInt64
    /// How many, 1 or more.
    public var byteCount: UInt64
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A run.
    public init(address: UInt64, byteCount: UInt64) {
        self.address = address
        self.byteCount = byteCount
    }
}

/// An allocation of a pool.
public struct SavedSlot: Sendable, Hashable {
    /// The first page.
    public var firstPage: UInt64
    /// Pages, 1 or more.
    public var pageCount: UInt64
    /// Who has it; at most 255 bytes.
    public var owner: String
    /// What the owner calls it; at most 255 bytes.
    public var tag: String
    /// How far it had come: the DMA manager's number.
    public var state: UInt32
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A slot.
    public init(firstPage: UInt64, pageCount: UInt64, owner: String, tag: String, state: UInt32) {
        self.firstPage = firstPage
        self.pageCount = pageCount
        self.owner = owner
        self.tag = tag
        self.state = state
    }
}

/// The memory of a device.
public struct SavedPool: Sendable, Hashable {
    /// What it is.
    public var backing: SavedBacking
    /// The path of its file; empty: it has none.
    public var path: String
    /// Bytes of it.
    public var byteCount: UInt64
    /// Bytes from the start of the file to it.
    public var offset: UInt64
    /// Without an IOMMU: its physical addresses, in the order of the file; at most 65536.
    public var runs: [SavedRun]
    /// What of it is allocated; at most 65536.
    public var slots: [SavedSlot]
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A pool.
    public init(
        backing: SavedBacking, path: String, byteCount: UInt64, offset: UInt64 = 0,
        runs: [SavedRun] = [], slots: [SavedSlot] = []
    ) {
        self.backing = backing
        self.path = path
        self.byteCount = byteCount
        self.offset = offset
        self.runs = runs
        self.slots = slots
    }
}

/// What is saved of a device.
public struct SavedDevice: Sendable, Hashable {
    /// The configured name, 1 to 255 bytes.
    public var name: String
    /// How it is reached.
    public var transport: SavedTransport
    /// The socket path or PCI address.
    public var address: String
    /// The configuration in use, as the state area keeps it; at most 16384 bytes.
    public var configuration: [UInt8]
    /// What the pool has too.
    public var token: SaveToken
    /// How many workers have held the device.
    public var generation: UInt64
    /// What the controller is.
    public var identity: SavedIdentity
    /// What it has under way.
    public var controller: SavedController
    /// Where its memory is.
    public var pool: SavedPool
    /// Sessions that had commands with the device; at most 256.
    public var sessions: [SavedSession]
    /// What a later version added.
    public var unknown = UnknownFields()

    /// A device.
    public init(
        name: String, transport: SavedTransport, address: String, configuration: [UInt8],
        token: SaveToken, generation: UInt64, identity: SavedIdentity,
        controller: SavedController, pool: SavedPool, sessions: [SavedSession]
    ) {
        self.name = name
        self.transport = transport
        self.address = address
        self.configuration = configuration
        self.token = token
        self.generation = generation
        self.identity = identity
        self.controller = controller
        self.pool = pool
        self.sessions = sessions
    }
}
