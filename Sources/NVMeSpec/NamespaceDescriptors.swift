// SPDX-License-Identifier: Apache-2.0
// The namespace identification descriptor list, CNS 03h. NVM Express Base Specification 2.0,
// section 5.17.2.3.

/// The names of a namespace that survive a change of its id.
public struct NamespaceDescriptors: Page {
    /// NIDT 1, EUI64: 8 bytes in the order they are written.
    public var eui64: [UInt8]?
    /// NIDT 2, NGUID: 16 bytes in the order they are written.
    public var nguid: [UInt8]?
    /// NIDT 3, UUID: 16 bytes in the order they are written.
    public var uuid: [UInt8]?
    /// NIDT 4, CSI: the I/O command set; 0 is NVM.
    public var csi: UInt8?

    /// A list without descriptors.
    public init() {}

    /// Parses the list. Descriptors of unknown types are skipped, the first of a type counts.
    public init(parsing bytes: [UInt8]) throws(PageError) {
        var offset = 0
        // Each turn passes at least 5 bytes, so that a page bounds the loop.
        while offset &+ 4 <= min(bytes.count, Self.pageByteCount) {
            let type = bytes[offset]
            let count = Int(bytes[offset &+ 1])
            guard count > 0 else { return }
            let end = offset &+ 4 &+ count
            guard end <= min(bytes.count, Self.pageByteCount) else {
                throw .truncated(
                    page: Self.pageName, field: "descriptor of type \(type) at byte \(offset)",
                    neededByteCount: end, byteCount: bytes.count)
            }
            try take(type, Array(bytes[(offset &+ 4)..<end]))
            offset = end
        }
        guard bytes.count >= Self.pageByteCount else {
            throw .truncated(
                page: Self.pageName, field: "descriptor at byte \(offset)",
                neededByteCount: offset &+ 4, byteCount: bytes.count)
        }
    }

    private mutating func take(_ type: UInt8, _ value: [UInt8]) throws(PageError) {
        guard let expected = Self.byteCount(ofType: type) else { return }
        guard value.count == expected else {
            throw .invalid(
                page: Self.pageName, field: "NIDL of type \(type)", value: UInt64(value.count),
                rule: "it has to be \(expected)")
        }
        switch type {
        case 1: eui64 = eui64 ?? value
        case 2: nguid = nguid ?? value
        case 3: uuid = uuid ?? value
        default: csi = csi ?? value[0]
        }
    }

    private static func byteCount(ofType type: UInt8) -> Int? {
        switch type {
        case 1: 8
        case 2, 3: 16
        case 4: 1
        default: nil
        }
    }

    /// The list as a controller returns it; names of a wrong length are left out.
    public func encode() -> [UInt8] {
        var bytes: [UInt8] = []
        let csiBytes = csi.map { [$0] }
        for (type, value) in [(UInt8(1), eui64), (2, nguid), (3, uuid), (4, csiBytes)] {
            guard let value, value.count == Self.byteCount(ofType: type) else { continue }
            bytes += [type, UInt8(truncatingIfNeeded: value.count), 0, 0] + value
        }
        return bytes + [UInt8](repeating: 0, count: Self.pageByteCount &- bytes.count)
    }

    /// The name of the page in the specification.
    public static let pageName = "Namespace Identification Descriptor list"

    /// Bytes of the whole page.
    public static let pageByteCount = 4096
}
