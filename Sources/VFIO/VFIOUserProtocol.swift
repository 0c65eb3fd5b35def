// SPDX-License-Identifier: Apache-2.0
// The vfio-user protocol's numbers and message layouts (vfio-user specification 0.9.2, "Message
// sizes and formats").

/// Commands of the vfio-user protocol.
enum VFIOUserCommand {
    static let version: UInt16 = 1
    static let dmaMap: UInt16 = 2
    static let dmaUnmap: UInt16 = 3
    static let deviceGetInfo: UInt16 = 4
    static let deviceGetRegionInfo: UInt16 = 5
    static let deviceGetIRQInfo: UInt16 = 7
    static let deviceSetIRQs: UInt16 = 8
    static let regionRead: UInt16 = 9
    static let regionWrite: UInt16 = 10
    static let dmaRead: UInt16 = 11
    static let dmaWrite: UInt16 = 12
    static let deviceReset: UInt16 = 13

    /// The command in words, for error messages.
    static func name(_ command: UInt16) -> String {
        switch command {
        case version: "VERSION"
        case dmaMap: "DMA_MAP"
        case dmaUnmap: "DMA_UNMAP"
        case deviceGetInfo: "DEVICE_GET_INFO"
        case deviceGetRegionInfo: "DEVICE_GET_REGION_INFO"
        case deviceGetIRQInfo: "DEVICE_GET_IRQ_INFO"
        case deviceSetIRQs: "DEVICE_SET_IRQS"
        case regionRead: "REGION_READ"
        case regionWrite: "REGION_WRITE"
        case dmaRead: "DMA_READ"
        case dmaWrite: "DMA_WRITE"
        case deviceReset: "DEVICE_RESET"
        default: "command \(command)"
        }
    }
}

/// Numbers of the protocol that have no better home.
enum VFIOUser {
    static let headerByteCount = 16
    static let flagReply: UInt32 = 1
    static let flagTypeMask: UInt32 = 0xF
    static let flagNoReply: UInt32 = 1 << 4
    static let flagError: UInt32 = 1 << 5
    static let regionBAR0: UInt32 = 0
    static let regionConfig: UInt32 = 7
    static let irqMSIX: UInt32 = 2
    static let regionFlagMmap: UInt32 = 1 << 2
    static let regionFlagCaps: UInt32 = 1 << 3
    static let capabilitySparseMmap: UInt16 = 1
    /// A message larger than this is refused: requests are small, and what we ask for is at most
    /// this long.
    static let maxMessageByteCount = 1 << 16
    /// The most bytes that one DMA_READ or DMA_WRITE may move, as we tell the server: so that its
    /// message, and our answer, are whole on the socket or not there.
    static let maxTransferByteCount = 16 << 10
}

/// Little-endian bytes that grow, for messages.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func u16(_ value: UInt16) { append(UInt64(value), 2) }
    mutating func u32(_ value: UInt32) { append(UInt64(value), 4) }
    mutating func u64(_ value: UInt64) { append(value, 8) }
    mutating func raw(_ more: some Sequence<UInt8>) { bytes.append(contentsOf: more) }

    private mutating func append(_ value: UInt64, _ count: Int) {
        for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
    }
}

/// Little-endian bytes read with bounds: beyond the end, every field is nil.
struct ByteReader {
    let bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }
    init(_ bytes: [UInt8]) { self.bytes = bytes[...] }

    func u16(_ offset: Int) -> UInt16? { value(offset, 2).map { UInt16(truncatingIfNeeded: $0) } }
    func u32(_ offset: Int) -> UInt32? { value(offset, 4).map { UInt32(truncatingIfNeeded: $0) } }
    func u64(_ offset: Int) -> UInt64? { value(offset, 8) }

    private func value(_ offset: Int, _ count: Int) -> UInt64? {
        guard offset >= 0, offset <= bytes.count - count else { return nil }
        var value: UInt64 = 0
        for index in 0..<count {
            value |= UInt64(bytes[bytes.startIndex + offset + index]) << (8 * index)
        }
        return value
    }
}
