// SPDX-License-Identifier: Apache-2.0
// The numbers and layouts of the vfio-user protocol (version 0.1 of the public vfio-user
// specification) and of <linux/vfio.h>, which it carries.

/// Commands.
enum VFIOUserCommand: UInt16 {
    case version = 1
    case dmaMap = 2
    case dmaUnmap = 3
    case deviceGetInfo = 4
    case deviceGetRegionInfo = 5
    case deviceGetRegionIOFDs = 6
    case deviceGetIRQInfo = 7
    case deviceSetIRQs = 8
    case regionRead = 9
    case regionWrite = 10
    case dmaRead = 11
    case dmaWrite = 12
    case deviceReset = 13
    case regionWriteMulti = 15
    case deviceFeature = 16
}

/// Limits and flags.
enum VFIOUser {
    static let headerByteCount = 16
    static let typeMask: UInt32 = 0xF
    static let typeReply: UInt32 = 1
    static let flagNoReply: UInt32 = 0x10
    static let flagError: UInt32 = 0x20
    /// `max_data_xfer_size`: the protocol's default.
    static let maxTransferByteCount = 1 << 20
    /// The largest message: a full transfer with its headers.
    static let maxMessageByteCount = maxTransferByteCount + 64
    /// `max_msg_fds`.
    static let maxMessageFDs = 16

    static let regionCount: UInt32 = 9
    static let regionConfig: UInt32 = 7
    static let regionTable: UInt32 = 4
    static let irqCount: UInt32 = 5
    static let irqPin: UInt32 = 0
    static let irqMSIX: UInt32 = 2
    static let irqError: UInt32 = 3
    static let irqRequest: UInt32 = 4
}

/// The fixed part of every message.
struct MessageHeader: Equatable {
    var id: UInt16
    var command: UInt16
    var byteCount: UInt32
    var flags: UInt32
    var error: UInt32

    var isReply: Bool { flags & VFIOUser.typeMask == VFIOUser.typeReply }
    var isCommand: Bool { flags & VFIOUser.typeMask == 0 }
    var wantsReply: Bool { flags & VFIOUser.flagNoReply == 0 }

    init(
        id: UInt16, command: UInt16, byteCount: UInt32 = 0, flags: UInt32 = 0, error: UInt32 = 0
    ) {
        self.id = id
        self.command = command
        self.byteCount = byteCount
        self.flags = flags
        self.error = error
    }

    init?(_ bytes: ByteReader) {
        guard let id = bytes.u16(0), let command = bytes.u16(2), let byteCount = bytes.u32(4),
            let flags = bytes.u32(8), let error = bytes.u32(12)
        else { return nil }
        self.init(id: id, command: command, byteCount: byteCount, flags: flags, error: error)
    }
}

/// Reads integers out of bytes that somebody else sent; nil beyond the end.
struct ByteReader {
    let bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }

    var count: Int { bytes.count }

    private func integer(_ offset: Int, _ width: Int) -> UInt64? {
        guard offset >= 0, width <= bytes.count, offset <= bytes.count &- width else { return nil }
        var value: UInt64 = 0
        for index in 0..<width {
            let byte = bytes[bytes.startIndex &+ offset &+ index]
            value |= UInt64(byte) << (8 * UInt64(index))
        }
        return value
    }

    func u16(_ offset: Int) -> UInt16? { integer(offset, 2).map { UInt16(truncatingIfNeeded: $0) } }
    func u32(_ offset: Int) -> UInt32? { integer(offset, 4).map { UInt32(truncatingIfNeeded: $0) } }
    func u64(_ offset: Int) -> UInt64? { integer(offset, 8) }

    /// A value of up to eight bytes.
    func value(_ offset: Int, width: Int) -> UInt64? {
        width <= 8 ? integer(offset, width) : nil
    }

    /// Everything from an offset on.
    func rest(_ offset: Int) -> ArraySlice<UInt8> { bytes.dropFirst(offset) }
}

/// Appends integers, little-endian.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func u16(_ value: UInt16) { append(UInt64(value), 2) }
    mutating func u32(_ value: UInt32) { append(UInt64(value), 4) }
    mutating func u64(_ value: UInt64) { append(value, 8) }
    mutating func raw(_ content: some Sequence<UInt8>) { bytes.append(contentsOf: content) }

    private mutating func append(_ value: UInt64, _ width: UInt64) {
        for index in 0..<width { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
    }
}
