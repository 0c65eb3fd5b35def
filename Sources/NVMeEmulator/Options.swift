// SPDX-License-Identifier: Apache-2.0
// What an emulated controller is: its limits, identity and namespaces, as values.

/// A value of an option that makes no sense.
public struct OptionError: Error, Equatable, CustomStringConvertible {
    /// What is wrong and what would be right.
    public let description: String

    /// Wraps a message.
    public init(_ description: String) { self.description = description }
}

/// One namespace as it was asked for.
public struct NamespaceOptions: Sendable, Equatable {
    /// Where the blocks are.
    public enum Backing: Sendable, Equatable {
        /// A memory file of the emulator.
        case memory
        /// A file, created sparse where there is none.
        case file(String)
    }

    /// Where the blocks are.
    public var backing: Backing = .memory
    /// The size in bytes; 0 takes the size of an existing file.
    public var byteCount: UInt64 = 0
    /// The size of a block in bytes: 512 or 4096.
    public var blockByteCount: UInt32 = 512
    /// The namespace id; nil takes the first that is free.
    public var namespaceID: UInt32?
    /// The NGUID, 16 bytes; nil derives one from serial number and namespace id.
    public var nguid: [UInt8]?
    /// The EUI64, 8 bytes; nil derives one.
    public var eui64: [UInt8]?
    /// The UUID, 16 bytes; nil derives one.
    public var uuid: [UInt8]?
    /// Refuses every command that changes data.
    public var isReadOnly = false
    /// It says that it may be attached to other controllers too.
    public var isShared = false

    /// A namespace in memory of no size yet.
    public init() {}

    /// The largest namespace: what a mapping of one file may sensibly take.
    public static let maxByteCount: UInt64 = 1 << 44

    /// Parses `file=PATH,size=SIZE,block=4096` or `memory=64M,…`.
    public init(parsing text: String) throws(OptionError) {
        self.init()
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let pair = part.split(separator: "=", maxSplits: 1).map(String.init)
            try apply(pair.first ?? "", pair.count > 1 ? pair[1] : nil)
        }
        try validate()
    }

    private mutating func apply(_ key: String, _ value: String?) throws(OptionError) {
        if key == "readonly", value == nil {
            isReadOnly = true
            return
        }
        if key == "shared", value == nil {
            isShared = true
            return
        }
        guard let value, !value.isEmpty else {
            throw OptionError("namespace: '\(key)' needs a value, as in memory=64M or file=PATH")
        }
        switch key {
        case "memory":
            backing = .memory
            byteCount = try Self.byteCount(value)
        case "file": backing = .file(value)
        case "size": byteCount = try Self.byteCount(value)
        case "block":
            guard let size = UInt32(value), size == 512 || size == 4096 else {
                throw OptionError("namespace: block=\(value): blocks have 512 or 4096 bytes")
            }
            blockByteCount = size
        case "nsid":
            guard let id = UInt32(value), id > 0, id < 0xFFFF_FFFE else {
                throw OptionError("namespace: nsid=\(value): ids begin at 1")
            }
            namespaceID = id
        case "nguid": nguid = try Self.identifier(key, value, byteCount: 16)
        case "uuid": uuid = try Self.identifier(key, value, byteCount: 16)
        case "eui64": eui64 = try Self.identifier(key, value, byteCount: 8)
        default:
            throw OptionError(
                "namespace: unknown key '\(key)'; known are memory, file, size, block, nsid, "
                    + "nguid, eui64, uuid, readonly, shared")
        }
    }

    private func validate() throws(OptionError) {
        if case .memory = backing, byteCount == 0 {
            throw OptionError("namespace: give memory=SIZE, or file=PATH with size=SIZE")
        }
        guard byteCount % UInt64(blockByteCount) == 0 else {
            throw OptionError(
                "namespace: \(byteCount) bytes are no whole number of \(blockByteCount)-byte blocks"
            )
        }
        guard byteCount <= Self.maxByteCount else {
            throw OptionError("namespace: at most \(Self.maxByteCount >> 40) TiB")
        }
    }

    /// Parses a size: a number with an optional K, M, G or T (powers of 1024).
    public static func byteCount(_ text: String) throws(OptionError) -> UInt64 {
        let shifts: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
        let shift = text.last.flatMap { shifts[Character($0.uppercased())] }
        guard let number = UInt64(shift == nil ? text[...] : text.dropLast()), number > 0,
            number <= maxByteCount >> (shift ?? 0)
        else {
            throw OptionError("'\(text)' is no size: give bytes, or a number with K, M, G or T")
        }
        return number << (shift ?? 0)
    }

    private static func identifier(
        _ key: String, _ text: String, byteCount: Int
    ) throws(OptionError) -> [UInt8] {
        let digits = text.filter { $0 != "-" }.map(\.hexDigitValue)
        guard digits.count == byteCount * 2, !digits.contains(nil) else {
            throw OptionError("namespace: \(key)=\(text): give \(byteCount * 2) hex digits")
        }
        return stride(from: 0, to: digits.count, by: 2).map {
            UInt8(truncatingIfNeeded: (digits[$0] ?? 0) << 4 | (digits[$0 + 1] ?? 0))
        }
    }
}

/// How doorbells reach the emulator beside messages.
public enum DoorbellMode: String, Sendable, CaseIterable {
    /// Shadow doorbells in the client's memory; registers by message.
    case shadow
    /// The doorbell page can be mapped and is polled; shadow doorbells as well.
    case mapped
    /// Messages only: no shadow doorbells, nothing to map.
    case message
}

/// One controller and how it is served.
public struct EmulatorOptions: Sendable {
    /// Up to 20 printable characters.
    public var serial = "NVMED0001"
    /// The namespaces at start.
    public var namespaces: [NamespaceOptions] = []
    /// The largest number of namespaces there may ever be (NN).
    public var maxNamespaceCount: UInt32 = 64
    /// I/O queue pairs.
    public var ioQueueCount = 32
    /// MSI-X vectors.
    public var vectorCount = 33
    /// Entries of the largest I/O queue (CAP.MQES, but counted from one).
    public var maxQueueEntryCount: UInt32 = 1024
    /// MDTS: the largest transfer is 2^mdts pages of 4 KiB; 0 means no limit.
    public var mdts: UInt8 = 8
    /// CAP.TO in units of 500 ms.
    public var readyTimeout: UInt8 = 10
    /// Commands are served only while PCI bus mastering is on.
    public var requiresBusMaster = false

    /// How doorbells arrive.
    public var doorbells = DoorbellMode.shadow
    /// Announces a doorbell area that is not made of whole pages.
    public var unalignedSparseAreas = false
    /// Sends replies in pieces of a few bytes.
    public var shortReplies = false
    /// Sends replies this much later.
    public var replyDelayMilliseconds: UInt64 = 0
    /// Ignores the descriptors of DMA_MAP and uses DMA_READ and DMA_WRITE.
    public var dmaByMessage = false
    /// How long to look for work before sleeping.
    public var spinMicroseconds: UInt64 = 50
    /// The end of a connection is no reset: the controller goes on, and the next client finds it.
    public var keepsState = false
    /// Rules for misbehaviour from the start on.
    public var faults: [String] = []

    /// A controller without namespaces.
    public init() {}

    /// Checks what the type cannot: ranges, and rules that contradict one another.
    public func validate() throws(OptionError) {
        guard (1...20).contains(serial.utf8.count),
            serial.utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7F })
        else { throw OptionError("serial: 1 to 20 printable ASCII characters") }
        // 511 pairs and the admin pair fill the one doorbell page.
        guard (1...511).contains(ioQueueCount) else {
            throw OptionError("queues: 1 to 511 I/O queue pairs")
        }
        guard (1...2048).contains(vectorCount) else { throw OptionError("msix: 1 to 2048 vectors") }
        guard (2...65536).contains(maxQueueEntryCount) else {
            throw OptionError("mqes: 2 to 65536 entries")
        }
        guard mdts <= 20 else { throw OptionError("mdts: 0 to 20 (the exponent of 4 KiB pages)") }
        guard (1...4096).contains(maxNamespaceCount) else {
            throw OptionError("max-namespaces: 1 to 4096")
        }
        guard namespaces.count <= Int(maxNamespaceCount) else {
            throw OptionError("max-namespaces: \(namespaces.count) namespaces were given")
        }
        // Without a client nobody would answer.
        guard !keepsState || !dmaByMessage else {
            throw OptionError("keep: not together with dma-by-message")
        }
        guard spinMicroseconds <= 1_000_000 else { throw OptionError("spin-us: at most 1000000") }
        guard replyDelayMilliseconds <= 60_000 else {
            throw OptionError("reply-delay-ms: at most 60000")
        }
    }
}
